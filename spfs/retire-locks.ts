// SPDX-License-Identifier: Apache-2.0
// File locks as the kernel tells of them: the `lock:` lines of /proc/PID/fdinfo, proc(5).
import { readFileSync } from "node:fs";
import { type Description, inodeKey, type Mounts } from "./retire-find.js";
import type { Task } from "./retire-tasks.js";

export interface Lock {
  kind: "POSIX" | "FLOCK" | "OFDLCK" | "other";
  /** F_RDLCK or F_WRLCK of fcntl(2). */
  type: number;
  start: bigint;
  /** 0: to the end. */
  length: bigint;
}

/** A lock, and who would take it again. */
export interface HeldLock {
  task: Task;
  fd: number;
  lock: Lock;
}

const LINE = /^lock:\s+\d+: (\S+)\s+\S+\s+(\S+)\s+\S+ \S+ (\d+) (\S+)$/gm;

export const locksOf = (note: string): Lock[] =>
  [...note.matchAll(LINE)].map(([, kind, type, start, end]) => ({
    kind: kind === "POSIX" || kind === "FLOCK" || kind === "OFDLCK" ? kind : "other",
    type: type === "WRITE" ? 1 : 0,
    start: BigInt(start!),
    length: end === "EOF" ? 0n : BigInt(end!) - BigInt(start!) + 1n,
  }));

/** Whether anybody has a lock on these file systems: one look at /proc/locks spares one at every descriptor. */
const areThereLocks = (mounts: Mounts): boolean =>
  [...readFileSync("/proc/locks", "latin1").matchAll(/ ([0-9a-f]+:[0-9a-f]+):\d+ \d+ \S+$/gm)].some(([, dev]) =>
    mounts.devices.has(dev!),
  );

/** Locks by description; one of which several descriptors tell is taken once. */
export const locksBy = (
  mounts: Mounts,
  descriptions: readonly Description[],
  tables: readonly Task[],
): Map<Description, HeldLock[]> => {
  const found = new Map<Description, HeldLock[]>();
  if (!areThereLocks(mounts)) return found;
  const notes = new Map<string, string>();
  for (const task of tables)
    for (const { fd, note } of mounts.open(task, true).files) if (note !== "") notes.set(`${task.tid} ${fd}`, note);
  const taken = new Set<string>();
  for (const [i, description] of descriptions.entries()) {
    const held: HeldLock[] = [];
    for (const { task, fd } of description.at)
      for (const lock of locksOf(notes.get(`${task.tid} ${fd}`) ?? "")) {
        // A POSIX lock is the table's, whatever it was taken through; others are the description's.
        const owner = lock.kind === "POSIX" ? `${task.tid} ${inodeKey(description.seen)}` : `of ${i}`;
        const key = `${owner} ${lock.kind} ${lock.start} ${lock.length}`;
        if (taken.has(key)) continue;
        taken.add(key);
        held.push({ task, fd, lock });
      }
    if (held.length > 0) found.set(description, held);
  }
  return found;
};
