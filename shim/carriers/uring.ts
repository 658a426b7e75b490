// SPDX-License-Identifier: Apache-2.0
// io_uring. The rings are read while the tasks stand still; nothing is submitted to them, cancelled or taken out. Their
// mappings, which CRIU cannot even look at, are private memory while it does, and their descriptors eventfds. What a restore makes of it is in uring-rings.ts.
import { closeSync, existsSync, readFileSync, readlinkSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { addon } from "../../native/index.js";
import type { Engine } from "../control/engine.js";
import { MAX_DATA } from "../control/wire.js";
import { treeOf } from "../netlock/netlock.js";
import { type Found, findSpecial } from "../xray/find.js";
import {
  type Credentials,
  type OpenFile,
  type RingMapping,
  RingReader,
  type RingState,
  ringThreads,
  type ThreadState,
} from "../xray/rings.js";
import type { Carrier, CarrierContext, Seized } from "./carrier.js";
import { depthOf, take, taskName } from "./tasks.js";
import { chargedFor } from "./uring-ahead.js";
import { DirectFinder } from "./uring-direct.js";
import {
  type Group,
  type ImageRing,
  MAX_GROUPS,
  MAX_REGION,
  placeOf,
  type Region,
  submissionsFor,
  writeRings,
} from "./uring-image.js";
import { type Lent, LentFiles } from "./uring-lent.js";
import { encodeParams, offsetsHere } from "./uring-params.js";
import { boundTo } from "./uring-processors.js";
import { type InFlight, type InFlightCarrier, type Ring, refuse, SETUP } from "./uring-ring.js";
import { RingRestore } from "./uring-rings.js";
import { closesOnExec } from "./uring-task.js";
import { restartWaits } from "./uring-waits.js";

/** Swaps that are under way at once. */
const AT_ONCE = 32;
/** All that this version knows: up to IORING_SETUP_NO_SQARRAY, and neither HYBRID_IOPOLL nor CQE_MIXED. */
const KNOWN = (1 << 17) - 1;
const [OFF_SQ_RING, OFF_SQES, OFF_REGION, OFF_PBUF_RING] = [0n, 0x10000000n, 0x20000000n, 0x80000000n];
/** VM_* of linux/mm.h, and mmap(2)'s flags. */
const [VM_DONTCOPY, VM_PROT] = [0x20000n, 7n];
const [MAP_SHARED, MAP_PLACEHOLDER] = [1, 0x2 | 0x20 | 0x4000];

/** Who has a ring open, or only registered (IORING_REGISTER_RING_FDS). */
interface Holder {
  pid: number;
  fd: number;
}
interface Slot {
  pid: number;
  tid: number;
  slot: number;
}
interface Owner {
  pid: number;
  tid: number;
  /** Undefined: it has no descriptor, but is in this slot of the thread's. */
  fd?: number;
  slot?: number;
}

/** A ring of the dump. */
interface Saved {
  state: RingState;
  /** Of ours. */
  fd: number;
  owner: Owner;
  descriptors: Holder[];
  mappings: RingMapping[];
  slots: Slot[];
  inFlight: InFlight;
  image: ImageRing;
}

const tgidOf = (tid: number): number =>
  Number(/^Tgid:\s+(\d+)$/m.exec(readFileSync(`/proc/${tid}/status`, "utf8"))?.[1] ?? 0);

const pageAlign = (bytes: number): number => Math.ceil(bytes / 4096) * 4096;

/** The sizes of what a ring's descriptor maps at its two offsets. */
const memoryOf = ({ flags, sqEntries, cqEntries, sqArray }: RingState, cqes: number): [rings: number, sqes: number] => {
  const completions = cqes + cqEntries * (flags & SETUP.cqe32 ? 32 : 16);
  const indices = flags & SETUP.noSqarray ? 0 : sqArray + 4 * sqEntries;
  return [pageAlign(Math.max(completions, indices)), pageAlign(sqEntries * (flags & SETUP.sqe128 ? 128 : 64))];
};

/** What of a ring is not carried. */
const objection = (state: RingState): string | undefined => {
  const { flags, has, submitter, region } = state;
  if ((flags & ~KNOWN) !== 0) return `set up with flags that this version does not know (0x${flags.toString(16)})`;
  if (has.zcrx) return "a queue of a network device is registered for zero copy receive";
  if (region !== undefined && region.length > MAX_REGION) return "more than 64 MiB of memory are registered with it";
  if (flags & SETUP.singleIssuer && submitter === 0 && (flags & SETUP.rDisabled) === 0)
    return "it belongs to a thread that has ended (IORING_SETUP_SINGLE_ISSUER)";
  return undefined;
};

/** Jiffies to milliseconds: the kernel tells no program how long its jiffies are, but a ring of ours shows it. */
let perJiffy: number | undefined;
const jiffy = (reader: RingReader): number => {
  if (perJiffy !== undefined) return perJiffy;
  const fd = addon.uringSetup(1, encodeParams({ flags: SETUP.sqpoll, idle: 1000 }));
  try {
    perJiffy = 1000 / reader.rings().get(fd)!.idle;
    return perJiffy;
  } finally {
    closeSync(fd);
  }
};

const atOf = ([first]: readonly Holder[], [slot]: readonly Slot[]): string =>
  first === undefined
    ? `the ring that thread ${slot!.tid} of process ${slot!.pid} has registered as ${slot!.slot}`
    : `the ring at descriptor ${first.fd} of process ${first.pid}`;

/** Where threads have a ring registered. */
const slotsOf = (file: bigint, threads: readonly ThreadState[]): Slot[] =>
  threads.flatMap(({ pid, tid, rings }) => rings.flatMap((each, slot) => (each === file ? [{ pid, tid, slot }] : [])));

/** Rings that threads have registered, and of which nobody has a descriptor. */
const registeredOnly = (threads: readonly ThreadState[], open: ReadonlySet<bigint>): bigint[] => [
  ...new Set(threads.flatMap(({ rings }) => rings.filter((file) => file !== 0n && !open.has(file)))),
];

/** Why a ring without a descriptor is not carried: one could be set up again, but not mapped where it was. */
const objectionToRegistered = ({ flags }: RingState, slots: readonly Slot[]): string | undefined => {
  if ((flags & SETUP.noMmap) === 0)
    return "it has no descriptor, is registered only (IORING_REGISTER_RING_FDS), and its memory is the kernel's";
  if (new Set(slots.map(({ pid }) => pid)).size > 1)
    return "several processes have it registered, and none a descriptor";
  return undefined;
};

const ringOf = (state: RingState, fd: number, owner: Owner): Ring => ({
  fd,
  ...(owner.fd === undefined ? { file: state.file, registered: owner.slot! } : { fdInTask: owner.fd }),
  pid: owner.pid,
  tid: owner.tid,
  flags: state.flags,
  sqEntries: state.sqEntries,
  cqEntries: state.cqEntries,
  sqHead: state.sqHead,
  cqTail: state.cqTail,
});

/** Finds and reads all rings that a dump must carry, and hides them. */
class Dump {
  readonly saved: Saved[] = [];
  readonly #reader: RingReader;
  readonly #inFlight: InFlightCarrier | undefined;
  readonly #rehearsal: boolean;
  #depth: number | undefined;
  readonly #names = new Map<number, string>();
  readonly #cqes: number;
  readonly #lent: LentFiles;

  /** `rehearsal`: the tasks still run. What runs for the first time takes several times as long, and shall not in the freeze. */
  constructor(reader: RingReader, inFlight: InFlightCarrier | undefined, lent: LentFiles, rehearsal = false) {
    this.#reader = reader;
    this.#lent = lent;
    this.#rehearsal = rehearsal;
    this.#inFlight = inFlight;
    this.#cqes = offsetsHere().cq.cqes;
  }

  /** Nothing is changed here. Throws ERR_URING where a ring cannot be carried. */
  async find({ root, found }: Seized, context: CarrierContext): Promise<void> {
    const tree = new Set(treeOf(root));
    const files = found.filter(({ kind }) => kind === "uring");
    const threads = ringThreads().filter(({ pid }) => tree.has(pid));
    const open = new Set(files.map(({ file }) => file));
    const hidden = registeredOnly(threads, open);
    const byFile = new Map<bigint, Holder[]>(hidden.map((file) => [file, []]));
    for (const { pid, fd, file } of files) byFile.set(file, [...(byFile.get(file) ?? []), { pid, fd }]);
    const ours = new Map<bigint, number>();
    try {
      for (const [file, [first]] of byFile)
        ours.set(file, first === undefined ? this.#reader.standIn(file) : take(first.pid, first.fd));
      await this.#settle(byFile, ours, threads, context);
      const states = this.#reader.rings();
      const mappings = [...tree].flatMap((pid) => this.#reader.mappings(pid));
      for (const [file, fd] of ours) {
        const state = states.get(fd);
        const descriptors = byFile.get(file)!;
        if (state === undefined || state.file !== file)
          throw refuse(
            `cannot read ${atOf(descriptors, slotsOf(file, threads))}`,
            "the X-ray does not find it",
            "report this with the kernel's version",
          );
        const mine = mappings.filter((mapping) => mapping.file === file);
        this.saved.push(await this.#save(state, fd, descriptors, mine, threads, root, context));
        ours.delete(file);
      }
    } finally {
      for (const fd of ours.values()) this.#reader.letGo(fd);
    }
    this.#link(root, tree, context);
  }

  /** What ends by itself shall have ended: counters and queues are read after that. */
  async #settle(
    byFile: ReadonlyMap<bigint, Holder[]>,
    ours: ReadonlyMap<bigint, number>,
    threads: readonly ThreadState[],
    context: CarrierContext,
  ): Promise<void> {
    if (this.#inFlight === undefined || this.#rehearsal) return;
    const states = this.#reader.rings();
    const rings = [...ours].flatMap(([file, fd]) => {
      const state = states.get(fd);
      const descriptors = byFile.get(file)!;
      return state === undefined
        ? []
        : [ringOf(state, fd, this.#owner(state, descriptors, threads, slotsOf(file, threads)))];
    });
    await this.#inFlight.settle(rings, context);
  }

  async #save(
    state: RingState,
    fd: number,
    descriptors: Holder[],
    mappings: RingMapping[],
    threads: readonly ThreadState[],
    root: number,
    context: CarrierContext,
  ): Promise<Saved> {
    const slots = slotsOf(state.file, threads);
    const at = atOf(descriptors, slots);
    const why = objection(state) ?? (descriptors.length === 0 ? objectionToRegistered(state, slots) : undefined);
    if (why !== undefined) throw refuse(`cannot carry ${at}`, why, "checkpoint when it is not in use");
    for (const { pid } of mappings)
      if (!descriptors.some((each) => each.pid === pid))
        throw refuse(`cannot carry ${at}`, `process ${pid} has it mapped, but no descriptor of it`, "keep one open");
    const owner = this.#owner(state, descriptors, threads, slots);
    const ring = ringOf(state, fd, owner);
    const inFlight = await this.#requests(ring, at, context);
    const name = this.#naming(root);
    const user = state.has.user ? chargedFor(owner.pid) : undefined;
    const image: ImageRing = {
      task: name(owner.pid),
      thread: name(owner.tid),
      ...(owner.fd !== undefined && { fd: owner.fd }),
      flags: state.flags,
      sq_entries: state.sqEntries,
      cq_entries: state.cqEntries,
      sq_head: state.sqHead,
      cq_tail: state.cqTail,
      ...(user !== undefined && { user }),
      ...(await this.#memory(state, fd, owner, at, context)),
      descriptors: descriptors.map((each) => ({ task: name(each.pid), fd: each.fd })),
      mappings: mappings.map(({ pid, start, end, offset, flags }) => ({
        task: name(pid),
        start,
        length: end - start,
        offset,
        prot: Number(flags & VM_PROT),
        ...((flags & VM_DONTCOPY) !== 0n && { dontfork: true }),
      })),
      slots: slots.map(({ pid, tid, slot }) => ({ task: name(pid), thread: name(tid), slot })),
      requests: [...inFlight.requests],
      ...(inFlight.submissions > 0 && { submissions: inFlight.submissions }),
    };
    return { state, fd, owner, descriptors, mappings, slots, inFlight, image };
  }

  /** Each task is asked for once: many rings are of few. */
  #naming(root: number): (pid: number) => string {
    this.#depth ??= depthOf(root);
    const depth = this.#depth;
    return (pid) => {
      const name = this.#names.get(pid) ?? taskName(pid, depth);
      this.#names.set(pid, name);
      return name;
    };
  }

  /** What is in its shared memory, which may be the program's own (IORING_SETUP_NO_MMAP). */
  async #memory(
    state: RingState,
    fd: number,
    { pid }: Owner,
    at: string,
    { engine }: CarrierContext,
  ): Promise<Pick<ImageRing, "rings" | "sqes" | "rings_address" | "sqes_address">> {
    const [rings, sqes] = memoryOf(state, this.#cqes);
    if ((state.flags & SETUP.noMmap) === 0)
      return {
        rings: new Uint8Array(addon.uringRead(fd, OFF_SQ_RING, rings)),
        sqes: new Uint8Array(addon.uringRead(fd, OFF_SQES, sqes)),
      };
    // Memory of tasks is read when they stand still.
    if (this.#rehearsal) return { rings: new Uint8Array(), sqes: new Uint8Array() };
    const [[ringsAt], [sqesAt]] = [
      this.#reader.placesOf(state.pages[0], pid),
      this.#reader.placesOf(state.pages[1], pid),
    ];
    if (ringsAt === undefined || sqesAt === undefined)
      throw refuse(`cannot carry ${at}`, "its memory is in none of its process's mappings", "keep it mapped");
    return {
      rings: new Uint8Array(await readAll(engine, pid, ringsAt, rings)),
      sqes: new Uint8Array(await readAll(engine, pid, sqesAt, sqes)),
      rings_address: ringsAt,
      sqes_address: sqesAt,
    };
  }

  /** The process and thread that set it up, or who may stand for it. */
  #owner(
    { submitter, mm }: RingState,
    descriptors: readonly Holder[],
    threads: readonly ThreadState[],
    slots: readonly Slot[],
  ): Owner {
    if (descriptors.length === 0) {
      const mine = slots.find(({ tid }) => tid === submitter) ?? slots[0]!;
      return { pid: mine.pid, tid: mine.tid, slot: mine.slot };
    }
    const pid = submitter === 0 ? threads.find((thread) => thread.mm === mm)?.pid : tgidOf(submitter);
    const mine = descriptors.find((each) => each.pid === pid) ?? (submitter === 0 ? descriptors[0] : undefined);
    if (mine === undefined)
      throw refuse(
        `cannot carry ${atOf(descriptors, slots)}`,
        `thread ${submitter}, to which it belongs, has no descriptor of it`,
        "keep one open",
      );
    return { pid: mine.pid, tid: submitter || mine.pid, fd: mine.fd };
  }

  async #requests(ring: Ring, at: string, context: CarrierContext): Promise<InFlight> {
    if (this.#inFlight !== undefined) return this.#inFlight.save(ring, context);
    const count = this.#reader.requests(ring.fd);
    if (count === 0) return { submissions: 0, requests: [] };
    throw refuse(
      `cannot carry ${at}`,
      count === undefined
        ? "whether requests are in flight is not known on this kernel"
        : `${count} requests are in flight`,
      "checkpoint when none is",
    );
  }

  /** What rings know by the kernel's addresses becomes a name that a restore finds again. */
  #link(root: number, tree: ReadonlySet<number>, context: CarrierContext): void {
    const name = this.#naming(root);
    let open: OpenFile[] | undefined;
    const opened = (): OpenFile[] => (open ??= [...tree].flatMap((pid) => this.#reader.descriptors(pid)));
    let byFile: Map<bigint, OpenFile> | undefined;
    const holderOf = (file: bigint): OpenFile | undefined => {
      if (file === 0n) return undefined;
      byFile ??= new Map(opened().map((each) => [each.file, each]));
      return byFile.get(file);
    };
    const direct = new DirectFinder(this.#reader);
    const pollers = new Map<bigint, number>();
    for (const { state, fd, image, descriptors, owner, mappings, slots } of this.saved) {
      const at = atOf(descriptors, slots);
      if (state.sqData !== 0n) {
        const poller = pollers.get(state.sqData) ?? pollers.size;
        pollers.set(state.sqData, poller);
        image.poller = poller;
        image.idle = Math.round(state.idle * jiffy(this.#reader));
        if (state.flags & SETUP.sqAff) image.cpu = state.sqCpu;
      }
      if (state.buffers > 0) {
        image.buffer_slots = state.buffers;
        image.buffers = this.#reader.buffers(fd).map(({ index, addr, len, tag, kernel }) => {
          if (kernel)
            throw refuse(`cannot carry ${at}`, `its buffer ${index} is of the kernel's own`, "unregister it before");
          return { index, address: addr, length: BigInt(len), tag };
        });
      }
      if (state.files > 0) {
        image.file_slots = state.files;
        if (state.alloc[0] !== 0 || state.alloc[1] !== state.files) [image.alloc_start, image.alloc_end] = state.alloc;
        const files = this.#reader.files(fd);
        const alone = files.filter(({ file }) => file !== 0n && holderOf(file) === undefined);
        const lent = new Map<number, Lent>();
        for (const { index, file } of alone) {
          const socket = this.#rehearsal
            ? this.#lent.rehearse(file, fd, image.task)
            : this.#lent.find(file, fd, owner.pid, image.task, context);
          if (typeof socket === "string")
            throw refuse(
              `cannot carry ${at}`,
              `its registered file ${index} is open nowhere else: ${socket}`,
              "keep a descriptor of it",
            );
          if (socket !== undefined) lent.set(index, socket);
        }
        const others = alone.map(({ index }) => index).filter((index) => !lent.has(index));
        const named = direct.find(fd, others, owner.pid, at);
        image.files = files.map(({ index, file, tag }) => {
          const one = holderOf(file);
          const socket = lent.get(index);
          if (socket !== undefined) return socket.registered(index, tag);
          if (one === undefined) return { index, tag, ...named.get(index) };
          return { index, tag, task: name(one.pid), fd: one.fd };
        });
      }
      if (state.eventfd !== 0n) {
        const one = opened().find(({ eventfd }) => eventfd === state.eventfd);
        if (one === undefined)
          throw refuse(`cannot carry ${at}`, "its eventfd is open nowhere else", "keep a descriptor of it");
        image.eventfd = { task: name(one.pid), fd: one.fd, async: state.eventfdAsync };
      }
      if (state.has.overflow)
        image.overflow = this.#reader.overflow(fd).map(({ userData, res, flags, extra }) => {
          if (extra.some((word) => word !== 0n))
            throw refuse(
              `cannot carry ${at}`,
              "completions of 32 bytes wait outside of the full queue",
              "read completions first",
            );
          return { user_data: userData, res, flags };
        });
      if (state.restrictions !== undefined) {
        const { registerOps, ops, allowed, required } = state.restrictions;
        image.restrictions = { register_ops: registerOps, ops, flags_allowed: allowed, flags_required: required };
      }
      if (state.napi !== undefined) image.napi = { ...state.napi, timeout: Math.floor(state.napi.timeout / 1000) };
      const limited = state.workers.some((limit) => limit !== 0);
      if (limited) image.workers = [...state.workers];
      const users = this.#reader.users(fd).flatMap(({ tid, workers: [bounded, unbounded], processors: mask }) => {
        const pid = tid === 0 ? owner.pid : tgidOf(tid);
        const processors = tree.has(pid) ? boundTo(mask, pid) : undefined;
        if (tid === 0 && processors !== undefined) image.processors = processors;
        if (tid === 0 || !tree.has(pid) || (!limited && processors === undefined)) return [];
        const [task, thread] = [name(pid), name(tid)];
        return [{ task, thread, bounded, unbounded, ...(processors !== undefined && { processors }) }];
      });
      if (users.length > 0) image.users = users;
      if (state.clock !== 1) image.clock = state.clock;
      if (state.has.personalities) {
        const now = credentialsOf(owner.tid);
        image.personalities = this.#reader.personalities(fd).map(({ id, members, here, ...credentials }) => {
          if (isDeepStrictEqual(credentials, now)) return id;
          const why = here ? objectionToCredentials(credentials, owner.tid) : "it is of another user namespace";
          if (why !== undefined)
            throw refuse(
              `cannot carry ${at}`,
              `personality ${id} is not what its process is now, and ${why}`,
              "unregister it before",
            );
          const { uids, gids, capabilities } = credentials;
          image.credentials ??= [];
          image.credentials.push({ personality: id, uids, gids, groups: members, capabilities });
          return id;
        });
      }
      if (state.region !== undefined) image.region = this.#region(state.region, fd, owner, at);
      if (state.has.groups) {
        image.groups = this.#groups(fd, owner, at);
        // Each buffer is taken again by a submission of its own: one that has taken many (multishot) leaves too few.
        if (submissionsFor(image.groups) + (image.submissions ?? 0) > state.sqHead)
          throw refuse(
            `cannot carry ${at}`,
            "its buffers have been taken and given more often than it has made submissions",
            "register its buffers anew before the checkpoint",
          );
      }
      this.#checkRoom(at, image, mappings);
    }
  }

  /** Buffers for the kernel to choose from; a ring of them in memory of the process is found by its first page. */
  #groups(fd: number, { pid, fd: fdInTask }: Owner, at: string): Group[] {
    return this.#reader.groups(fd).map((found): Group => {
      const { id, entries, head, ring, incremental, minLeft, mapped, page, provided } = found;
      if (!ring) {
        const list = provided.map((one) => ({ id: one.id, address: one.addr, length: BigInt(one.len) }));
        return { id, entries: 0, head: 0, provided: list };
      }
      const group: Group = { id, entries, head, ring, incremental, mapped, ...(minLeft > 0 && { min_left: minLeft }) };
      if (mapped) {
        if (fdInTask === undefined)
          throw refuse(
            `cannot carry ${at}`,
            `its ring of buffers ${id} is mapped, and it has no descriptor`,
            "keep one open",
          );
        const offset = OFF_PBUF_RING | (BigInt(id) << 16n);
        return { ...group, memory: new Uint8Array(addon.uringRead(fd, offset, pageAlign(16 * entries))) };
      }
      const [address] = this.#reader.placesOf(page, pid);
      if (address === undefined)
        throw refuse(`cannot carry ${at}`, `the memory of its ring of buffers ${id} is not found`, "keep it mapped");
      return { ...group, address };
    });
  }

  /** Registered memory: found by its first page, or read where it is the kernel's. */
  #region(
    { page, length, own, waits }: NonNullable<RingState["region"]>,
    fd: number,
    { pid, fd: fdInTask }: Owner,
    at: string,
  ): Region {
    const region = { length, ...(waits && { waits }) };
    if (!own) {
      if (fdInTask === undefined)
        throw refuse(
          `cannot carry ${at}`,
          "its registered memory is the kernel's, and it has no descriptor",
          "keep one open",
        );
      return { ...region, memory: new Uint8Array(addon.uringRead(fd, OFF_REGION, length)) };
    }
    const [address] = this.#reader.placesOf(page, pid);
    if (address === undefined)
      throw refuse(
        `cannot carry ${at}`,
        "its registered memory is in none of its process's mappings",
        "keep it mapped",
      );
    return { ...region, address };
  }

  /** A part of a mapping is put back with the whole, for which there must be room. */
  #checkRoom(at: string, image: ImageRing, mappings: readonly RingMapping[]): void {
    for (const { pid, start, end, offset } of mappings) {
      const { cut } = placeOf(image, offset, end - start);
      if (!isFree(pid, start - cut.before, start) || !isFree(pid, end, end + cut.after))
        throw refuse(
          `cannot carry ${at}`,
          "a part of it is mapped, with something else in the place of the rest",
          "map it as a whole",
        );
    }
  }

  /**
   * CRIU shall see private memory where rings are mapped, and in place of a ring something that it can dump and that can
   * be polled as well: an eventfd.
   */
  async hide({ engine }: CarrierContext): Promise<void> {
    const swaps: (() => Promise<void>)[] = [];
    const placeholders: number[] = [];
    try {
      for (const { mappings, descriptors, image } of this.saved) {
        for (const { pid, start, end, offset, flags } of mappings) {
          const { base, cut } = placeOf(image, offset, end - start);
          const [prot, ownFd] = [Number(flags & VM_PROT), descriptors.find((each) => each.pid === pid)!.fd];
          const old = { ownFd, oldOffset: base, oldCut: cut, oldFlags: MAP_SHARED };
          const at = { addr: start, len: end - start, prot, flags: MAP_PLACEHOLDER, newOffset: 0n };
          swaps.push(() => engine.swapMapping(pid, { ...at, ...old }));
        }
        const placeholder = addon.eventfd(0);
        placeholders.push(placeholder);
        for (const { pid, fd } of descriptors)
          swaps.push(() => engine.swapRing(pid, fd, placeholder, closesOnExec(pid, fd)));
      }
      // In this order, but without waiting for each; more at once than fit into the sockets must not be under way.
      for (let at = 0; at < swaps.length; at += AT_ONCE) {
        const done = await Promise.allSettled(swaps.slice(at, at + AT_ONCE).map((swap) => swap()));
        for (const each of done) if (each.status === "rejected") throw each.reason;
      }
    } finally {
      for (const placeholder of placeholders) closeSync(placeholder);
    }
  }

  write(imagesDir: string): void {
    this.#lent.write(imagesDir);
    // Whoever is attached to comes first.
    const sorted = [...this.saved].sort((a, b) => Number(isAttached(a)) - Number(isAttached(b)));
    writeRings(
      imagesDir,
      sorted.map(({ image }) => image),
    );
  }

  close(): void {
    for (const { fd } of this.saved.splice(0)) this.#reader.letGo(fd);
  }
}

