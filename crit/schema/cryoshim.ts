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
  /** Of a file that has no name any more: whose it is, how large, which device. */
  ...optional("uint32", 8, "uid gid"),
  ...optional("uint64", 11, "size rdev"),
  /** Nanoseconds. */
  ...optional("sint64", 13, "atime mtime"),
  /** Where its name is not known: name_to_handle_at(2), the type before the bytes. */
  handle: [15, "bytes"],
  /** Of a FIFO: whose contents in fifo-data.img are to be put back. */
  pipe_id: [16, "uint32"],
});

/** Of the file with this number, counted from 0; what is not there is a hole. */
const detachedData = message("cryoshim_detached_data", {
  file: [1, "uint32", "required"],
  offset: [2, "uint64", "required"],
  data: [3, "bytes", "required"],
});

/** One of these each. */
export const detached = message("cryoshim_detached_entry", {
  mount: [1, () => mount],
  file: [2, () => detachedFile],
  data: [3, () => detachedData],
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
