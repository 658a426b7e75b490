// SPDX-License-Identifier: Apache-2.0
// What the parts of the io_uring carrier tell each other of a ring.
import { CryoshimError } from "../error.js";
import type { CarrierContext } from "./carrier.js";
import type { RingMemory } from "./uring-memory.js";

/** IORING_SETUP_* (include/uapi/linux/io_uring.h). */
export const SETUP = {
  iopoll: 1 << 0,
  sqpoll: 1 << 1,
  sqAff: 1 << 2,
  cqsize: 1 << 3,
  clamp: 1 << 4,
  attachWq: 1 << 5,
  rDisabled: 1 << 6,
  submitAll: 1 << 7,
  coopTaskrun: 1 << 8,
  taskrunFlag: 1 << 9,
  sqe128: 1 << 10,
  cqe32: 1 << 11,
  singleIssuer: 1 << 12,
  deferTaskrun: 1 << 13,
  noMmap: 1 << 14,
  registeredFdOnly: 1 << 15,
  noSqarray: 1 << 16,
} as const;

/** A ring while its tasks stand still: in a dump as it is, in a restore as it has been made again. */
export interface Ring {
  /** A descriptor of ours. */
  fd: number;
  /** Its file, where nobody has a descriptor of it: then `fd` only stands for it (RingReader.standIn). */
  file?: bigint;
  /** The descriptor by which its process submits; undefined: it is registered there only (see `registered`). */
  fdInTask?: number;
  /** Its slot among the registered rings of `tid` (IORING_REGISTER_RING_FDS). */
  registered?: number;
  /** The process it belongs to and the thread that submits: where it is SINGLE_ISSUER, the only one that may. */
  pid: number;
  tid: number;
  /** IORING_SETUP_*, as the kernel has them. */
  flags: number;
  sqEntries: number;
  cqEntries: number;
  /** The kernel's counters: of submissions that it has taken, of completions that it has posted. */
  sqHead: number;
  cqTail: number;
}

/** Requests of a ring that are in flight, as they go into the image. */
export interface InFlight {
  /**
   * How many submissions of the ring's history are theirs: a restore brings the ring to `sqHead` minus these, and
   * submitting them again takes it there.
   */
  submissions: number;
  /** What the image says of them (`requests` of its ring). */
  requests: readonly Record<string, unknown>[];
}

/** Who saves and submits again what is in flight (uring-inflight.ts). */
export interface InFlightCarrier {
  /** Before the freeze: makes ready what takes long. */
  prepare?(): void;
  /**
   * Tasks stand still: waits, not long, until what ends by itself has ended in all rings of the dump. The rings' counters
   * and queues may have gone on then.
   */
  settle(rings: readonly Ring[], context: CarrierContext): Promise<void>;
  /** After that; the ring is not changed. Throws ERR_URING for what cannot be repeated without harm. */
  save(ring: Ring, context: CarrierContext): Promise<InFlight>;
  /**
   * The ring is back with its memory, registered files and buffers, `submissions` behind its counters; the program has
   * not run yet, and what it had written to the queue itself and not submitted is kept out of the way meanwhile.
   */
  resubmit(
    ring: Ring,
    memory: RingMemory,
    requests: readonly Record<string, unknown>[],
    context: CarrierContext,
  ): Promise<void>;
  close?(): void;
}

/** An error of what cannot be carried, or not be restored. */
export const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_URING", { what, why, fix, cause });
