// SPDX-License-Identifier: Apache-2.0
// CRIU's image files: two magics (one for the inventory), then entries of a 4-byte length and a protobuf message, some
// with data right after the message. Here for images in memory; stream.ts reads those of any size.
import { CryoshimError, reason } from "../shim/error.js";
import { COMMON_MAGIC, type Kind, SERVICE_MAGIC } from "./kind.js";
import { decode, encode, type Message, type Schema } from "./message.js";
import { type Budget, newBudget } from "./wire.js";

export interface Entry {
  message: Message;
  /** The data behind the message (contents of a pipe), as it lies in the file. */
  extra?: Uint8Array;
}

export const broken = (name: string, offset: number, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot read image \`${name}\` at byte ${offset}`,
    why,
    fix: "the file is damaged or no CRIU image; take the checkpoint again or copy it again",
    cause,
  });

/** What the first bytes say: the magic that tells the kind, the one before it, and where entries start. */
export interface Frame {
  magic: number;
  outer: number | undefined;
  start: number;
}

export const openFrame = (bytes: Uint8Array, name: string): Frame => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 4) throw broken(name, 0, `${bytes.length} bytes are too few for a magic`);
  const first = view.getUint32(0, true);
  const wrapped = first === COMMON_MAGIC || first === SERVICE_MAGIC;
  if (wrapped && bytes.length < 8) throw broken(name, 4, "it ends before its second magic");
  return wrapped
    ? { magic: view.getUint32(4, true), outer: first, start: 8 }
    : { magic: first, outer: undefined, start: 4 };
};

/** The schema of an entry by its place. */
export const schemaOf = (kind: Kind, index: number): Schema =>
  index === 0 && kind.head !== undefined ? kind.head : kind.entry;

export const decodeMessage = (schema: Schema, body: Uint8Array, name: string, at: number, budget?: Budget): Message => {
  try {
    return decode(schema, body, budget);
  } catch (error) {
    throw broken(name, at, reason(error), error);
  }
};

/** Where the nested messages behind an entry end. */
const nestedEnd = (kind: Kind, entry: Message, bytes: Uint8Array, from: number, name: string): number => {
  const { schema, count, bytes: behind } = kind.nested!;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = from;
  for (let left = count(entry); left > 0; left--) {
    if (bytes.length - at < 4) throw broken(name, at, `${left} more messages should follow`);
    const size = view.getUint32(at, true);
    if (size > bytes.length - at - 4)
      throw broken(name, at, `a message claims ${size} bytes, ${bytes.length - at - 4} are left`);
    const follows = behind(decodeMessage(schema, bytes.subarray(at + 4, at + 4 + size), name, at));
    at += 4 + size;
    if (!(follows <= bytes.length - at))
      throw broken(name, at, `${follows} bytes should follow, ${bytes.length - at} are left`);
    at += follows;
  }
  return at;
};

/** Bytes of memory that an entry takes beside its fields, about. */
const ENTRY = 160;

/** Decodes the entries of an image of a known kind, from `start`. Throws ERR_IMAGE naming file and offset. */
export const decodeEntries = (kind: Kind, file: Uint8Array, start: number, name: string): Entry[] => {
  // Of a Buffer, slice() would be a view that changes with the caller's memory.
  const bytes = new Uint8Array(file.buffer, file.byteOffset, file.byteLength);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries: Entry[] = [];
  // One for all, because all are kept; streams have one for each message.
  const budget = newBudget();
  for (let at = start; at < bytes.length; ) {
    if (bytes.length - at < 4) throw broken(name, at, "it ends within the length of an entry");
    const size = view.getUint32(at, true);
    if (size > bytes.length - at - 4)
      throw broken(name, at, `an entry claims ${size} bytes, ${bytes.length - at - 4} are left`);
    const index = entries.length;
    budget.left -= ENTRY;
    const message = decodeMessage(schemaOf(kind, index), bytes.subarray(at + 4, at + 4 + size), name, at, budget);
    const end = at + 4 + size;
    at = end;
    if (kind.nested !== undefined) at = nestedEnd(kind, message, bytes, end, name);
    let follows = kind.extra?.(message, index === 0);
    if (follows !== undefined) {
      if (follows === Number.POSITIVE_INFINITY) follows = bytes.length - end;
      if (!(follows <= bytes.length - end))
        throw broken(name, end, `${follows} bytes should follow, ${bytes.length - end} are left`);
      at += follows;
    }
    const has = kind.nested !== undefined || follows !== undefined;
    entries.push(has ? { message, extra: bytes.slice(end, at) } : { message });
  }
  return entries;
};

/** Decodes an image that must be of this kind. Throws ERR_IMAGE. */
export const decodeAs = (kind: Kind, bytes: Uint8Array, name: string): Entry[] => {
  const { magic, outer, start } = openFrame(bytes, name);
  if (magic !== kind.magic || outer !== kind.outer)
    throw broken(name, 0, "its magics are those of another kind of image");
  return decodeEntries(kind, bytes, start, name);
};

const word = (value: number): Buffer => {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
};

/** The first bytes of an image of a kind. */
export const magicsOf = ({ magic, outer }: Kind): Buffer =>
  outer === undefined ? word(magic) : Buffer.concat([word(outer), word(magic)]);

/** One entry's length and message. */
export const frameMessage = (schema: Schema, message: Message): Uint8Array[] => {
  const body = encode(schema, message);
  return [word(body.length), body];
};

/** Encodes an image of a known kind. */
export const encodeEntries = (kind: Kind, entries: readonly Entry[]): Uint8Array => {
  const parts: Uint8Array[] = [magicsOf(kind)];
  for (const [index, { message, extra }] of entries.entries()) {
    parts.push(...frameMessage(schemaOf(kind, index), message));
    if (extra !== undefined) parts.push(extra);
  }
  return Buffer.concat(parts);
};
