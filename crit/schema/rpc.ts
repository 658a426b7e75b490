// SPDX-License-Identifier: Apache-2.0
// The requests and answers of `criu swrk` and the CRIU service, complete as of CRIU 4.2 (rpc.proto).
import { message } from "../message.js";

export const criuPageServerInfo = message("criu_page_server_info", {
  address: [1, "string"],
  port: [2, "int32"],
  pid: [3, "int32"],
  fd: [4, "int32"],
});

const vethPair = message("criu_veth_pair", { if_in: [1, "string", "required"], if_out: [2, "string", "required"] });
const extMountMap = message("ext_mount_map", { key: [1, "string", "required"], val: [2, "string", "required"] });
const joinNamespace = message("join_namespace", {
  ns: [1, "string", "required"],
  ns_file: [2, "string", "required"],
  extra_opt: [3, "string"],
});
const inheritFd = message("inherit_fd", { key: [1, "string", "required"], fd: [2, "int32", "required"] });
const cgroupRoot = message("cgroup_root", { ctrl: [1, "string"], path: [2, "string", "required"] });
const unixSk = message("unix_sk", { inode: [1, "uint32", "required"] });

export const criuOpts = message("criu_opts", {
  images_dir_fd: [1, "int32", "required"],
  pid: [2, "int32"],
  leave_running: [3, "bool"],
  ext_unix_sk: [4, "bool"],
  tcp_established: [5, "bool"],
  evasive_devices: [6, "bool"],
  shell_job: [7, "bool"],
  file_locks: [8, "bool"],
  log_level: [9, "int32"],
  log_file: [10, "string"],
  ps: [11, () => criuPageServerInfo],
  notify_scripts: [12, "bool"],
  root: [13, "string"],
  parent_img: [14, "string"],
  track_mem: [15, "bool"],
  auto_dedup: [16, "bool"],
  work_dir_fd: [17, "int32"],
  link_remap: [18, "bool"],
  veths: [19, () => vethPair, "repeated"],
  cpu_cap: [20, "uint32"],
  force_irmap: [21, "bool"],
  exec_cmd: [22, "string", "repeated"],
  ext_mnt: [23, () => extMountMap, "repeated"],
  manage_cgroups: [24, "bool"],
  cg_root: [25, () => cgroupRoot, "repeated"],
  rst_sibling: [26, "bool"],
  inherit_fd: [27, () => inheritFd, "repeated"],
  auto_ext_mnt: [28, "bool"],
  ext_sharing: [29, "bool"],
  ext_masters: [30, "bool"],
  skip_mnt: [31, "string", "repeated"],
  enable_fs: [32, "string", "repeated"],
  unix_sk_ino: [33, () => unixSk, "repeated"],
  manage_cgroups_mode: [34, "enum"],
  ghost_limit: [35, "uint32"],
  irmap_scan_paths: [36, "string", "repeated"],
  external: [37, "string", "repeated"],
  empty_ns: [38, "uint32"],
  join_ns: [39, () => joinNamespace, "repeated"],
  cgroup_props: [41, "string"],
  cgroup_props_file: [42, "string"],
  cgroup_dump_controller: [43, "string", "repeated"],
  freeze_cgroup: [44, "string"],
  timeout: [45, "uint32"],
  tcp_skip_in_flight: [46, "bool"],
  weak_sysctls: [47, "bool"],
  lazy_pages: [48, "bool"],
  status_fd: [49, "int32"],
  orphan_pts_master: [50, "bool"],
  config_file: [51, "string"],
  tcp_close: [52, "bool"],
  lsm_profile: [53, "string"],
  tls_cacert: [54, "string"],
  tls_cacrl: [55, "string"],
  tls_cert: [56, "string"],
  tls_key: [57, "string"],
  tls: [58, "bool"],
  tls_no_cn_verify: [59, "bool"],
  cgroup_yard: [60, "string"],
  pre_dump_mode: [61, "enum"],
  pidfd_store_sk: [62, "int32"],
  lsm_mount_context: [63, "string"],
  network_lock: [64, "enum"],
  mntns_compat_mode: [65, "bool"],
  skip_file_rwx_check: [66, "bool"],
  unprivileged: [67, "bool"],
  images_dir: [68, "string"],
  leave_stopped: [69, "bool"],
  display_stats: [70, "bool"],
  log_to_stderr: [71, "bool"],
});

const criuDumpResp = message("criu_dump_resp", { restored: [1, "bool"] });
const criuRestoreResp = message("criu_restore_resp", { pid: [1, "int32", "required"] });
const criuNotify = message("criu_notify", { script: [1, "string"], pid: [2, "int32"] });
const criuFeatures = message("criu_features", {
  mem_track: [1, "bool"],
  lazy_pages: [2, "bool"],
  pidfd_store: [3, "bool"],
});
const criuVersion = message("criu_version", {
  major_number: [1, "int32", "required"],
  minor_number: [2, "int32", "required"],
  gitid: [3, "string"],
  sublevel: [4, "int32"],
  extra: [5, "int32"],
  name: [6, "string"],
});

export const criuReq = message("criu_req", {
  type: [1, "enum", "required"],
  opts: [2, () => criuOpts],
  notify_success: [3, "bool"],
  keep_open: [4, "bool"],
  features: [5, () => criuFeatures],
  pid: [6, "uint32"],
});

export const criuResp = message("criu_resp", {
  type: [1, "enum", "required"],
  success: [2, "bool", "required"],
  dump: [3, () => criuDumpResp],
  restore: [4, () => criuRestoreResp],
  notify: [5, () => criuNotify],
  ps: [6, () => criuPageServerInfo],
  cr_errno: [7, "int32"],
  features: [8, () => criuFeatures],
  cr_errmsg: [9, "string"],
  version: [10, () => criuVersion],
  status: [11, "int32"],
});
