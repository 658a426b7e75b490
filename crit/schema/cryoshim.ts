// SPDX-License-Identifier: Apache-2.0
// Our own images, beside CRIU's and framed as they are.
import { common } from "../kind.js";
import { message } from "../message.js";
import { optional, run } from "./fields.js";

/** cryoshim.img: these images need cryoshim, and why. */
const needs = message("cryoshim_entry", {
  version: [1, "uint32", "required"],
  carriers: [2, "string", "repeated"],
});
/** Here, and not in kinds.ts alone: every restore reads it, and must not load all kinds for it. */
export const needsKind = common(0x43525930, needs);

const notify = message("cryoshim_mq_notify", {
  /** The process, by its numbers in the pid namespaces from the root task's on. */
  task: [1, "string", "required"],
  ...run("uint32", 2, "fd method signo"),
  value: [5, "uint64", "required"],
  sock_fd: [6, "uint32"],
  cookie: [7, "bytes"],
});

const file = message("cryoshim_mq_file", {
  ...run("uint32", 1, "id flags"),
});

const queue = message("cryoshim_mq_queue", {
  /** Not there: it was unlinked. */
  name: [1, "bytes"],
  ...run("uint32", 2, "mode uid gid"),
  ...run("uint64", 5, "maxmsg msgsize"),
  /** Others than the checkpointed tasks use its namespace. */
  shared: [7, "bool"],
  notify: [8, () => notify],
  files: [9, () => file, "repeated"],
});

/** Of the queue before it, in the order in which mq_receive(3) gives them. */
const queued = message("cryoshim_mq_message", {
  priority: [1, "uint32", "required"],
  data: [2, "bytes", "required"],
});

/** A thread that waits in mq_timedreceive(2) or mq_timedsend(2). */
const wait = message("cryoshim_mq_wait", {
  task: [1, "string", "required"],
  /** Where its timespec is. */
  address: [2, "uint64", "required"],
  nanoseconds_left: [3, "sint64", "required"],
});

/** One of these each. */
export const mqueue = message("cryoshim_mqueue_entry", {
  queue: [1, () => queue],
  message: [2, () => queued],
  wait: [3, () => wait],
});

/** A datagram that waits in a corked UDP socket. Addresses as CRIU has them: words as they lie in memory. */
const datagram = message("cryoshim_udp_datagram", {
  family: [1, "uint32", "required"],
  data: [2, "bytes", "required"],
  dst_addr: [3, "uint32", "repeated", "ip"],
  src_addr: [4, "uint32", "repeated", "ip"],
  ...optional("uint32", 5, "dst_port ifindex segment tos ttl hop_limit tclass flow_label"),
  options: [13, "bytes"],
});

/** A corked UDP socket, by one of its descriptors. */
export const udpCork = message("cryoshim_udp_cork", {
  task: [1, "string", "required"],
  fd: [2, "uint32", "required"],
  /** UDP_CORK; otherwise it was MSG_MORE. */
  corked: [3, "bool"],
  datagram: [4, () => datagram],
});

/** A mount that is in no namespace any more: a copy of `path` as another mount of its file system has it. */
const mount = message("cryoshim_detached_mount", {
  id: [1, "uint32", "required"],
  /** In the mount namespace of the container, or of the host. */
  host: [2, "bool"],
  path: [3, "bytes", "required"],
  /** MOUNT_ATTR_* */
  attributes: [4, "uint32", "required"],
  /** Where the copy is mounted in the container while CRIU opens files there, below a directory for all. */
  base: [5, "bytes"],
  /** Of a file system of the images: its number. */
  tree: [6, "uint32"],
  /** Its directory, for who wants to know whether it is the same one: f_fsid of statfs(2), then as in a file's `inode`. */
  mark: [7, "bytes"],
  /** In a mount namespace that is neither the container's nor the host's. */
  elsewhere: [8, "bool"],
});

/** A tmpfs that was mounted nowhere else; 0: as large as memory. */
const detachedTree = message("cryoshim_detached_tree", {
  id: [1, "uint32", "required"],
  ...run("uint64", 2, "bytes inodes"),
});

const xattr = message("cryoshim_xattr", { name: [1, "bytes", "required"], value: [2, "bytes", "required"] });

