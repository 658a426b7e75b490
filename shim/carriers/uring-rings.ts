// SPDX-License-Identifier: Apache-2.0
// The rings of the images are made anew, by the restored tasks themselves: set up with the same parameters, their counters
// brought on to where they were, their memory filled and mapped where it was.
import { closeSync, readdirSync, readFileSync } from "node:fs";
import { addon, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import type { CarrierContext } from "./carrier.js";
import { depthOf, taskName } from "./tasks.js";
import { type Descriptor, type ImageRing, loadRings } from "./uring-image.js";
import { encodeParams, offsetsOf, PARAMS_SIZE, type RingOffsets } from "./uring-params.js";
import { type InFlightCarrier, type Ring, refuse, SETUP } from "./uring-ring.js";
import { CALL, Hand, REGISTER } from "./uring-task.js";

const [OFF_SQ_RING, OFF_SQES] = [0n, 0x10000000n];
const [O_CLOEXEC, MAP_SHARED, MADV_DONTFORK] = [0o2000000, 1, 10n];
const [EPOLL_CTL_ADD, EPOLL_CTL_DEL] = [1, 2];
const [PR_SET_PTRACER, PR_SET_PTRACER_ANY] = [0x59616d61, 0xffffffffffffffffn];
const [SQ_NEED_WAKEUP, SQ_CQ_OVERFLOW] = [1, 2];
const [IOSQE_CQE_SKIP_SUCCESS, NOP, ENTER_GETEVENTS] = [1 << 6, 0, 1];

/** A ring that has been made again. */
interface Made {
  image: ImageRing;
  ring: Ring;
  offsets: RingOffsets;
  /** struct io_uring_params as the kernel has filled it in. */
  params: Buffer;
}

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
};

/** Makes the rings of the images anew. */
export class RingRestore {
  readonly #images: ImageRing[];
  readonly #inFlight: InFlightCarrier | undefined;
  #done = false;

  /** Throws ERR_IMAGE. */
  constructor(imagesDir: string, inFlight: InFlightCarrier | undefined) {
    this.#images = loadRings(imagesDir);
    this.#inFlight = inFlight;
  }

