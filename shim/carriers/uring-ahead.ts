// SPDX-License-Identifier: Apache-2.0
// Rings with a long history: made and brought on by this process while CRIU restores, then given to the task. For which rings
// that comes to the same is said in docs/io-uring.md.
import { closeSync, readFileSync, readlinkSync } from "node:fs";
import { addon } from "../../native/index.js";
import type { ImageRing } from "./uring-image.js";
import { askedFor, historyOf, unreadOf } from "./uring-memory.js";
import { encodeParams, offsetsOf } from "./uring-params.js";
import { SETUP } from "./uring-ring.js";

/** So many steps are some milliseconds: fewer are done by the time that a ring has been handed over. */
const LONG = 100_000;
const CAP_IPC_LOCK = 14n;

/** Those that belong to the thread, or to the memory, of who sets them up. */
const OWN =
  SETUP.singleIssuer | SETUP.sqpoll | SETUP.attachWq | SETUP.noMmap | SETUP.rDisabled | SETUP.registeredFdOnly;

/** The user to whom memory is charged that a process registers with a ring of its own; undefined: nobody (io_uring_create). */
export const chargedFor = (pid: number): number | undefined => {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const capabilities = BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(status)![1]}`);
  const ours = readlinkSync(`/proc/${pid}/ns/user`) === readlinkSync("/proc/self/ns/user");
  if (ours && (capabilities >> CAP_IPC_LOCK) & 1n) return undefined;
  return Number(/^Uid:\s+(\d+)/m.exec(status)![1]);
};

/** A ring of this process's that is being brought on. */
export interface Ahead {
  fd: number;
  /** struct io_uring_params as the kernel has filled it in. */
  params: Buffer;
  /** Rejects with an errno; handled where nobody waits for it. */
  done: Promise<void>;
  close(): void;
}

/** Begins with a ring of the images; undefined: it is not worth it, or only its task can make it. */
export const startAhead = (image: ImageRing): Ahead | undefined => {
  const { sq, cq } = historyOf(image);
  if (
    (image.flags & OWN) !== 0 ||
    image.restrictions !== undefined ||
    image.region !== undefined ||
    sq < 0 ||
    Math.max(sq, cq) < LONG
  )
    return undefined;
  const params = encodeParams(askedFor(image, image.flags));
  let fd: number;
  try {
    fd =
      image.user === undefined
        ? addon.uringSetup(image.sq_entries, params)
        : addon.uringSetupFor(image.sq_entries, params, image.user);
  } catch {
    // The task tells what does not work.
    return undefined;
  }
  const stop = new Uint32Array(1);
  const unread = unreadOf(image, offsetsOf(params));
  const done = addon.uringAdvance(fd, process.pid, params, sq, cq, unread, new Uint8Array(stop.buffer));
  done.catch(() => undefined);
  let open = true;
  return {
    fd,
    params,
    done,
    close() {
      Atomics.store(stop, 0, 1);
      if (open) closeSync(fd);
      open = false;
    },
  };
};
