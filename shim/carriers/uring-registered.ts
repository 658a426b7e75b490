// SPDX-License-Identifier: Apache-2.0
// What a ring has registered, registered again by its own thread: tables of buffers and files, and all smaller things.

import { addon } from "../../native/index.js";
import { O_CLOEXEC } from "../flags.js";
import type { DirectFile } from "./uring-direct.js";
import {
  type Descriptor,
  type Group,
  type ImageCredentials,
  type ImageRing,
  MAX_GROUPS,
  type Region,
  runsOf,
} from "./uring-image.js";
import { entry, IOSQE_CQE_SKIP_SUCCESS, type Made, submit, u32 } from "./uring-memory.js";
import { CALL, type Hand, REGISTER } from "./uring-task.js";

const [OP_READ, OP_PROVIDE_BUFFERS, IOSQE_BUFFER_SELECT] = [22, 31, 1 << 5];
const OFF_PBUF_RING = 0x80000000n;
const OFF_REGION = 0x20000000n;
const [REGION_USER, REGION_WAITS] = [1, 1n];
const [PBUF_RING_MMAP, PBUF_RING_INC] = [1, 2];
const [SYS_WRITE, SYS_PIPE2] = [1, 293];

/** Finds a descriptor of any process of the tree's for the ring's own: its number there, and whether it is borrowed. */
export type Here = (descriptor: Descriptor | DirectFile) => Promise<[fd: number, borrowed: boolean]>;

/** struct io_uring_restriction, one for each thing that is allowed. */
export const restrictionsOf = (r: NonNullable<ImageRing["restrictions"]>): [Buffer, number] => {
  const entries: [opcode: number, value: number][] = [];
  for (let bit = 0; bit < 64; bit++) if (r.register_ops & (1n << BigInt(bit))) entries.push([0, bit]);
  for (let bit = 0; bit < 64; bit++) if (r.ops & (1n << BigInt(bit))) entries.push([1, bit]);
  if (r.flags_allowed !== 0) entries.push([2, r.flags_allowed]);
  if (r.flags_required !== 0) entries.push([3, r.flags_required]);
  const bytes = Buffer.alloc(16 * entries.length);
  entries.forEach(([opcode, value], i) => {
    bytes.writeUInt16LE(opcode, 16 * i);
    bytes.writeUInt8(value, 16 * i + 2);
  });
  return [bytes, entries.length];
};

/** struct iovec and tags of the whole table; empty slots are empty buffers. */
const buffersOf = ({ buffers = [], buffer_slots = 0 }: ImageRing): [Buffer, Buffer] => {
  const [iovecs, tags] = [Buffer.alloc(16 * buffer_slots), Buffer.alloc(8 * buffer_slots)];
  for (const { index, address, length, tag } of buffers) {
    if (index >= buffer_slots) throw new Error(`buffer ${index} is not in a table of ${buffer_slots}`);
    iovecs.writeBigUInt64LE(address, 16 * index);
    iovecs.writeBigUInt64LE(length, 16 * index + 8);
    tags.writeBigUInt64LE(tag, 8 * index);
  }
  return [iovecs, tags];
};

/** IORING_REGISTER_BUFFERS2 and _FILES2 (Linux 5.13): struct io_uring_rsrc_register, with tags and table behind it. */
const registerTable = async (
  hand: Hand,
  what: string,
  [fd, op, slots]: [fd: number, op: number, slots: number],
  table: Buffer,
  tags: Buffer,
): Promise<void> => {
  const all = Buffer.concat([Buffer.alloc(32), tags, table]);
  const at = await hand.lend(all);
  const tagged = tags.some((byte) => byte !== 0);
  all.writeUInt32LE(slots, 0);
  all.writeBigUInt64LE(at + BigInt(32 + tags.length), 16);
  all.writeBigUInt64LE(tagged ? at + 32n : 0n, 24);
  await hand.register(what, fd, op, all, 32);
};

const registerFiles = async (image: ImageRing, fd: number, hand: Hand, here: Here): Promise<void> => {
  const slots = image.file_slots!;
  const [fds, tags] = [Buffer.alloc(4 * slots, 0xff), Buffer.alloc(8 * slots)];
  const borrowed: number[] = [];
  for (const file of image.files ?? []) {
    const { index, tag, task, fd: of, opened, path, flags, position = 0n } = file;
    if (index >= slots) throw new Error(`file ${index} is not in a table of ${slots}`);
    tags.writeBigUInt64LE(tag, 8 * index);
    let wanted: Descriptor | DirectFile;
    if (opened !== undefined && path !== undefined && flags !== undefined) wanted = { opened, path, flags, position };
    else if (task !== undefined && of !== undefined) wanted = { task, fd: of };
    else continue;
    const [own, isBorrowed] = await here(wanted);
    if (isBorrowed) borrowed.push(own);
    fds.writeInt32LE(own, 4 * index);
  }
  await registerTable(hand, "files", [fd, REGISTER.files2, slots], fds, tags);
  for (const one of borrowed) await hand.call("close", CALL.close, one);
  if (image.alloc_start === undefined || image.alloc_end === undefined) return;
  const range = Buffer.alloc(16);
  range.writeUInt32LE(image.alloc_start, 0);
  range.writeUInt32LE(image.alloc_end - image.alloc_start, 4);
  await hand.register("file range", fd, REGISTER.fileAllocRange, range, 0);
};