const isAttached = ({ state: { flags } }: Saved): boolean => (flags & SETUP.attachWq) !== 0;

/** Credentials of a thread, as the X-ray tells registered ones; those with bits of prctl(PR_SET_SECUREBITS) are not told by /proc. */
const credentialsOf = (tid: number): Credentials => {
  const status = readFileSync(`/proc/${tid}/status`, "utf8");
  const field = (name: string): string[] =>
    new RegExp(`^${name}:[ \t]*(.*)$`, "m")
      .exec(status)![1]!
      .split(/\s+/)
      .filter((word) => word !== "");
  const capability = (name: string): bigint => BigInt(`0x${field(name)[0]}`);
  const groups = field("Groups").map(Number);
  return {
    uids: field("Uid").map(Number),
    gids: field("Gid").map(Number),
    capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(capability),
    securebits: 0,
    // As uring.bpf.c adds them up.
    groups: {
      count: groups.length,
      sum: groups.slice(0, 64).reduce((sum, gid) => (Math.imul(sum, 31) + gid) >>> 0, 0),
    },
  };
};

/** Why credentials cannot be taken on by a thread of ours, which registers them: what it does not set is as it is with us. */
const objectionToCredentials = ({ securebits, groups }: Credentials, tid: number): string | undefined => {
  if (readlinkSync(`/proc/${tid}/ns/user`) !== readlinkSync("/proc/self/ns/user"))
    return "its process is in another user namespace";
  if (labelOf(tid) !== labelOf("self")) return "a security module confines its process";
  if (securebits !== 0) return "it has bits of prctl(PR_SET_SECUREBITS)";
  return groups.count > MAX_GROUPS ? `it has more than ${MAX_GROUPS} groups` : undefined;
};

