// SPDX-License-Identifier: Apache-2.0
// Reads io_uring rings by native/bpf/uring.bpf.c: what they are, where they are mapped, who has registered them.
import { readFileSync } from "node:fs";
import { addon, artefact, closeFd } from "../../native/index.js";
import { bpf, CMD } from "../netlock/bpf.js";
import { type LoadedObject, loadObject } from "../netlock/bpf-object.js";
import { fromKit, pinInKit } from "../netlock/kept.js";
import { runIterator, TASK_FILE } from "./iterator.js";

/** A ring as the kernel has it. */
export interface RingState {
  /** Equal for all descriptors and mappings of a ring. */
  file: bigint;
  /** Of the process that set it up, as `ThreadState.mm`. */
  mm: bigint;
  /** Equal for rings that share a thread (ATTACH_WQ); 0: there is none. */
  sqData: bigint;
  /** The registered eventfd, by the address that its files have; 0: none. */
  eventfd: bigint;
  eventfdAsync: boolean;
  /** Where the array of indices begins in the ring's memory; 0: there is none. */
  sqArray: number;
  /** IORING_SETUP_* */
  flags: number;
  sqEntries: number;
  cqEntries: number;
  sqHead: number;
  cqTail: number;
  /** The only thread that may submit, as this process numbers it; 0: any may. */
  submitter: number;
  /** Of the SQPOLL thread: idle time in jiffies, processor (-1: any), and the thread. */
  idle: number;
  sqCpu: number;
  sqThread: number;
  files: number;
  buffers: number;
  restrictions?: { registerOps: bigint; ops: bigint; allowed: number; required: number };
  napi?: { timeout: number; prefer: number; track: number };
  /** Limits of bounded and unbounded workers; 0: never set. */
  workers: [number, number];
  clock: number;
  has: {
    overflow: boolean;
    groups: boolean;
    personalities: boolean;
    zcrx: boolean;
    /** Memory that is registered is charged to who set it up. */
    user: boolean;
  };
  /** The slots that the kernel chooses from: first, and first after. */
  alloc: [number, number];
  /** Registered memory: its first page as below, bytes, whether it is the program's own, and has arguments of waits. */
  region?: { page: bigint; length: number; own: boolean; waits: boolean };
  /** First pages of user memory that is the ring's (NO_MMAP), by their address in the kernel. */
  pages: [bigint, bigint];
}

/** A descriptor of a process. */
export interface OpenFile {
  pid: number;
  fd: number;
  /** As `RingFile.file`. */
  file: bigint;
  /** As `RingState.eventfd`; 0: it is none. */
  eventfd: bigint;
  /** The kernel's inode: equal for all that have the same file open. */
  inode: bigint;
}

/** Where a process has a ring mapped. */
export interface RingMapping {
  pid: number;
  file: bigint;
  start: bigint;
  end: bigint;
  offset: bigint;
  /** VM_* */
  flags: bigint;
}

/** A thread that has used io_uring. */
export interface ThreadState {
  pid: number;
  tid: number;
  mm: bigint;
  /** Registered rings by slot (IORING_REGISTER_RING_FDS), by `file`; 0: none. */
  rings: bigint[];
}

export interface RingBuffer {
  index: number;
  addr: bigint;
  len: number;
  tag: bigint;
  /** Registered by the kernel itself (ublk): it cannot be made again. */
  kernel: boolean;
}
export interface RingFile {
  index: number;
  /** The file, as the X-ray knows it; 0: an empty slot with a tag. */
  file: bigint;
  tag: bigint;
}
/** A registered file as it has been opened. */
export interface OpenedFile {
  index: number;
  file: bigint;
  inode: bigint;
  /** O_*, S_IFMT and permissions. */
  flags: number;
  mode: number;
  position: bigint;
}
/** Credentials, as far as a process can be compared with them. */
export interface Credentials {
  /** Real, effective, saved, file system's. */
  uids: number[];
  gids: number[];
  /** Inheritable, permitted, effective, bounding, ambient. */
  capabilities: bigint[];
  securebits: number;
  groups: { count: number; sum: number };
}
/** Registered credentials. */
export interface Personality extends Credentials {
  id: number;
  /** The first 32 of its groups. */
  members: number[];
  /** Whether they are of this process's user namespace. */
  here: boolean;
}
export interface Completion {
  userData: bigint;
  res: number;
  flags: number;
  extra: [bigint, bigint];
}
export interface BufferGroup {
  id: number;
  entries: number;
  head: number;
  /** A ring of buffers; otherwise a list of them. */
  ring: boolean;
  /** IOU_PBUF_RING_INC */
  incremental: boolean;
  /** Bytes of which less is not worth a read; 0: each is. */
  minLeft: number;
  /** Memory of the kernel's, mapped by the process. */
  mapped: boolean;
  /** The first page of user memory, by its address in the kernel. */
  page: bigint;
  provided: { id: number; addr: bigint; len: number }[];
}

