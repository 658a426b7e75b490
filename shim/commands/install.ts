// SPDX-License-Identifier: Apache-2.0
// Puts the launcher before the distribution's criu in PATH, by links into this package: nothing of the distribution is
// touched, and where the package is removed first, a link that dangles is passed over by every PATH search.
import { existsSync, lstatSync, mkdirSync, readlinkSync, rmSync, symlinkSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { artefact, packageRoot } from "../../native/index.js";
import { isLauncher } from "../engine/choose.js";
import { CryoshimError } from "../error.js";
import { clearKept, listKept, removeKit } from "../netlock/kept.js";

/** One link that an installation consists of. */
export interface Link {
  path: string;
  target: string;
}

/** What happened, or would happen, with a link. */
export interface Step extends Link {
  action: "link" | "replace" | "keep" | "remove" | "absent";
}

/** Every file of an installation under a prefix. */
export const links = (prefix: string): Link[] => [
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
  { path: join(prefix, "libexec/cryoshim/poststop"), target: join(packageRoot, "hooks/poststop") },
];

/** What a path is to us: nothing, a link of ours (to here, or to another installation of cryoshim), or someone else's. */
const look = ({ path, target }: Link): "absent" | "ours" | "other-ours" | "foreign" => {
  const st = lstatSync(path, { throwIfNoEntry: false });
  if (st === undefined) return "absent";
  if (!st.isSymbolicLink()) return "foreign";
  const points = readlinkSync(path);
  if (points === target) return "ours";
  if (points.includes("/cryoshim/")) return "other-ours";
  return existsSync(path) && path.endsWith("/criu") && isLauncher(path) ? "other-ours" : "foreign";
};

/**
 * Installs. With dryRun nothing is written. Throws CryoshimError ERR_INSTALL before anything is changed where a file
 * of someone else is in the way.
 */
export const install = (prefix: string, dryRun: boolean): Step[] => {
  const wanted = links(prefix);
  for (const link of wanted)
    if (look(link) === "foreign")
      throw new CryoshimError("ERR_INSTALL", {
        what: `cannot install \`${link.path}\``,
        why: "a file that is not cryoshim's is there",
        fix: "move it away, or install with another --prefix",
      });
  return wanted.map((link) => {
    const state = look(link);
    if (state === "ours") return { ...link, action: "keep" };
    if (!dryRun) {
      mkdirSync(dirname(link.path), { recursive: true });
      if (state === "other-ours") unlinkSync(link.path);
      symlinkSync(link.target, link.path);
    }
    return { ...link, action: state === "absent" ? "link" : "replace" };
  });
};

/** Removes what install put there, and nothing else; also the runtime state under /run/cryoshim. */
export const uninstall = (prefix: string, dryRun: boolean): Step[] => {
  const steps = links(prefix).map((link): Step => {
    const state = look(link);
    if (state !== "ours" && state !== "other-ours") return { ...link, action: state === "absent" ? "absent" : "keep" };
    if (!dryRun) unlinkSync(link.path);
    return { ...link, action: "remove" };
  });
  if (!dryRun && steps.some(({ action }) => action === "remove")) {
    // CRIU alone would restore into a network that stays locked.
    for (const { id } of listKept()) clearKept(id);
    removeKit();
    // Only caches: a session that is under way holds what it needs open.
    for (const name of ["launch", "plugins", "probe", "bin", "btf-ids"])
      rmSync(join("/run/cryoshim", name), { recursive: true, force: true });
  }
  return steps;
};