/** struct credentials of native/addon_uring.c */
const encodeCredentials = ({ uids, gids, groups = [], capabilities }: ImageCredentials): Buffer => {
  const bytes = Buffer.alloc(80 + 4 * MAX_GROUPS);
  for (const [i, id] of [...uids, ...gids].entries()) bytes.writeUInt32LE(id, 4 * i);
  for (const [i, set] of capabilities.entries()) bytes.writeBigUInt64LE(set, 32 + 8 * i);
  bytes.writeUInt32LE(groups.length, 72);
  for (const [i, gid] of groups.entries()) bytes.writeUInt32LE(gid, 80 + 4 * i);
  return bytes;
};

/** Credentials are numbered by the kernel, one after the other: those in between are registered, and given up. */
const registerPersonalities = async (
  { image: { personalities: wanted = [], credentials = [] }, ring }: Made,
  hand: Hand,
): Promise<void> => {
  const fd = ring.fdInTask!;
  const last = Math.max(0, ...wanted);
  for (let id = 1; id <= last; id++) {
    const other = credentials.find(({ personality }) => personality === id);
    const got =
      other === undefined
        ? await hand.register("personality", fd, REGISTER.personality, undefined, 0)
        : addon.uringRegisterAs(ring.fd, encodeCredentials(other));
    if (got !== id) throw new Error(`personality ${id} is number ${got} here`);
  }
  for (let id = 1; id <= last; id++)
    if (!wanted.includes(id)) await hand.register("personality", fd, REGISTER.unregisterPersonality, undefined, id);
};

/** All that has no part in the history of the queues. */
export const registerAll = async (made: Made, hand: Hand, here: Here): Promise<void> => {
  const { image, ring } = made;
  const fd = ring.fdInTask!;
  if (image.buffer_slots !== undefined) {
    const [table, tags] = buffersOf(image);
    await registerTable(hand, "buffers", [fd, REGISTER.buffers2, image.buffer_slots], table, tags);
  }
  if (image.file_slots !== undefined) await registerFiles(image, fd, hand, here);
  if (image.eventfd !== undefined) {
    const [own, borrowed] = await here(image.eventfd);
    const op = image.eventfd.async ? REGISTER.eventfdAsync : REGISTER.eventfd;
    await hand.register("eventfd", fd, op, u32(own), 1);
    if (borrowed) await hand.call("close", CALL.close, own);
  }
  if (image.napi !== undefined) {
    const napi = Buffer.alloc(16);
    napi.writeUInt32LE(image.napi.timeout, 0);
    napi.writeUInt8(image.napi.prefer, 4);
    napi.writeUInt32LE(image.napi.track, 8);
    await hand.register("napi", fd, REGISTER.napi, napi, 1);
  }
  if (image.clock !== undefined) {
    const clock = Buffer.alloc(16);
    clock.writeUInt32LE(image.clock, 0);
    await hand.register("clock", fd, REGISTER.clock, clock, 0);
  }
  await registerPersonalities(made, hand);
};

/**
 * struct io_uring_mem_region_reg, with its struct io_uring_region_desc behind it. For arguments of waits the ring must be disabled still. What
 * is the kernel's own memory is filled.
 */
export const registerRegion = async (
  { ring }: Made,
  { length, address, memory, waits }: Region,
  hand: Hand,
): Promise<void> => {
  const both = Buffer.alloc(96);
  const at = await hand.lend(both);
  both.writeBigUInt64LE(at + 32n, 0);
  both.writeBigUInt64LE(waits ? REGION_WAITS : 0n, 8);
  both.writeBigUInt64LE(address ?? 0n, 32);
  both.writeBigUInt64LE(BigInt(length), 40);
  both.writeUInt32LE(address === undefined ? 0 : REGION_USER, 48);
  await hand.register("memory", ring.fdInTask!, REGISTER.memRegion, both, 1);
  if (memory !== undefined) addon.uringWrite(ring.fd, OFF_REGION, 0, memory);
};

