// SPDX-License-Identifier: Apache-2.0
// A restored ring gets its requests in flight again: each is submitted by the thread that had submitted it, which has not run
// yet. What an entry points to lies in memory that is mapped for the time of one call.
import { setTimeout as sleep } from "node:timers/promises";
import type { CarrierContext } from "./carrier.js";
import type { RingMemory } from "./uring-memory.js";
import { offsetsHere, type RingOffsets } from "./uring-params.js";
import { OP, opName, pointAt, type SavedRequest, SQE_SIZE } from "./uring-request.js";
import { type Ring, refuse, SETUP } from "./uring-ring.js";
import { threadBy } from "./uring-threads.js";

const [SYS_MMAP, SYS_MUNMAP, SYS_IO_URING_ENTER] = [9, 11, 426];
const [PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS] = [3n, 0x22n];
const [ENTER_SQ_WAKEUP, ENTER_REGISTERED_RING] = [1n << 1n, 1n << 4n];
const NOP_INJECT_RESULT = 1;
const [ECANCELED, SECOND] = [125, 1_000_000_000n];
/** Completions that say that a request was not understood: EBADF, ENOMEM, EFAULT, EINVAL, ENOTSOCK, EOPNOTSUPP. */
const MISUNDERSTOOD: ReadonlySet<number> = new Set([-9, -12, -14, -22, -88, -95]);
const PAGE = 4096;

/** What entries point to, page by page of one mapping. */
class Scratch {
  #parts: { at: number; data: Buffer }[] = [];
  #size = 0;

  add(data: Buffer): number {
    const at = this.#size;
    this.#parts.push({ at, data });
    this.#size += (data.length + 15) & ~15;
    return at;
  }

