// SPDX-License-Identifier: Apache-2.0
// How values are shown: names of enums, of bits and of numbers, as CRIU's own tools write them in JSON.
import type { Names, Show } from "../message.js";

/** Names of consecutive numbers from `first`. */
const from = (first: number, list: string): Names =>
  Object.fromEntries(list.split(" ").map((name, index) => [first + index, name]));

const enumOf = (names: Names): Show => ({ enum: names });
const flagsOf = (map: string, bits: Record<string, number>): Show => ({ flags: map, bits });
const dictOf = (dict: string, names: Names): Show => ({ dict, names });

export const FD_TYPE_NAMES: Names = {
  ...from(
    0,
    "UND REG PIPE FIFO INETSK UNIXSK EVENTFD EVENTPOLL INOTIFY SIGNALFD PACKETSK TTY FANOTIFY NETLINKSK NS TUNF EXT TIMERFD MEMFD BPFMAP PIDFD",
  ),
  65534: "CTL_TTY",
  65535: "AUTOFS_PIPE",
};
export const FSTYPE_NAMES: Names = {
  ...from(
    0,
    "UNSUPPORTED PROC SYSFS DEVTMPFS BINFMT_MISC TMPFS DEVPTS SIMFS PSTORE SECURITYFS FUSECTL DEBUGFS CGROUP AUFS MQUEUE FUSE AUTO OVERLAYFS AUTOFS TRACEFS",
  ),
  23: "CGROUP2",
};

export const fdTypes = enumOf(FD_TYPE_NAMES);
export const march = enumOf(from(0, "UNKNOWN X86_64 ARM AARCH64 PPC64 S390 MIPS LOONGARCH64 RISCV64"));
export const regsMode = enumOf(from(1, "NATIVE COMPAT"));
export const seccompMode = enumOf(from(0, "disabled strict filter"));
export const vendor = enumOf(from(0, "UNKNOWN INTEL AMD"));
export const endianness = enumOf(from(0, "BIGENDIAN LITTLEENDIAN"));
export const markType = enumOf(from(1, "INODE MOUNT"));
export const lsmtype = enumOf(from(0, "NO_LSM SELINUX APPARMOR"));
export const ndType = enumOf(from(1, "LOOPBACK VETH TUN EXTLINK VENET BRIDGE MACVLAN SIT"));
export const remapType = enumOf(from(0, "LINKED GHOST PROCFS"));
export const shutdown = enumOf(from(0, "NONE READ WRITE BOTH"));
export const sysctlType = enumOf(from(5, "CTL_STR CTL_32"));
export const ttyType = enumOf(from(0, "UNKNOWN PTY CONSOLE VT CTTY EXT_TTY SERIAL"));

export const taskState = dictOf("gen", { 1: "Alive", 3: "Zombie", 6: "Stopped" });
export const skFamily = dictOf("sk", { 1: "UNIX", 2: "INET", 10: "INET6", 16: "NETLINK", 17: "PACKET" });
export const skType = dictOf("sk", { 1: "STREAM", 2: "DGRAM", 3: "RAW", 5: "SEQPACKET", 10: "PACKET" });
export const skProto = dictOf("sk", { 0: "IP", 6: "TCP", 17: "UDP", 136: "UDPLITE" });
export const skState = dictOf(
  "sk",
  from(1, "ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN"),
);

export const mmapProt = flagsOf("mmap.prot", { PROT_READ: 1, PROT_WRITE: 2, PROT_EXEC: 4 });
export const mmapFlags = flagsOf("mmap.flags", {
  MAP_SHARED: 1,
  MAP_PRIVATE: 2,
  MAP_DROPPABLE: 8,
  MAP_ANON: 0x20,
  MAP_GROWSDOWN: 0x100,
});
export const mmapStatus = flagsOf("mmap.status", {
  VMA_AREA_NONE: 0,
  VMA_AREA_REGULAR: 2 ** 0,
  VMA_AREA_STACK: 2 ** 1,
  VMA_AREA_VSYSCALL: 2 ** 2,
  VMA_AREA_VDSO: 2 ** 3,
  VMA_AREA_HEAP: 2 ** 5,
  VMA_FILE_PRIVATE: 2 ** 6,
  VMA_FILE_SHARED: 2 ** 7,
  VMA_ANON_SHARED: 2 ** 8,
  VMA_ANON_PRIVATE: 2 ** 9,
  VMA_AREA_SYSVIPC: 2 ** 10,
  VMA_AREA_SOCKET: 2 ** 11,
  VMA_AREA_VVAR: 2 ** 12,
  VMA_AREA_AIORING: 2 ** 13,
  VMA_AREA_MEMFD: 2 ** 14,
  VMA_AREA_SHSTK: 2 ** 15,
  VMA_AREA_UPROBES: 2 ** 17,
  VMA_UNSUPP: 2 ** 31,
});
export const openFlags = flagsOf("rfile.flags", {
  O_WRONLY: 0o1,
  O_RDWR: 0o2,
  O_CREAT: 0o100,
  O_EXCL: 0o200,
  O_NOCTTY: 0o400,
  O_TRUNC: 0o1000,
  O_APPEND: 0o2000,
  O_NONBLOCK: 0o4000,
  O_DSYNC: 0o10000,
  FASYNC: 0o20000,
  O_DIRECT: 0o40000,
  O_LARGEFILE: 0o100000,
  O_DIRECTORY: 0o200000,
  O_NOFOLLOW: 0o400000,
  O_NOATIME: 0o1000000,
  O_CLOEXEC: 0o2000000,
});
export const seals = flagsOf("seals.flags", {
  F_SEAL_SEAL: 1,
  F_SEAL_SHRINK: 2,
  F_SEAL_GROW: 4,
  F_SEAL_WRITE: 8,
  F_SEAL_FUTURE_WRITE: 16,
});
export const pagemapFlags = flagsOf("pmap.flags", { PE_PARENT: 1, PE_LAZY: 2, PE_PRESENT: 4 });