// enum of native/bpf/uring.bpf.c, and its structs' sizes
const PART = {
  buffer: 2,
  file: 3,
  overflow: 4,
  group: 5,
  provided: 6,
  requests: 9,
  personality: 11,
  user: 12,
  opened: 14,
} as const;
const [RING, MAPPING, THREAD, DESCRIPTOR, PLACE] = [1, 7, 8, 10, 13];
const [RING_SIZE, ITEM_SIZE, CURSOR_SIZE, MAPPING_SIZE, THREAD_SIZE, DESCRIPTOR_SIZE] = [192, 40, 40, 48, 160, 48];

const TASK_VMA = { ...TASK_FILE, target: "bpf_iter_task_vma" };
const TASK = { ...TASK_FILE, target: "bpf_iter_task" };

interface Item {
  index: number;
  a: bigint;
  b: bigint;
  c: bigint;
  d: bigint;
}

const records = (bytes: Buffer, size: number, magic: number): Buffer[] =>
  Array.from({ length: Math.floor(bytes.length / size) }, (_, i) => {
    const record = bytes.subarray(i * size, (i + 1) * size);
    if (record.readUInt32LE(0) !== magic) throw new Error("the X-ray's records of rings are damaged");
    return record;
  });

const ringOf = (r: Buffer): RingState => {
  const word = (at: number): number => r.readUInt32LE(at);
  const long = (at: number): bigint => r.readBigUInt64LE(at);
  const [restricted, has, timeout] = [word(120), word(144), Number(long(64))];
  return {
    file: long(8),
    mm: long(16),
    sqData: long(24),
    eventfd: long(32),
    eventfdAsync: word(108) !== 0,
    sqArray: Number(long(40)),
    flags: word(72),
    sqEntries: word(76),
    cqEntries: word(80),
    sqHead: word(84),
    cqTail: word(88),
    submitter: r.readInt32LE(92),
    idle: word(96),
    sqCpu: r.readInt32LE(100),
    sqThread: r.readInt32LE(104),
    files: word(112),
    buffers: word(116),
    ...((restricted & 1) === 1 && {
      restrictions: {
        registerOps: long(48),
        ops: long(56),
        allowed: (restricted >> 8) & 0xff,
        required: (restricted >> 16) & 0xff,
      },
    }),
    ...(timeout !== 0 && { napi: { timeout, prefer: word(124), track: word(128) } }),
    workers: [word(132), word(136)],
    clock: r.readInt32LE(140),
    has: {
      overflow: (has & 1) !== 0,
      groups: (has & 2) !== 0,
      personalities: (has & 4) !== 0,
      zcrx: (has & 16) !== 0,
      user: (has & 32) !== 0,
    },
    alloc: [word(148), word(152)],
    ...((has & 8) !== 0 && {
      region: { page: long(176), length: word(184) * 4096, own: (word(188) & 1) !== 0, waits: (word(188) & 2) !== 0 },
    }),
    pages: [long(160), long(168)],
  };
};

/** Where an earlier session has left the program loaded. The number changes with its records. */
const PINNED = "uring-threads1";
let threadsProgram: number | undefined;

const prepareThreads = (): number => {
  if (threadsProgram !== undefined) return threadsProgram;
  try {
    threadsProgram = fromKit(PINNED);
  } catch {
    const { maps, programs } = loadObject(readFileSync(artefact("uring.bpf.o")), { "iter/task.threads": TASK });
    for (const map of Object.values(maps)) closeFd(map);
    threadsProgram = programs.threads!;
    try {
      pinInKit(PINNED, threadsProgram);
    } catch {
      // Another session was quicker, or there is no bpffs: the next one loads it again.
    }
  }
  return threadsProgram;
};

/** All threads of this machine that have used io_uring; a ring may be known to a thread alone. */
export const ringThreads = (): ThreadState[] =>
  records(runIterator(prepareThreads()), THREAD_SIZE, THREAD).map((record) => ({
    pid: record.readInt32LE(4),
    tid: record.readInt32LE(8),
    mm: record.readBigUInt64LE(16),
    rings: Array.from({ length: 16 }, (_, i) => record.readBigUInt64LE(32 + 8 * i)),
  }));

