// SPDX-License-Identifier: Apache-2.0
// Reads which requests of an io_uring ring are in flight, and what they had asked for. The ring is not changed.
import { readdirSync, readFileSync } from "node:fs";
import { artefact } from "../../native/index.js";
import { bpf, CMD, closeAll } from "../netlock/bpf.js";
import { type LoadedObject, loadObject } from "../netlock/bpf-object.js";
import { runIterator, TASK_FILE } from "./iterator.js";

/** On which of the kernel's lists a request was found. */
export const WHERE = {
  poll: 1 << 0,
  timeout: 1 << 1,
  linkTimeout: 1 << 2,
  defer: 1 << 3,
  waitid: 1 << 4,
  futex: 1 << 5,
  iopoll: 1 << 6,
  cmd: 1 << 7,
  queued: 1 << 8,
  running: 1 << 9,
  taskWork: 1 << 10,
  linked: 1 << 11,
} as const;

/** A request in flight, in the words of struct io_uring_sqe. */
export interface Request {
  /** Bits of WHERE. */
  where: number;
  /** Its identity, and that of the request that it is linked to. */
  address: bigint;
  behind?: bigint;
  userData: bigint;
  /** Whether what follows is all that it had asked for: the opcode is one that the X-ray reads. */
  known: boolean;
  opcode: number;
  /** IOSQE_*. */
  flags: number;
  ioprio: number;
  /** -1: its file is open nowhere any more. */
  fd: number;
  off: bigint;
  addr: bigint;
  len: number;
  opFlags: number;
  /** buf_index or buf_group. */
  buffer: number;
  fileIndex: number;
  addr3: bigint;
  /** Nanoseconds until an armed timeout fires, and for which it was set. */
  left?: bigint;
  interval: bigint;
  /** Bytes that it has moved already. */
  done: number;
  /** It will complete with an error, whatever happens. */
  failed: boolean;
  /** It has taken a provided buffer and has not given it back. */
  holdsBuffer: boolean;
  /** 0: its task's own; -1: another that has no number. */
  personality: number;
  /** The task that has submitted it. */
  pid: number;
  tid: number;
  /** The memory that it reads from or writes to, as the kernel has copied it; fewer than `vectorCount` when many. */
  vectors: { base: bigint; len: bigint }[];
  vectorCount: number;
  /** What the kernel has read of the first one already. */
  vectorOffset: bigint;
  /** Of a message: where its address and its ancillary data go. */
  name: bigint;
  nameLen: bigint;
  control: bigint;
  controlLen: bigint;
  /** The 12 bytes of an epoll_event. */
  event?: Buffer;
}

/** A task that has used a ring, and how many requests of all its rings are in flight. */
export interface RingTask {
  pid: number;
  tid: number;
  inFlight: number;
}

// enum and structs of native/bpf/uring-inflight.bpf.c
const [REQUEST, TASK, DONE] = [0x51455249, 0x4b534154, 0x454e4f44];
const [REQUEST_SIZE, TASK_SIZE, WALK_SIZE, VECTORS] = [312, 32, 144, 8];
const [EPOLL_CTL, REALTIME] = [29, 1 << 3];

/** How many NUMA nodes there are: Linux 6.1 has workers for each. */
const numaNodes = (): number => {
  try {
    return Math.max(1, readdirSync("/sys/devices/system/node").filter((name) => /^node\d+$/.test(name)).length);
  } catch {
    return 1;
  }
};

