// SPDX-License-Identifier: Apache-2.0
// cryoshim-uring.img: rings with all that a restore makes them of. What is read is checked: it may come from anywhere.
import { constants, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { CryoshimError } from "../error.js";
import type { DirectFile } from "./uring-direct.js";

export const URING_IMAGE = "cryoshim-uring.img";

/** A descriptor of a process; for names of tasks see tasks.ts:taskName. */
export interface Descriptor {
  task: string;
  fd: number;
}
export interface Mapping {
  task: string;
  start: bigint;
  length: bigint;
  offset: bigint;
  prot: number;
  dontfork?: boolean;
}
export interface Group {
  id: number;
  entries: number;
  head: number;
  ring?: boolean;
  incremental?: boolean;
  min_left?: number;
  mapped?: boolean;
  address?: bigint;
  provided?: { id: number; address: bigint; length: bigint }[];
  memory?: Uint8Array;
}
export interface ImageCredentials {
  personality: number;
  uids: number[];
  gids: number[];
  groups?: number[];
  capabilities: bigint[];
}
export interface Region {
  length: number;
  address?: bigint;
  memory?: Uint8Array;
  waits?: boolean;
}
export type RegisteredFile = {
  index: number;
  tag: bigint;
  task?: string;
  fd?: number | undefined;
  /** The descriptor is there for the restore alone. */
  lent?: boolean;
} & Partial<DirectFile>;
/** A ring of the images, field by field as crit/schema/cryoshim.ts has it. */
export interface ImageRing {
  task: string;
  thread: string;
  fd?: number;
  flags: number;
  sq_entries: number;
  cq_entries: number;
  sq_head: number;
  cq_tail: number;
  rings: Uint8Array;
  sqes: Uint8Array;
  idle?: number;
  cpu?: number;
  poller?: number;
  descriptors?: Descriptor[];
  mappings?: Mapping[];
  buffers?: { index: number; address: bigint; length: bigint; tag: bigint }[];
  buffer_slots?: number;
  files?: RegisteredFile[];
  file_slots?: number;
  overflow?: { user_data: bigint; res: number; flags: number }[];
  eventfd?: { task: string; fd: number; async?: boolean };
  restrictions?: { register_ops: bigint; ops: bigint; flags_allowed: number; flags_required: number };
  napi?: { timeout: number; prefer: number; track: number };
  workers?: number[];
  clock?: number;
  alloc_start?: number;
  alloc_end?: number;
  personalities?: number[];
  groups?: Group[];
  slots?: { task: string; thread: string; slot: number }[];
  requests?: Record<string, unknown>[];
  /** How many submissions of its history those are. */
  submissions?: number;
  /** Threads whose workers are limited, or bound to processors. */
  users?: { task: string; thread: string; bounded: number; unbounded: number; processors?: Uint8Array }[];
  /** Of the SQPOLL thread's workers. */
  processors?: Uint8Array;
  /** To whom registered memory is charged; undefined: to nobody. */
  user?: number;
  rings_address?: bigint;
  sqes_address?: bigint;
  region?: Region;
  credentials?: ImageCredentials[];
}

/**
 * A mapping of a ring's memory is one of a whole, of which some may have been unmapped: where the whole begins in the
 * ring's descriptor, and what is not there any more.
 */
export const placeOf = (
  { rings, sqes, groups = [], region }: ImageRing,
  offset: bigint,
  length: bigint,
): { base: bigint; cut: { before: bigint; after: bigint } } => {
  const wholes: [base: bigint, length: number][] = [
    [0n, rings.length],
    [0x8000000n, rings.length],
    [0x10000000n, sqes.length],
    [0x20000000n, region?.length ?? 0],
    ...groups.map((group): [bigint, number] => [0x80000000n | (BigInt(group.id) << 16n), group.memory?.length ?? 0]),
  ];
  const [base, whole] = wholes.filter(([from]) => from <= offset).reduce((a, b) => (b[0] > a[0] ? b : a));
  const before = offset - base;
  const after = BigInt(whole) - before - length;
  return { base, cut: { before, after: after > 0n ? after : 0n } };
};

/** Provided buffers that follow one another, one submission each. */
export const runsOf = ({ provided = [] }: Group): { id: number; address: bigint; length: number; count: number }[] => {
  const runs: { id: number; address: bigint; length: number; count: number }[] = [];
  for (const { id, address, length } of provided) {
    const last = runs.at(-1);
    const size = Number(length);
    if (
      last !== undefined &&
      size === last.length &&
      id === last.id + last.count &&
      address === last.address + BigInt(size * last.count)
    )
      last.count++;
    else runs.push({ id, address, length: size, count: 1 });
  }
  return runs;
};

/** How many of the ring's submissions it takes to give buffers again, and to take as many from the rings of buffers. */
export const submissionsFor = (groups: readonly Group[]): number =>
  groups.reduce((sum, group) => sum + (group.ring ? group.head : runsOf(group).length), 0);

/** Writes the image. */
export const writeRings = (imagesDir: string, rings: readonly ImageRing[]): void => {
  const entries = rings.map((ring) => ({ message: { ring: ring as unknown as Message } }));
  const image = encodeImage({ kind: "CRYOSHIM_URING", entries });
  writeFileSync(join(imagesDir, URING_IMAGE), image, { mode: 0o600, flag: "wx" });
};

// include/uapi/linux/io_uring.h and io_uring/: IORING_MAX_ENTRIES, IORING_MAX_CQ_ENTRIES, IORING_MAX_REG_BUFFERS,
// IORING_MAX_FIXED_FILES, MAX_BIDS_PER_BGID, IO_RINGFD_REG_MAX
const [MAX_SQ, MAX_CQ, MAX_BUFFERS, MAX_FILES, MAX_PROVIDED, MAX_SLOTS] = [
  1 << 15,
  1 << 16,
  1 << 14,
  1 << 20,
  1 << 16,
  16,
];
/** Of credentials: as many as the X-ray tells. */
export const MAX_GROUPS = 32;
/** More than anyone has use for: an argument of a wait is 64 bytes. */
export const MAX_REGION = 64 << 20;
/** What user space can have: below it, and page by page. */
const [TOP, PAGE] = [1n << 47n, 4096n];

type Check = (value: unknown) => boolean;
const upTo =
  (max: number): Check =>
  (value) =>
    typeof value === "number" && value >= 0 && value <= max;
const word = upTo(0xffffffff);
const fd = upTo(0x7fffffff);
const long: Check = (value) => typeof value === "bigint";
const optional =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);
const task: Check = (value) => typeof value === "string" && /^\d+(:\d+)*$/.test(value);
const power =
  (max: number): Check =>
  (value) =>
    typeof value === "number" && value > 0 && value <= max && (value & (value - 1)) === 0;
