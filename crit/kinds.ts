// SPDX-License-Identifier: Apache-2.0
// Every kind of image of CRIU 4.2, by CRIU's name for its magic. What has no magic is in raw.ts.
import { common, type Kind, roundUp, service } from "./kind.js";
import type { Message } from "./message.js";
import { cgroupKind } from "./schema/cgroup.js";
import { detached, mqueue, needsKind, pidfdOfOurs, remote, udpCork, uring } from "./schema/cryoshim.js";
import {
  bpfMap,
  bpfMapData,
  extFile,
  fdinfo,
  fifo,
  fileLock,
  file as files,
  ghostChunk,
  ghostFile,
  memfdInode,
  nsFile,
  pipe,
  pipeData,
  regFile,
  remapFilePath,
  ttyData,
  tty as ttyFile,
  ttyInfo,
  tunFile,
} from "./schema/files.js";
import {
  autofs,
  binfmtMisc,
  ipcMsg,
  ipcQueue,
  ipcSem,
  ipcShm,
  ipcVar,
  mnt,
  netDevice,
  netns,
  pidns,
  timens,
  userns,
  utsns,
} from "./schema/namespaces.js";
import {
  epoll,
  epollTarget,
  eventfd,
  fanotify,
  fanotifyMark,
  inotify,
  inotifyWatch,
  irmapCache,
  pidfd,
  signalfd,
  timerfd,
} from "./schema/notify.js";
import { inetSk, netlinkSk, packetSk, skPacket, tcpStream, unixSk } from "./schema/sockets.js";
import { apparmor, cpuinfo, inventory, pagemap, pagemapHead, stats } from "./schema/system.js";
import {
  core,
  creds,
  fs,
  itimer,
  kobjIds,
  mm,
  posixTimer,
  pstree,
  rlimit,
  seccomp,
  sigaction,
  signalQueue,
  vma,
} from "./schema/task.js";

const number = (entry: Message, field: string): number => Number(entry[field] ?? 0);
const pipeBytes = (entry: Message): number => number(entry, "bytes");

