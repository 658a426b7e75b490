// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, readlinkSync, renameSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { artefact } from "../../native/index.js";
import { stateDir } from "./plugin-dir.js";

/**
 * The names under which our launcher is started: by CRIU as an action script and as the tools of a dump, by us to look at
 * files of servers that may not answer (native/launcher/).
 */
type Helper = "cryoshim-notify" | "cryoshim-look" | "ip" | "tar";

/** The path of a helper, made where it is missing or points to another installation. */
export const helper = (name: Helper): string => {
  const dir = join(stateDir(), "bin");
  const path = join(dir, name);
  const target = artefact("criu");
  try {
    if (readlinkSync(path) === target) return path;
  } catch {
    // Not there yet.
  }
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const making = `${path}.${process.pid}`;
  symlinkSync(target, making);
  renameSync(making, path);
  return path;
};

const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** PATH for an engine that dumps: our ip and tar come first. */
export const pathForDump = (): string => {
  helper("ip");
  return `${dirname(helper("tar"))}:${process.env.PATH || DEFAULT_PATH}`;
};