/** struct io_uring_buf_reg */
export const registerBufferRing = async (fd: number, group: Group, hand: Hand): Promise<void> => {
  const reg = Buffer.alloc(40);
  reg.writeBigUInt64LE(group.mapped ? 0n : group.address!, 0);
  reg.writeUInt32LE(group.entries, 8);
  reg.writeUInt16LE(group.id, 12);
  reg.writeUInt16LE((group.mapped ? PBUF_RING_MMAP : 0) | (group.incremental ? PBUF_RING_INC : 0), 14);
  reg.writeUInt32LE(group.min_left ?? 0, 16);
  await hand.register(`buffer ring ${group.id}`, fd, REGISTER.pbufRing, reg, 1);
};

/** Makes a thread have workers of its own: it has none before it uses a ring, and a ring descriptor registered is a use. */
export const asUser = async (fd: number, hand: Hand, then: () => Promise<void>): Promise<void> => {
  const update = Buffer.alloc(16);
  update.writeUInt32LE(0xffffffff, 0);
  update.writeBigUInt64LE(BigInt(fd), 8);
  await hand.register("ring descriptor", fd, REGISTER.ringFds, update, 1);
  const slot = (await hand.read(await hand.lend(Buffer.alloc(0)), 4)).readUInt32LE(0);
  await then();
  const end = Buffer.alloc(16);
  end.writeUInt32LE(slot, 0);
  await hand.register("ring descriptor", fd, REGISTER.unregisterRingFds, end, 1);
};

/** Limits of the workers of a thread. */
export const limitWorkers = async (
  fd: number,
  { bounded, unbounded }: { bounded: number; unbounded: number },
  hand: Hand,
): Promise<void> => {
  const limits = Buffer.alloc(8);
  limits.writeUInt32LE(bounded, 0);
  limits.writeUInt32LE(unbounded, 4);
  await hand.register("worker limits", fd, REGISTER.iowqMaxWorkers, limits, 2);
};

/** Gives a ring its lists of buffers again, and takes from its rings of buffers what had been taken. */
export const provide = async (made: Made, hand: Hand): Promise<void> => {
  for (const group of made.image.groups ?? []) {
    if (group.ring) await takeBuffers(made, group, hand);
    else
      await submit(
        made,
        hand,
        runsOf(group).map(({ id, address, length, count }) =>
          entry(OP_PROVIDE_BUFFERS, IOSQE_CQE_SKIP_SUCCESS, (sqe) => {
            sqe.writeInt32LE(count, 4);
            sqe.writeBigUInt64LE(BigInt(id), 8);
            sqe.writeBigUInt64LE(address, 16);
            sqe.writeUInt32LE(length, 24);
            sqe.writeUInt16LE(group.id, 40);
          }),
        ),
      );
  }
};

/** The kernel counts for itself which buffer is next: each one that had been taken is taken by a read of one byte. */
const takeBuffers = async (made: Made, group: Group, hand: Hand): Promise<void> => {
  const bytes = 16 * group.entries;
  const before = await readBuffers(group, hand, bytes);
  const bait = Buffer.alloc(bytes);
  const sink = await hand.lend(Buffer.alloc(64));
  for (let i = 0; i < group.entries; i++) {
    bait.writeBigUInt64LE(sink, 16 * i);
    bait.writeUInt32LE(1, 16 * i + 8);
    bait.writeUInt16LE(i, 16 * i + 12);
  }
  const ends = await hand.lend(Buffer.alloc(64));
  await hand.call("pipe2", SYS_PIPE2, ends, O_CLOEXEC);
  const both = await hand.read(ends, 8);
  const [from, to] = [both.readInt32LE(0), both.readInt32LE(4)];
  try {
    for (let taken = 0; taken < group.head; ) {
      const n = Math.min(group.head - taken, group.entries, 4096);
      bait.writeUInt16LE((taken + n) & 0xffff, 14);
      await writeBuffers(made, group, hand, bait);
      await hand.call("write", SYS_WRITE, to, await hand.lend(Buffer.alloc(n)), n);
      const read = entry(OP_READ, IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS, (sqe) => {
        sqe.writeInt32LE(from, 4);
        sqe.writeBigInt64LE(-1n, 8);
        sqe.writeUInt32LE(1, 24);
        sqe.writeUInt16LE(group.id, 40);
      });
      await submit(
        made,
        hand,
        Array.from({ length: n }, () => read),
      );
      taken += n;
    }
  } finally {
    await writeBuffers(made, group, hand, group.mapped ? Buffer.from(group.memory!).subarray(0, bytes) : before);
    for (const end of [from, to]) await hand.call("close", CALL.close, end);
  }
};

const readBuffers = async (group: Group, hand: Hand, length: number): Promise<Buffer> =>
  group.mapped ? Buffer.alloc(length) : hand.readAll(group.address!, length);

const writeBuffers = async ({ ring }: Made, group: Group, hand: Hand, bytes: Buffer): Promise<void> =>
  group.mapped
    ? addon.uringWrite(ring.fd, OFF_PBUF_RING | (BigInt(group.id) << 16n), 0, bytes)
    : hand.writeAll(group.address!, bytes);
