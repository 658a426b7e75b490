// SPDX-License-Identifier: Apache-2.0
// The parts of CRIU 4.2's images that an overview reads; whatever else they hold is kept as unknown fields.
import { message } from "../message.js";

export const inventoryEntry = message("inventory_entry", {
  img_version: [1, "uint32", "required"],
  fdinfo_per_id: [2, "bool"],
  ns_per_id: [4, "bool"],
  root_cg_set: [5, "uint32"],
  lsmtype: [6, "enum"],
  dump_uptime: [8, "uint64"],
  pre_dump_mode: [9, "uint32"],
  tcp_close: [10, "bool"],
  network_lock_method: [11, "uint32"],
  dump_criu_run_id: [13, "string"],
  allow_uprobes: [14, "bool"],
});

export const pstreeEntry = message("pstree_entry", {
  pid: [1, "uint32", "required"],
  ppid: [2, "uint32", "required"],
  pgid: [3, "uint32", "required"],
  sid: [4, "uint32", "required"],
  threads: [5, "uint32", "repeated"],
});

const taskCoreEntry = message("task_core_entry", {
  task_state: [1, "uint32", "required"],
  exit_code: [2, "uint32", "required"],
  comm: [6, "string", "required"],
});
export const coreEntry = message("core_entry", { mtype: [1, "enum", "required"], tc: [3, () => taskCoreEntry] });

export const pagemapEntry = message("pagemap_entry", {
  vaddr: [1, "uint64", "required"],
  compat_nr_pages: [2, "uint32", "required"],
  in_parent: [3, "bool"],
  flags: [4, "uint32"],
  nr_pages: [5, "uint64"],
});

export const fileEntry = message("file_entry", { type: [1, "enum", "required"], id: [2, "uint32", "required"] });

const dumpStatsEntry = message("dump_stats_entry", {
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
export const statsEntry = message("stats_entry", { dump: [1, () => dumpStatsEntry] });
