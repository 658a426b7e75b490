// SPDX-License-Identifier: Apache-2.0
// Reads files that no task has a descriptor of (native/bpf/direct.bpf.c): the direct descriptors of rings. They are not touched.
import { readFileSync } from "node:fs";
import { artefact, closeFd } from "../../native/index.js";
import { bpf, CMD, closeAll } from "../netlock/bpf.js";
import { type LoadedObject, loadObject } from "../netlock/bpf-object.js";
import { aimIterator, runAimed, TASK_FILE } from "./iterator.js";
import { pageShift } from "./pages.js";

/** A socket of the internet's as the kernel has it; of others the first three alone. */
export interface DirectSocket {
  family: number;
  type: number;
  protocol: number;
  /** TCP_* of the kernel's. */
  state: number;
  /** Of sockfs, and of its network namespace. */
  inode: number;
  netns: number;
  fileFlags: number;
  localPort: number;
  remotePort: number;
  local: Buffer;
  remote: Buffer;
  /** The device that it is bound to, 0: none. */
  device: number;
  /** Connections that wait to be accepted, and how many may. */
  waiting: number;
  backlog: number;
  sndbuf: number;
  rcvbuf: number;
  /** SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK and others. */
  locks: number;
  rcvlowat: number;
  priority: number;
  mark: number;
  /** 1: it reads no more, 2: it sends no more. */
  shutdown: number;
  reuse: boolean;
  reuseport: boolean;
  v6only: boolean;
  has: {
    filter: boolean;
    protocol: boolean;
    repair: boolean;
    fineTimestamps: boolean;
    cork: boolean;
    noChecksums: boolean;
  };
  /** Bits by enum sock_flags. */
  flags: bigint;
  /** Jiffies. */
  linger: bigint;
  sndtimeo: bigint;
  rcvtimeo: bigint;
  /** Bits by INET_FLAGS_* (Linux 6.6). */
  inetFlags: bigint;
  tos: number;
  /** -1: the system's. */
  ttl: number;
  tcp: {
    rcvNxt: number;
    rcvWup: number;
    sndNxt: number;
    sndWl1: number;
    sndWnd: number;
    maxWindow: number;
    rcvWnd: number;
    writeSeq: number;
    timestamp: number;
    timestamps: boolean;
    sack: boolean;
    /** Undefined: windows are not scaled. */
    scales?: { send: number; receive: number };
    mssClamp: number;
    /** TCP_NAGLE_OFF is bit 0, TCP_NAGLE_CORK bit 1. */
    nonagle: number;
    /** Jiffies, and a count; 0: the system's. */
    keepalive: { time: number; interval: number; probes: number };
    /** What was received and not read, and what was written and not acknowledged. */
    received: Buffer;
    written: Buffer;
  };
}

/** A pipe's end, or an eventfd. */
export interface PlainFile {
  kind: "pipe" | "eventfd";
  inode: number;
  fileFlags: number;
  /** Of an eventfd, with EFD_*. */
  count: bigint;
  flags: number;
  /** Of a pipe: pages that are used, and how many there are. */
  used: number;
  size: number;
}

/** What can be read. */
export type HeldFile = { socket: DirectSocket } | PlainFile;

const OTHER = 0x5245484f;
const KINDS = [undefined, "pipe", "eventfd"] as const;
const [SOCKET, PART, RECORD_SIZE, PART_SIZE, WALK_SIZE] = [0x54434b53, 0x54524150, 248, 16, 72];
const TCP = 6;

/** Bytes of a queue, by the sequence number of the first. */
interface Piece {
  seq: number;
  bytes: Buffer;
}

/** The bytes from one sequence number to another. Throws where one is missing. */
const join = (pieces: readonly Piece[], from: number, to: number): Buffer => {
  const all = Buffer.alloc((to - from) >>> 0);
  let have = 0;
  // What has been read, or acknowledged, of a piece is in its buffer still.
  const sorted = pieces.map(({ seq, bytes }) => ({ at: (seq - from) | 0, bytes })).sort((a, b) => a.at - b.at);
  for (const { at, bytes } of sorted) {
    const rest = bytes.subarray(Math.max(0, have - at));
    if (rest.length === 0) continue;
    if (Math.max(at, 0) > have) break;
    have += rest.copy(all, have);
  }
  if (have < all.length) throw new Error(`of its queue ${have} of ${all.length} bytes are found`);
  return all;
};

/** Loaded before the freeze, used in it. */
export class DirectReader {
  readonly #object: LoadedObject;
  readonly #link: number;
  #shift: Buffer | undefined;

  /** Throws where the kernel cannot: bpf_loop is of Linux 5.17. */
  constructor() {
    this.#object = loadObject(readFileSync(artefact("direct.bpf.o")), { "iter/task_file.direct": TASK_FILE });
    try {
      this.#link = aimIterator(this.#object.programs.direct!, process.pid);
    } catch (error) {
      this.#unload();
      throw error;
    }
  }