/** What AppArmor, SELinux or Smack call a task; where there is none of them, nobody is called anything. */
const labelOf = (task: number | "self"): string => {
  try {
    return readFileSync(`/proc/${task}/attr/current`, "latin1");
  } catch {
    return "";
  }
};

const readAll = async (engine: Engine, pid: number, at: bigint, length: number): Promise<Buffer> => {
  const parts: Buffer[] = [];
  for (let done = 0; done < length; done += MAX_DATA)
    parts.push(await engine.readMemory(pid, at + BigInt(done), Math.min(MAX_DATA, length - done)));
  return Buffer.concat(parts);
};

/** Whether a process has nothing mapped there. */
const isFree = (pid: number, from: bigint, to: bigint): boolean =>
  from === to ||
  ![...readFileSync(`/proc/${pid}/maps`, "latin1").matchAll(/^([0-9a-f]+)-([0-9a-f]+)/gm)].some(
    ([, start, end]) => BigInt(`0x${start}`) < to && BigInt(`0x${end}`) > from,
  );

/** How long a ring's counters take to be brought on, in seconds: 60 ns for each, more for small rings that one thread owns. */
const secondsFor = ({ sqHead, cqTail, sqEntries, flags }: RingState): number => {
  const steps = Math.max(sqHead, cqTail);
  const turns = flags & SETUP.singleIssuer ? steps / sqEntries : 0;
  return steps * 60e-9 + turns * 6e-6;
};
const LONG = 1;

