// SPDX-License-Identifier: Apache-2.0
// What CRIU keeps per task: its identity, limits, timers, signals and memory areas.
import { message } from "../message.js";
import { hex64, lists, optional, run } from "./fields.js";
import { march, mmapFlags, mmapProt, mmapStatus, seccompMode, taskState } from "./names.js";
import { aarch64, arm, loongarch64, mips, ppc64, riscv64, s390, x86 } from "./registers.js";

export const pstree = message("pstree_entry", {
  ...run("uint32", 1, "pid ppid pgid sid"),
  threads: [5, "uint32", "repeated"],
});

export const kobjIds = message("task_kobj_ids_entry", {
  ...run("uint32", 1, "vm_id files_id fs_id sighand_id"),
  ...optional("uint32", 5, "pid_ns_id net_ns_id ipc_ns_id uts_ns_id mnt_ns_id user_ns_id cgroup_ns_id time_ns_id"),
});

export const itimer = message("itimer_entry", run("uint64", 1, "isec iusec vsec vusec"));
export const posixTimer = message("posix_timer_entry", {
  ...run("uint32", 1, "it_id clock_id si_signo it_sigev_notify"),
  sival_ptr: [5, "uint64", "required"],
  overrun: [6, "uint32", "required"],
  ...run("uint64", 7, "isec insec vsec vnsec"),
  notify_thread_id: [11, "int32"],
});
const timers = message("task_timers_entry", {
  ...run(() => itimer, 1, "real virt prof"),
  posix: [4, () => posixTimer, "repeated"],
});
export const rlimit = message("rlimit_entry", run("uint64", 1, "cur max"));
const rlimits = message("task_rlimits_entry", { rlimits: [1, () => rlimit, "repeated"] });
const siginfo = message("siginfo_entry", { siginfo: [1, "bytes", "required"] });
export const signalQueue = message("signal_queue_entry", { signals: [1, () => siginfo, "repeated"] });
export const sigaction = message("sa_entry", {
  ...run("uint64", 1, "sigaction flags restorer mask", "hex"),
  compat_sigaction: [5, "bool"],
  mask_extended: [6, "uint64", "optional", "hex"],
});

export const creds = message("creds_entry", {
  ...run("uint32", 1, "uid gid euid egid suid sgid fsuid fsgid"),
  ...lists("uint32", 9, "cap_inh cap_prm cap_eff cap_bnd"),
  secbits: [13, "uint32", "required"],
  groups: [14, "uint32", "repeated"],
  ...optional("string", 15, "lsm_profile lsm_sockcreate"),
  apparmor_data: [17, "bytes"],
  no_new_privs: [18, "uint32"],
  cap_amb: [19, "uint32", "repeated"],
});

const taskCore = message("task_core_entry", {
  task_state: [1, "uint32", "required", taskState],
  ...run("uint32", 2, "exit_code personality flags"),
  blk_sigset: hex64(5),
  comm: [6, "string", "required"],
  timers: [7, () => timers],
  rlimits: [8, () => rlimits],
  cg_set: [9, "uint32"],
  signals_s: [10, () => signalQueue],
  old_seccomp_mode: [11, "enum", "optional", seccompMode],
  ...optional("uint32", 12, "old_seccomp_filter loginuid"),
  oom_score_adj: [14, "int32"],
  sigactions: [15, () => sigaction, "repeated"],
  child_subreaper: [18, "bool"],
  blk_sigset_extended: [20, "uint64", "optional", "hex"],
  stop_signo: [21, "uint32"],
  membarrier_registration_mask: [22, "uint32", "optional", "hex"],
});
const sas = message("thread_sas_entry", {
  ...run("uint64", 1, "ss_sp ss_size"),
  ss_flags: [3, "uint32", "required"],
});
const rseq = message("rseq_entry", {
  rseq_abi_pointer: [1, "uint64", "required"],
  ...run("uint32", 2, "rseq_abi_size signature"),
  rseq_cs_pointer: [4, "uint64"],
});
const threadCore = message("thread_core_entry", {
  futex_rla: [1, "uint64", "required"],
  futex_rla_len: [2, "uint32", "required"],
  sched_nice: [3, "sint32"],
  ...optional("uint32", 4, "sched_policy sched_prio"),
  blk_sigset: [6, "uint64"],
  sas: [7, () => sas],
  pdeath_sig: [8, "uint32"],
  signals_p: [9, () => signalQueue],
  creds: [10, () => creds],
  seccomp_mode: [11, "enum", "optional", seccompMode],
  seccomp_filter: [12, "uint32"],
  comm: [13, "string"],
  blk_sigset_extended: [14, "uint64"],
  rseq_entry: [15, () => rseq],
  cg_set: [16, "uint32"],
});
export const core = message("core_entry", {
  mtype: [1, "enum", "required", march],
  thread_info: [2, () => x86],
  tc: [3, () => taskCore],
  ids: [4, () => kobjIds],
  thread_core: [5, () => threadCore],
  ti_arm: [6, () => arm],
  ti_aarch64: [8, () => aarch64],
  ti_ppc64: [9, () => ppc64],
  ti_s390: [10, () => s390],
  ti_mips: [11, () => mips],
  ti_loongarch64: [12, () => loongarch64],
  ti_riscv64: [13, () => riscv64],
});

export const vma = message("vma_entry", {
  ...run("uint64", 1, "start end", "hex"),
  ...run("uint64", 3, "pgoff shmid"),
  prot: [5, "uint32", "required", mmapProt],
  flags: [6, "uint32", "required", mmapFlags],
  status: [7, "uint32", "required", mmapStatus],
  fd: [8, "sint64", "required"],
  madv: [9, "uint64", "optional", "hex"],
  fdflags: [10, "uint32", "optional", "hex"],
});
const aioRing = message("aio_ring_entry", {
  id: [1, "uint64", "required"],
  ...run("uint32", 2, "nr_req ring_len"),
});
export const mm = message("mm_entry", {
  ...run(
    "uint64",
    1,
    "mm_start_code mm_end_code mm_start_data mm_end_data mm_start_stack mm_start_brk mm_brk mm_arg_start mm_arg_end mm_env_start mm_env_end",
    "hex",
  ),
  exe_file_id: [12, "uint32", "required"],
  mm_saved_auxv: [13, "uint64", "repeated"],
  vmas: [14, () => vma, "repeated"],
  dumpable: [15, "int32"],
  aios: [16, () => aioRing, "repeated"],
  thp_disabled: [17, "bool"],
});

export const fs = message("fs_entry", { ...run("uint32", 1, "cwd_id root_id"), umask: [3, "uint32"] });

const seccompFilter = message("seccomp_filter", {
  filter: [1, "bytes", "required"],
  ...optional("uint32", 2, "prev flags"),
});
export const seccomp = message("seccomp_entry", { seccomp_filters: [1, () => seccompFilter, "repeated"] });
