// SPDX-License-Identifier: Apache-2.0
// Sockets and what waits in them.
import { message } from "../message.js";
import { hex32, id, optional, owned, run } from "./fields.js";
import { shutdown, skFamily, skProto, skState, skType } from "./names.js";

export const skOpts = message("sk_opts_entry", {
  ...run("uint32", 1, "so_sndbuf so_rcvbuf"),
  ...run("uint64", 3, "so_snd_tmo_sec so_snd_tmo_usec so_rcv_tmo_sec so_rcv_tmo_usec"),
  reuseaddr: [7, "bool"],
  ...optional("uint32", 8, "so_priority so_rcvlowat so_mark"),
  ...optional("bool", 11, "so_passcred so_passsec so_dontroute so_no_check"),
  so_bound_dev: [15, "string"],
  so_filter: [16, "fixed64", "repeated"],
  ...optional("bool", 17, "so_reuseport so_broadcast so_keepalive"),
  ...optional("uint32", 20, "tcp_keepcnt tcp_keepidle tcp_keepintvl so_oobinline so_linger so_buf_lock"),
});

const rawOpts = message("ip_opts_raw_entry", {
  ...optional("bool", 1, "hdrincl nodefrag checksum"),
  icmpv_filter: [4, "uint32", "repeated"],
});
const ipOpts = message("ip_opts_entry", {
  freebind: [1, "bool"],
  raw: [4, () => rawOpts],
  pktinfo: [5, "bool"],
  ...optional("uint32", 6, "tos ttl"),
});
const tcpOpts = message("tcp_opts_entry", {
  ...optional("bool", 1, "cork nodelay"),
  ...optional("uint32", 3, "keepcnt keepidle keepintvl"),
});
export const inetSk = message("inet_sk_entry", {
  id,
  ino: [2, "uint32", "required"],
  family: [3, "uint32", "required", skFamily],
  type: [4, "uint32", "required", skType],
  proto: [5, "uint32", "required", skProto],
  state: [6, "uint32", "required", skState],
  ...run("uint32", 7, "src_port dst_port"),
  flags: hex32(9),
  backlog: [10, "uint32", "required"],
  src_addr: [11, "uint32", "repeated", "ip"],
  dst_addr: [12, "uint32", "repeated", "ip"],
  fown: owned(13),
  opts: [14, () => skOpts, "required"],
  v6only: [15, "bool"],
  ip_opts: [16, () => ipOpts],
  ifname: [17, "string"],
  ns_id: [18, "uint32"],
  shutdown: [19, "enum", "optional", shutdown],
  tcp_opts: [20, () => tcpOpts],
});

const filePerms = message("file_perms_entry", run("uint32", 1, "mode uid gid"));
export const unixSk = message("unix_sk_entry", {
  id,
  ino: [2, "uint32", "required"],
  type: [3, "uint32", "required", skType],
  state: [4, "uint32", "required", skState],
  flags: hex32(5),
  uflags: hex32(6),
  ...run("uint32", 7, "backlog peer"),
  fown: owned(9),
  opts: [10, () => skOpts, "required"],
  name: [11, "bytes", "required", "unix_name"],
  shutdown: [12, "enum", "optional", shutdown],
  file_perms: [13, () => filePerms],
  name_dir: [14, "string"],
  deleted: [15, "bool"],
  ns_id: [16, "uint32"],
  mnt_id: [17, "sint32"],
});

const mclist = message("packet_mclist", { ...run("uint32", 1, "index type"), addr: [3, "bytes", "required"] });
const ring = message(
  "packet_ring",
  run("uint32", 1, "block_size block_nr frame_size frame_nr retire_tmo sizeof_priv features"),
);
export const packetSk = message("packet_sock_entry", {
  id,
  ...run("uint32", 2, "type protocol"),
  flags: hex32(4),
  ifindex: [5, "uint32", "required"],
  fown: owned(6),
  opts: [7, () => skOpts, "required"],
  ...run("uint32", 8, "version reserve"),
  ...run("bool", 10, "aux_data orig_dev vnet_hdr loss"),
  ...run("uint32", 14, "timestamp copy_thresh"),
  mclist: [16, () => mclist, "repeated"],
  fanout: [17, "uint32"],
  rx_ring: [18, () => ring],
  tx_ring: [19, () => ring],
  ns_id: [20, "uint32"],
});

export const netlinkSk = message("netlink_sk_entry", {
  id,
  ...run("uint32", 2, "ino protocol state"),
  flags: hex32(6),
  portid: [7, "uint32", "required"],
  groups: [8, "uint32", "repeated"],
  ...run("uint32", 9, "dst_portid dst_group"),
  fown: owned(11),
  opts: [12, () => skOpts, "required"],
  ns_id: [13, "uint32"],
});

const scm = message("scm_entry", { type: [1, "uint32", "required"], rights: [2, "uint32", "repeated"] });
/** A packet in a socket's queue; `length` bytes follow it. */
export const skPacket = message("sk_packet_entry", {
  ...run("uint32", 1, "id_for length"),
  scm: [4, () => scm, "repeated"],
});

/** The state of a TCP connection; what was received and not read, then what was sent and not acknowledged, follow it. */
export const tcpStream = message("tcp_stream_entry", {
  ...run("uint32", 1, "inq_len inq_seq outq_len outq_seq"),
  opt_mask: hex32(5),
  ...run("uint32", 6, "snd_wscale mss_clamp"),
  ...optional("uint32", 8, "rcv_wscale timestamp"),
  ...optional("bool", 10, "cork nodelay"),
  ...optional("uint32", 12, "unsq_len snd_wl1 snd_wnd max_window rcv_wnd rcv_wup"),
});