/**
 * What can be said of the rings of a tree before anything is stopped, by descriptor of a process: why one is not carried, or that
 * its restore will take long.
 */
export const foresee = (root: number, found: readonly Found[], reader: RingReader): Foreseen[] => {
  const foreseen: Foreseen[] = [];
  const open = new Set(found.filter(({ kind }) => kind === "uring").map(({ file }) => file));
  const threads = threadsOf(root);
  for (const file of registeredOnly(threads, open)) {
    const ours = reader.standIn(file);
    try {
      const state = reader.rings().get(ours);
      const slots = slotsOf(file, threads);
      const why = state && (objection(state) ?? objectionToRegistered(state, slots));
      if (why !== undefined) foreseen.push({ pid: slots[0]!.pid, why });
    } finally {
      reader.letGo(ours);
    }
  }
  const seen = new Set<bigint>();
  for (const { kind, pid, fd, file } of found) {
    if (kind !== "uring" || seen.has(file)) continue;
    seen.add(file);
    const ours = take(pid, fd);
    try {
      const state = reader.rings().get(ours);
      const why = state && objection(state);
      if (why !== undefined) foreseen.push({ pid, fd, why });
      else if (state !== undefined && secondsFor(state) >= LONG)
        foreseen.push({ pid, fd, seconds: Math.round(secondsFor(state)) });
    } finally {
      closeSync(ours);
    }
  }
  return foreseen;
};

