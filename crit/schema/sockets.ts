// SPDX-License-Identifier: Apache-2.0
// Sockets and what waits in them.
import { message } from "../message.js";
import { hex32, id, owned, run } from "./fields.js";
import { shutdown, skFamily, skProto, skState, skType } from "./names.js";

export const skOpts = message("sk_opts_entry", {
  ...run("uint32", 1, "so_sndbuf so_rcvbuf"),
  ...run("uint64", 3, "so_snd_tmo_sec so_snd_tmo_usec so_rcv_tmo_sec so_rcv_tmo_usec"),
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

const rawOpts = message("ip_opts_raw_entry", {
  hdrincl: [1, "bool"],
  nodefrag: [2, "bool"],
  checksum: [3, "bool"],
  icmpv_filter: [4, "uint32", "repeated"],
});
const ipOpts = message("ip_opts_entry", {
  freebind: [1, "bool"],
  raw: [4, () => rawOpts],
  pktinfo: [5, "bool"],
  tos: [6, "uint32"],
  ttl: [7, "uint32"],
});
const tcpOpts = message("tcp_opts_entry", {
  cork: [1, "bool"],
  nodelay: [2, "bool"],
  keepcnt: [3, "uint32"],
  keepidle: [4, "uint32"],
  keepintvl: [5, "uint32"],
});
export const inetSk = message("inet_sk_entry", {
  id,
  ino: [2, "uint32", "required"],
  family: [3, "uint32", "required", skFamily],
  type: [4, "uint32", "required", skType],
  proto: [5, "uint32", "required", skProto],
  state: [6, "uint32", "required", skState],
  src_port: [7, "uint32", "required"],
  dst_port: [8, "uint32", "required"],
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
  backlog: [7, "uint32", "required"],
  peer: [8, "uint32", "required"],
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
  type: [2, "uint32", "required"],
  protocol: [3, "uint32", "required"],
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
  rcv_wscale: [8, "uint32"],
  timestamp: [9, "uint32"],
  cork: [10, "bool"],
  nodelay: [11, "bool"],
  unsq_len: [12, "uint32"],
  snd_wl1: [13, "uint32"],
  snd_wnd: [14, "uint32"],
  max_window: [15, "uint32"],
  rcv_wnd: [16, "uint32"],
  rcv_wup: [17, "uint32"],
});
