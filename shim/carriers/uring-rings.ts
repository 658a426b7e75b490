// SPDX-License-Identifier: Apache-2.0
// The rings of the images are made anew, by the restored tasks themselves: set up with the same parameters, their counters
// brought on to where they were, their memory filled and mapped where it was.

import { closeSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { reason } from "../error.js";
import { O_CLOEXEC } from "../flags.js";
import { treeOf } from "../netlock/netlock.js";
import type { CarrierContext } from "./carrier.js";
import { depthOf, take, taskName } from "./tasks.js";
import { type Ahead, chargedFor, startAhead } from "./uring-ahead.js";
import { type DirectFile, openDirect } from "./uring-direct.js";
import { type Descriptor, type ImageRing, loadRings, placeOf } from "./uring-image.js";
import { advance, askedFor, historyOf, type Made, post, RingMemory } from "./uring-memory.js";
import { encodeParams, offsetsOf, PARAMS_SIZE } from "./uring-params.js";
import {
  asUser,
  limitWorkers,
  provide,
  registerAll,
  registerBufferRing,
  registerRegion,
  restrictionsOf,
} from "./uring-registered.js";
import { type InFlightCarrier, type Ring, refuse, SETUP } from "./uring-ring.js";
import { CALL, CallFailed, closesOnExec, Hand, REGISTER } from "./uring-task.js";

const [MAP_SHARED, MADV_DONTFORK] = [1, 10n];
const [EPOLL_CTL_ADD, EPOLL_CTL_DEL] = [1, 2];
const [PR_SET_PTRACER, PR_SET_PTRACER_ANY] = [0x59616d61, 0xffffffffffffffffn];
const [SQ_NEED_WAKEUP, SQ_CQ_OVERFLOW, CQ_EVENTFD_DISABLED] = [1, 2, 1];

const ENTER_SQ_WAKEUP = 2;
const AT_ONCE = 32;

/** Makes the rings of the images anew. */
export class RingRestore {
  readonly #images: ImageRing[];
  readonly #inFlight: InFlightCarrier | undefined;
  readonly #ahead = new Map<ImageRing, Ahead>();
  #done = false;

  /** Throws ERR_IMAGE. */
  constructor(imagesDir: string, inFlight: InFlightCarrier | undefined) {
    this.#images = loadRings(imagesDir);
    this.#inFlight = inFlight;
  }

  /** What takes long is begun: CRIU restores meanwhile. Returns of how many rings. */
  start(): number {
    for (const image of this.#images) {
      const ahead = startAhead(image);
      if (ahead !== undefined) this.#ahead.set(image, ahead);
    }
    return this.#ahead.size;
  }

  /** All tasks stand before their first instruction; the first that is asked about is the root (criu/cr-restore.c). */
  async resume(root: number, context: CarrierContext): Promise<void> {
    if (this.#done) return;
    this.#done = true;
    const depth = depthOf(root);
    const tree = new Map(treeOf(root).map((pid) => [taskName(pid, depth), pid]));
    const session = new Session(tree, depth, context, this.#ahead);
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
          await session.complete(one, this.#inFlight);
        } catch (error) {
          throw failed(one.image, error);
        }
      }
      await session.end(this.#images);
    } finally {
      for (const { ring } of made) closeSync(ring.fd);
      this.close();
    }
  }

  close(): void {
    this.#done = true;
    for (const ahead of this.#ahead.values()) ahead.close();
    this.#ahead.clear();
  }
}

const failed = ({ task, fd }: ImageRing, error: unknown): Error =>
  refuse(
    `cannot make ${fd === undefined ? "a ring without a descriptor" : `the ring at descriptor ${fd}`} of process ${task} again`,
    reason(error),
    "restore on a kernel that has what the program uses of io_uring, and where it is allowed",
    error,
  );

/** One restore, while its tasks stand still. */
class Session {
  readonly #tree: ReadonlyMap<string, number>;
  readonly #depth: number;
  readonly #context: CarrierContext;
  /** Direct descriptors, by their number in the images. */
  readonly #opened = new Map<number, Descriptor>();
  /** Of rings that had no descriptor. */
  readonly #unnamed: Descriptor[] = [];
  readonly #ahead: ReadonlyMap<ImageRing, Ahead>;

  constructor(
    tree: ReadonlyMap<string, number>,
    depth: number,
    context: CarrierContext,
    ahead: ReadonlyMap<ImageRing, Ahead>,
  ) {
    this.#ahead = ahead;
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
    try {
      const ahead = this.#ahead.get(image);
      const isAhead = ahead !== undefined && image.fd !== undefined && chargedFor(pid) === image.user;
      if (!isAhead) ahead?.close();
      const { params, fd } = isAhead ? await this.#take(ahead, pid, image.fd!) : await this.#setUp(image, made, hand);
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
      const memory = new RingMemory(ring, image, this.#context.engine);
      return { image, ring, offsets, params, memory, ...(isAhead && { ahead: ahead.done }) };
    } finally {
      await hand.end();
    }
  }

  /** One that has been set up already. */
  async #take({ params, fd: ours }: Ahead, pid: number, fd: number): Promise<{ params: Buffer; fd: number }> {
    await this.#context.engine.give(pid, fd, ours, closesOnExec(pid, fd));
    return { params, fd };
  }

  /**
   * By its own thread. Returns struct io_uring_params as the kernel has filled it in, and its descriptor there: where it had none, as
   * long as rings are made.
   */
  async #setUp(image: ImageRing, made: readonly Made[], hand: Hand): Promise<{ params: Buffer; fd: number }> {
    const sharing = made.find((other) => image.poller !== undefined && other.image.poller === image.poller);
    let flags = image.flags & ~(SETUP.attachWq | SETUP.registeredFdOnly);
    if (image.flags & SETUP.attachWq && sharing !== undefined) flags |= SETUP.attachWq;
    if (beginsDisabled(image)) flags |= SETUP.rDisabled;
    const asked = encodeParams({
      ...askedFor(image, flags),
      ...(flags & SETUP.attachWq && { wqFd: sharing!.ring.fdInTask! }),
    });
    // A new ring begins at zero, which its memory need not know yet.
    if (image.rings_address !== undefined) await hand.writeAll(image.rings_address, Buffer.alloc(image.rings.length));
    const at = await hand.lend(asked);
    const got = await hand.call("io_uring_setup", CALL.setup, image.sq_entries, at);
    const params = await hand.read(at, PARAMS_SIZE);
    if (image.fd === undefined) {
      this.#unnamed.push({ task: image.task, fd: got });
      return { params, fd: got };
    }
    await this.#replace(hand, this.#pid(image.task), image.fd, got);
    return { params, fd: image.fd };
  }

  /** Puts a new descriptor in the place of a placeholder: close-on-exec as that was, and in the epolls in which it is. */
  async #replace(hand: Hand, pid: number, fd: number, by: number): Promise<void> {
    const cloexec = closesOnExec(pid, fd);
    const watches: Watch[] = [];
    for (const watch of watchesOf(pid, fd)) {
      // One that is not in it any more has been put back by another process, who shares the epoll.
      const gone = await this.#context.engine.syscall(
        hand.tid,
        CALL.epollCtl,
        ...[watch.epoll, EPOLL_CTL_DEL, fd, 0].map(BigInt),
      );
      if (gone === 0) watches.push(watch);
    }
    await hand.call("dup3", CALL.dup3, by, fd, cloexec ? O_CLOEXEC : 0);
    await hand.call("close", CALL.close, by);
    for (const { epoll, event } of watches)
      await hand.call("epoll_ctl", CALL.epollCtl, epoll, EPOLL_CTL_ADD, fd, await hand.lend(event));
  }

  /** Everything else: counters, memory, what is registered and in flight, mappings, and those who share it. */
  async complete(made: Made, inFlight: InFlightCarrier | undefined): Promise<void> {
    const { image, ring } = made;
    const hand = new Hand(ring.tid, this.#context.engine);
    const here = (file: Descriptor | DirectFile): Promise<[number, boolean]> =>
      "opened" in file ? this.#direct(image, file, hand) : this.#here(image, file, hand);
    try {
      if (registersFirst(image)) {
        // Completions that never were must not be told of.
        await made.memory.setWord(made.offsets.cq.flags, CQ_EVENTFD_DISABLED);
        await registerAll(made, hand, here);
      }
      if (image.region !== undefined) await registerRegion(made, image.region, hand);
      if (beginsDisabled(image)) await this.#enable(made, hand);
      await this.#advance(made, hand);
      await this.#fill(made);
      if (!registersFirst(image)) await registerAll(made, hand, here);
      if ((image.overflow ?? []).length > 0) await this.#overflow(made, hand);
      if ((image.requests ?? []).length > 0) {
        if (inFlight === undefined) throw new Error("requests in flight are not known to this version");
        await inFlight.resubmit(ring, made.memory, image.requests!, this.#context);
      }
      await this.#fillSubmissions(made);
      // Its thread may have gone to sleep unseen, while the flag that says so was written over; and what is submitted is its.
      if (ring.flags & SETUP.sqpoll && (ring.flags & SETUP.rDisabled) === 0)
        await hand.call("io_uring_enter", CALL.enter, ring.fdInTask!, 0, 0, ENTER_SQ_WAKEUP, 0, 0);
      await this.#share(made, hand);
      await this.#map(made);
      await this.#slots(made);
      await this.#workers(made, hand);
    } finally {
      await hand.end();
    }
  }

  async #enable({ image, ring }: Made, hand: Hand): Promise<void> {
    if (image.restrictions !== undefined)
      await hand.register("restrictions", ring.fdInTask!, REGISTER.restrictions, ...restrictionsOf(image.restrictions));
    if ((image.flags & SETUP.rDisabled) === 0)
      await hand.register("enable", ring.fdInTask!, REGISTER.enableRings, undefined, 0);
  }

  /** Brings the counters on to where they were; what gives buffers again is part of that. */
  async #advance(made: Made, hand: Hand): Promise<void> {
    const { image } = made;
    if (historyOf(image).sq < 0) throw new Error("its buffers need more submissions than it has made");
    await advance(made, hand);
    for (const group of image.groups ?? []) if (group.ring) await registerBufferRing(made.ring.fdInTask!, group, hand);
    await provide(made, hand);
  }

  /** The shared memory as it was, but for the kernel's part, and what was not submitted. */
  async #fill({ image, ring, offsets, params, memory }: Made): Promise<void> {
    const now = await memory.read("rings", 0, image.rings.length);
    const rings = Buffer.from(image.rings);
    const keep = (at: number): void => {
      now.copy(rings, at, at, at + 4);
    };
    if (now.readUInt32LE(offsets.cq.tail) !== image.cq_tail)
      throw new Error(`its completions are at ${now.readUInt32LE(offsets.cq.tail)} instead of ${image.cq_tail}`);
    if (params.readUInt32LE(64) > rings.length && (ring.flags & SETUP.noSqarray) === 0)
      throw new Error("its memory is of another shape here");
    for (const at of [offsets.sq.head, offsets.sq.tail, offsets.cq.tail]) keep(at);
    const flags = rings.readUInt32LE(offsets.sq.flags) & ~(SQ_NEED_WAKEUP | SQ_CQ_OVERFLOW);
    rings.writeUInt32LE((flags | (now.readUInt32LE(offsets.sq.flags) & SQ_NEED_WAKEUP)) >>> 0, offsets.sq.flags);
    await memory.write("rings", 0, rings);
  }

  /** What the program has written into the submission queue, and not submitted. */
  async #fillSubmissions({ image, ring, offsets, memory }: Made): Promise<void> {
    const rings = Buffer.from(image.rings);
    await memory.write("sqes", 0, image.sqes);
    const { array, tail, head } = offsets.sq;
    if ((ring.flags & SETUP.noSqarray) === 0)
      await memory.write("rings", array, rings.subarray(array, array + 4 * ring.sqEntries));
    const now = await memory.word(head);
    if (now !== image.sq_head) throw new Error(`its submissions are at ${now} instead of ${image.sq_head}`);
    await memory.write("rings", tail, rings.subarray(tail, tail + 4));
  }

  /** A descriptor of any process of the tree's as one of the ring's own. */
  async #here(image: ImageRing, { task, fd }: Descriptor, hand: Hand): Promise<[fd: number, borrowed: boolean]> {
    if (task === image.task) return [fd, false];
    return [await this.#borrow(hand, task, fd), true];
  }

  /** A registered file that has no descriptor: whoever needs it first opens it, for as long as rings are made. */
  async #direct(image: ImageRing, file: DirectFile, hand: Hand): Promise<[fd: number, borrowed: boolean]> {
    const known = this.#opened.get(file.opened);
    if (known !== undefined) return this.#here(image, known, hand);
    const fd = await openDirect(file, hand);
    this.#opened.set(file.opened, { task: image.task, fd });
    return [fd, false];
  }

  /** Closes what was open for that time only; `images`: of all rings. */
  async end(images: readonly ImageRing[]): Promise<void> {
    const lent = new Map<string, Descriptor>();
    for (const { task, fd, lent: isLent } of images.flatMap(({ files = [] }) => files))
      if (isLent && task !== undefined && fd !== undefined) lent.set(`${task} ${fd}`, { task, fd });
    for (const { task, fd } of [...this.#opened.values(), ...lent.values(), ...this.#unnamed])
      await this.#context.engine.syscall(this.#pid(task), CALL.close, BigInt(fd));
    this.#opened.clear();
    this.#unnamed.length = 0;
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
  async #overflow(made: Made, hand: Hand): Promise<void> {
    const overflow = made.image.overflow!;
    const cqes = Buffer.alloc(16 * overflow.length);
    overflow.forEach(({ user_data, res, flags }, i) => {
      cqes.writeBigUInt64LE(user_data, 16 * i);
      cqes.writeInt32LE(res, 16 * i + 8);
      cqes.writeUInt32LE(flags, 16 * i + 12);
    });
    await post(made, hand, cqes);
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

  /** All at once: the engine fills the holes of the task's memory once for orders that are there already. */
  async #map({ image }: Made): Promise<void> {
    const { engine } = this.#context;
    const orders = (image.mappings ?? []).map(({ task, start, length, offset, prot }) => {
      const fd = image.descriptors?.find((each) => each.task === task)?.fd;
      if (fd === undefined) throw new Error(`process ${task} has it mapped, but no descriptor`);
      const { base, cut } = placeOf(image, offset, length);
      return { pid: this.#pid(task), at: { addr: start, len: length, prot, flags: MAP_SHARED, fd, offset: base, cut } };
    });
    // No more than fit into the socket.
    for (let i = 0; i < orders.length; i += AT_ONCE) {
      const done = await Promise.allSettled(orders.slice(i, i + AT_ONCE).map(({ pid, at }) => engine.mapOwn(pid, at)));
      for (const each of done) if (each.status === "rejected") throw each.reason;
    }
    for (const { task, start, length, dontfork } of image.mappings ?? [])
      if (dontfork) await new Hand(this.#pid(task), engine).call("madvise", CALL.madvise, start, length, MADV_DONTFORK);
  }

  /** Limits and processors of workers belong to the threads that use a ring, limits of a new thread to the ring. */
  async #workers({ image, ring }: Made, hand: Hand): Promise<void> {
    if (image.processors !== undefined) await this.#bind(image.processors, ring.fdInTask!, hand);
    for (const user of image.users ?? []) {
      const tid = this.#tid(user.task, user.thread);
      const fd = fdFor(user.task, image, ring);
      if (fd === undefined) continue;
      const own = tid === hand.tid ? hand : new Hand(tid, this.#context.engine);
      const { processors } = user;
      await asUser(fd, own, async () => {
        if (image.workers !== undefined) await limitWorkers(fd, user, own);
        if (processors !== undefined) await this.#bind(processors, fd, own);
      });
      if (own !== hand) await own.end();
    }
    if (image.workers === undefined) return;
    const workers = Buffer.alloc(8);
    workers.writeUInt32LE(image.workers[0] ?? 0, 0);
    workers.writeUInt32LE(image.workers[1] ?? 0, 4);
    if ((image.users ?? []).length === 0)
      await hand.register("worker limits", ring.fdInTask!, REGISTER.iowqMaxWorkers, workers, 2);
  }

  /** Binds workers to processors. Where there are other ones, that is said, and they run on all. */
  async #bind(processors: Uint8Array, fd: number, hand: Hand): Promise<void> {
    try {
      await hand.register("processors of workers", fd, REGISTER.iowqAff, Buffer.from(processors), processors.length);
    } catch (error) {
      if (!(error instanceof CallFailed)) throw error;
      this.#context.log("Warn ", `workers of thread ${hand.tid} cannot be bound to their processors: ${error.message}`);
    }
  }

  async #slots({ image, ring }: Made): Promise<void> {
    for (const { task, thread, slot } of image.slots ?? []) {
      const hand = new Hand(this.#tid(task, thread), this.#context.engine);
      const fd = fdFor(task, image, ring);
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

/** Restrictions, and memory for the arguments of waits, can be registered only with a ring that is disabled. */
const beginsDisabled = (image: ImageRing): boolean => registersFirst(image) || image.region?.waits === true;

/** What restrictions may forbid afterwards; and credentials that we register, when a ring is not its thread's alone yet. */
const registersFirst = ({ restrictions, credentials, flags }: ImageRing): boolean =>
  restrictions !== undefined ||
  (credentials !== undefined && credentials.length > 0 && (flags & SETUP.singleIssuer) !== 0);

/** A process's descriptor of a ring. */
const fdFor = (task: string, { task: owner, descriptors }: ImageRing, { fdInTask }: Ring): number | undefined =>
  descriptors?.find((each) => each.task === task)?.fd ?? (task === owner ? fdInTask : undefined);

/** A process's number as another one sees it. */
const numberFor = (pid: number, observer: number): number => {
  const numbers = (one: number): string[] =>
    /^NSpid:\s+(.*)$/m.exec(readFileSync(`/proc/${one}/status`, "utf8"))![1]!.split(/\s+/);
  return Number(numbers(pid)[numbers(observer).length - 1]);
};

/** An epoll, and its struct epoll_event for a descriptor. */
interface Watch {
  epoll: number;
  event: Buffer;
}

/** The epolls of a process in which a descriptor is. */
const watchesOf = (pid: number, fd: number): Watch[] =>
  readdirSync(`/proc/${pid}/fd`).flatMap((name) => {
    // To ask every descriptor's name is cheap, to have rings describe themselves is not.
    if (readlinkSync(`/proc/${pid}/fd/${name}`) !== "anon_inode:[eventpoll]") return [];
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
