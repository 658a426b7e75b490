// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

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

/** How long a freeze may take before CRIU is left to do it its own way. */
const LIMIT_MS = 1000;

const pause = (ms: number): void => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
};

/** Whether all tasks have come to rest: cgroup.events of v2 tells, v1's freezer.state itself. */
const atRest = ({ file, frozen }: Freezer): boolean =>
  file.endsWith("cgroup.freeze")
    ? /^frozen 1$/m.test(readFileSync(join(dirname(file), "cgroup.events"), "utf8"))
    : readFileSync(file, "utf8").trim() === frozen[0];

/**
 * Freezes, and waits until all tasks rest. CRIU does so as well, but looks once and then sleeps 100 ms
 * (criu/seize.c:freeze_processes, 4.2), which hits every third dump. Returns false when they do not come to rest: then
 * it is thawed again.
 */
export const freeze = (freezer: Freezer): boolean => {
  const start = process.hrtime.bigint();
  try {
    writeFileSync(freezer.file, freezer.frozen[0]!);
    for (let tries = 0; process.hrtime.bigint() - start < LIMIT_MS * 1e6; tries++) {
      if (atRest(freezer)) return true;
      if (tries > 20) pause(0.2);
    }
  } catch {
    // The cgroup is gone or not ours to write: CRIU says so itself.
  }
  thaw(freezer);
  return false;
};

/** Undoes freeze(). A cgroup that is gone needs nothing. */
export const thaw = (freezer: Freezer): void => {
  try {
    writeFileSync(freezer.file, freezer.thawed);
  } catch {
    // Its container is gone.
  }
};