  /** All tasks stand before their first instruction; the first that is asked about is the root (criu/cr-restore.c). */
  async resume(root: number, context: CarrierContext): Promise<void> {
    if (this.#done) return;
    this.#done = true;
    const depth = depthOf(root);
    const tree = new Map(treeOf(root).map((pid) => [taskName(pid, depth), pid]));
    const session = new Session(tree, depth, context);
    const made: Made[] = [];
    try {
      for (const image of this.#images) {
        try {
          made.push(await session.make(image, made));
        } catch (error) {
          throw failed(image, error);
        }
      }
      for (const one of made) {
        try {
          await session.complete(one, made, this.#inFlight);
        } catch (error) {
          throw failed(one.image, error);
        }
      }
    } finally {
      for (const { ring } of made) closeSync(ring.fd);
    }
  }

  close(): void {
    this.#done = true;
  }
}

const failed = ({ task, fd }: ImageRing, error: unknown): Error =>
  refuse(
    `cannot make the ring at descriptor ${fd} of process ${task} again`,
    reason(error),
    "restore on a kernel that has what the program uses of io_uring, and where it is allowed",
    error,
  );

/** One restore, while its tasks stand still. */
class Session {
  readonly #tree: ReadonlyMap<string, number>;
  readonly #depth: number;
  readonly #context: CarrierContext;

  constructor(tree: ReadonlyMap<string, number>, depth: number, context: CarrierContext) {
    this.#tree = tree;
    this.#depth = depth;
    this.#context = context;
  }

  #pid(task: string): number {
    const pid = this.#tree.get(task);
    if (pid === undefined) throw new Error(`there is no process ${task} in the images`);
    return pid;
  }

  #tid(task: string, thread: string): number {
    const pid = this.#pid(task);
    const tid = readdirSync(`/proc/${pid}/task`)
      .map(Number)
      .find((one) => taskName(one, this.#depth) === thread);
    if (tid === undefined) throw new Error(`there is no thread ${thread} in process ${task}`);
    return tid;
  }

  /** Sets a ring up at its old descriptor, with what must be there before it is used. */
  async make(image: ImageRing, made: readonly Made[]): Promise<Made> {
    const pid = this.#pid(image.task);
    const tid = this.#tid(image.task, image.thread);
    const hand = new Hand(tid, this.#context.engine);
    const fd = image.fd!;
    try {
      const sharing = made.find((other) => image.poller !== undefined && other.image.poller === image.poller);
      let flags = image.flags & ~SETUP.attachWq;
      if (image.flags & SETUP.attachWq && sharing !== undefined) flags |= SETUP.attachWq;
      if (image.restrictions !== undefined) flags |= SETUP.rDisabled;
      if (image.cq_entries !== 2 * image.sq_entries) flags |= SETUP.cqsize;
      const asked = encodeParams({
        flags,
        ...(flags & SETUP.cqsize && { cqEntries: image.cq_entries }),
        ...(image.cpu !== undefined && { cpu: image.cpu }),
        ...(image.idle !== undefined && { idle: image.idle }),
        ...(flags & SETUP.attachWq && { wqFd: sharing!.image.fd! }),
      });
      const at = await hand.lend(asked);
      const got = await hand.call("io_uring_setup", CALL.setup, image.sq_entries, at);
      const params = await hand.read(at, PARAMS_SIZE);
      await this.#replace(hand, pid, fd, got);
      const offsets = offsetsOf(params);
      if (params.readUInt32LE(0) !== image.sq_entries || params.readUInt32LE(4) !== image.cq_entries)
        throw new Error(`it has ${params.readUInt32LE(0)} and ${params.readUInt32LE(4)} entries here`);
      const ring: Ring = {
        fd: take(pid, fd),
        fdInTask: fd,
        pid,
        tid,
        flags: image.flags,
        sqEntries: image.sq_entries,
        cqEntries: image.cq_entries,
        sqHead: image.sq_head,
        cqTail: image.cq_tail,
      };
      return { image, ring, offsets, params };
    } finally {
      await hand.end();
    }
  }

  /** Puts a new descriptor in the place of a placeholder: close-on-exec as that was, and in the epolls in which it is. */
  async #replace(hand: Hand, pid: number, fd: number, by: number): Promise<void> {
    const flags = Number.parseInt(/^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8"))![1]!, 8);
    const watches = watchesOf(pid, fd);
    for (const { epoll } of watches) await hand.call("epoll_ctl", CALL.epollCtl, epoll, EPOLL_CTL_DEL, fd, 0);
    await hand.call("dup3", CALL.dup3, by, fd, flags & O_CLOEXEC);
    await hand.call("close", CALL.close, by);
    for (const { epoll, event } of watches)
      await hand.call("epoll_ctl", CALL.epollCtl, epoll, EPOLL_CTL_ADD, fd, await hand.lend(event));
  }

  /** Everything else: counters, memory, what is registered and in flight, mappings, and those who share it. */
  async complete(made: Made, all: readonly Made[], inFlight: InFlightCarrier | undefined): Promise<void> {
    const { image, ring } = made;
    const hand = new Hand(ring.tid, this.#context.engine);
    try {
      await this.#enable(made, hand);
      await this.#advance(made, hand);
      this.#fill(made);
      await this.#register(made, hand, all);
      if ((image.overflow ?? []).length > 0) await this.#overflow(made, hand);
      if ((image.requests ?? []).length > 0) {
        if (inFlight === undefined) throw new Error("requests in flight are not known to this version");
        await inFlight.resubmit(ring, image.requests!, this.#context);
      }
      this.#fillSubmissions(made);
      await this.#share(made, hand);
      await this.#map(made);
      await this.#slots(made);
    } finally {
      await hand.end();
    }
  }

  /** A ring with restrictions is set up disabled: they can be registered only then. */
  async #enable({ image, ring }: Made, hand: Hand): Promise<void> {
    if (image.restrictions === undefined) return;
    await hand.register("restrictions", ring.fdInTask!, REGISTER.restrictions, ...restrictionsOf(image.restrictions));
    if ((image.flags & SETUP.rDisabled) === 0)
      await hand.register("enable", ring.fdInTask!, REGISTER.enableRings, undefined, 0);
  }

  /** Brings the counters on to where they were. */
  async #advance({ image, ring, params, offsets }: Made, hand: Hand): Promise<void> {
    const behind = (image.requests ?? []).length;
    const sq = (image.sq_head - behind) >>> 0;
    const cq = image.cq_tail;
    if (sq === 0 && cq === 0) return;
    if ((image.flags & SETUP.singleIssuer) === 0) {
      await addon.uringAdvance(ring.fd, params, sq, cq);
      return;
    }
    // Only its own thread may submit.
    const both = Math.min(sq, cq);
    await this.#nops(both, 0, ring, offsets, hand);
    await this.#nops(sq - both, IOSQE_CQE_SKIP_SUCCESS, ring, offsets, hand);
    for (let left = cq - both; left > 0; left -= Math.min(left, ring.cqEntries)) {
      await addon.uringAdvance(ring.fd, params, 0, Math.min(left, ring.cqEntries));
      // What others post to a ring with IORING_SETUP_DEFER_TASKRUN its own thread has to fetch.
      await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, 0, 0, ENTER_GETEVENTS, 0, 0);
      const tail = addon.uringRead(ring.fd, OFF_SQ_RING, offsets.cq.tail + 4).readUInt32LE(offsets.cq.tail);
      addon.uringWrite(ring.fd, OFF_SQ_RING, offsets.cq.head, u32(tail));
    }
  }

  async #nops(count: number, sqeFlags: number, ring: Ring, offsets: RingOffsets, hand: Hand): Promise<void> {
    if (count === 0) return;
    const size = ring.flags & SETUP.sqe128 ? 128 : 64;
    const sqes = Buffer.alloc(size * ring.sqEntries);
    for (let at = 0; at < sqes.length; at += size) sqes.writeUInt16LE(NOP | (sqeFlags << 8), at);
    addon.uringWrite(ring.fd, OFF_SQES, 0, sqes);
    const word = (at: number): number => addon.uringRead(ring.fd, OFF_SQ_RING, at + 4).readUInt32LE(at);
    const most = Math.min(ring.sqEntries, ring.cqEntries);
    for (let left = count; left > 0; ) {
      const n = Math.min(left, most);
      addon.uringWrite(ring.fd, OFF_SQ_RING, offsets.sq.tail, u32(word(offsets.sq.tail) + n));
      const done = await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, n, 0, 0, 0, 0);
      if (done !== n) throw new Error(`it takes ${done} of ${n} submissions`);
      addon.uringWrite(ring.fd, OFF_SQ_RING, offsets.cq.head, u32(word(offsets.cq.tail)));
      left -= n;
    }
  }

