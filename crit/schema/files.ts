// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per open file: descriptors and the files behind them. Kinds of file that are not here pass through as
// unknown fields; their type is still told by `type`.
import { type Field, message } from "../message.js";

const id: Field = [1, "uint32", "required"];
const flags: Field = [2, "uint32", "required"];

export const fdinfo = message("fdinfo_entry", {
  id,
  flags,
  type: [3, "enum", "required"],
  fd: [4, "uint32", "required"],
  xattr_security_selinux: [5, "string"],
});

const fown = message("fown_entry", {
  uid: [1, "uint32", "required"],
  euid: [2, "uint32", "required"],
  signum: [3, "uint32", "required"],
  pid_type: [4, "uint32", "required"],
  pid: [5, "uint32", "required"],
});
const owned = (number: number): Field => [number, () => fown, "required"];

const regFile = message("reg_file_entry", {
  id,
  flags,
  pos: [3, "uint64", "required"],
  fown: owned(5),
  name: [6, "string", "required"],
  mnt_id: [7, "sint32"],
  size: [8, "uint64"],
  ext: [9, "bool"],
  mode: [10, "uint32"],
  build_id: [11, "uint32", "repeated"],
  checksum: [12, "uint32"],
  checksum_config: [13, "uint32"],
  checksum_parameter: [14, "uint32"],
});

const skOpts = message("sk_opts_entry", {
  so_sndbuf: [1, "uint32", "required"],
  so_rcvbuf: [2, "uint32", "required"],
  so_snd_tmo_sec: [3, "uint64", "required"],
  so_snd_tmo_usec: [4, "uint64", "required"],
  so_rcv_tmo_sec: [5, "uint64", "required"],
  so_rcv_tmo_usec: [6, "uint64", "required"],
  reuseaddr: [7, "bool"],
  so_priority: [8, "uint32"],
  so_rcvlowat: [9, "uint32"],
  so_mark: [10, "uint32"],
  so_passcred: [11, "bool"],
  so_passsec: [12, "bool"],
  so_dontroute: [13, "bool"],
  so_no_check: [14, "bool"],
  so_bound_dev: [15, "string"],
  so_filter: [16, "fixed64", "repeated"],
  so_reuseport: [17, "bool"],
  so_broadcast: [18, "bool"],
  so_keepalive: [19, "bool"],
  tcp_keepcnt: [20, "uint32"],
  tcp_keepidle: [21, "uint32"],
  tcp_keepintvl: [22, "uint32"],
  so_oobinline: [23, "uint32"],
  so_linger: [24, "uint32"],
  so_buf_lock: [25, "uint32"],
});
const inetSk = message("inet_sk_entry", {
  id,
  ino: [2, "uint32", "required"],
  family: [3, "uint32", "required"],
  type: [4, "uint32", "required"],
  proto: [5, "uint32", "required"],
  state: [6, "uint32", "required"],
  src_port: [7, "uint32", "required"],
  dst_port: [8, "uint32", "required"],
  flags: [9, "uint32", "required"],
  backlog: [10, "uint32", "required"],
  src_addr: [11, "uint32", "repeated"],
  dst_addr: [12, "uint32", "repeated"],
  fown: owned(13),
  opts: [14, () => skOpts, "required"],
  v6only: [15, "bool"],
  ifname: [17, "string"],
  ns_id: [18, "uint32"],
  shutdown: [19, "enum"],
});
const filePerms = message("file_perms_entry", {
  mode: [1, "uint32", "required"],
  uid: [2, "uint32", "required"],
  gid: [3, "uint32", "required"],
});
const unixSk = message("unix_sk_entry", {
  id,
  ino: [2, "uint32", "required"],
  type: [3, "uint32", "required"],
  state: [4, "uint32", "required"],
  flags: [5, "uint32", "required"],
  uflags: [6, "uint32", "required"],
  backlog: [7, "uint32", "required"],
  peer: [8, "uint32", "required"],
  fown: owned(9),
  opts: [10, () => skOpts, "required"],
  name: [11, "bytes", "required"],
  shutdown: [12, "enum"],
  file_perms: [13, () => filePerms],
  name_dir: [14, "string"],
  deleted: [15, "bool"],
  ns_id: [16, "uint32"],
  mnt_id: [17, "sint32"],
});
const nsFile = message("ns_file_entry", {
  id,
  ns_id: [2, "uint32", "required"],
  ns_cflag: [3, "uint32", "required"],
  flags: [4, "uint32", "required"],
});
const pipe = message("pipe_entry", {
  id,
  pipe_id: [2, "uint32", "required"],
  flags: [3, "uint32", "required"],
  fown: owned(4),
});
const fifo = message("fifo_entry", { id, pipe_id: [2, "uint32", "required"], regf_id: [3, "uint32"] });
const tty = message("tty_file_entry", {
  id,
  tty_info_id: [2, "uint32", "required"],
  flags: [3, "uint32", "required"],
  fown: owned(4),
  regf_id: [6, "uint32"],
});
const eventfd = message("eventfd_file_entry", { id, flags, fown: owned(3), counter: [4, "uint64", "required"] });

export const file = message("file_entry", {
  type: [1, "enum", "required"],
  id: [2, "uint32", "required"],
  reg: [3, () => regFile],
  isk: [4, () => inetSk],
  nsf: [5, () => nsFile],
  efd: [8, () => eventfd],
  usk: [16, () => unixSk],
  fifo: [17, () => fifo],
  pipe: [18, () => pipe],
  tty: [19, () => tty],
});

export const pipeData = message("pipe_data_entry", {
  pipe_id: [1, "uint32", "required"],
  bytes: [2, "uint32", "required"],
  size: [3, "uint32"],
});

/** Names of fd_types, by number. */
export const FILE_TYPES = (
  "undefined regular pipe fifo inet unix eventfd eventpoll inotify signalfd packet tty fanotify netlink namespace tun " +
  "external timerfd memfd bpfmap pidfd"
).split(" ");

/** Every message above, for tests that hold them against CRIU's own descriptors. */
export const fileSchemas = [fdinfo, file, pipeData];
