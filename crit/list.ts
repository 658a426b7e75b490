// SPDX-License-Identifier: Apache-2.0
// The checkpoints in directories: what their runtimes say of them. Their images are not looked at.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { CryoshimError, reason } from "../shim/error.js";
import { readFiles } from "./checkpoint.js";
import { type Container, containerOf } from "./container.js";
import { plain, table } from "./text.js";

export interface Listed {
  path: string;
  container?: Container;
  error?: string;
}

const NAMED = /^checkpoint-|\.(tar|tar\.gz|tgz|tar\.zst)$/;
const SAYS = /^((config|spec)\.dump|network\.status)$/;

const namesIn = (dir: string): string[] => {
  try {
    const entries = readdirSync(dir, { withFileTypes: true });
    return entries.filter((entry) => entry.isFile() && NAMED.test(entry.name)).map(({ name }) => name);
  } catch (error) {
    throw new CryoshimError("ERR_FILE", { what: `cannot list \`${dir}\``, why: reason(error), cause: error });
  }
};

const one = async (path: string): Promise<Listed> => {
  try {
    const container = containerOf(await readFiles(path, (file) => SAYS.test(file)));
    return container === undefined ? { path, error: "no runtime says what it is of" } : { path, container };
  } catch (error) {
    return { path, error: error instanceof CryoshimError ? error.why : reason(error) };
  }
};

/** Throws ERR_FILE for a directory that cannot be read; a file that is no checkpoint is named with what is wrong. */
export const listCheckpoints = async (dirs: readonly string[]): Promise<Listed[]> => {
  const found: Listed[] = [];
  for (const dir of dirs) for (const name of namesIn(dir).sort()) found.push(await one(join(dir, name)));
  return found;
};

export const listText = (found: readonly Listed[]): string[] => {
  if (found.length === 0) return ["no checkpoints"];
  const rows = found.map(({ path, container: c, error }) =>
    [c?.namespace, c?.pod, c?.name, c?.engine, error ?? c?.checkpointedAt, path].map((cell) => plain(cell ?? "-")),
  );
  return table(["NAMESPACE", "POD", "CONTAINER", "ENGINE", "CHECKPOINTED", "FILE"], rows);
};