  /** The shared memory as it was, but for the kernel's part, and what was not submitted. */
  #fill({ image, ring, offsets, params }: Made): void {
    const now = addon.uringRead(ring.fd, OFF_SQ_RING, image.rings.length);
    const rings = Buffer.from(image.rings);
    const keep = (at: number): void => {
      now.copy(rings, at, at, at + 4);
    };
    // Where the kernel puts the array of indices is its own affair.
    const array = params.readUInt32LE(64);
    if (now.readUInt32LE(offsets.cq.tail) !== image.cq_tail)
      throw new Error(`its completions are at ${now.readUInt32LE(offsets.cq.tail)} instead of ${image.cq_tail}`);
    for (const at of [offsets.sq.head, offsets.sq.tail, offsets.cq.tail]) keep(at);
    const flags = rings.readUInt32LE(offsets.sq.flags) & ~(SQ_NEED_WAKEUP | SQ_CQ_OVERFLOW);
    rings.writeUInt32LE((flags | (now.readUInt32LE(offsets.sq.flags) & SQ_NEED_WAKEUP)) >>> 0, offsets.sq.flags);
    if (array > rings.length && (ring.flags & SETUP.noSqarray) === 0)
      throw new Error("its memory is of another shape here");
    addon.uringWrite(ring.fd, OFF_SQ_RING, 0, rings);
  }

  /** What the program has written into the submission queue, and not submitted. */
  #fillSubmissions({ image, ring, offsets }: Made): void {
    const rings = Buffer.from(image.rings);
    addon.uringWrite(ring.fd, OFF_SQES, 0, image.sqes);
    if ((ring.flags & SETUP.noSqarray) === 0)
      addon.uringWrite(
        ring.fd,
        OFF_SQ_RING,
        offsets.sq.array,
        rings.subarray(offsets.sq.array, offsets.sq.array + 4 * ring.sqEntries),
      );
    const now = addon.uringRead(ring.fd, OFF_SQ_RING, offsets.sq.head + 4).readUInt32LE(offsets.sq.head);
    if (now !== image.sq_head) throw new Error(`its submissions are at ${now} instead of ${image.sq_head}`);
    addon.uringWrite(ring.fd, OFF_SQ_RING, offsets.sq.tail, rings.subarray(offsets.sq.tail, offsets.sq.tail + 4));
  }

  async #register({ image, ring }: Made, hand: Hand, _all: readonly Made[]): Promise<void> {
    const fd = ring.fdInTask!;
    if (image.buffer_slots !== undefined) {
      const [bytes, tags] = buffersOf(image);
      await registerTable(hand, fd, "buffers", REGISTER.buffers2, image.buffer_slots, bytes, tags);
    }
    if (image.file_slots !== undefined) {
      const [bytes, tags, ends] = await this.#files(image, hand);
      await registerTable(hand, fd, "files", REGISTER.files2, image.file_slots, bytes, tags);
      for (const end of ends) await hand.call("close", CALL.close, end);
      if (image.alloc_start !== undefined && image.alloc_end !== undefined) {
        const range = Buffer.alloc(16);
        range.writeUInt32LE(image.alloc_start, 0);
        range.writeUInt32LE(image.alloc_end - image.alloc_start, 4);
        await hand.register("file range", fd, REGISTER.fileAllocRange, range, 0);
      }
    }
    if (image.eventfd !== undefined) {
      const [own, borrowed] = await this.#here(image, image.eventfd, hand);
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
    if (image.workers !== undefined) {
      const workers = Buffer.alloc(8);
      workers.writeUInt32LE(image.workers[0] ?? 0, 0);
      workers.writeUInt32LE(image.workers[1] ?? 0, 4);
      await hand.register("worker limits", fd, REGISTER.iowqMaxWorkers, workers, 2);
    }
    if (image.clock !== undefined) {
      const clock = Buffer.alloc(16);
      clock.writeUInt32LE(image.clock, 0);
      await hand.register("clock", fd, REGISTER.clock, clock, 0);
    }
    await registerPersonalities(hand, fd, image.personalities ?? []);
  }

  /** The table of files, as descriptors of the thread's process; those that are borrowed are to be closed. */
  async #files(image: ImageRing, hand: Hand): Promise<[Buffer, Buffer, number[]]> {
    const slots = image.file_slots!;
    const [fds, tags] = [Buffer.alloc(4 * slots, 0xff), Buffer.alloc(8 * slots)];
    const borrowed: number[] = [];
    for (const { index, tag, task, fd } of image.files ?? []) {
      if (index >= slots) throw new Error(`file ${index} is not in a table of ${slots}`);
      tags.writeBigUInt64LE(tag, 8 * index);
      if (task === undefined || fd === undefined) continue;
      const [own, isBorrowed] = await this.#here(image, { task, fd }, hand);
      if (isBorrowed) borrowed.push(own);
      fds.writeInt32LE(own, 4 * index);
    }
    return [fds, tags, borrowed];
  }

  /** A descriptor of any process of the tree's as one of the ring's own. */
  async #here(image: ImageRing, { task, fd }: Descriptor, hand: Hand): Promise<[fd: number, borrowed: boolean]> {
    if (task === image.task) return [fd, false];
    return [await this.#borrow(hand, task, fd), true];
  }

  /** Lets a thread take another process's descriptor: rings cannot be sent over a socket (io_uring, Linux 6.7). */
  async #borrow(hand: Hand, task: string, fd: number): Promise<number> {
    const lender = new Hand(this.#pid(task), this.#context.engine);
    const seen = numberFor(lender.tid, hand.tid);
    // Yama lets a process look only at those below it, or at who allows it.
    const allowed = await this.#context.engine.syscall(
      lender.tid,
      CALL.prctl,
      BigInt(PR_SET_PTRACER),
      PR_SET_PTRACER_ANY,
    );
    try {
      const pidfd = await hand.call("pidfd_open", CALL.pidfdOpen, seen, 0);
      const got = await hand.call("pidfd_getfd", CALL.pidfdGetfd, pidfd, fd, 0);
      await hand.call("close", CALL.close, pidfd);
      return got;
    } finally {
      if (allowed === 0) await this.#context.engine.syscall(lender.tid, CALL.prctl, BigInt(PR_SET_PTRACER), 0n);
    }
  }

  /** Completions that did not fit: posted to a full queue they go where they were. */
  async #overflow({ image, ring }: Made, hand: Hand): Promise<void> {
    const cqes = Buffer.alloc(16 * image.overflow!.length);
    image.overflow!.forEach(({ user_data, res, flags }, i) => {
      cqes.writeBigUInt64LE(user_data, 16 * i);
      cqes.writeInt32LE(res, 16 * i + 8);
      cqes.writeUInt32LE(flags, 16 * i + 12);
    });
    addon.uringPost(ring.fd, cqes);
    void hand;
  }

  /** Those who have the ring by fork, or by another number. */
  async #share({ image, ring }: Made, own: Hand): Promise<void> {
    for (const { task, fd } of image.descriptors ?? []) {
      if (task === image.task && fd === ring.fdInTask) continue;
      const pid = this.#pid(task);
      if (task === image.task) {
        const copy = await own.call("dup", CALL.fcntl, ring.fdInTask!, 0, 0);
        await this.#replace(own, pid, fd, copy);
        continue;
      }
      const hand = new Hand(pid, this.#context.engine);
      try {
        await this.#replace(hand, pid, fd, await this.#borrow(hand, image.task, ring.fdInTask!));
      } finally {
        await hand.end();
      }
    }
  }

  async #map({ image }: Made): Promise<void> {
    for (const { task, start, length, offset, prot, dontfork } of image.mappings ?? []) {
      const pid = this.#pid(task);
      const fd = image.descriptors?.find((each) => each.task === task)?.fd;
      if (fd === undefined) throw new Error(`process ${task} has it mapped, but no descriptor`);
      await this.#context.engine.mapOwn(pid, { addr: start, len: length, prot, flags: MAP_SHARED, fd, offset });
      if (dontfork)
        await new Hand(pid, this.#context.engine).call("madvise", CALL.madvise, start, length, MADV_DONTFORK);
    }
  }

  async #slots({ image }: Made): Promise<void> {
    for (const { task, thread, slot } of image.slots ?? []) {
      const hand = new Hand(this.#tid(task, thread), this.#context.engine);
      const fd = image.descriptors?.find((each) => each.task === task)?.fd;
      if (fd === undefined) throw new Error(`thread ${thread} has it registered, but no descriptor`);
      const update = Buffer.alloc(16);
      update.writeUInt32LE(slot, 0);
      update.writeBigUInt64LE(BigInt(fd), 8);
      try {
        await hand.register("ring descriptors", fd, REGISTER.ringFds, update, 1);
      } finally {
        await hand.end();
      }
    }
  }
}

