// SPDX-License-Identifier: Apache-2.0
// CRIU's image files: two magics (one for the inventory), then entries of a 4-byte length and a protobuf message, some
// with data right after the message.
import { CryoshimError, reason } from "../shim/error.js";
import { decode, encode, type Message, type Schema } from "./message.js";
import { fdinfo, file as fileEntry, pipeData } from "./schema/files.js";
import { cgroup, inventory, mnt, pagemap, pagemapHead, stats, timens, utsns } from "./schema/system.js";
import { core, creds, fs, kobjIds, mm, pstree } from "./schema/task.js";

const COMMON_MAGIC = 0x54564319;
const SERVICE_MAGIC = 0x55105940;

interface Kind {
  readonly magic: number;
  /** The magic before it: none in the inventory, whose layout is that of the first version. */
  readonly outer: number | undefined;
  readonly entry: Schema;
  /** The first entry, where it is of another type. */
  readonly head?: Schema;
  /** How much data follows an entry. */
  readonly extra?: (entry: Message) => number;
}

const common = (magic: number, entry: Schema): Kind => ({ magic, outer: COMMON_MAGIC, entry });
const pipeBytes = (entry: Message): number => entry.bytes as number;

/** The kinds of image that can be decoded, by CRIU's name for their magic. */
export const KINDS = {
  INVENTORY: { magic: 0x58313116, outer: undefined, entry: inventory },
  PSTREE: common(0x50273030, pstree),
  CORE: common(0x55053847, core),
  IDS: common(0x54432030, kobjIds),
  MM: common(0x57492820, mm),
  FS: common(0x51403912, fs),
  CREDS: common(0x54023547, creds),
  FDINFO: common(0x56213732, fdinfo),
  FILES: common(0x56303138, fileEntry),
  PAGEMAP: { ...common(0x56084025, pagemap), head: pagemapHead },
  CGROUP: common(0x59383330, cgroup),
  MNTS: common(0x55563928, mnt),
  UTSNS: common(0x54473203, utsns),
  TIMENS: common(0x43114433, timens),
  PIPES_DATA: { ...common(0x56453709, pipeData), extra: pipeBytes },
  FIFO_DATA: { ...common(0x59333054, pipeData), extra: pipeBytes },
  STATS: { magic: 0x57093306, outer: SERVICE_MAGIC, entry: stats },
} as const satisfies Record<string, Kind>;

export type KindName = keyof typeof KINDS;

const byMagic = new Map<number, KindName>(Object.entries(KINDS).map(([name, kind]) => [kind.magic, name as KindName]));

export interface Entry {
  message: Message;
  /** The data behind the message (contents of a pipe). */
  extra?: Uint8Array;
}
export interface Image {
  kind: KindName;
  entries: Entry[];
}

const broken = (name: string, offset: number, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot read image \`${name}\` at byte ${offset}`,
    why,
    fix: "the file is damaged or no CRIU image; take the checkpoint again or copy it again",
    cause,
  });

const openFrame = (bytes: Uint8Array, name: string): { kind: KindName | undefined; magic: number; start: number } => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 4) throw broken(name, 0, `${bytes.length} bytes are too few for a magic`);
  const first = view.getUint32(0, true);
  const wrapped = first === COMMON_MAGIC || first === SERVICE_MAGIC;
  if (wrapped && bytes.length < 8) throw broken(name, 4, "it ends before its second magic");
  const magic = wrapped ? view.getUint32(4, true) : first;
  const kind = byMagic.get(magic);
  if (kind !== undefined && KINDS[kind].outer !== (wrapped ? first : undefined))
    throw broken(name, 0, `magic 0x${first.toString(16)} does not belong before that of ${kind}`);
  if (!wrapped && kind === undefined) throw broken(name, 0, `magic 0x${first.toString(16)} is not that of an image`);
  return { kind, magic, start: wrapped ? 8 : 4 };
};

/** The kind of an image by its magics; undefined for one that is an image but of a kind not known here. */
export const identify = (bytes: Uint8Array, name = "image"): KindName | undefined => openFrame(bytes, name).kind;

/** Decodes an image. `name` is for messages. Throws CryoshimError ERR_IMAGE naming file and offset. */
export const decodeImage = (file: Uint8Array, name = "image"): Image => {
  // Of a Buffer, slice() would be a view that changes with the caller's memory.
  const bytes = new Uint8Array(file.buffer, file.byteOffset, file.byteLength);
  const { kind, magic, start } = openFrame(bytes, name);
  if (kind === undefined) throw broken(name, 4, `images of magic 0x${magic.toString(16)} are not supported`);
  const { entry: schema, head, extra }: Kind = KINDS[kind];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: Entry[] = [];
  for (let at = start; at < bytes.length; ) {
    if (bytes.length - at < 4) throw broken(name, at, "it ends within the length of an entry");
    const size = view.getUint32(at, true);
    if (size > bytes.length - at - 4)
      throw broken(name, at, `an entry claims ${size} bytes, ${bytes.length - at - 4} are left`);
    const body = bytes.subarray(at + 4, at + 4 + size);
    let message: Message;
    try {
      message = decode(entries.length === 0 && head !== undefined ? head : schema, body);
    } catch (error) {
      throw broken(name, at, reason(error), error);
    }
    const end = at + 4 + size;
    const follows = extra?.(message);
    if (extra !== undefined && (follows === undefined || follows > bytes.length - end))
      throw broken(
        name,
        end,
        `${follows ?? "an unknown number of"} bytes should follow, ${bytes.length - end} are left`,
      );
    entries.push(follows === undefined ? { message } : { message, extra: bytes.slice(end, end + follows) });
    at = end + (follows ?? 0);
  }
  return { kind, entries };
};

/** Encodes an image; what decodeImage read of a file of CRIU's becomes the same bytes again. */
export const encodeImage = ({ kind, entries }: Image): Uint8Array => {
  const { magic, outer, entry: schema, head }: Kind = KINDS[kind];
  const word = (value: number): Buffer => {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32LE(value);
    return buffer;
  };
  const parts: Uint8Array[] = outer === undefined ? [word(magic)] : [word(outer), word(magic)];
  for (const [index, { message, extra }] of entries.entries()) {
    const body = encode(index === 0 && head !== undefined ? head : schema, message);
    parts.push(word(body.length), body);
    if (extra !== undefined) parts.push(extra);
  }
  return Buffer.concat(parts);
};