export interface Foreseen {
  pid: number;
  fd?: number;
  why?: string;
  seconds?: number;
}

/** The threads of a tree that have used io_uring. */
const threadsOf = (root: number): ThreadState[] => {
  const threads = ringThreads();
  if (threads.length === 0) return threads;
  const tree = new Set(treeOf(root));
  return threads.filter(({ pid }) => tree.has(pid));
};

/** The carrier of one session. */
export const uringCarrier = (inFlight?: InFlightCarrier): Carrier => {
  let reader: RingReader | undefined;
  let dump: Dump | undefined;
  let threads = false;
  let restore: RingRestore | undefined;
  let root: number | undefined;
  let ended: (() => void) | undefined;
  const lent = new LentFiles(() => 1000 / jiffy(reader!));
  return {
    name: "io-uring",
    prepare(root) {
      const [found, tasks] = [findSpecial(root).some(({ kind }) => kind === "uring"), threadsOf(root)];
      threads = found || tasks.length > 0;
      if (!found && !tasks.some(({ rings }) => rings.some((ring) => ring !== 0n))) return;
      reader ??= new RingReader();
      inFlight?.prepare?.();
    },
    async admit(root, context) {
      const { log } = context;
      if (!threads) return;
      reader ??= new RingReader();
      const found = findSpecial(root);
      for (const { pid, fd, why, seconds } of foresee(root, found, reader)) {
        const at = fd === undefined ? `a ring of process ${pid}` : `the ring at descriptor ${fd} of process ${pid}`;
        if (why !== undefined) throw refuse(`cannot carry ${at}`, why, "end its use before the checkpoint");
        log("Warn ", `${at} has done much: a restore will take about ${seconds} s to bring its counters on`);
      }
      const rehearsal = new Dump(reader, inFlight, lent, true);
      try {
        await rehearsal.find({ root, found }, context);
      } catch {
        // What it saw may have been half done.
      } finally {
        rehearsal.close();
      }
    },
    hasKernelThreads: () => threads,
    async seized(seized, context) {
      const known = threadsOf(seized.root).some(({ rings }) => rings.some((ring) => ring !== 0n));
      if (!known && !seized.found.some(({ kind }) => kind === "uring")) return;
      await restartWaits(treeOf(seized.root), context.engine, (why) => context.log("Warn ", why));
      reader ??= new RingReader();
      root = seized.root;
      dump = new Dump(reader, inFlight, lent);
      await dump.find(seized, context);
      await dump.hide(context);
    },
    needed: () => dump !== undefined && dump.saved.length > 0,
    async dumped(ok, { imagesDir, log }) {
      const made = dump;
      if (!ok || made === undefined || made.saved.length === 0) return undefined;
      ended = () => {
        if (!existsSync(`/proc/${root}/ns/net`)) lent.end(log);
      };
      return () => made.write(imagesDir);
    },
    async restoring({ imagesDir, log }) {
      restore = new RingRestore(imagesDir, inFlight);
      const ahead = restore.start();
      if (ahead > 0) log("Info ", `rings that are brought on while CRIU restores: ${ahead}`);
    },
    async resume(pid, context) {
      await restore?.resume(pid, context);
    },
    close() {
      dump?.close();
      restore?.close();
      inFlight?.close?.();
      ended?.();
      lent.close();
      reader?.close();
    },
  };
};