/** The X-ray of rings: loaded before the freeze, used in it. */
export class RingReader {
  readonly #rings: LoadedObject;
  readonly #parts: LoadedObject;
  readonly #mappings: LoadedObject;
  readonly #standIns = new Map<number, bigint>();
  #descriptors: LoadedObject | undefined;
  #places: LoadedObject | undefined;

  /** Throws where the kernel cannot: bpf_loop is of Linux 5.17. */
  constructor() {
    const object = readFileSync(artefact("uring.bpf.o"));
    this.#rings = loadObject(object, { "iter/task_file.rings": TASK_FILE });
    this.#parts = loadObject(object, { "iter/task_file.parts": TASK_FILE });
    this.#mappings = loadObject(object, { "iter/task_vma.mappings": TASK_VMA });
  }

  /** All rings that this process has open, or a stand-in for, by descriptor. */
  rings(): Map<number, RingState> {
    const found: Buffer[] = [];
    for (const fd of [0, ...this.#standIns.keys()]) {
      this.#aim(this.#rings, RING, fd);
      found.push(...records(this.#run(this.#rings.programs.rings!, process.pid), RING_SIZE, RING));
    }
    return new Map(found.map((record) => [record.readUInt32LE(4), ringOf(record)]));
  }

  /**
   * A descriptor of ours in the place of one of a ring that nobody has any of: it is read by this number as others are. The ring, by its
   * `file`, must not end meanwhile.
   */
  standIn(file: bigint): number {
    const fd = addon.eventfd(0);
    this.#standIns.set(fd, file);
    return fd;
  }

  /** Closes a descriptor of a ring's, or a stand-in. */
  letGo(fd: number): void {
    this.#standIns.delete(fd);
    closeFd(fd);
  }

  /** Where a process has rings mapped. */
  mappings(pid: number): RingMapping[] {
    return records(this.#run(this.#mappings.programs.mappings!, pid), MAPPING_SIZE, MAPPING).map((record) => ({
      pid: record.readInt32LE(4),
      file: record.readBigUInt64LE(8),
      start: record.readBigUInt64LE(16),
      end: record.readBigUInt64LE(24),
      offset: record.readBigUInt64LE(32),
      flags: record.readBigUInt64LE(40),
    }));
  }

  /** The registered buffers of the ring at a descriptor of ours. */
  buffers(fd: number): RingBuffer[] {
    return this.#items(PART.buffer, fd).map(({ index, a, b, c, d }) => ({
      index,
      addr: a,
      len: Number(b),
      tag: c,
      kernel: d !== 0n,
    }));
  }

  files(fd: number): RingFile[] {
    return this.#items(PART.file, fd).map(({ index, a, b }) => ({ index, file: a, tag: b }));
  }

  /** Completions that did not fit into the ring, oldest first. */
  overflow(fd: number): Completion[] {
    return this.#items(PART.overflow, fd).map(({ a, b, c, d }) => ({
      userData: a,
      res: Number(BigInt.asIntN(32, b)),
      flags: Number(b >> 32n),
      extra: [c, d],
    }));
  }

  /** How many requests are in flight; undefined: this kernel does not count them (Linux 6.17). */
  requests(fd: number): number | undefined {
    const [counted] = this.#items(PART.requests, fd);
    return counted === undefined ? undefined : Number(counted.a - counted.b);
  }

  groups(fd: number): BufferGroup[] {
    return this.#items(PART.group, fd).map(({ index, a, b, c, d }) => {
      const flags = Number(a >> 48n);
      const ring = (flags & 1) !== 0;
      return {
        id: index,
        entries: Number(a & 0xffffn),
        head: Number((a >> 16n) & 0xffffn),
        ring,
        incremental: (flags & 2) !== 0,
        minLeft: ring && d > 0n ? Number(d) + 1 : 0,
        mapped: (flags & 0x100) !== 0,
        page: b,
        provided: ring
          ? []
          : this.#items(PART.provided, fd, d, c).map(({ index: id, a: addr, b: len }) => ({
              id,
              addr,
              len: Number(len),
            })),
      };
    });
  }

  /** How the registered files have been opened. */
  opened(fd: number): OpenedFile[] {
    return this.#items(PART.opened, fd).map(({ index, a, b, c, d }) => ({
      index,
      file: a,
      inode: b,
      flags: Number(c & 0xffffffffn),
      mode: Number(c >> 32n),
      position: d,
    }));
  }

  /** Registered credentials by number. */
  personalities(fd: number): Personality[] {
    const halves = (word: bigint): [number, number] => [Number(word & 0xffffffffn), Number(word >> 32n)];
    const items = this.#items(PART.personality, fd);
    return items
      .filter(({ index }) => index >> 16 === 0)
      .map(({ index: id, a, b, c, d }) => {
        const [more, rest] = [1, 2].map((part) => items.find(({ index }) => index === (id | (part << 16)))!);
        const [[uid, euid], [gid, egid], [fsuid, fsgid]] = [halves(a), halves(b), halves(c)];
        const [suid, sgid] = halves(more!.a);
        return {
          id,
          uids: [uid, euid, suid, fsuid],
          gids: [gid, egid, sgid, fsgid],
          capabilities: [more!.b, more!.c, d, more!.d, rest!.a],
          securebits: Number(rest!.b & 0xffffffffn),
          groups: { count: Number(rest!.c), sum: Number(rest!.d) },
          here: rest!.b >> 32n !== 0n,
          members: [3, 4, 5, 6]
            .flatMap((part) => items.filter(({ index }) => index === (id | (part << 16))))
            .flatMap((item) => [item.a, item.b, item.c, item.d].flatMap(halves))
            .slice(0, Number(rest!.c)),
        };
      });
  }

  /** The threads that use a ring, with their limits of bounded and unbounded workers, and the processors of these (the first 128). */
  users(fd: number): { tid: number; workers: [number, number]; processors: bigint }[] {
    return this.#items(PART.user, fd).map(({ index, a, b, c, d }) => ({
      tid: index,
      workers: [Number(a), Number(b)],
      processors: c | (d << 64n),
    }));
  }

  /** Where a process may have a page in its memory. */
  placesOf(page: bigint, pid: number): bigint[] {
    this.#places ??= loadObject(readFileSync(artefact("uring.bpf.o")), { "iter/task_vma.places": TASK_VMA });
    const value = Buffer.alloc(8);
    value.writeBigUInt64LE(page);
    bpf(CMD.mapUpdate, { 0: this.#places.maps.wanted!, 8: Buffer.alloc(4), 16: value });
    const found = this.#run(this.#places.programs.places!, pid);
    return records(found, MAPPING_SIZE, PLACE).map((record) => record.readBigUInt64LE(16));
  }

  /** Every descriptor of a process. */
  descriptors(pid: number): OpenFile[] {
    this.#descriptors ??= loadObject(readFileSync(artefact("uring.bpf.o")), {
      "iter/task_file.descriptors": TASK_FILE,
    });
    return records(this.#run(this.#descriptors.programs.descriptors!, pid), DESCRIPTOR_SIZE, DESCRIPTOR).map(
      (record) => ({
        pid,
        fd: record.readUInt32LE(4),
        file: record.readBigUInt64LE(8),
        eventfd: record.readBigUInt64LE(16),
        inode: record.readBigUInt64LE(32),
      }),
    );
  }

  close(): void {
    for (const fd of this.#standIns.keys()) this.letGo(fd);
    const loaded = [this.#rings, this.#parts, this.#mappings, this.#descriptors, this.#places];
    for (const { maps, programs } of loaded.filter((each) => each !== undefined))
      for (const fd of [...Object.values(maps), ...Object.values(programs)]) closeFd(fd);
  }

  #run(program: number, pid?: number): Buffer {
    return runIterator(program, pid);
  }

  /** A table may be longer than a pass: then the next pass goes on where it ended. */
  #items(kind: number, fd: number, at = 0n, base = 0n): Item[] {
    const items: Item[] = [];
    this.#aim(this.#parts, kind, fd, at, base);
    for (;;) {
      const bytes = this.#run(this.#parts.programs.parts!, process.pid);
      for (const record of records(bytes, ITEM_SIZE, kind))
        items.push({
          index: record.readUInt32LE(4),
          a: record.readBigUInt64LE(8),
          b: record.readBigUInt64LE(16),
          c: record.readBigUInt64LE(24),
          d: record.readBigUInt64LE(32),
        });
      const cursor = Buffer.alloc(CURSOR_SIZE);
      bpf(CMD.mapLookup, { 0: this.#parts.maps.cursor!, 8: Buffer.alloc(4), 16: cursor });
      if (cursor.readUInt32LE(28) !== 0) return items;
    }
  }

  #aim({ maps }: LoadedObject, kind: number, fd: number, at = 0n, base = 0n): void {
    const value = Buffer.alloc(CURSOR_SIZE);
    value.writeUInt32LE(kind, 0);
    value.writeUInt32LE(fd, 4);
    value.writeBigUInt64LE(at, 8);
    value.writeBigUInt64LE(base, 16);
    value.writeBigUInt64LE(this.#standIns.get(fd) ?? 0n, 32);
    bpf(CMD.mapUpdate, { 0: maps.cursor!, 8: Buffer.alloc(4), 16: value });
  }
}
