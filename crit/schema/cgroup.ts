// SPDX-License-Identifier: Apache-2.0
// Control groups: where each task was, and what the groups were set to.
import { common } from "../kind.js";
import { message } from "../message.js";
import { run } from "./fields.js";

const cgroupPerms = message("cgroup_perms", run("uint32", 1, "mode uid gid"));
const cgroupProp = message("cgroup_prop_entry", {
  ...run("string", 1, "name value"),
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
  ...run("string", 1, "name path"),
  cgns_prefix: [3, "uint32"],
});
const cgSet = message("cg_set_entry", { id: [1, "uint32", "required"], ctls: [2, () => cgMember, "repeated"] });
const cgroup = message("cgroup_entry", {
  sets: [1, () => cgSet, "repeated"],
  controllers: [2, () => cgController, "repeated"],
});

/** Here, and not in kinds.ts alone: the shim reads it, and must not load all kinds for it. */
export const cgroupKind = common(0x59383330, cgroup);