const take = (pid: number, fd: number): number => {
  const pidfd = pidfdOpen(pid);
  try {
    return pidfdGetfd(pidfd, fd);
  } finally {
    closeSync(pidfd);
  }
};

/** A process's number as another one sees it. */
const numberFor = (pid: number, observer: number): number => {
  const numbers = (one: number): string[] =>
    /^NSpid:\s+(.*)$/m.exec(readFileSync(`/proc/${one}/status`, "utf8"))![1]!.split(/\s+/);
  return Number(numbers(pid)[numbers(observer).length - 1]);
};

/** The epolls of a process in which a descriptor is, with struct epoll_event. */
const watchesOf = (pid: number, fd: number): { epoll: number; event: Buffer }[] =>
  readdirSync(`/proc/${pid}/fdinfo`).flatMap((name) => {
    const info = readFileSync(`/proc/${pid}/fdinfo/${name}`, "utf8");
    return [...info.matchAll(/^tfd:\s+(\d+) events:\s+([0-9a-f]+) data:\s+([0-9a-f]+)/gm)].flatMap(
      ([, target, events, data]) => {
        if (Number(target) !== fd) return [];
        const event = Buffer.alloc(12);
        event.writeUInt32LE(Number.parseInt(events!, 16), 0);
        event.writeBigUInt64LE(BigInt(`0x${data}`), 4);
        return [{ epoll: Number(name), event }];
      },
    );
  });