  /**
   * A file by its address; `fd`: any descriptor of ours; `queues`: with what waits in a connection. Undefined: it is of no kind that is read.
   * Throws where it cannot be.
   */
  read(file: bigint, fd: number, queues: boolean): HeldFile | undefined {
    this.#shift ??= pageShift();
    const [received, written]: [Piece[], Piece[]] = [[], []];
    let record: Buffer | undefined;
    const walk = Buffer.alloc(WALK_SIZE);
    walk.writeBigUInt64LE(file, 0);
    this.#shift.copy(walk, 8);
    walk.writeUInt32LE(fd, 16);
    walk.writeUInt32LE(queues ? 1 : 0, 20);
    bpf(CMD.mapUpdate, { 0: this.#object.maps.walk!, 8: Buffer.alloc(4), 16: walk });
    for (let more = true; more; ) {
      const bytes = runAimed(this.#link);
      if (bytes.length === 0) return undefined;
      if (bytes.readUInt32LE(0) === OTHER) return plainOf(bytes);
      if (bytes.readUInt32LE(0) !== SOCKET) throw new Error("the X-ray's records are damaged");
      record ??= bytes.subarray(0, RECORD_SIZE);
      for (let at = RECORD_SIZE; at < bytes.length; ) {
        const [magic, len, seq, sends] = [0, 4, 8, 12].map((offset) => bytes.readUInt32LE(at + offset));
        if (magic !== PART) throw new Error("the X-ray's records are damaged");
        (sends === 0 ? received : written).push({
          seq: seq!,
          bytes: bytes.subarray(at + PART_SIZE, at + PART_SIZE + len!),
        });
        at += PART_SIZE + len!;
      }
      bpf(CMD.mapLookup, { 0: this.#object.maps.walk!, 8: Buffer.alloc(4), 16: walk });
      more = walk.readUInt32LE(68) !== 0;
    }
    return { socket: socketOf(record!, queues ? { received, written } : undefined) };
  }

  close(): void {
    closeFd(this.#link);
    this.#unload();
  }

  #unload(): void {
    closeAll([...Object.values(this.#object.maps), ...Object.values(this.#object.programs)]);
  }
}

const plainOf = (r: Buffer): PlainFile | undefined => {
  const kind = KINDS[r.readUInt32LE(4)];
  if (kind === undefined) return undefined;
  return {
    kind,
    inode: r.readUInt32LE(8),
    fileFlags: r.readUInt32LE(12),
    count: r.readBigUInt64LE(16),
    flags: r.readUInt32LE(24),
    used: r.readUInt32LE(28),
    size: r.readUInt32LE(32),
  };
};

const socketOf = (r: Buffer, queues: { received: Piece[]; written: Piece[] } | undefined): DirectSocket => {
  const word = (at: number): number => r.readUInt32LE(at);
  const long = (at: number): bigint => r.readBigUInt64LE(at);
  const [odd, options, connected] = [word(124), word(220), word(12) === TCP && word(36) !== 0];
  const queue = (pieces: readonly Piece[] | undefined, from: number, to: number): Buffer =>
    connected && pieces !== undefined ? join(pieces, from, to) : Buffer.alloc(0);
  return {
    family: word(4),
    type: word(8),
    protocol: word(12),
    state: word(16),
    inode: word(20),
    netns: word(24),
    fileFlags: word(28),
    localPort: word(32),
    remotePort: word(36),
    local: r.subarray(40, 56),
    remote: r.subarray(56, 72),
    device: word(72),
    waiting: word(76),
    backlog: word(80),
    sndbuf: word(84),
    rcvbuf: word(88),
    locks: word(92),
    rcvlowat: word(96),
    priority: word(100),
    mark: word(104),
    shutdown: word(108),
    reuse: word(112) !== 0,
    reuseport: word(116) !== 0,
    v6only: word(120) !== 0,
    has: {
      filter: (odd & 1) !== 0,
      protocol: (odd & 2) !== 0,
      repair: (odd & 4) !== 0,
      fineTimestamps: (odd & 8) !== 0,
      cork: (odd & 16) !== 0,
      noChecksums: (odd & 32) !== 0,
    },
    flags: long(128),
    linger: long(136),
    sndtimeo: long(144),
    rcvtimeo: long(152),
    inetFlags: long(160),
    tos: word(168),
    ttl: r.readInt32LE(172),
    tcp: {
      rcvNxt: word(176),
      rcvWup: word(184),
      sndNxt: word(188),
      sndWl1: word(196),
      sndWnd: word(200),
      maxWindow: word(204),
      rcvWnd: word(208),
      writeSeq: word(212),
      timestamp: word(216),
      // struct tcp_options_received
      timestamps: (options & 2) !== 0,
      sack: (options & 0x70) !== 0,
      ...((options & 8) !== 0 && { scales: { send: (options >> 8) & 15, receive: (options >> 12) & 15 } }),
      mssClamp: word(224),
      nonagle: word(228),
      keepalive: { time: word(232), interval: word(236), probes: word(240) },
      received: queue(queues?.received, word(180), word(176)),
      written: queue(queues?.written, word(192), word(212)),
    },
  };
};
