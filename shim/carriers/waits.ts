// SPDX-License-Identifier: Apache-2.0
// Threads that wait in mq_timedreceive(2) or mq_timedsend(2). The kernel starts such a call again with the time at which
// it was to end, by the clock on the wall: after a restore that has often passed.
import { readdirSync, readFileSync } from "node:fs";
import type { Engine } from "../control/engine.js";

const TIMED = new Set(["242", "243"]); // mq_timedsend, mq_timedreceive of x86-64
const SECOND = 1_000_000_000n;

export interface Wait {
  /** See tasks.ts:taskName. */
  task: string;
  /** Of the thread's timespec. */
  address: bigint;
  /** Nanoseconds that it would still have waited. */
  left: bigint;
}

/** Nanoseconds on the wall's clock. */
export const wallClock = (): bigint => BigInt(Date.now()) * 1_000_000n;

/** The waiting threads of a stopped process. */
export const waitsOf = async (pid: number, task: string, engine: Engine): Promise<Wait[]> => {
  const waits: Wait[] = [];
  for (const tid of readdirSync(`/proc/${pid}/task`)) {
    // proc_pid_syscall: number, six arguments, stack pointer, program counter.
    const [call = "", ...args] = readFileSync(`/proc/${pid}/task/${tid}/syscall`, "utf8").trim().split(" ");
    if (!TIMED.has(call) || args[4] === undefined || BigInt(args[4]) === 0n) continue;
    const address = BigInt(args[4]);
    const timespec = await engine.readMemory(Number(tid), address, 16);
    const until = timespec.readBigInt64LE(0) * SECOND + timespec.readBigInt64LE(8);
    waits.push({ task, address, left: until - wallClock() });
  }
  return waits;
};

/** Lets a restored process wait as long as it still would have. */
export const waitOn = async (pid: number, { address, left }: Omit<Wait, "task">, engine: Engine): Promise<void> => {
  const until = wallClock() + left;
  const timespec = Buffer.alloc(16);
  timespec.writeBigInt64LE(until / SECOND, 0);
  timespec.writeBigInt64LE(until % SECOND, 8);
  await engine.writeMemory(pid, address, timespec);
};
