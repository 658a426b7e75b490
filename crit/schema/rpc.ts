// SPDX-License-Identifier: Apache-2.0
// The requests and answers of `criu swrk` and the CRIU service, complete as of CRIU 4.2 (rpc.proto).
import { message } from "../message.js";
import { lists, optional, run } from "./fields.js";

export const criuPageServerInfo = message("criu_page_server_info", {
  address: [1, "string"],
  ...optional("int32", 2, "port pid fd"),
});

const vethPair = message("criu_veth_pair", { if_in: [1, "string", "required"], if_out: [2, "string", "required"] });
const extMountMap = message("ext_mount_map", { key: [1, "string", "required"], val: [2, "string", "required"] });
const joinNamespace = message("join_namespace", {
  ...run("string", 1, "ns ns_file"),
  extra_opt: [3, "string"],
});
const inheritFd = message("inherit_fd", { key: [1, "string", "required"], fd: [2, "int32", "required"] });
const cgroupRoot = message("cgroup_root", { ctrl: [1, "string"], path: [2, "string", "required"] });
const unixSk = message("unix_sk", { inode: [1, "uint32", "required"] });

export const criuOpts = message("criu_opts", {
  images_dir_fd: [1, "int32", "required"],
  pid: [2, "int32"],
  ...optional("bool", 3, "leave_running ext_unix_sk tcp_established evasive_devices shell_job file_locks"),
  log_level: [9, "int32"],
  log_file: [10, "string"],
  ps: [11, () => criuPageServerInfo],
  notify_scripts: [12, "bool"],
  ...optional("string", 13, "root parent_img"),
  ...optional("bool", 15, "track_mem auto_dedup"),
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
  ...optional("bool", 28, "auto_ext_mnt ext_sharing ext_masters"),
  ...lists("string", 31, "skip_mnt enable_fs"),
  unix_sk_ino: [33, () => unixSk, "repeated"],
  manage_cgroups_mode: [34, "enum"],
  ghost_limit: [35, "uint32"],
  ...lists("string", 36, "irmap_scan_paths external"),
  empty_ns: [38, "uint32"],
  join_ns: [39, () => joinNamespace, "repeated"],
  ...optional("string", 41, "cgroup_props cgroup_props_file"),
  cgroup_dump_controller: [43, "string", "repeated"],
  freeze_cgroup: [44, "string"],
  timeout: [45, "uint32"],
  ...optional("bool", 46, "tcp_skip_in_flight weak_sysctls lazy_pages"),
  status_fd: [49, "int32"],
  orphan_pts_master: [50, "bool"],
  config_file: [51, "string"],
  tcp_close: [52, "bool"],
  ...optional("string", 53, "lsm_profile tls_cacert tls_cacrl tls_cert tls_key"),
  ...optional("bool", 58, "tls tls_no_cn_verify"),
  cgroup_yard: [60, "string"],
  pre_dump_mode: [61, "enum"],
  pidfd_store_sk: [62, "int32"],
  lsm_mount_context: [63, "string"],
  network_lock: [64, "enum"],
  ...optional("bool", 65, "mntns_compat_mode skip_file_rwx_check unprivileged"),
  images_dir: [68, "string"],
  ...optional("bool", 69, "leave_stopped display_stats log_to_stderr"),
});

const criuDumpResp = message("criu_dump_resp", { restored: [1, "bool"] });
const criuRestoreResp = message("criu_restore_resp", { pid: [1, "int32", "required"] });
const criuNotify = message("criu_notify", { script: [1, "string"], pid: [2, "int32"] });
const criuFeatures = message("criu_features", {
  ...optional("bool", 1, "mem_track lazy_pages pidfd_store"),
});
const criuVersion = message("criu_version", {
  ...run("int32", 1, "major_number minor_number"),
  gitid: [3, "string"],
  ...optional("int32", 4, "sublevel extra"),
  name: [6, "string"],
});

export const criuReq = message("criu_req", {
  type: [1, "enum", "required"],
  opts: [2, () => criuOpts],
  ...optional("bool", 3, "notify_success keep_open"),
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
