// SPDX-License-Identifier: Apache-2.0
// A ring that is being made again: its shared memory, submissions by its own thread, and counters that are brought on.
import { addon } from "../../native/index.js";
import type { Engine } from "../control/engine.js";
import { MAX_DATA } from "../control/wire.js";
import { type ImageRing, submissionsFor } from "./uring-image.js";
import type { RingOffsets, RingParams } from "./uring-params.js";
import { type Ring, SETUP } from "./uring-ring.js";
import { CALL, type Hand } from "./uring-task.js";

const OFFSET = { rings: 0n, sqes: 0x10000000n } as const;
const [ENTER_GETEVENTS, ENTER_SQ_WAKEUP, SQ_NEED_WAKEUP] = [1, 2, 1];
export const IOSQE_CQE_SKIP_SUCCESS = 1 << 6;

/** io_uring/io_uring.c, IO_LOCAL_TW_DEFAULT_MAX (Linux 6.13). */
const LOCAL_WORK_MAX = 20;

/** A ring that has been set up again. */
export interface Made {
  image: ImageRing;
  ring: Ring;
  offsets: RingOffsets;
  /** struct io_uring_params as the kernel has filled it in. */
  params: Buffer;
  memory: RingMemory;
  /** It is being brought on already: when that is done. */
  ahead?: Promise<void>;
}

/** What io_uring_setup(2) is to be asked for. */
export const askedFor = (image: ImageRing, flags: number): RingParams => {
  const sized = image.cq_entries !== 2 * image.sq_entries;
  return {
    flags: sized ? flags | SETUP.cqsize : flags,
    ...((sized || flags & SETUP.cqsize) && { cqEntries: image.cq_entries }),
    ...(image.cpu !== undefined && { cpu: image.cpu }),
    ...(image.idle !== undefined && { idle: image.idle }),
    ...(image.rings_address !== undefined && { rings: image.rings_address, sqes: image.sqes_address! }),
  };
};

/** How far a new ring is to be brought on; what is in flight and what gives buffers again is submitted after that. */
export const historyOf = (image: ImageRing): { sq: number; cq: number } => ({
  sq: image.sq_head - (image.submissions ?? 0) - submissionsFor(image.groups ?? []),
  cq: image.cq_tail,
});

export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
};

/** The memory that a ring shares with its program: the kernel's, or with IORING_SETUP_NO_MMAP the program's own. */
export class RingMemory {
  readonly #fd: number;
  readonly #pid: number;
  readonly #engine: Engine;
  readonly #addresses: { rings: bigint; sqes: bigint } | undefined;

  constructor({ fd, pid }: Pick<Ring, "fd" | "pid">, { rings_address, sqes_address }: ImageRing, engine: Engine) {
    this.#fd = fd;
    this.#pid = pid;
    this.#engine = engine;
    if (rings_address !== undefined && sqes_address !== undefined)
      this.#addresses = { rings: rings_address, sqes: sqes_address };
  }

  async read(where: keyof typeof OFFSET, at: number, length: number): Promise<Buffer> {
    if (this.#addresses === undefined) return addon.uringRead(this.#fd, OFFSET[where], at + length).subarray(at);
    const parts: Buffer[] = [];
    for (let done = 0; done < length; done += MAX_DATA)
      parts.push(
        await this.#engine.readMemory(
          this.#pid,
          this.#addresses[where] + BigInt(at + done),
          Math.min(MAX_DATA, length - done),
        ),
      );
    return Buffer.concat(parts);
  }

  async write(where: keyof typeof OFFSET, at: number, data: Uint8Array): Promise<void> {
    if (this.#addresses === undefined) return addon.uringWrite(this.#fd, OFFSET[where], at, data);
    for (let done = 0; done < data.length; done += MAX_DATA)
      await this.#engine.writeMemory(
        this.#pid,
        this.#addresses[where] + BigInt(at + done),
        Buffer.from(data.subarray(done, done + MAX_DATA)),
      );
  }

  async word(at: number): Promise<number> {
    return (await this.read("rings", at, 4)).readUInt32LE();
  }

  async setWord(at: number, value: number): Promise<void> {
    await this.write("rings", at, u32(value));
  }
}

const sqeSize = ({ flags }: Ring): number => (flags & SETUP.sqe128 ? 128 : 64);

/** An entry of the submission queue. */
export const entry = (opcode: number, flags: number, fill?: (sqe: Buffer) => void): Buffer => {
  const sqe = Buffer.alloc(64);
  sqe.writeUInt8(opcode, 0);
  sqe.writeUInt8(flags, 1);
  fill?.(sqe);
  return sqe;
};

/** How many completions the program has not read. */
export const unreadOf = ({ cq_tail, rings }: ImageRing, { cq }: RingOffsets): number =>
  (cq_tail - Buffer.from(rings.buffer, rings.byteOffset).readUInt32LE(cq.head)) >>> 0;

/**
 * Empties the completion queue as far as the program will have read it, `left` completions from now. The kernel looks at the
 * head only when it runs out of room that it knows of: it must never have seen one beyond where it will be. Returns how
 * many there is room for.
 */
const drain = async ({ memory, offsets, image, ring }: Made, left: number): Promise<number> => {
  const stays = Math.max(0, unreadOf(image, offsets) - left);
  await memory.setWord(offsets.cq.head, (await memory.word(offsets.cq.tail)) - stays);
  return ring.cqEntries - stays;
};