/** Of the file system before it, a directory before what is in it. */
const detachedNode = message("cryoshim_detached_node", {
  path: [1, "bytes", "required"],
  ...run("uint32", 2, "mode uid gid"),
  ...run("uint64", 5, "size rdev"),
  /** Nanoseconds. */
  ...run("sint64", 7, "atime mtime"),
  /** Another name of the node with this number in the file system. */
  link: [9, "uint32"],
  /** Of a symbolic link. */
  target: [10, "bytes"],
  xattrs: [11, () => xattr, "repeated"],
});

const detachedFile = message("cryoshim_detached_file", {
  mount: [1, "uint32", "required"],
  /** In the mount. */
  path: [2, "bytes", "required"],
  mode: [3, "uint32", "required"],
  ino: [4, "uint64", "required"],
  ids: [5, "uint32", "repeated"],
  flags: [6, "uint32", "repeated"],
  positions: [7, "uint64", "repeated"],
  /** Of a file that has no name any more, and of a socket: whose it is, how large, which device. */
  ...optional("uint32", 8, "uid gid"),
  ...optional("uint64", 11, "size rdev"),
  /** Nanoseconds. */
  ...optional("sint64", 13, "atime mtime"),
  /** Where its name is not known: name_to_handle_at(2), the type before the bytes. */
  handle: [15, "bytes"],
  /** Of a FIFO: how large it is, and what waits in it; CRIU's fifo-data.img knows FIFOs by their inodes' numbers alone. */
  pipe_size: [16, "uint32"],
  pipe: [19, "bytes"],
  /** CRIU opens it itself, for a mapping, a working directory, a root or a program: what it calls it. */
  key: [17, "string"],
  /** Whose name `path` is: name_to_handle_at(2), the type before the bytes. */
  inode: [18, "bytes"],
  /** Of a socket: what it was bound by. In files.img it is the one of this file's number. */
  bound: [20, "bytes"],
});

/** Of the file, or the node, with this number, counted from 0 through the whole image; what is not there is a hole. */
const detachedData = message("cryoshim_detached_data", {
  file: [1, "uint32"],
  node: [4, "uint32"],
  offset: [2, "uint64", "required"],
  data: [3, "bytes", "required"],
});

/** One of these each. */
export const detached = message("cryoshim_detached_entry", {
  mount: [1, () => mount],
  file: [2, () => detachedFile],
  data: [3, () => detachedData],
  tree: [4, () => detachedTree],
  node: [5, () => detachedNode],
});

/** A file system whose files are on a server. */
const remoteFs = message("cryoshim_remote_fs", {
  id: [1, "uint32", "required"],
  ...run("string", 2, "type source options"),
  /** The directory of it below which everything recorded is. */
  base: [5, "bytes", "required"],
  /** As stat(2) splits it. */
  dev: [6, "string", "required"],
});

/** Where it was mounted. */
const remoteMount = message("cryoshim_remote_mount", {
  ...run("uint32", 1, "fs mnt_id"),
  /** Under which CRIU asks for it; not there: it was in the host's own mount namespace. */
  key: [3, "bytes"],
  /** The key is ours: no runtime knows it. */
  ours: [4, "bool"],
  ...run("bytes", 5, "root point"),
  /** Options of the mount, in mountinfo's words. */
  flags: [7, "string", "required"],
});

/** A file that a restore asks for, or a directory above one. */
const remoteNode = message("cryoshim_remote_node", {
  fs: [1, "uint32", "required"],
  /** Below the file system's base; empty: the base itself. */
  path: [2, "bytes", "required"],
  ino: [3, "uint64", "required"],
  ...run("uint32", 4, "mode nlink uid gid rdev"),
  size: [9, "uint64", "required"],
  /** Nanoseconds. */
  ...run("sint64", 10, "atime mtime ctime"),
  target: [13, "bytes"],
});

/** One of these each. */
export const remote = message("cryoshim_remote_entry", {
  fs: [1, () => remoteFs],
  mount: [2, () => remoteMount],
  node: [3, () => remoteNode],
});

/** A descriptor of a process. */
const uringDescriptor = message("cryoshim_uring_descriptor", {
  task: [1, "string", "required"],
  fd: [2, "uint32", "required"],
});

