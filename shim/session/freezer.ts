// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
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
/** How long threads may wait for children of vfork(2), one after the other; they run meanwhile. */
const VFORK_LIMIT_MS = 5000;

const deadline = (ms: number): (() => boolean) => {
  const end = process.hrtime.bigint() + BigInt(ms) * 1_000_000n;
  return () => process.hrtime.bigint() < end;
};

const pause = (ms: number): void => {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
};

/** Whether all tasks have come to rest: cgroup.events of v2 tells, v1's freezer.state itself. */
const atRest = ({ file, frozen }: Freezer): boolean =>
  file.endsWith("cgroup.freeze")
    ? /^frozen 1$/m.test(readFileSync(join(dirname(file), "cgroup.events"), "utf8"))
    : readFileSync(file, "utf8").trim() === frozen[0];

/** The threads of a cgroup and of those below it. */
const threadsOf = (dir: string, list: string): string[] => [
  ...readFileSync(join(dir, list), "latin1").split("\n").filter(Boolean),
  ...readdirSync(dir, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? threadsOf(join(dir, entry.name), list) : [],
  ),
];

/** What the function is called in which a thread waits for its child of vfork(2) to start a program. */
const VFORK = /\b(kernel_clone|_do_fork|wait_for_vfork_done)\b/;

/** Whether a resting thread waits for such a child. */
const waitsForVfork = (tid: string): boolean => {
  try {
    const rests = readFileSync(`/proc/${tid}/wchan`, "latin1");
    // Since Linux 6.12 the scheduler may still have it in a queue: then only the stack, which takes longer to read, tells.
    return VFORK.test(rests === "0" ? readFileSync(`/proc/${tid}/stack`, "latin1") : rests);
  } catch {
    return false;
  }
};

/**
 * Freezes, and waits until all tasks rest. CRIU does so as well, but looks once and then sleeps 100 ms
 * (criu/seize.c:freeze_processes, 4.2), which hits every third dump.
 *
 * A thread that waits for its child of vfork(2), as of posix_spawn(3), rests for the freezer, but only the child's execve(2) lets ptrace(2)
 * stop it. CRIU seizes all that is frozen, the child too, and then waits for the parent in vain, ten seconds. Such a moment is
 * short: it is let pass.
 *
 * Returns false when they do not come to rest: then it is thawed again.
 */
export const freeze = (freezer: Freezer): boolean => {
  const list = freezer.file.endsWith("cgroup.freeze") ? "cgroup.threads" : "tasks";
  const inTime = deadline(VFORK_LIMIT_MS);
  try {
    do {
      const coming = deadline(LIMIT_MS);
      writeFileSync(freezer.file, freezer.frozen[0]!);
      for (let tries = 0; !atRest(freezer); tries++) {
        if (!coming()) throw new Error("they do not come to rest");
        if (tries > 20) pause(0.2);
        // v1 leaves out who was about to fall asleep in the kernel; asked again, it takes them (kernel/freezer.c:freeze_task).
        if (tries % 50 === 49) writeFileSync(freezer.file, freezer.frozen[0]!);
      }
      const waiting = threadsOf(dirname(freezer.file), list).find(waitsForVfork);
      if (waiting === undefined) return true;
      thaw(freezer);
      while (waitsForVfork(waiting) && inTime()) pause(0.2);
    } while (inTime());
  } catch {
    // They do not rest, or the cgroup is gone or not ours to write: CRIU says so itself.
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
