// SPDX-License-Identifier: Apache-2.0
// struct io_uring_params (include/uapi/linux/io_uring.h): what a ring is asked for, and where in its memory things are.
import { closeSync } from "node:fs";
import { addon } from "../../native/index.js";

export const PARAMS_SIZE = 120;

/** What io_uring_setup(2) is given. */
export interface RingParams {
  flags: number;
  cqEntries?: number;
  /** Of an SQPOLL thread: processor, and milliseconds. */
  cpu?: number;
  idle?: number;
  /** A ring to be attached to. */
  wqFd?: number;
  /** User memory for a ring with IORING_SETUP_NO_MMAP. */
  rings?: bigint;
  sqes?: bigint;
}

/** Where in a ring's memory its words are: the same for all rings, but for the array. */
export interface RingOffsets {
  sq: { head: number; tail: number; flags: number; dropped: number; array: number };
  cq: { head: number; tail: number; overflow: number; cqes: number; flags: number };
}

export const encodeParams = (params: RingParams): Buffer => {
  const { flags, cqEntries = 0, cpu = 0, idle = 0, wqFd = 0, rings = 0n, sqes = 0n } = params;
  const bytes = Buffer.alloc(PARAMS_SIZE);
  for (const [at, value] of [
    [4, cqEntries],
    [8, flags],
    [12, cpu],
    [16, idle],
    [24, wqFd],
  ] as const)
    bytes.writeUInt32LE(value, at);
  bytes.writeBigUInt64LE(sqes, 72);
  bytes.writeBigUInt64LE(rings, 112);
  return bytes;
};

export const offsetsOf = (bytes: Buffer): RingOffsets => {
  const word = (at: number): number => bytes.readUInt32LE(at);
  return {
    sq: { head: word(40), tail: word(44), flags: word(56), dropped: word(60), array: word(64) },
    cq: { head: word(80), tail: word(84), overflow: word(96), cqes: word(100), flags: word(104) },
  };
};

/** The offsets of this kernel, from a ring of ours. Throws EPERM where io_uring is switched off. */
export const offsetsHere = (): RingOffsets => {
  const params = encodeParams({ flags: 0 });
  closeSync(addon.uringSetup(1, params));
  return offsetsOf(params);
};