const uringMapping = message("cryoshim_uring_mapping", {
  task: [1, "string", "required"],
  ...run("uint64", 2, "start length offset"),
  prot: [5, "uint32", "required"],
  /** Not copied to children (madvise(2), MADV_DONTFORK). */
  dontfork: [6, "bool"],
});

const uringBuffer = message("cryoshim_uring_buffer", {
  index: [1, "uint32", "required"],
  ...run("uint64", 2, "address length tag"),
});

/** A registered file, by a descriptor of it. */
const uringFile = message("cryoshim_uring_file", {
  index: [1, "uint32", "required"],
  tag: [2, "uint64", "required"],
  task: [3, "string"],
  fd: [4, "uint32"],
  /** Open nowhere else (a direct descriptor): opened by its name. Those of one number are one open file. */
  opened: [5, "uint32"],
  path: [6, "bytes"],
  flags: [7, "uint32"],
  position: [8, "uint64"],
  /** Its descriptor is in the images alone, and is closed when it is registered. */
  lent: [9, "bool"],
});

const uringCompletion = message("cryoshim_uring_completion", {
  user_data: [1, "uint64", "required"],
  res: [2, "sint32", "required"],
  flags: [3, "uint32", "required"],
});

const uringEventfd = message("cryoshim_uring_eventfd", {
  task: [1, "string", "required"],
  fd: [2, "uint32", "required"],
  async: [3, "bool"],
});

const uringRestrictions = message("cryoshim_uring_restrictions", {
  ...run("uint64", 1, "register_ops ops"),
  ...run("uint32", 3, "flags_allowed flags_required"),
});

const uringNapi = message("cryoshim_uring_napi", run("uint32", 1, "timeout prefer track"));

const uringProvided = message("cryoshim_uring_provided", {
  id: [1, "uint32", "required"],
  ...run("uint64", 2, "address length"),
});

/** Buffers for the kernel to choose from: a ring of them, or a list. */
const uringGroup = message("cryoshim_uring_group", {
  ...run("uint32", 1, "id entries head"),
  ring: [4, "bool"],
  incremental: [5, "bool"],
  /** In memory of the kernel's; otherwise at this address. */
  mapped: [6, "bool"],
  address: [7, "uint64"],
  provided: [8, () => uringProvided, "repeated"],
  memory: [9, "bytes"],
  /** Of an incremental one: a buffer of which less is left is done with. */
  min_left: [10, "uint32"],
});

/** What a personality is that is not what its process is: as struct cred of the kernel's has it. */
const uringCredentials = message("cryoshim_uring_credentials", {
  personality: [1, "uint32", "required"],
  /** Real, effective, saved, file system's. */
  uids: [2, "uint32", "repeated"],
  gids: [3, "uint32", "repeated"],
  groups: [4, "uint32", "repeated"],
  /** Inheritable, permitted, effective, bounding, ambient. */
  capabilities: [5, "uint64", "repeated"],
});

/** Registered memory (IORING_REGISTER_MEM_REGION): at this address of the process, or of the kernel's, with what was in it. */
const uringRegion = message("cryoshim_uring_region", {
  length: [1, "uint32", "required"],
  address: [2, "uint64"],
  memory: [3, "bytes"],
  /** Arguments of waits are in it. */
  waits: [4, "bool"],
});

/** A thread that has the ring registered (IORING_REGISTER_RING_FDS). */
const uringSlot = message("cryoshim_uring_slot", {
  task: [1, "string", "required"],
  thread: [2, "string", "required"],
  slot: [3, "uint32", "required"],
});

/** A thread with limits of its workers. */
const uringUser = message("cryoshim_uring_user", {
  task: [1, "string", "required"],
  thread: [2, "string", "required"],
  ...run("uint32", 3, "bounded unbounded"),
  /** Of its workers, where that is not all that it may use: a mask as of sched_setaffinity(2). */
  processors: [5, "bytes"],
});