const requestAt = (bytes: Buffer, at: number): Request => {
  const u32 = (offset: number): number => bytes.readUInt32LE(at + offset);
  const s32 = (offset: number): number => bytes.readInt32LE(at + offset);
  const u64 = (offset: number): bigint => bytes.readBigUInt64LE(at + offset);
  const opcode = u32(76);
  const request: Request = {
    where: u32(4),
    address: u64(8),
    userData: u64(24),
    known: u32(72) !== 0,
    opcode,
    flags: u32(80),
    ioprio: u32(84),
    fd: s32(88),
    off: u64(32),
    addr: u64(40),
    len: u32(92),
    opFlags: u32(96),
    buffer: u32(100),
    fileIndex: u32(104),
    addr3: u64(48),
    interval: u64(64),
    done: u32(112),
    failed: u32(116) !== 0,
    holdsBuffer: u32(120) !== 0,
    personality: s32(124),
    pid: s32(128),
    tid: s32(132),
    vectors: Array.from({ length: Math.min(u32(140), VECTORS) }, (_, i) => ({
      base: u64(184 + i * 16),
      len: u64(192 + i * 16),
    })),
    vectorCount: u32(140),
    vectorOffset: BigInt(u32(144)),
    name: u64(152),
    nameLen: u64(160),
    control: u64(168),
    controlLen: u64(176),
  };
  if (u64(16) !== 0n) request.behind = u64(16);
  if (u32(108) !== 0) {
    const left = bytes.readBigInt64LE(at + 56);
    const elapsed = request.opFlags & REALTIME ? left - BigInt(Date.now()) * 1_000_000n : left;
    request.left = elapsed < 0n ? 0n : elapsed;
  }
  if (opcode === EPOLL_CTL) request.event = Buffer.from(bytes.subarray(at + 184, at + 196));
  return request;
};

/** Loaded before the freeze, used in it. */
export class InFlightReader {
  readonly #object: LoadedObject;
  readonly #nodes = numaNodes();

  /** Throws where the kernel cannot: bpf_map_lookup_percpu_elem is of Linux 5.19. */
  constructor() {
    this.#object = loadObject(readFileSync(artefact("uring-inflight.bpf.o")), {
      "iter/task_file.in_flight": TASK_FILE,
    });
  }

  /**
   * What the ring of a descriptor of ours has in flight; a request that is on two lists is there once. Those that wait for
   * others (drain) are in their order, and behind the others; what is linked is behind what it is linked to. `file`: see Ring.
   */
  read(fd: number, file = 0n): { requests: Request[]; tasks: RingTask[] } {
    const requests = new Map<bigint, Request>();
    const tasks: RingTask[] = [];
    for (let skip = 0, more = true; more; ) {
      const walk = Buffer.alloc(WALK_SIZE);
      walk.writeUInt32LE(fd, 0);
      walk.writeUInt32LE(skip, 4);
      walk.writeUInt32LE(this.#nodes, WALK_NODES);
      walk.writeBigUInt64LE(file, WALK_FILE);
      bpf(CMD.mapUpdate, { 0: this.#object.maps.walk!, 8: Buffer.alloc(4), 16: walk });
      const bytes = runIterator(this.#object.programs.in_flight!, process.pid);
      const before = skip;
      for (let at = 0; at < bytes.length; ) {
        const magic = bytes.readUInt32LE(at);
        if (magic === REQUEST) {
          const request = requestAt(bytes, at);
          const known = requests.get(request.address);
          if (known === undefined) requests.set(request.address, request);
          else merge(known, request);
          at += REQUEST_SIZE;
          skip++;
        } else if (magic === TASK) {
          tasks.push({
            pid: bytes.readInt32LE(at + 4),
            tid: bytes.readInt32LE(at + 8),
            inFlight: Number(bytes.readBigInt64LE(at + 16)),
          });
          at += TASK_SIZE;
          skip++;
        } else if (magic === DONE) {
          more = false;
          at += 8;
        } else throw new Error("the X-ray's records are damaged");
      }
      if (more && skip === before) throw new Error("the X-ray does not see the ring");
    }
    return { requests: [...requests.values()], tasks };
  }

  close(): void {
    closeAll([...Object.values(this.#object.maps), ...Object.values(this.#object.programs)]);
  }
}

/** Offsets in struct walk. */
const [WALK_NODES, WALK_FILE] = [84, 136];

/** The same request on another list. */
const merge = (known: Request, { where, behind, left }: Request): void => {
  known.where |= where;
  if (behind !== undefined) known.behind ??= behind;
  if (left !== undefined) known.left ??= left;
};
