// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per checkpoint: inventory, statistics, page maps, the machine, security policies.
import { message, type Schema } from "../message.js";
import { hex64, optional, run } from "./fields.js";
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
  ...run("uint32", 1, "freezing_time frozen_time memdump_time memwrite_time"),
  ...run("uint64", 5, "pages_scanned pages_skipped_parent pages_written"),
  irmap_resolve: [8, "uint32"],
  pages_lazy: [9, "uint64", "required"],
  ...optional("uint64", 10, "page_pipes page_pipe_bufs shpages_scanned shpages_skipped_parent shpages_written"),
});
const restoreStats = message("restore_stats_entry", {
  ...run("uint64", 1, "pages_compared pages_skipped_cow"),
  ...run("uint32", 3, "forking_time restore_time"),
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
  ...optional("uint32", 9, "xsave_size xsave_size_max"),
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