export const KINDS = {
  INVENTORY: { magic: 0x58313116, outer: undefined, entry: inventory },
  PSTREE: common(0x50273030, pstree),
  FDINFO: common(0x56213732, fdinfo),
  PAGEMAP: { ...common(0x56084025, pagemap), head: pagemapHead },
  CORE: common(0x55053847, core),
  IDS: common(0x54432030, kobjIds),
  VMAS: common(0x54123737, vma),
  PIPES: common(0x56513555, pipe),
  PIPES_DATA: { ...common(0x56453709, pipeData), extra: pipeBytes },
  FIFO: common(0x58364939, fifo),
  FIFO_DATA: { ...common(0x59333054, pipeData), extra: pipeBytes },
  SIGACT: common(0x55344201, sigaction),
  UNIXSK: common(0x54373943, unixSk),
  INETSK: common(0x56443851, inetSk),
  PACKETSK: common(0x60454618, packetSk),
  ITIMERS: common(0x57464056, itimer),
  POSIX_TIMERS: common(0x52603957, posixTimer),
  SK_QUEUES: { ...common(0x56264026, skPacket), extra: (entry: Message) => number(entry, "length") },
  UTSNS: common(0x54473203, utsns),
  CREDS: common(0x54023547, creds),
  IPC_VAR: common(0x53115007, ipcVar),
  IPCNS_SHM: {
    ...common(0x46283044, ipcShm),
    extra: (entry: Message) => (entry.in_pagemaps === true ? undefined : roundUp(number(entry, "size"), 4)),
  },
  IPCNS_MSG: {
    ...common(0x55453737, ipcQueue),
    nested: {
      schema: ipcMsg,
      count: (entry: Message) => number(entry, "qnum"),
      bytes: (nested: Message) => roundUp(number(nested, "msize"), 8),
    },
  },
  IPCNS_SEM: { ...common(0x59573019, ipcSem), extra: (entry: Message) => roundUp(2 * number(entry, "nsems"), 8) },
  REG_FILES: common(0x50363636, regFile),
  EXT_FILES: common(0x59255641, extFile),
  FS: common(0x51403912, fs),
  MM: common(0x57492820, mm),
  REMAP_FPATH: common(0x59133954, remapFilePath),
  GHOST_FILE: {
    ...common(0x52583605, ghostChunk),
    head: ghostFile,
    extra: (entry: Message, head: boolean) => {
      if (!head) return number(entry, "len");
      return entry.chunks === true ? undefined : Number.POSITIVE_INFINITY;
    },
  },
  TCP_STREAM: {
    ...common(0x51465506, tcpStream),
    extra: (entry: Message) => number(entry, "inq_len") + number(entry, "outq_len"),
  },
  EVENTFD_FILE: common(0x44523722, eventfd),
  EVENTPOLL_FILE: common(0x45023858, epoll),
  EVENTPOLL_TFD: common(0x44433746, epollTarget),
  SIGNALFD: common(0x57323820, signalfd),
  INOTIFY_FILE: common(0x48424431, inotify),
  INOTIFY_WD: common(0x54562009, inotifyWatch),
  MNTS: common(0x55563928, mnt),
  NETDEV: common(0x57373951, netDevice),
  NETNS: common(0x55933752, netns),
  TTY_FILES: common(0x59433025, ttyFile),
  TTY_INFO: common(0x59453036, ttyInfo),
  TTY_DATA: common(0x59413026, ttyData),
  FILE_LOCKS: common(0x54323616, fileLock),
  RLIMIT: common(0x57113925, rlimit),
  FANOTIFY_FILE: common(0x55096122, fanotify),
  FANOTIFY_MARK: common(0x56506035, fanotifyMark),
  SIGNAL: common(0x59255647, signalQueue),
  NETLINK_SK: common(0x58005614, netlinkSk),
  NS_FILES: common(0x61394011, nsFile),
  TUNFILE: common(0x57143751, tunFile),
  CGROUP: cgroupKind,
  TIMERFD: common(0x50493712, timerfd),
  CPUINFO: common(0x61404013, cpuinfo),
  USERNS: common(0x55474906, userns),
  SECCOMP: common(0x64413049, seccomp),
  BINFMT_MISC: common(0x67343323, binfmtMisc),
  AUTOFS: common(0x49353943, autofs),
  FILES: common(0x56303138, files),
  MEMFD_INODE: common(0x48453499, memfdInode),
  TIMENS: common(0x43114433, timens),
  PIDNS: common(0x61157326, pidns),
  BPFMAP_FILE: common(0x57506142, bpfMap),
  BPFMAP_DATA: {
    ...common(0x64324033, bpfMapData),
    extra: (entry: Message) => number(entry, "keys_bytes") + number(entry, "values_bytes"),
  },
  APPARMOR: common(0x59423047, apparmor),
  PIDFD: common(0x54435556, pidfd),
  STATS: service(0x57093306, stats),
  IRMAP_CACHE: service(0x57004059, irmapCache),
  // Ours.
  CRYOSHIM: needsKind,
  CRYOSHIM_MQUEUE: common(0x43525931, mqueue),
  CRYOSHIM_UDP: common(0x43525932, udpCork),
  CRYOSHIM_DETACHED: common(0x43525933, detached),
  CRYOSHIM_URING: common(0x43525934, uring),
  CRYOSHIM_REMOTE: common(0x43525935, remote),
  CRYOSHIM_PIDFD: common(0x43525936, pidfdOfOurs),
} as const satisfies Record<string, Kind>;

export type KindName = keyof typeof KINDS;

const byMagic = new Map<number, KindName>(Object.entries(KINDS).map(([name, kind]) => [kind.magic, name as KindName]));

/** The kind that has a magic. */
export const kindOfMagic = (magic: number): KindName | undefined => byMagic.get(magic);
