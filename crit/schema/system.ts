// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per checkpoint: inventory, statistics, page maps, the machine, security policies.
import { message, type Schema } from "../message.js";
import { hex64, run } from "./fields.js";
import { endianness, lsmtype, pagemapFlags, vendor } from "./names.js";
import { kobjIds } from "./task.js";

const plugins = message("plugins_entry", { plugins: [12, "string", "repeated"] });
export const inventory = message("inventory_entry", {
  img_version: [1, "uint32", "required"],
  fdinfo_per_id: [2, "bool"],
  root_ids: [3, () => kobjIds],
  ns_per_id: [4, "bool"],
  root_cg_set: [5, "uint32"],
  lsmtype: [6, "enum", "optional", lsmtype],
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
  vaddr: hex64(1),
  compat_nr_pages: [2, "uint32", "required"],
  in_parent: [3, "bool"],
  flags: [4, "uint32", "optional", pagemapFlags],
  nr_pages: [5, "uint64"],
});

const x86Cpu = message("cpuinfo_x86_entry", {
  vendor_id: [1, "enum", "required", vendor],
  ...run("uint32", 2, "cpu_family model stepping capability_ver"),
  capability: [6, "uint32", "repeated"],
  model_id: [7, "string"],
  xfeatures_mask: [8, "uint64"],
  xsave_size: [9, "uint32"],
  xsave_size_max: [10, "uint32"],
});
const ppc64Cpu = message("cpuinfo_ppc64_entry", {
  endian: [1, "enum", "required", endianness],
  hwcap: [2, "uint64", "repeated"],
});
const s390Cpu = message("cpuinfo_s390_entry", { hwcap: [2, "uint64", "repeated"] });
export const cpuinfo = message("cpuinfo_entry", {
  x86_entry: [1, () => x86Cpu, "repeated"],
  ppc64_entry: [2, () => ppc64Cpu, "repeated"],
  s390_entry: [3, () => s390Cpu, "repeated"],
});

const aaPolicy = message("aa_policy", { name: [1, "string", "required"], blob: [2, "bytes", "required"] });
const aaNamespace: Schema = message("aa_namespace", {
  name: [1, "string", "required"],
  policies: [2, () => aaPolicy, "repeated"],
  namespaces: [3, () => aaNamespace, "repeated"],
});
export const apparmor = message("apparmor_entry", { namespaces: [1, () => aaNamespace, "repeated"] });
