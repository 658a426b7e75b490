// SPDX-License-Identifier: Apache-2.0
// Images of any size, entry by entry: what is in memory is one message, and pieces of what follows it.
import { basename } from "node:path";
import { broken, decodeMessage, openFrame, schemaOf } from "./frame.js";
import { kindOf } from "./image.js";
import type { Source } from "./io.js";
import { COMMON_MAGIC, type Kind, SERVICE_MAGIC } from "./kind.js";
import { KINDS, type KindName } from "./kinds.js";
import type { Message, Schema } from "./message.js";
import { rawContents } from "./raw.js";
import { newBudget } from "./wire.js";

/** CRIU's largest messages are the mappings of one task, some tens of bytes each: half a million of them fit. */
export const MAX_MESSAGE = 32 << 20;
/** What one message may take; its text takes as much once more. */
const MESSAGE_MEMORY = 32 << 20;
const PIECE = 57 * 4096;

/** What follows a message: to be read or passed over before the next entry. */
export interface Payload {
  /** Undefined: nothing can follow this message. Infinity: all of the rest. */
  readonly size: number | undefined;
  /** The bytes in pieces, which are valid until the next one. */
  pieces(): Generator<Uint8Array, void, void>;
  /** Messages of an IPC queue, each with its size in the file and its bytes. */
  nested(): Generator<{ schema: Schema; message: Message; framed: number; bytes: Uint8Array }, void, void>;
}

export interface StreamEntry {
  index: number;
  /** Where in the file it starts. */
  at: number;
  schema: Schema;
  /** The message's bytes: until the next entry, or its payload, is read. */
  body: Uint8Array;
  /** Decoded when it is asked for, while there is a body. */
  readonly message: Message;
  payload: Payload;
}

export interface ImageStream {
  kind: KindName;
  entries: Generator<StreamEntry, void, void>;
}

/** One length and as many bytes; undefined at the end. */
const takeBody = (source: Source, name: string): Uint8Array | undefined => {
  const { at } = source;
  const head = source.take(4);
  if (head.length === 0) return undefined;
  if (head.length < 4) throw broken(name, at, "it ends within the length of an entry");
  const size = (head[0]! | (head[1]! << 8) | (head[2]! << 16) | (head[3]! << 24)) >>> 0;
  if (size > MAX_MESSAGE) throw broken(name, at, `an entry claims ${size} bytes, more than any message of CRIU has`);
  const body = source.take(size);
  if (body.length < size) throw broken(name, at, `an entry claims ${size} bytes, ${body.length} are left`);
  return body;
};

function* piecesOf(source: Source, size: number, name: string): Generator<Uint8Array, void, void> {
  const start = source.at;
  for (let left = size; left > 0; ) {
    const piece = source.take(Math.min(PIECE, left));
    if (piece.length === 0) {
      if (size === Number.POSITIVE_INFINITY) return;
      throw broken(name, start, `${size} bytes should follow, ${size - left} are left`);
    }
    left -= piece.length;
    yield piece;
  }
}

function* nestedOf(source: Source, kind: Kind, entry: Message, name: string): ReturnType<Payload["nested"]> {
  if (kind.nested === undefined) return;
  const { schema, count, bytes: behind } = kind.nested;
  for (let left = count(entry); left > 0; left--) {
    const start = source.at;
    const body = takeBody(source, name);
    if (body === undefined) throw broken(name, start, `${left} more messages should follow`);
    const framed = body.length;
    const message = decodeMessage(schema, body, name, start);
    const size = behind(message);
    const { at } = source;
    if (!(size <= MAX_MESSAGE)) throw broken(name, at, `${size} bytes should follow, more than any message has`);
    const bytes = source.take(size);
    if (bytes.length < size) throw broken(name, at, `${size} bytes should follow, ${bytes.length} are left`);
    yield { schema, message, framed, bytes };
  }
}

/** Of an entry behind which nothing can follow. */
const NOTHING: Payload = { size: undefined, *pieces() {}, *nested() {} };

const payloadOf = (source: Source, kind: Kind, entry: Message, head: boolean, name: string): Payload => {
  const size = kind.extra?.(entry, head);
  return {
    size,
    pieces: () => piecesOf(source, size ?? 0, name),
    nested: () => nestedOf(source, kind, entry, name),
  };
};

/** Many images have a hundred thousand of them: nothing is made before it is wanted. */
class LazyEntry implements StreamEntry {
  readonly index: number;
  readonly at: number;
  readonly schema: Schema;
  readonly body: Uint8Array;
  payload = NOTHING;
  readonly #name: string;
  #message: Message | undefined;

  constructor(index: number, at: number, schema: Schema, body: Uint8Array, name: string) {
    this.index = index;
    this.at = at;
    this.schema = schema;
    this.body = body;
    this.#name = name;
  }

  get message(): Message {
    this.#message ??= decodeMessage(this.schema, this.body, this.#name, this.at, newBudget(MESSAGE_MEMORY));
    return this.#message;
  }
}

function* entriesOf(source: Source, kind: Kind, name: string): ImageStream["entries"] {
  const follows = kind.extra !== undefined || kind.nested !== undefined;
  for (let index = 0; ; index++) {
    const { at } = source;
    const body = takeBody(source, name);
    if (body === undefined) return;
    const entry = new LazyEntry(index, at, schemaOf(kind, index), body, name);
    if (!follows) {
      yield entry;
      continue;
    }
    // Where the payload ends is where the next entry is, whether or not somebody reads it.
    entry.payload = payloadOf(source, kind, entry.message, index === 0, name);
    const before = source.at;
    yield entry;
    if (source.at !== before) continue;
    for (const _ of entry.payload.pieces());
    for (const _ of entry.payload.nested());
  }
}

/** Opens an image. Throws ERR_IMAGE naming file and offset, here or while its entries are read. */
export const streamImage = (source: Source, name: string): ImageStream => {
  // The inventory has one magic, all others two; a file of four bytes could be an inventory without entries.
  const first = Uint8Array.from(source.take(4));
  const raw = rawContents(basename(name));
  if (raw !== undefined) throw broken(name, 0, `it holds ${raw}, without messages`);
  const word = first.length === 4 ? new DataView(first.buffer).getUint32(0, true) : 0;
  const wrapped = word === COMMON_MAGIC || word === SERVICE_MAGIC;
  const one = openFrame(wrapped ? Buffer.concat([first, source.take(4)]) : first, name);
  const kind = kindOf(one, name);
  if (kind === undefined) throw broken(name, 4, `images of magic 0x${one.magic.toString(16)} are not supported`);
  return { kind, entries: entriesOf(source, KINDS[kind], name) };
};
