// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per namespace: mounts, network devices, System V IPC, names, clocks, identities.
import { message } from "../message.js";
import { hex32, lists, optional, run } from "./fields.js";
import { ndType, sysctlType } from "./names.js";

export const mnt = message("mnt_entry", {
  ...run("uint32", 1, "fstype mnt_id"),
  root_dev: [3, "uint32", "required", "dev"],
  parent_mnt_id: [4, "uint32", "required"],
  flags: hex32(5),
  ...run("string", 6, "root mountpoint source options"),
  ...optional("uint32", 10, "shared_id master_id"),
  ...optional("bool", 12, "with_plugin ext_mount"),
  fsname: [14, "string"],
  ...optional("bool", 15, "internal_sharing deleted"),
  sb_flags: [17, "uint32", "optional", "hex"],
  ext_key: [18, "string"],
});

export const binfmtMisc = message("binfmt_misc_entry", {
  name: [1, "string", "required"],
  enabled: [2, "bool", "required"],
  interpreter: [3, "string", "required"],
  ...optional("string", 4, "flags extension magic mask"),
  offset: [8, "int32"],
});
export const autofs = message("autofs_entry", {
  ...run("int32", 1, "fd pgrp timeout minproto maxproto mode"),
  ...optional("int32", 7, "uid gid read_fd"),
});

const sysctl = message("sysctl_entry", {
  type: [1, "enum", "required", sysctlType],
  iarg: [2, "int32"],
  sarg: [3, "string"],
});
const tunLink = message("tun_link_entry", {
  flags: hex32(1),
  ...run("int32", 2, "owner group"),
  ...run("uint32", 4, "vnethdr sndbuf"),
});
const macvlan = message("macvlan_link_entry", { mode: [1, "uint32", "required"], flags: [2, "uint32"] });
const sit = message("sit_entry", {
  link: [1, "uint32"],
  local: [2, "uint32", "repeated", "ip"],
  remote: [3, "uint32", "repeated", "ip"],
  ...optional("uint32", 4, "ttl tos"),
  pmtudisc: [6, "bool"],
  ...optional("uint32", 7, "proto flags encap_type encap_flags encap_sport encap_dport rd_prefixlen"),
  rd_prefix: [14, "uint32", "repeated", "ip"],
  relay_prefixlen: [15, "uint32"],
  relay_prefix: [16, "uint32", "repeated", "ip"],
});
export const netDevice = message("net_device_entry", {
  type: [1, "enum", "required", ndType],
  ...run("uint32", 2, "ifindex mtu"),
  flags: hex32(4),
  name: [5, "string", "required"],
  tun: [6, () => tunLink],
  address: [7, "bytes"],
  conf: [8, "int32", "repeated"],
  conf4: [9, () => sysctl, "repeated"],
  conf6: [10, () => sysctl, "repeated"],
  macvlan: [11, () => macvlan],
  ...optional("uint32", 12, "peer_ifindex peer_nsid master"),
  sit: [15, () => sit],
});
const netnsId = message("netns_id", {
  target_ns_id: [1, "uint32", "required"],
  netnsid_value: [2, "int32", "required"],
});
export const netns = message("netns_entry", {
  ...lists("int32", 1, "def_conf all_conf"),
  def_conf4: [3, () => sysctl, "repeated"],
  all_conf4: [4, () => sysctl, "repeated"],
  def_conf6: [5, () => sysctl, "repeated"],
  all_conf6: [6, () => sysctl, "repeated"],
  nsids: [7, () => netnsId, "repeated"],
  ext_key: [8, "string"],
  unix_conf: [9, () => sysctl, "repeated"],
  ipv4_sysctl: [10, () => sysctl, "repeated"],
});

const ipcDesc = message("ipc_desc_entry", run("uint32", 1, "key uid gid cuid cgid mode id"));
/** A message in a queue; `msize` bytes follow it, filled up to eight. */
export const ipcMsg = message("ipc_msg", { mtype: [1, "uint64", "required"], msize: [2, "uint32", "required"] });
/** A queue; its `qnum` messages follow it. */
export const ipcQueue = message("ipc_msg_entry", {
  desc: [1, () => ipcDesc, "required"],
  ...run("uint32", 2, "qbytes qnum"),
});
/** A set of semaphores; their `nsems` 16-bit values follow it, filled up to eight bytes. */
export const ipcSem = message("ipc_sem_entry", {
  desc: [1, () => ipcDesc, "required"],
  nsems: [2, "uint32", "required"],
});
/** A shared memory segment; its contents are pages of their own, or (older CRIUs) follow it, filled up to four bytes. */
export const ipcShm = message("ipc_shm_entry", {
  desc: [1, () => ipcDesc, "required"],
  size: [2, "uint64", "required"],
  in_pagemaps: [3, "bool"],
  hugetlb_flag: [4, "uint32"],
});
export const ipcVar = message("ipc_var_entry", {
  sem_ctls: [1, "uint32", "repeated"],
  ...run("uint32", 2, "msg_ctlmax msg_ctlmnb msg_ctlmni auto_msgmni"),
  ...run("uint64", 6, "shm_ctlmax shm_ctlall"),
  ...run("uint32", 8, "shm_ctlmni shm_rmid_forced mq_queues_max mq_msg_max mq_msgsize_max"),
  ...optional("uint32", 13, "mq_msg_default mq_msgsize_default msg_next_id sem_next_id shm_next_id"),
});

export const utsns = message("utsns_entry", run("string", 1, "nodename domainname"));
const timespec = message("timespec", run("uint64", 1, "tv_sec tv_nsec"));
export const timens = message(
  "timens_entry",
  run(() => timespec, 1, "monotonic boottime"),
);
export const pidns = message("pidns_entry", { ext_key: [1, "string"] });
const idRange = message("uid_gid_extent", run("uint32", 1, "first lower_first count"));
export const userns = message("userns_entry", {
  uid_map: [1, () => idRange, "repeated"],
  gid_map: [2, () => idRange, "repeated"],
});