const bytes =
  (max: number): Check =>
  (value) =>
    value instanceof Uint8Array && value.length <= max;
const place: Check = (value) => typeof value === "bigint" && value > 0n && value < TOP && value % PAGE === 0n;
const each =
  (checks: Record<string, Check>, max: number): Check =>
  (value) =>
    value === undefined || (Array.isArray(value) && value.length <= max && value.every((one) => one_(checks)(one)));
const one_ =
  (checks: Record<string, Check>): Check =>
  (value) =>
    typeof value === "object" &&
    value !== null &&
    Object.entries(checks).every(([field, fits]) => fits((value as Message)[field]));

const list =
  (length: number, check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.length === length && value.every(check);

/** Nothing is made by opening a file again. */
const O_CREATING = constants.O_CREAT | constants.O_TRUNC;
const isPath = (value: Uint8Array): boolean => value[0] === 0x2f && !value.includes(0);

const RING: Record<string, Check> = {
  task,
  thread: task,
  fd: optional(fd),
  flags: word,
  sq_entries: power(MAX_SQ),
  cq_entries: power(MAX_CQ),
  sq_head: word,
  cq_tail: word,
  rings: bytes(MAX_CQ * 32 + MAX_SQ * 4 + 8192),
  sqes: bytes(MAX_SQ * 128),
  idle: optional(word),
  cpu: optional(upTo(1 << 16)),
  poller: optional(word),
  descriptors: each({ task, fd }, 1 << 20),
  mappings: each(
    {
      task,
      start: place,
      length: place,
      offset: (value) => long(value) && (value as bigint) % PAGE === 0n,
      prot: upTo(7),
    },
    1 << 16,
  ),
  buffers: each({ index: upTo(MAX_BUFFERS - 1), address: long, length: long, tag: long }, MAX_BUFFERS),
  buffer_slots: optional(upTo(MAX_BUFFERS)),
  files: each(
    {
      index: upTo(MAX_FILES - 1),
      tag: long,
      task: optional(task),
      fd: optional(fd),
      opened: optional(upTo(MAX_FILES)),
      path: optional((value) => bytes(4096)(value) && isPath(value as Uint8Array)),
      flags: optional((value) => word(value) && ((value as number) & O_CREATING) === 0),
      position: optional(long),
    },
    MAX_FILES,
  ),
  file_slots: optional(upTo(MAX_FILES)),
  overflow: each({ user_data: long, res: (value) => typeof value === "number", flags: word }, 1 << 20),
  eventfd: optional(one_({ task, fd })),
  restrictions: optional(one_({ register_ops: long, ops: long, flags_allowed: upTo(255), flags_required: upTo(255) })),
  napi: optional(one_({ timeout: word, prefer: upTo(1), track: upTo(255) })),
  workers: optional((value) => Array.isArray(value) && value.length <= 2 && value.every(word)),
  clock: optional(upTo(16)),
  alloc_start: optional(upTo(MAX_FILES)),
  alloc_end: optional(upTo(MAX_FILES)),
  personalities: optional((value) => Array.isArray(value) && value.every(upTo(0xffff))),
  groups: each(
    {
      id: upTo(0xffff),
      entries: upTo(1 << 15),
      head: upTo(0xffff),
      min_left: optional(word),
      address: optional(long),
      provided: each({ id: upTo(0xffff), address: long, length: long }, MAX_PROVIDED),
      memory: optional(bytes(1 << 19)),
    },
    1 << 16,
  ),
  slots: each({ task, thread: task, slot: upTo(MAX_SLOTS - 1) }, 1 << 20),
  submissions: optional(word),
  users: each({ task, thread: task, bounded: word, unbounded: word, processors: optional(bytes(1024)) }, 1 << 16),
  processors: optional(bytes(1024)),
  requests: each(
    {
      thread: word,
      user_data: long,
      sqe: optional((value) => value instanceof Uint8Array && value.length === 64),
      nanoseconds: optional((value) => long(value) && (value as bigint) < 1n << 63n),
      vectors: optional(
        (value) => Array.isArray(value) && value.length <= 2048 && value.length % 2 === 0 && value.every(long),
      ),
      event: optional((value) => value instanceof Uint8Array && value.length === 12),
      message: optional((value) => Array.isArray(value) && [0, 4].includes(value.length) && value.every(long)),
    },
    1 << 20,
  ),
  user: optional(word),
  rings_address: optional(place),
  sqes_address: optional(place),
  credentials: each(
    {
      personality: upTo(0xffff),
      uids: list(4, word),
      gids: list(4, word),
      groups: optional((value) => Array.isArray(value) && value.length <= MAX_GROUPS && value.every(word)),
      capabilities: list(5, long),
    },
    0xffff,
  ),
  region: optional(
    one_({
      length: (value) => upTo(MAX_REGION)(value) && (value as number) > 0 && (value as number) % 4096 === 0,
      address: optional(place),
      memory: optional(bytes(MAX_REGION)),
    }),
  ),
};

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${URING_IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

/** The rings of the images. Throws ERR_IMAGE. */
export const loadRings = (imagesDir: string): ImageRing[] => {
  const { kind, entries } = decodeImage(readFileSync(join(imagesDir, URING_IMAGE)), URING_IMAGE);
  if (kind !== "CRYOSHIM_URING") throw wrong(0, `it is an image of kind ${kind}`);
  return entries.map(({ message }, at) => {
    const ring = message.ring as Message | undefined;
    if (ring === undefined) throw wrong(at, "it says nothing that this version knows");
    for (const [field, fits] of Object.entries(RING))
      if (!fits(ring[field])) throw wrong(at, `its ${field} is missing or is not one that the kernel has`);
    if (ring.fd === undefined && ring.rings_address === undefined)
      throw wrong(at, "it has no descriptor, nor memory of its process's own");
    return ring as unknown as ImageRing;
  });
};
