// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per open file: descriptors and the files behind them.
import { type Field, message } from "../message.js";
import { hex32, id, optional, owned, run } from "./fields.js";
import { fdTypes, openFlags, remapType, seals, ttyType } from "./names.js";
import { epoll, eventfd, fanotify, inotify, pidfd, signalfd, timerfd } from "./notify.js";
import { inetSk, netlinkSk, packetSk, unixSk } from "./sockets.js";

export const fdinfo = message("fdinfo_entry", {
  id,
  flags: [2, "uint32", "required"],
  type: [3, "enum", "required", fdTypes],
  fd: [4, "uint32", "required"],
  xattr_security_selinux: [5, "string"],
});

/** What every file has that open(2) gave. */
const opened: Record<string, Field> = {
  id,
  flags: [2, "uint32", "required", openFlags],
  pos: [3, "uint64", "required"],
};
export const regFile = message("reg_file_entry", {
  ...opened,
  fown: owned(5),
  name: [6, "string", "required"],
  mnt_id: [7, "sint32"],
  size: [8, "uint64"],
  ext: [9, "bool"],
  mode: [10, "uint32"],
  build_id: [11, "uint32", "repeated"],
  ...optional("uint32", 12, "checksum checksum_config checksum_parameter"),
});
export const extFile = message("ext_file_entry", { id, fown: owned(5) });
export const nsFile = message("ns_file_entry", run("uint32", 1, "id ns_id ns_cflag flags"));

export const pipe = message("pipe_entry", { ...run("uint32", 1, "id pipe_id"), flags: hex32(3), fown: owned(4) });
export const fifo = message("fifo_entry", { ...run("uint32", 1, "id pipe_id"), regf_id: [3, "uint32"] });
/** What is in a pipe or FIFO; `bytes` bytes follow it. */
export const pipeData = message("pipe_data_entry", { ...run("uint32", 1, "pipe_id bytes"), size: [3, "uint32"] });

export const tty = message("tty_file_entry", {
  ...run("uint32", 1, "id tty_info_id"),
  flags: hex32(3),
  fown: owned(4),
  regf_id: [6, "uint32"],
});
const winsize = message("winsize_entry", run("uint32", 1, "ws_row ws_col ws_xpixel ws_ypixel"));
const termios = message("termios_entry", {
  ...run("uint32", 1, "c_iflag c_oflag c_cflag c_lflag c_line c_ispeed c_ospeed"),
  c_cc: [8, "uint32", "repeated"],
});
const pty = message("tty_pty_entry", run("uint32", 1, "index"));
export const ttyInfo = message("tty_info_entry", {
  id,
  type: [2, "enum", "required", ttyType],
  ...run("bool", 3, "locked exclusive packet_mode"),
  ...run("uint32", 6, "sid pgrp rdev"),
  termios: [9, () => termios],
  termios_locked: [10, () => termios],
  winsize: [11, () => winsize],
  pty: [12, () => pty],
  ...optional("uint32", 13, "dev uid gid"),
});
export const ttyData = message("tty_data_entry", { ...run("uint32", 1, "tty_id"), data: [2, "bytes", "required"] });

export const tunFile = message("tunfile_entry", {
  id,
  netdev: [2, "string"],
  detached: [3, "bool"],
  ns_id: [4, "uint32"],
});

const memfd = message("memfd_file_entry", {
  ...opened,
  fown: owned(4),
  inode_id: [5, "uint32", "required"],
});
export const memfdInode = message("memfd_inode_entry", {
  name: [1, "string", "required"],
  ...run("uint32", 2, "uid gid"),
  size: [4, "uint64", "required"],
  shmid: [5, "uint32", "required"],
  seals: [6, "uint32", "required", seals],
  inode_id: [7, "uint64", "required"],
  ...optional("uint32", 8, "hugetlb_flag mode"),
});

export const bpfMap = message("bpfmap_file_entry", {
  ...opened,
  fown: owned(4),
  ...run("uint32", 5, "map_type key_size value_size map_id max_entries map_flags"),
  memlock: [11, "uint64", "required"],
  frozen: [12, "bool", "required"],
  map_name: [13, "string", "required"],
  ifindex: [14, "uint32", "required"],
  mnt_id: [15, "sint32"],
  map_extra: [16, "uint64"],
});
/** What is in a BPF map; all its keys, then all its values, follow it. */
export const bpfMapData = message("bpfmap_data_entry", run("uint32", 1, "map_id keys_bytes values_bytes count"));

export const file = message("file_entry", {
  type: [1, "enum", "required", fdTypes],
  id: [2, "uint32", "required"],
  reg: [3, () => regFile],
  isk: [4, () => inetSk],
  nsf: [5, () => nsFile],
  psk: [6, () => packetSk],
  nlsk: [7, () => netlinkSk],
  efd: [8, () => eventfd],
  epfd: [9, () => epoll],
  sgfd: [10, () => signalfd],
  tunf: [11, () => tunFile],
  tfd: [12, () => timerfd],
  ify: [13, () => inotify],
  ffy: [14, () => fanotify],
  ext: [15, () => extFile],
  usk: [16, () => unixSk],
  fifo: [17, () => fifo],
  pipe: [18, () => pipe],
  tty: [19, () => tty],
  memfd: [20, () => memfd],
  bpf: [21, () => bpfMap],
  pidfd: [22, () => pidfd],
});

const timeval = message("timeval", run("uint64", 1, "tv_sec tv_usec"));
/** A deleted file that is still open. Its contents follow it: all of the rest, or in chunks that each say how long. */
export const ghostFile = message("ghost_file_entry", {
  ...run("uint32", 1, "uid gid mode"),
  dev: [4, "uint32", "optional", "dev"],
  ino: [5, "uint64"],
  rdev: [6, "uint32", "optional", "odev"],
  atim: [7, () => timeval],
  mtim: [8, () => timeval],
  chunks: [9, "bool"],
  size: [10, "uint64"],
  symlnk_target: [11, "string"],
});
export const ghostChunk = message("ghost_chunk_entry", run("uint64", 1, "len off"));

export const remapFilePath = message("remap_file_path_entry", {
  ...run("uint32", 1, "orig_id remap_id"),
  remap_type: [3, "enum", "optional", remapType],
});

export const fileLock = message("file_lock_entry", {
  ...run("uint32", 1, "flag type"),
  ...run("int32", 3, "pid fd"),
  ...run("int64", 5, "start len"),
});

/** Names of fd_types for people, by number. */
export const FILE_TYPES = (
  "undefined regular pipe fifo inet unix eventfd eventpoll inotify signalfd packet tty fanotify netlink namespace tun " +
  "external timerfd memfd bpfmap pidfd"
).split(" ");
