// SPDX-License-Identifier: Apache-2.0
// cgroup.img alone, for the shim, which must stay small.
import { readFileSync } from "node:fs";
import { broken, decodeEntries, type Entry, encodeEntries, openFrame } from "./frame.js";
import { common } from "./kind.js";
import type { Message } from "./message.js";
import { cgroup } from "./schema/cgroup.js";

const KIND = common(0x59383330, cgroup);

/** Throws ERR_IMAGE naming the offset. */
export const decodeCgroupImage = (bytes: Uint8Array, name = "cgroup.img"): Entry[] => {
  const { magic, outer, start } = openFrame(bytes, name);
  if (magic !== KIND.magic || outer !== KIND.outer) throw broken(name, 0, "its magics are not those of cgroup.img");
  return decodeEntries(KIND, bytes, start, name);
};

export const encodeCgroupImage = (entries: readonly Entry[]): Uint8Array => encodeEntries(KIND, entries);

/** Where the first task was in each hierarchy, by controller ("" is cgroup2); undefined when the image tells none. */
export const readCgroupImage = (path: string): Map<string, string> | undefined => {
  try {
    const [entry] = decodeCgroupImage(readFileSync(path));
    const sets = (entry?.message.sets ?? []) as Message[];
    const ctls = sets.at(-1)?.ctls as { name: string; path: string }[] | undefined;
    return ctls && new Map(ctls.map(({ name, path: where }) => [name, where]));
  } catch {
    return undefined;
  }
};
