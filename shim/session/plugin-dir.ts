// SPDX-License-Identifier: Apache-2.0
import { lstatSync, mkdirSync, opendirSync, readdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";

/** Where CRIU looks for plugins by itself (CR_PLUGIN_DEFAULT of Debian's build). */
export const DEFAULT_LIBDIR = "/usr/lib/criu";
const STATE = "/run/cryoshim";
const OURS = "cryoshim-engine-plugin.so";

/** FNV-1a: a name for a set of paths, nothing more; node:crypto would cost start-up time. */
const fingerprint = (text: string): string => {
  let hash = 0xcbf29ce484222325n;
  for (const byte of Buffer.from(text)) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16).padStart(16, "0");
};

/** The shared objects that CRIU would load from a directory (criu/plugin.c:cr_plugin_init), sorted. */
const pluginsIn = (dir: string): string[] => {
  try {
    return readdirSync(dir)
      .filter((name) => name.endsWith(".so"))
      .sort();
  } catch {
    return [];
  }
};

/** /run/cryoshim, root's alone; throws when someone else owns it. */
export const stateDir = (): string => {
  mkdirSync(STATE, { recursive: true, mode: 0o700 });
  const st = lstatSync(STATE);
  if (!st.isDirectory() || st.uid !== 0 || (st.mode & 0o022) !== 0)
    throw new Error(`${STATE} is not a directory that only root can write`);
  return STATE;
};

/** The first entry of a directory in the order in which CRIU reads it. */
const firstIn = (dir: string): string | undefined => {
  const entries = opendirSync(dir);
  try {
    return entries.readSync()?.name;
  } finally {
    entries.closeSync();
  }
};

/**
 * Fills a new directory so that the engine plugin comes first: CRIU asks plugins in the order of readdir() until one
 * claims a task, as cuda's does for tasks without a GPU, too. Whether tmpfs lists the oldest
 * or the newest first depends on the kernel.
 */
const fill = (dir: string, links: readonly [name: string, target: string][]): void => {
  for (const order of [links, [...links].reverse()]) {
    rmSync(dir, { recursive: true, force: true });
    mkdirSync(dir, { mode: 0o700 });
    for (const [name, target] of order) symlinkSync(target, join(dir, name));
    if (firstIn(dir) === OURS) return;
  }
};

/**
 * A directory for CRIU_LIBS_DIR: CRIU takes only one, so the engine plugin and the distribution's (cuda, amdgpu) are
 * linked together. Its name is made of its content, so that two sessions share it and an upgrade makes a new one.
 */
export const pluginDir = (enginePlugin: string, libdir: string): string => {
  const links: [name: string, target: string][] = pluginsIn(libdir).map((name) => [name, join(libdir, name)]);
  links.unshift([OURS, enginePlugin]);
  const parent = join(stateDir(), "plugins");
  const dir = join(parent, fingerprint(links.flat().join("\n")));
  try {
    // A link that dangles would make CRIU refuse to start; a complete directory is left alone.
    if (links.every(([name, target]) => readlinkSync(join(dir, name)) === target)) return dir;
  } catch {
    // Not there yet.
  }
  mkdirSync(parent, { recursive: true, mode: 0o700 });
  const making = `${dir}.${process.pid}`;
  try {
    fill(making, links);
    renameSync(making, dir);
  } catch (error) {
    rmSync(making, { recursive: true, force: true });
    // Another session was quicker: a directory that is not empty cannot be replaced by rename.
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
  }
  return dir;
};
