// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** A cgroup that CRIU was told to freeze, and how it was before. */
export interface Freezer {
  file: string;
  thawed: string;
  frozen: string[];
}

/** The freezer of a cgroup directory: v2's cgroup.freeze or v1's freezer.state; undefined where there is neither. */
const freezerOf = (dir: string): Freezer | undefined => {
  for (const [name, thawed, frozen] of [
    ["cgroup.freeze", "0", ["1"]],
    ["freezer.state", "THAWED", ["FROZEN", "FREEZING"]],
  ] as const) {
    const file = join(dir, name);
    try {
      readFileSync(file);
      return { file, thawed, frozen: [...frozen] };
    } catch {
      // Not this version.
    }
  }
  return undefined;
};

const isFrozen = (freezer: Freezer): boolean => {
  try {
    return freezer.frozen.includes(readFileSync(freezer.file, "utf8").trim());
  } catch {
    return false;
  }
};

/**
 * Looks at a cgroup before CRIU freezes it, for the moment in which it seizes the tasks (criu/seize.c): killed in that
 * moment it would leave the container frozen for ever. Returns undefined when there is nothing to put right later: no freezer, or
 * someone froze it before us, who then also thaws it.
 */
export const watchFreezer = (dir: string): Freezer | undefined => {
  const freezer = freezerOf(dir);
  return freezer !== undefined && !isFrozen(freezer) ? freezer : undefined;
};