/** struct io_uring_restriction, one for each thing that is allowed. */
const restrictionsOf = (r: NonNullable<ImageRing["restrictions"]>): [Buffer, number] => {
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

/** IORING_REGISTER_BUFFERS2 and _FILES2 (Linux 5.13): struct io_uring_rsrc_register, with the table and tags behind it. */
const registerTable = async (
  hand: Hand,
  fd: number,
  what: string,
  op: number,
  slots: number,
  table: Buffer,
  tags: Buffer,
): Promise<void> => {
  const register = Buffer.alloc(32);
  const all = Buffer.concat([register, tags, table]);
  const at = await hand.lend(all);
  const tagged = tags.some((byte) => byte !== 0);
  all.writeUInt32LE(slots, 0);
  all.writeBigUInt64LE(at + BigInt(32 + tags.length), 16);
  all.writeBigUInt64LE(tagged ? at + 32n : 0n, 24);
  await hand.register(what, fd, op, all, 32);
};

/** Credentials are numbered by the kernel, one after the other: those in between are registered, and given up. */
const registerPersonalities = async (hand: Hand, fd: number, wanted: readonly number[]): Promise<void> => {
  const last = Math.max(0, ...wanted);
  for (let id = 1; id <= last; id++) {
    const got = await hand.register("personality", fd, REGISTER.personality, undefined, 0);
    if (got !== id) throw new Error(`personality ${id} is number ${got} here`);
  }
  for (let id = 1; id <= last; id++)
    if (!wanted.includes(id)) await hand.register("personality", fd, REGISTER.unregisterPersonality, undefined, id);
};
