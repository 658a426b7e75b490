// SPDX-License-Identifier: Apache-2.0
// Threads that wait in io_uring_enter(2). The kernel takes a stop for a signal and lets the call fail with EINTR (io_uring/io_uring.c:
// io_cqring_wait), which many programs take for an error. Nothing has been submitted by such a call: it begins again.
import { readdirSync, readFileSync } from "node:fs";
import type { Engine } from "../control/engine.js";
import { reason } from "../error.js";

const IO_URING_ENTER = 426;

/** Whether a signal will be delivered: then EINTR is what the program would have got anyway. */
const hasSignal = (status: string): boolean => {
  const mask = (name: string): bigint =>
    BigInt(`0x${new RegExp(`^${name}:\\s+([0-9a-f]+)$`, "m").exec(status)?.[1] ?? 0}`);
  return ((mask("SigPnd") | mask("ShdPnd")) & ~mask("SigBlk")) !== 0n;
};

/** Lets the waits of stopped processes begin again. A relative time limit begins anew. */
export const restartWaits = async (
  pids: Iterable<number>,
  engine: Engine,
  log: (why: string) => void,
): Promise<void> => {
  for (const pid of pids)
    for (const name of readdirSync(`/proc/${pid}/task`)) {
      const at = `/proc/${pid}/task/${name}`;
      try {
        // proc_pid_syscall: the number comes first.
        if (!readFileSync(`${at}/syscall`, "latin1").startsWith(`${IO_URING_ENTER} `)) continue;
        if (!hasSignal(readFileSync(`${at}/status`, "latin1"))) await engine.restart(Number(name), IO_URING_ENTER);
      } catch (error) {
        log(`thread ${name} of process ${pid} may see EINTR: ${reason(error)}`);
      }
    }
};