/** Lets an SQPOLL thread take what is in the queue. */
const wake = async ({ memory, offsets, ring }: Made, hand: Hand, tail: number): Promise<void> => {
  while ((await memory.word(offsets.sq.head)) !== tail) {
    if ((await memory.word(offsets.sq.flags)) & SQ_NEED_WAKEUP)
      await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, 0, 0, ENTER_SQ_WAKEUP, 0, 0);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
};

/** Has the ring's thread submit entries, which must end without a completion (IOSQE_CQE_SKIP_SUCCESS) and without waiting. */
export const submit = async (made: Made, hand: Hand, entries: readonly Buffer[]): Promise<void> => {
  const { ring, memory, offsets } = made;
  const size = sqeSize(ring);
  const most = Math.min(ring.sqEntries, ring.cqEntries);
  for (let at = 0; at < entries.length; at += most) {
    const batch = entries.slice(at, at + most);
    const tail = await memory.word(offsets.sq.tail);
    for (const [i, sqe] of batch.entries()) {
      const slot = ((tail + i) >>> 0) & (ring.sqEntries - 1);
      await memory.write("sqes", slot * size, Buffer.concat([sqe, Buffer.alloc(size - 64)]));
      if ((ring.flags & SETUP.noSqarray) === 0) await memory.setWord(offsets.sq.array + 4 * slot, slot);
    }
    await memory.setWord(offsets.sq.tail, tail + batch.length);
    if (ring.flags & SETUP.sqpoll) await wake(made, hand, (tail + batch.length) >>> 0);
    else {
      const done = await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, batch.length, 0, 0, 0, 0);
      if (done !== batch.length) throw new Error(`it takes ${done} of ${batch.length} submissions`);
    }
  }
};

/** NOPs by the ring's own thread. */
const nops = async (made: Made, hand: Hand, count: number, flags: number, after: number): Promise<void> => {
  if (count === 0) return;
  const { ring, memory, offsets } = made;
  const size = sqeSize(ring);
  const sqes = Buffer.alloc(size * ring.sqEntries);
  for (let at = 0; at < sqes.length; at += size) sqes.writeUInt8(flags, at + 1);
  await memory.write("sqes", 0, sqes);
  const posts = (flags & IOSQE_CQE_SKIP_SUCCESS) === 0;
  let room = await drain(made, (posts ? count : 0) + after);
  let left = count;
  // All but the last, which stay unread, by one order.
  const each = Math.min(ring.sqEntries, ring.cqEntries);
  const stays = posts ? Math.max(0, unreadOf(made.image, offsets) - after) : 0;
  const times = (ring.flags & SETUP.noMmap) === 0 ? Math.floor(Math.max(0, left - stays) / each) : 0;
  if (times > 0 && (!posts || room === ring.cqEntries)) {
    const { head, tail } = offsets.cq;
    // Where head and tail are one place nothing is thrown away.
    const at = { sqTail: offsets.sq.tail, cqHead: posts ? head : tail, cqTail: tail };
    await hand.submit(ring.pid, ring.fdInTask!, offsets.cq.cqes, at, [each, times]);
    left -= times * each;
    room = await drain(made, (posts ? left : 0) + after);
  }
  while (left > 0) {
    const n = Math.min(left, ring.sqEntries, posts ? room : left);
    await memory.setWord(offsets.sq.tail, (await memory.word(offsets.sq.tail)) + n);
    const done = await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, n, 0, 0, 0, 0);
    if (done !== n) throw new Error(`it takes ${done} of ${n} submissions`);
    left -= n;
    if (posts) room = await drain(made, left + after);
  }
};

/** Completions that belong to no submission of this ring's, from one of ours. */
const completions = async (made: Made, hand: Hand, count: number): Promise<void> => {
  let room = await drain(made, count);
  for (let left = count; left > 0; ) {
    const n = Math.min(left, room);
    await post(made, hand, Buffer.alloc(16 * n));
    left -= n;
    room = await drain(made, left);
  }
};

/** Gives the ring completions, struct io_uring_cqe each. */
export const post = async ({ ring }: Made, hand: Hand, cqes: Buffer): Promise<void> => {
  addon.uringPost(ring.fd, cqes);
  // They wait for the thread to look, which takes so many at a time.
  const looks = ring.flags & SETUP.deferTaskrun ? Math.ceil(cqes.length / 16 / LOCAL_WORK_MAX) : 0;
  for (let look = 0; look < looks; look++)
    await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, 0, 0, ENTER_GETEVENTS, 0, 0);
};

/** Brings the counters on by so many submissions and completions. */
export const advance = async (made: Made, hand: Hand): Promise<void> => {
  const { ring, params, ahead } = made;
  if (ahead !== undefined) return ahead;
  const { sq, cq } = historyOf(made.image);
  if (sq === 0 && cq === 0) return;
  if ((ring.flags & SETUP.singleIssuer) === 0) {
    const unread = unreadOf(made.image, made.offsets);
    await addon.uringAdvance(ring.fd, ring.pid, params, sq, cq, unread, new Uint8Array(4));
    return;
  }
  // Only its own thread may submit.
  const both = Math.min(sq, cq);
  await nops(made, hand, both, 0, cq - both);
  await nops(made, hand, sq - both, IOSQE_CQE_SKIP_SUCCESS, cq - both);
  await completions(made, hand, cq - both);
};
