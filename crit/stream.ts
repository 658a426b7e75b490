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

/** CRIU's largest messages are the mappings of one task, some tens of bytes each: a million of them fit. */
export const MAX_MESSAGE = 64 << 20;
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
  message: Message;
  payload: Payload;
}

export interface ImageStream {
  kind: KindName;
  entries: Generator<StreamEntry, void, void>;
}

/** One length and message; undefined at the end. */
const takeMessage = (
  source: Source,
  schema: Schema,
  name: string,
): { message: Message; at: number; framed: number } | undefined => {
  const { at } = source;
  const head = source.take(4);
  if (head.length === 0) return undefined;
  if (head.length < 4) throw broken(name, at, "it ends within the length of an entry");
  const size = new DataView(head.buffer, head.byteOffset, 4).getUint32(0, true);
  if (size > MAX_MESSAGE) throw broken(name, at, `an entry claims ${size} bytes, more than any message of CRIU has`);
  const body = source.take(size);
  if (body.length < size) throw broken(name, at, `an entry claims ${size} bytes, ${body.length} are left`);
  return { message: decodeMessage(schema, body, name, at), at, framed: size };
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
    const found = takeMessage(source, schema, name);
    if (found === undefined) throw broken(name, source.at, `${left} more messages should follow`);
    const size = behind(found.message);
    const { at } = source;
    if (!(size <= MAX_MESSAGE)) throw broken(name, at, `${size} bytes should follow, more than any message has`);
    const bytes = source.take(size);
    if (bytes.length < size) throw broken(name, at, `${size} bytes should follow, ${bytes.length} are left`);
    yield { schema, message: found.message, framed: found.framed, bytes };
  }
}

function* entriesOf(source: Source, kind: Kind, name: string): ImageStream["entries"] {
  for (let index = 0; ; index++) {
    const schema = schemaOf(kind, index);
    const found = takeMessage(source, schema, name);
    if (found === undefined) return;
    const { message, at } = found;
    const size = kind.extra?.(message, index === 0);
    let used = false;
    const once = <T>(work: () => T): T => {
      used = true;
      return work();
    };
    const payload: Payload = {
      size,
      pieces: () => once(() => piecesOf(source, size ?? 0, name)),
      nested: () => once(() => nestedOf(source, kind, message, name)),
    };
    yield { index, at, schema, message, payload };
    if (used) continue;
    for (const _ of payload.pieces());
    for (const _ of payload.nested());
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