  get size(): number {
    return (this.#size + PAGE - 1) & ~(PAGE - 1);
  }

  /** All of it, once it is known where it will lie. */
  bytes(): Buffer {
    const all = Buffer.alloc(this.#size);
    for (const { at, data } of this.#parts) data.copy(all, at);
    return all;
  }
}

const timespec = (nanoseconds: bigint): Buffer => {
  const bytes = Buffer.alloc(16);
  bytes.writeBigInt64LE(nanoseconds / SECOND, 0);
  bytes.writeBigInt64LE(nanoseconds % SECOND, 8);
  return bytes;
};

const words = (values: readonly bigint[]): Buffer => {
  const bytes = Buffer.alloc(values.length * 8);
  for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(value, i * 8);
  return bytes;
};

/** An entry that completes with ECANCELED (Linux 6.11). */
const canceled = (userData: bigint): Buffer => {
  const sqe = Buffer.alloc(SQE_SIZE);
  sqe[0] = OP.nop;
  sqe.writeInt32LE(-1, 4);
  sqe.writeInt32LE(-ECANCELED, 24);
  sqe.writeUInt32LE(NOP_INJECT_RESULT, 28);
  sqe.writeBigUInt64LE(userData, 32);
  return sqe;
};

/** A message's header in the task's memory, which the kernel reads now and writes to when the message comes. */
interface Header {
  address: bigint;
  before: Buffer;
  written: Buffer;
}

/** The entry, and what it needs in the task's memory. */
const prepare = async (
  tid: number,
  request: SavedRequest,
  scratch: Scratch,
  { engine }: CarrierContext,
): Promise<{ sqe: Buffer; point?: number; header?: { address: bigint; vectors: number } }> => {
  if (request.sqe === undefined) return { sqe: canceled(request.user_data) };
  const sqe = Buffer.from(request.sqe);
  const opcode = sqe[0]!;
  if (opcode === OP.futexWaitv) {
    const [vectors, entries] = [request.vectors ?? [], [] as bigint[]];
    for (let i = 0; i < vectors.length; i += 2) {
      const [address, word] = [vectors[i]!, vectors[i + 1]!];
      const value = request.futex ? BigInt((await engine.readMemory(tid, address, 4)).readUInt32LE(0)) : word >> 32n;
      entries.push(value, address, word & 0xffffffffn);
    }
    return { sqe, point: scratch.add(words(entries)) };
  }
  if (request.futex) {
    // The kernel compares before it waits. This one has waited already: for a wake, whatever the value has become since.
    const value = await engine.readMemory(tid, sqe.readBigUInt64LE(16), 4);
    sqe.writeBigUInt64LE(BigInt(value.readUInt32LE(0)), 8);
  }
  if (request.nanoseconds !== undefined) return { sqe, point: scratch.add(timespec(request.nanoseconds)) };
  if (request.event !== undefined && request.event.length > 0)
    return { sqe, point: scratch.add(Buffer.from(request.event)) };
  const vectors = request.vectors ?? [];
  if (request.message !== undefined && request.message.length === 4)
    return { sqe, header: { address: sqe.readBigUInt64LE(16), vectors: scratch.add(words(vectors)) } };
  if (vectors.length > 0 && (opcode === OP.readv || opcode === OP.writev))
    return { sqe, point: scratch.add(words(vectors)) };
  return { sqe };
};

/** struct user_msghdr: name, name_len, iov, iovlen, control, controllen, flags. */
const HEADER_SIZE = 56;

const headerOf = ([name, nameLen, control, controlLen]: readonly bigint[], vectors: bigint, count: bigint): Buffer =>
  words([name!, nameLen!, vectors, count, control!, controlLen!, 0n]);

/** The descriptor by which a thread submits, and the flag that says what kind of number it is. */
const ringOf = (ring: Ring): [bigint, bigint] =>
  ring.fdInTask === undefined ? [BigInt(ring.registered!), ENTER_REGISTERED_RING] : [BigInt(ring.fdInTask), 0n];

/** A ring, and where its queues are. */
interface Queues {
  ring: Ring;
  memory: RingMemory;
}

/** Entries go to where the kernel takes the next ones from. */
const enqueue = async ({ ring, memory }: Queues, at: RingOffsets, sqes: readonly Buffer[]): Promise<number> => {
  const head = await memory.word(at.sq.head);
  const stride = ring.flags & SETUP.sqe128 ? 2 * SQE_SIZE : SQE_SIZE;
  // Behind the completions, as the kernel aligns it (io_uring/io_uring.c: rings_size).
  const array = (at.cq.cqes + ring.cqEntries * (ring.flags & SETUP.cqe32 ? 32 : 16) + 63) & ~63;
  const mask = ring.sqEntries - 1;
  // The kernel maps all of them or none.
  const entries = await memory.read("sqes", 0, ring.sqEntries * stride);
  for (const [i, sqe] of sqes.entries()) {
    const slot = (head + i) & mask;
    entries.fill(0, slot * stride, (slot + 1) * stride);
    sqe.copy(entries, slot * stride);
    if (!(ring.flags & SETUP.noSqarray)) await memory.setWord(array + slot * 4, slot);
  }
  await memory.write("sqes", 0, entries);
  await memory.setWord(at.sq.tail, head + sqes.length);
  return (head + sqes.length) >>> 0;
};

const submit = async (
  queues: Queues,
  at: RingOffsets,
  tid: number,
  sqes: readonly Buffer[],
  { engine }: CarrierContext,
): Promise<void> => {
  const { ring, memory } = queues;
  const tail = await enqueue(queues, at, sqes);
  const [fd, registered] = ringOf(ring);
  const poll = (ring.flags & SETUP.sqpoll) !== 0;
  const count = poll ? 0n : BigInt(sqes.length);
  const flags = registered | (poll ? ENTER_SQ_WAKEUP : 0n);
  const ret = await engine.syscall(tid, SYS_IO_URING_ENTER, fd, count, 0n, flags, 0n, 0n);
  if (ret < 0) throw new Error(`io_uring_enter: errno ${-ret}`);
  for (let i = 0; poll && i < 1000 && (await memory.word(at.sq.head)) !== tail; i++) await sleep(1);
  if ((await memory.word(at.sq.head)) !== tail) throw new Error(`the kernel took ${ret} of ${sqes.length}`);
};

/** Looks at what has completed since the completion queue stood at `from`: that may be, but not because of us. */
const checkCompletions = async (
  { ring, memory }: Queues,
  at: RingOffsets,
  from: number,
  mine: ReadonlyMap<bigint, SavedRequest>,
): Promise<void> => {
  const size = ring.flags & SETUP.cqe32 ? 32 : 16;
  const bytes = await memory.read("rings", 0, at.cq.cqes + ring.cqEntries * size);
  const to = bytes.readUInt32LE(at.cq.tail);
  for (let i = from; i !== to; i = (i + 1) >>> 0) {
    const cqe = at.cq.cqes + (i & (ring.cqEntries - 1)) * size;
    const request = mine.get(bytes.readBigUInt64LE(cqe));
    const res = bytes.readInt32LE(cqe + 8);
    if (request !== undefined && request.sqe === undefined && res !== -ECANCELED)
      throw new Error(`a request that was to be cancelled gave ${res}: that takes Linux 6.11`);
    if (request?.sqe !== undefined && MISUNDERSTOOD.has(res))
      throw new Error(`${opName(request.sqe[0]!)}, user_data 0x${request.user_data.toString(16)}: errno ${-res}`);
  }
};

/** Batches: as many as the queue holds, of one thread, and no chain in two. */
const batches = (requests: readonly SavedRequest[], most: number): SavedRequest[][] => {
  const chains: SavedRequest[][] = [];
  let open = false;
  for (const request of requests) {
    if (open) chains.at(-1)!.push(request);
    else chains.push([request]);
    open = ((request.sqe?.[1] ?? 0) & 0x0c) !== 0;
  }
  const all: SavedRequest[][] = [];
  for (const chain of chains) {
    const last = all.at(-1);
    if (last !== undefined && last[0]!.thread === chain[0]!.thread && last.length + chain.length <= most)
      last.push(...chain);
    else all.push([...chain]);
  }
  return all;
};

const submitBatch = async (
  queues: Queues,
  offsets: RingOffsets,
  batch: readonly SavedRequest[],
  context: CarrierContext,
): Promise<void> => {
  const { engine } = context;
  const { ring } = queues;
  const tid = ring.flags & SETUP.sqpoll ? ring.tid : (threadBy(ring.pid, batch[0]!.thread) ?? ring.tid);
  const scratch = new Scratch();
  const prepared = [];
  for (const request of batch) prepared.push({ request, ...(await prepare(tid, request, scratch, context)) });
  let base = 0n;
  if (scratch.size > 0) {
    const at = await engine.syscall(
      tid,
      SYS_MMAP,
      0n,
      BigInt(scratch.size),
      PROT_READ_WRITE,
      MAP_PRIVATE_ANONYMOUS,
      (1n << 64n) - 1n,
      0n,
    );
    if (at < 0 && at > -4096) throw new Error(`mmap: errno ${-at}`);
    base = BigInt(at);
    await engine.writeMemory(tid, base, scratch.bytes());
  }
  // The program may have given the header's memory to something else by now: that is put back, but for what the kernel writes.
  const headers: Header[] = [];
  for (const { sqe, point, header, request } of prepared) {
    if (point !== undefined) pointAt(sqe, sqe[0]!, base + BigInt(point));
    if (header === undefined) continue;
    const count = BigInt(request.vectors!.length / 2);
    const before = await engine.readMemory(tid, header.address, HEADER_SIZE);
    const written = headerOf(request.message!, base + BigInt(header.vectors), count);
    // Padding, and flags that the kernel alone writes.
    for (const [from, to] of [
      [12, 16],
      [48, 56],
    ] as const)
      before.copy(written, from, from, to);
    headers.push({ address: header.address, before, written });
    await engine.writeMemory(tid, header.address, written);
  }
  try {
    await submit(
      queues,
      offsets,
      tid,
      prepared.map(({ sqe }) => sqe),
      context,
    );
  } finally {
    for (const { address, before, written } of headers) {
      const now = await engine.readMemory(tid, address, HEADER_SIZE);
      // Word by word: what the kernel has written since, because the message was there, stays.
      for (let at = 0; at < HEADER_SIZE; at += 8)
        if (now.compare(written, at, at + 8, at, at + 8) === 0) before.copy(now, at, at, at + 8);
      await engine.writeMemory(tid, address, now);
    }
    if (scratch.size > 0) await engine.syscall(tid, SYS_MUNMAP, base, BigInt(scratch.size));
  }
};

/** See InFlightCarrier. Throws ERR_URING. */
export const resubmit = async (
  queues: Queues,
  requests: readonly SavedRequest[],
  context: CarrierContext,
): Promise<void> => {
  if (requests.length === 0) return;
  const offsets = offsetsHere();
  const { ring, memory } = queues;
  const from = await memory.word(offsets.cq.tail);
  try {
    for (const batch of batches(requests, ring.sqEntries)) await submitBatch(queues, offsets, batch, context);
    await checkCompletions(queues, offsets, from, new Map(requests.map((request) => [request.user_data, request])));
  } catch (error) {
    throw refuse(
      `cannot submit again what was in flight in process ${ring.pid}'s io_uring`,
      error instanceof Error ? error.message : String(error),
      "report this with the images",
      error,
    );
  }
};