/** A request in flight: what it still asks for. */
const uringRequest = message("cryoshim_uring_request", {
  /** The thread that submits it, by its number in its own pid namespace. */
  thread: [1, "uint32", "required"],
  user_data: [2, "uint64", "required"],
  /** struct io_uring_sqe, without what it points to; not there: it completes with ECANCELED. */
  sqe: [3, "bytes"],
  /** Of a timespec that it points to. */
  nanoseconds: [4, "uint64"],
  /** An iovec that it points to: addresses and lengths by turns. */
  vectors: [5, "uint64", "repeated"],
  /** It waits for a futex to be woken, whatever its value is. */
  futex: [6, "bool"],
  /** A struct epoll_event that it points to. */
  event: [7, "bytes"],
  /** Of a struct msghdr that it points to: name, name_len, control, control_len. */
  message: [8, "uint64", "repeated"],
});

/** An io_uring ring. Tasks and threads by their numbers in the pid namespaces from the root task's on. */
const uringRing = message("cryoshim_uring_ring", {
  task: [1, "string", "required"],
  /** The thread that submits; the only one where the ring has IORING_SETUP_SINGLE_ISSUER. */
  thread: [2, "string", "required"],
  fd: [3, "uint32"],
  flags: [5, "uint32", "required", "hex"],
  ...run("uint32", 6, "sq_entries cq_entries sq_head cq_tail"),
  rings: [10, "bytes", "required"],
  sqes: [11, "bytes", "required"],
  /** Of an SQPOLL thread: milliseconds, processor, and which of the threads of these images it is. */
  idle: [12, "uint32"],
  cpu: [13, "uint32"],
  poller: [14, "uint32"],
  descriptors: [15, () => uringDescriptor, "repeated"],
  mappings: [16, () => uringMapping, "repeated"],
  buffers: [17, () => uringBuffer, "repeated"],
  /** How many slots there are. */
  buffer_slots: [18, "uint32"],
  files: [19, () => uringFile, "repeated"],
  file_slots: [20, "uint32"],
  overflow: [21, () => uringCompletion, "repeated"],
  eventfd: [22, () => uringEventfd],
  restrictions: [23, () => uringRestrictions],
  napi: [24, () => uringNapi],
  workers: [25, "uint32", "repeated"],
  clock: [26, "uint32"],
  ...optional("uint32", 27, "alloc_start alloc_end"),
  personalities: [29, "uint32", "repeated"],
  groups: [30, () => uringGroup, "repeated"],
  slots: [31, () => uringSlot, "repeated"],
  requests: [32, () => uringRequest, "repeated"],
  /** Where the memory of a ring with IORING_SETUP_NO_MMAP is. */
  rings_address: [33, "uint64"],
  sqes_address: [34, "uint64"],
  /** How many submissions of its history the requests are. */
  submissions: [35, "uint32"],
  users: [36, () => uringUser, "repeated"],
  /** Of an SQPOLL thread's workers, likewise. */
  processors: [37, "bytes"],
  /** The user to whom registered memory is charged, as the kernel numbers him; not there: to nobody. */
  user: [38, "uint32"],
  region: [39, () => uringRegion],
  credentials: [40, () => uringCredentials, "repeated"],
});

export const uring = message("cryoshim_uring_entry", {
  ring: [1, () => uringRing],
});

/** A process that is not in the tree, on the host and boot where the checkpoint was taken. */
const outside = message("cryoshim_pidfd_outside", {
  pid: [1, "uint32", "required"],
  /** Its start in clock ticks since boot, and its inode in pidfs (Linux 6.9), 0 before. */
  ...run("uint64", 2, "start ino"),
  /** /proc/sys/kernel/random/boot_id */
  boot: [4, "string", "required"],
});

const place = message("cryoshim_pidfd_place", {
  ...run("uint32", 1, "task fd"),
  cloexec: [3, "bool"],
});

const watch = message("cryoshim_pidfd_watch", {
  ...run("uint32", 1, "task epoll fd events"),
  data: [5, "uint64", "required"],
});

/** A pidfd that CRIU refuses. Neither `process` nor `outside`: what it was of had ended. */
export const pidfdOfOurs = message("cryoshim_pidfd_entry", {
  ...run("uint32", 1, "id flags"),
  /** In the tree: numbers as CRIU's images have them. */
  ...optional("uint32", 3, "process thread"),
  outside: [5, () => outside],
  places: [6, () => place, "repeated"],
  watches: [7, () => watch, "repeated"],
});
