// SPDX-License-Identifier: Apache-2.0
// Restore on hosts where cgroup v1 hierarchies live beside cgroup2. crun tells CRIU one cgroup root for all
// controllers; where it placed the container in cgroup2 only, CRIU then makes the same directories in every v1
// hierarchy too and fails in cpuset ("Failed writing ... to cpuset.cpus: Permission denied", criu/cgroup.c). Naming
// each v1 controller's own root beats the general one: CRIU then leaves v1 as the images have it.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readCgroupImage } from "../../crit/cgroup-image.js";
import type { Settings } from "../engine/launch-file.js";
import type { Log } from "./log.js";
import { CG_MODE } from "./request.js";

/** The parts of criu_opts that speak of cgroups. */
interface CgroupOptions {
  cg_root?: { ctrl?: string; path: string }[];
  manage_cgroups?: boolean;
  manage_cgroups_mode?: number;
}

/** The v1 hierarchies of a process: controller -> path. The empty name is cgroup2's. */
const cgroupsOf = (pid: number): Map<string, string> => {
  const paths = new Map<string, string>();
  for (const line of readFileSync(`/proc/${pid}/cgroup`, "utf8").split("\n")) {
    const [, controllers, ...path] = line.split(":");
    if (controllers === undefined) continue;
    for (const controller of controllers.split(",")) paths.set(controller, path.join(":"));
  }
  return paths;
};

/** Names the v1 roots for which the runtime's one general root is wrong. */
const nameV1Roots = (opts: CgroupOptions, clientPid: number, imagesDir: string): string[] => {
  if (!opts.cg_root?.some(({ ctrl }) => ctrl === undefined || ctrl === "")) return [];
  const host = cgroupsOf(clientPid);
  const image = readCgroupImage(join(imagesDir, "cgroup.img"));
  const unified = image?.get("");
  if (!host.has("") || image === undefined || unified === undefined) return [];
  const named: string[] = [];
  for (const [ctrl, path] of host) {
    const recorded = image.get(ctrl);
    // Placed by the runtime in this hierarchy too: the general root is meant for it.
    if (ctrl === "" || recorded === undefined || recorded === unified) continue;
    opts.cg_root.push({ ctrl, path });
    named.push(ctrl);
  }
  return named;
};

/** Applies the policy to a restore request, in place. */
export const applyCgroupPolicy = (
  settings: Settings,
  clientPid: number,
  opts: CgroupOptions,
  images: number | undefined,
  log: Log,
): void => {
  const { manage } = settings.cgroup;
  if (manage === "caller") return;
  if (manage !== "auto") {
    opts.manage_cgroups = true;
    opts.manage_cgroups_mode = CG_MODE[manage];
    log("Info ", `cgroups are restored by mode "${manage}"`);
    return;
  }
  if (images === undefined) return;
  const named = nameV1Roots(opts, clientPid, `/proc/self/fd/${images}`);
  if (named.length > 0) log("Info ", `cgroup v1 beside v2: own roots for ${named.join(", ")}`);
};
