// SPDX-License-Identifier: Apache-2.0
// Threads by numbers that hold across a restore.
import { readdirSync, readFileSync } from "node:fs";

/** A thread's number in its own pid namespace: the one that it knows itself. */
export const innerNumber = (pid: number, tid: number): number => {
  const status = readFileSync(`/proc/${pid}/task/${tid}/status`, "utf8");
  return Number(/^NSpid:.*?(\d+)$/m.exec(status)?.[1] ?? tid);
};

/** The thread of a process that has this number in its own pid namespace. */
export const threadBy = (pid: number, inner: number): number | undefined =>
  readdirSync(`/proc/${pid}/task`)
    .map(Number)
    .find((tid) => innerNumber(pid, tid) === inner);
