// SPDX-License-Identifier: Apache-2.0
// Files that tell of events: eventfd, epoll, signalfd, timerfd, inotify, fanotify, pidfd.
import { message } from "../message.js";
import { hex32, hex64, id, optional, owned, run } from "./fields.js";
import { markType } from "./names.js";

export const eventfd = message("eventfd_file_entry", {
  id,
  flags: [2, "uint32", "required"],
  fown: owned(3),
  counter: [4, "uint64", "required"],
});

export const epollTarget = message("eventpoll_tfd_entry", {
  ...run("uint32", 1, "id tfd events"),
  data: [4, "uint64", "required"],
  dev: [5, "uint32"],
  ...optional("uint64", 6, "inode pos"),
});
export const epoll = message("eventpoll_file_entry", {
  id,
  flags: [2, "uint32", "required"],
  fown: owned(3),
  tfd: [4, () => epollTarget, "repeated"],
});

export const signalfd = message("signalfd_entry", { id, flags: hex32(2), fown: owned(3), sigmask: hex64(4) });

export const timerfd = message("timerfd_entry", {
  id,
  flags: hex32(2),
  fown: owned(3),
  clockid: [4, "uint32", "required"],
  ticks: [5, "uint64", "required"],
  settime_flags: hex32(6),
  ...run("uint64", 7, "vsec vnsec isec insec"),
});

/** A file handle of name_to_handle_at(2), with the path that it was found at. */
const handle = message("fh_entry", {
  ...run("uint32", 1, "bytes type"),
  handle: [3, "uint64", "repeated"],
  path: [4, "string"],
  mnt_id: [5, "uint32"],
});
export const inotifyWatch = message("inotify_wd_entry", {
  id,
  i_ino: [2, "uint64", "required"],
  mask: hex32(3),
  ignored_mask: hex32(4),
  s_dev: [5, "uint32", "required", "dev"],
  wd: [6, "uint32", "required"],
  f_handle: [7, () => handle, "required"],
});
export const inotify = message("inotify_file_entry", {
  id,
  flags: hex32(2),
  fown: owned(4),
  wd: [5, () => inotifyWatch, "repeated"],
});

const inodeMark = message("fanotify_inode_mark_entry", {
  i_ino: [1, "uint64", "required"],
  f_handle: [2, () => handle, "required"],
});
const mountMark = message("fanotify_mount_mark_entry", { mnt_id: [1, "uint32", "required"], path: [2, "string"] });
export const fanotifyMark = message("fanotify_mark_entry", {
  id,
  type: [2, "enum", "required", markType],
  mflags: hex32(3),
  mask: hex32(4),
  ignored_mask: hex32(5),
  s_dev: [6, "uint32", "required", "dev"],
  ie: [7, () => inodeMark],
  me: [8, () => mountMark],
});
export const fanotify = message("fanotify_file_entry", {
  id,
  flags: hex32(2),
  fown: owned(3),
  faflags: hex32(4),
  evflags: hex32(5),
  mark: [6, () => fanotifyMark, "repeated"],
});

/** Where an inode was found; CRIU's cache of paths for inotify. */
export const irmapCache = message("irmap_cache_entry", {
  dev: [1, "uint32", "required", "odev"],
  inode: [2, "uint64", "required"],
  path: [3, "string", "required"],
});

export const pidfd = message("pidfd_entry", {
  ...run("uint32", 1, "id ino flags"),
  nspid: [4, "int32", "required"],
  fown: owned(5),
});
