// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per checkpoint and per namespace: inventory, statistics, page maps, cgroups, mounts, names, clocks.
import { message } from "../message.js";
import { kobjIds } from "./task.js";

const plugins = message("plugins_entry", { plugins: [12, "string", "repeated"] });
export const inventory = message("inventory_entry", {
  img_version: [1, "uint32", "required"],
  fdinfo_per_id: [2, "bool"],
  root_ids: [3, () => kobjIds],
  ns_per_id: [4, "bool"],
  root_cg_set: [5, "uint32"],
  lsmtype: [6, "enum"],
  dump_uptime: [8, "uint64"],
  pre_dump_mode: [9, "uint32"],
  tcp_close: [10, "bool"],
  network_lock_method: [11, "uint32"],
  plugins_entry: [12, () => plugins],
  dump_criu_run_id: [13, "string"],
  allow_uprobes: [14, "bool"],
});

const dumpStats = message("dump_stats_entry", {
  freezing_time: [1, "uint32", "required"],
  frozen_time: [2, "uint32", "required"],
  memdump_time: [3, "uint32", "required"],
  memwrite_time: [4, "uint32", "required"],
  pages_scanned: [5, "uint64", "required"],
  pages_skipped_parent: [6, "uint64", "required"],
  pages_written: [7, "uint64", "required"],
  irmap_resolve: [8, "uint32"],
  pages_lazy: [9, "uint64", "required"],
  page_pipes: [10, "uint64"],
  page_pipe_bufs: [11, "uint64"],
  shpages_scanned: [12, "uint64"],
  shpages_skipped_parent: [13, "uint64"],
  shpages_written: [14, "uint64"],
});
const restoreStats = message("restore_stats_entry", {
  pages_compared: [1, "uint64", "required"],
  pages_skipped_cow: [2, "uint64", "required"],
  forking_time: [3, "uint32", "required"],
  restore_time: [4, "uint32", "required"],
  pages_restored: [5, "uint64"],
});
export const stats = message("stats_entry", { dump: [1, () => dumpStats], restore: [2, () => restoreStats] });

export const pagemapHead = message("pagemap_head", { pages_id: [1, "uint32", "required"] });
export const pagemap = message("pagemap_entry", {
  vaddr: [1, "uint64", "required"],
  compat_nr_pages: [2, "uint32", "required"],
  in_parent: [3, "bool"],
  flags: [4, "uint32"],
  nr_pages: [5, "uint64"],
});

const cgroupPerms = message("cgroup_perms", {
  mode: [1, "uint32", "required"],
  uid: [2, "uint32", "required"],
  gid: [3, "uint32", "required"],
});
const cgroupProp = message("cgroup_prop_entry", {
  name: [1, "string", "required"],
  value: [2, "string", "required"],
  perms: [3, () => cgroupPerms],
});
const cgroupDir: ReturnType<typeof message> = message("cgroup_dir_entry", {
  dir_name: [1, "string", "required"],
  children: [2, () => cgroupDir, "repeated"],
  properties: [3, () => cgroupProp, "repeated"],
  dir_perms: [4, () => cgroupPerms],
});
const cgController = message("cg_controller_entry", {
  cnames: [1, "string", "repeated"],
  dirs: [2, () => cgroupDir, "repeated"],
  is_threaded: [3, "bool"],
});
const cgMember = message("cg_member_entry", {
  name: [1, "string", "required"],
  path: [2, "string", "required"],
  cgns_prefix: [3, "uint32"],
});
const cgSet = message("cg_set_entry", { id: [1, "uint32", "required"], ctls: [2, () => cgMember, "repeated"] });
export const cgroup = message("cgroup_entry", {
  sets: [1, () => cgSet, "repeated"],
  controllers: [2, () => cgController, "repeated"],
});

export const mnt = message("mnt_entry", {
  fstype: [1, "uint32", "required"],
  mnt_id: [2, "uint32", "required"],
  root_dev: [3, "uint32", "required"],
  parent_mnt_id: [4, "uint32", "required"],
  flags: [5, "uint32", "required"],
  root: [6, "string", "required"],
  mountpoint: [7, "string", "required"],
  source: [8, "string", "required"],
  options: [9, "string", "required"],
  shared_id: [10, "uint32"],
  master_id: [11, "uint32"],
  with_plugin: [12, "bool"],
  ext_mount: [13, "bool"],
  fsname: [14, "string"],
  internal_sharing: [15, "bool"],
  deleted: [16, "bool"],
  sb_flags: [17, "uint32"],
  ext_key: [18, "string"],
});

export const utsns = message("utsns_entry", {
  nodename: [1, "string", "required"],
  domainname: [2, "string", "required"],
});
const timespec = message("timespec", { tv_sec: [1, "uint64", "required"], tv_nsec: [2, "uint64", "required"] });
export const timens = message("timens_entry", {
  monotonic: [1, () => timespec, "required"],
  boottime: [2, () => timespec, "required"],
});

/** Every message above, for tests that hold them against CRIU's own descriptors. */
export const systemSchemas = [inventory, stats, pagemapHead, pagemap, cgroup, mnt, utsns, timens];
