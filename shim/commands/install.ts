// SPDX-License-Identifier: Apache-2.0
// Puts the launcher before the distribution's criu in PATH, and the hooks where runtimes look for them, by links into this
// package: nothing of the distribution is touched. Where the package is removed first, a launcher's link that dangles is
// passed over by every PATH search, and one of a hook's configuration by podman and CRI-O.
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { artefact, packageRoot } from "../../native/index.js";
import { isLauncher } from "../engine/choose.js";
import { CryoshimError } from "../error.js";
import { clearKept, listKept, removeKit } from "../netlock/kept.js";

/** One file that an installation consists of: a link, or a copy where a link that dangles would harm. */
export interface Link {
  path: string;
  target: string;
  copy?: boolean;
}

/** What happened, or would happen, with a file. */
export interface Step extends Link {
  action: "link" | "copy" | "replace" | "keep" | "remove" | "absent";
}

/** What else than the prefix decides what is installed. */
export interface Extent {
  /** The hooks, too. */
  hooks?: boolean;
  /** Where etc and usr/share are; by default / for the prefix that the hooks' configuration names. */
  root?: string | undefined;
  dryRun?: boolean;
}

/** The prefix that configs/hooks.d and configs/lxc name. */
const PREFIX_OF_HOOKS = "/usr/local";

const LXC_INCLUDE = "etc/lxc/cryoshim.conf";

const hookLinks = (prefix: string, root: string | undefined): Link[] => {
  const shipped = (...parts: string[]): string => join(packageRoot, ...parts);
  const programs = ["create-runtime", "create-container", "poststop", "lxc"].map((name) => ({
    path: join(prefix, "libexec/cryoshim", name),
    target: shipped("hooks", name),
  }));
  if (root === undefined) return programs;
  const described = readdirSync(shipped("configs/hooks.d")).map((name) => ({
    // podman and CRI-O look into others only when they are told.
    path: join(root, "usr/share/containers/oci/hooks.d", name),
    target: shipped("configs/hooks.d", name),
  }));
  // LXC does not start a container whose configuration includes what is not there.
  return [
    ...programs,
    ...described,
    { path: join(root, LXC_INCLUDE), target: shipped("configs/lxc/cryoshim.conf"), copy: true },
  ];
};

/** Every file of an installation under a prefix. */
export const links = (
  prefix: string,
  { hooks = true, root = prefix === PREFIX_OF_HOOKS ? "/" : undefined }: Extent = {},
): Link[] => [
  { path: join(prefix, "sbin/criu"), target: artefact("criu") },
  { path: join(prefix, "share/man/man1/cryoshim.1"), target: join(packageRoot, "docs/man/cryoshim.1") },
  {
    path: join(prefix, "share/bash-completion/completions/cryoshim"),
    target: join(packageRoot, "configs/completions/cryoshim.bash"),
  },
  {
    path: join(prefix, "share/zsh/site-functions/_cryoshim"),
    target: join(packageRoot, "configs/completions/_cryoshim"),
  },
  {
    path: join(prefix, "share/fish/vendor_completions.d/cryoshim.fish"),
    target: join(packageRoot, "configs/completions/cryoshim.fish"),
  },
  ...(hooks ? hookLinks(prefix, root) : []),
];

/** By this a copy of any version is known. */
const MARK = "# Cryoshim's hooks for LXC.";

/** What a path is to us: nothing, ours (of this package, or of another installation of cryoshim), or someone else's. */
const look = ({ path, target, copy }: Link): "absent" | "ours" | "other-ours" | "foreign" => {
  const st = lstatSync(path, { throwIfNoEntry: false });
  if (st === undefined) return "absent";
  if (copy && st.isFile()) {
    const text = readFileSync(path, "utf8");
    if (text === readFileSync(target, "utf8")) return "ours";
    return text.includes(MARK) ? "other-ours" : "foreign";
  }
  if (!st.isSymbolicLink() || copy) return "foreign";
  const points = readlinkSync(path);
  if (points === target) return "ours";
  if (points.includes("/cryoshim/")) return "other-ours";
  return existsSync(path) && path.endsWith("/criu") && isLauncher(path) ? "other-ours" : "foreign";
};

/**
 * Installs. With dryRun nothing is written. Throws CryoshimError ERR_INSTALL before anything is changed where a file
 * of someone else is in the way.
 */
export const install = (prefix: string, extent: Extent = {}): Step[] => {
  const wanted = links(prefix, extent);
  for (const link of wanted)
    if (look(link) === "foreign")
      throw new CryoshimError("ERR_INSTALL", {
        what: `cannot install \`${link.path}\``,
        why: "a file that is not cryoshim's is there",
        fix: "move it away, or install with another --prefix, or --no-hooks if it is one of a hook",
      });
  return wanted.map((link) => {
    const state = look(link);
    if (state === "ours") return { ...link, action: "keep" };
    if (!extent.dryRun) {
      mkdirSync(dirname(link.path), { recursive: true });
      if (state === "other-ours") unlinkSync(link.path);
      if (link.copy) copyFileSync(link.target, link.path);
      else symlinkSync(link.target, link.path);
    }
    return { ...link, action: state !== "absent" ? "replace" : link.copy ? "copy" : "link" };
  });
};

/** Whether a container's configuration, or the one for new ones, names the include: without it LXC would not start them. */
const isIncluded = (include: string): boolean => {
  const root = include.slice(0, -LXC_INCLUDE.length);
  const containers = join(root, "var/lib/lxc");
  const configurations = [
    join(root, "etc/lxc/default.conf"),
    ...(existsSync(containers) ? readdirSync(containers).map((name) => join(containers, name, "config")) : []),
  ];
  return configurations.some((path) => existsSync(path) && readFileSync(path, "utf8").includes(`/${LXC_INCLUDE}`));
};

/**
 * Removes what install put there, and nothing else; also the runtime state under /run/cryoshim. What LXC's containers
 * include stays: it does nothing any more.
 */
export const uninstall = (prefix: string, extent: Extent = {}): Step[] => {
  const steps = links(prefix, extent).map((link): Step => {
    const state = look(link);
    if (state !== "ours" && state !== "other-ours") return { ...link, action: state === "absent" ? "absent" : "keep" };
    if (link.copy && isIncluded(link.path)) return { ...link, action: "keep" };
    if (!extent.dryRun) unlinkSync(link.path);
    return { ...link, action: "remove" };
  });
  if (!extent.dryRun && steps.some(({ action }) => action === "remove")) {
    // CRIU alone would restore into a network that stays locked.
    for (const { id } of listKept()) clearKept(id);
    removeKit();
    // Only caches: a session that is under way holds what it needs open.
    for (const name of ["launch", "plugins", "probe", "bin", "btf-ids", "code"])
      rmSync(join("/run/cryoshim", name), { recursive: true, force: true });
  }
  return steps;
};
