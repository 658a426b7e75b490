// SPDX-License-Identifier: Apache-2.0
// cgroup.img alone, for the shim, which must stay small.
import { readFileSync } from "node:fs";
import { decodeAs, type Entry, encodeEntries } from "./frame.js";
import type { Message } from "./message.js";
import { cgroupKind } from "./schema/cgroup.js";

/** Throws ERR_IMAGE naming the offset. */
export const decodeCgroupImage = (bytes: Uint8Array, name = "cgroup.img"): Entry[] => decodeAs(cgroupKind, bytes, name);

export const encodeCgroupImage = (entries: readonly Entry[]): Uint8Array => encodeEntries(cgroupKind, entries);

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
