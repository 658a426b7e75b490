// SPDX-License-Identifier: Apache-2.0
// A whole image as JSON and back, entry by entry.
import { frameMessage, magicsOf, schemaOf } from "../frame.js";
import type { Sink } from "../io.js";
import type { Kind } from "../kind.js";
import { KINDS, type KindName } from "../kinds.js";
import type { Message } from "../message.js";
import type { ImageStream, StreamEntry } from "../stream.js";
import { writeDirect } from "./direct.js";
import { base64Lines, fromBase64, jsonString } from "./escape.js";
import { isObject, messageOf, wrong } from "./message.js";
import { RAW, rawBytes } from "./raw.js";
import type { Json, JsonObject } from "./read.js";
import { messageText, objectText } from "./write.js";

export interface DecodeOptions {
  pretty?: boolean;
  /** Leave out what follows messages, and say how much it is. */
  nopl?: boolean;
}

/** What fills up to a boundary, where it is not zeros: CRIU writes what happened to be in its memory. */
const PADDING = "extra_padding";

/** One digit after the point; what lies in the middle goes to the even one, as in Python. */
const tenths = (n: number): string => {
  const tens = Math.floor(n * 10);
  const up = n * 10 - tens === 0.5 ? tens % 2 === 1 : n * 10 - tens > 0.5;
  return ((up ? tens + 1 : tens) / 10).toFixed(1);
};

export const humanSize = (bytes: number): string => {
  let size = bytes;
  for (const unit of ["", "K", "M", "G", "T", "P", "E", "Z"]) {
    if (size < 1024) return Number.isInteger(size) ? `${size}${unit}B` : `${tenths(size)}${unit}B`;
    size /= 1024;
  }
  return `${tenths(size)}YB`;
};

const say = (text: string): string => `"extra": ${text}`;
const num = (message: Message, field: string): number => Number(message[field] ?? 0);

/** Kinds that CRIU's crit gives an "extra" always, even if nothing follows. */
const always = (kind: Kind): boolean => kind.extra !== undefined && kind.head === undefined;

/** Writes `"extra": "..."` piece by piece, so that what follows can be of any size. */
export const writeBytes = (sink: Sink, pieces: Iterable<Uint8Array>, limit = Number.POSITIVE_INFINITY): Uint8Array => {
  sink.write('"extra": "');
  let left = limit;
  let rest: Uint8Array = new Uint8Array(0);
  let padding: Uint8Array = new Uint8Array(0);
  const put = (bytes: Uint8Array): void => sink.write(base64Lines(bytes).replaceAll("\n", "\\n"));
  for (const piece of pieces) {
    const wanted = piece.subarray(0, Math.min(piece.length, left));
    left -= wanted.length;
    if (wanted.length < piece.length) padding = Buffer.concat([padding, piece.subarray(wanted.length)]);
    const joined = rest.length === 0 ? wanted : Buffer.concat([rest, wanted]);
    const whole = joined.length - (joined.length % 57);
    put(joined.subarray(0, whole));
    rest = Uint8Array.from(joined.subarray(whole));
  }
  put(rest);
  sink.write('"');
  return padding;
};

const writeExtra = (sink: Sink, kindName: KindName, entry: StreamEntry, options: DecodeOptions, gap: string): void => {
  const kind: Kind = KINDS[kindName];
  const { message, payload } = entry;
  const pretty = options.pretty === true;
  const paddingText = (padding: Uint8Array): void => {
    if (padding.some((byte) => byte !== 0)) sink.write(`${gap}"${PADDING}": ${jsonString(base64Lines(padding))}`);
  };
  if (kind.nested !== undefined) {
    let size = 0;
    const parts: string[] = [];
    const inner = pretty ? "                " : "";
    for (const { schema, message: nested, framed, bytes } of payload.nested()) {
      const length = num(nested, "msize");
      size += framed + length;
      if (options.nopl === true) continue;
      // What fills up comes along where it is not zeros; crit cuts it off when it encodes.
      const filled = bytes.subarray(length).some((byte) => byte !== 0);
      parts.push(messageText(schema, nested, pretty, inner));
      parts.push(jsonString(base64Lines(filled ? bytes : bytes.subarray(0, length))));
    }
    const list =
      !pretty || parts.length === 0
        ? `[${parts.join(", ")}]`
        : `[\n${inner}${parts.join(`,\n${inner}`)}\n            ]`;
    sink.write(say(options.nopl === true ? `"... <${humanSize(size)}>"` : list));
    return;
  }
  if (options.nopl === true) {
    let size = payload.size ?? 0;
    if (kindName === "IPCNS_SEM") size = 2 * num(message, "nsems");
    if (kindName === "IPCNS_SHM") size = num(message, "size");
    sink.write(say(`"... <${humanSize(size)}>"`));
  } else if (kindName === "TCP_STREAM") {
    // Both queues in one piece: the kernel's buffers bound them.
    const all = Buffer.concat([...payload.pieces()].map((piece) => Uint8Array.from(piece)));
    const cut = num(message, "inq_len");
    const [inq, outq] = [all.subarray(0, cut), all.subarray(cut)].map((part) => jsonString(base64Lines(part)));
    sink.write(say(objectText([`"inq": ${inq}`, `"outq": ${outq}`], pretty, "            ")));
  } else if (kindName === "IPCNS_SEM") {
    const all = Buffer.concat([...payload.pieces()].map((piece) => Uint8Array.from(piece)));
    const values = Array.from({ length: num(message, "nsems") }, (_, i) => String(all.readUInt16LE(2 * i)));
    const inner = "                ";
    sink.write(
      say(
        !pretty || values.length === 0
          ? `[${values.join(", ")}]`
          : `[\n${inner}${values.join(`,\n${inner}`)}\n            ]`,
      ),
    );
    paddingText(all.subarray(2 * values.length));
  } else {
    const limit = kindName === "IPCNS_SHM" ? num(message, "size") : undefined;
    paddingText(writeBytes(sink, payload.pieces(), limit));
  }
};

/** Writes an image as JSON. Throws ERR_IMAGE where it is damaged. */
export const writeJson = (sink: Sink, image: ImageStream, options: DecodeOptions = {}): void => {
  const pretty = options.pretty === true;
  const kind: Kind = KINDS[image.kind];
  const [open, between, close] = pretty
    ? [`{\n    "magic": "${image.kind}",\n    "entries": [`, "\n        ", "\n    ]\n}"]
    : [`{"magic": "${image.kind}", "entries": [`, "", "]}"];
  const write = (text: string): void => sink.write(text);
  sink.write(open);
  let first = true;
  for (const entry of image.entries) {
    sink.write(`${first ? "" : pretty ? "," : ", "}${between}`);
    first = false;
    // Of a deleted file without its data nothing is said, as by CRIU's crit.
    const silent = options.nopl === true && image.kind === "GHOST_FILE";
    const has = !silent && (entry.payload.size !== undefined || kind.nested !== undefined || always(kind));
    const indent = pretty ? "        " : "";
    if (!has && writeDirect(write, entry.schema, entry.body, pretty, indent)) continue;
    const text = messageText(entry.schema, entry.message, pretty, indent);
    if (!has) {
      sink.write(text);
      continue;
    }
    // The message's text without its end, then the data, then the end.
    const empty = text === "{}";
    const end = pretty && !empty ? "\n        }" : "}";
    const gap = pretty ? ",\n            " : ", ";
    sink.write(text.slice(0, text.length - (empty ? 1 : end.length)));
    if (!empty) sink.write(gap);
    writeExtra(sink, image.kind, entry, options, gap);
    sink.write(end);
  }
  sink.write(first ? (pretty ? "]\n}" : "]}") : close);
  sink.flush();
};

const bytesIn = (json: Json | undefined, path: string): Uint8Array => {
  if (json === undefined) return new Uint8Array(0);
  if (typeof json !== "string") throw wrong(path, "base64 is wanted");
  if (json.startsWith("... <")) throw wrong(path, "it was decoded with --nopl, its data is not there");
  return fromBase64(json);
};

const filled = (data: Uint8Array, to: number, padding: Uint8Array): Uint8Array => {
  const out = new Uint8Array(Math.max(to, data.length));
  out.set(data);
  out.set(padding.subarray(0, out.length - data.length), data.length);
  return out;
};

const extraBytes = (
  kindName: KindName,
  message: Message,
  json: JsonObject,
  first: boolean,
  path: string,
): Uint8Array[] => {
  const kind: Kind = KINDS[kindName];
  const { extra } = json;
  const where = `${path}.extra`;
  const padding = bytesIn(json[PADDING], `${path}.${PADDING}`);
  if (kind.nested !== undefined) {
    if (!Array.isArray(extra)) throw wrong(where, "a list of messages and their data is wanted");
    const parts: Uint8Array[] = [];
    for (let at = 0; at < extra.length; at += 2) {
      const nested = messageOf(kind.nested.schema, extra[at]!, `${where}[${at}]`);
      const data = bytesIn(extra[at + 1], `${where}[${at + 1}]`);
      parts.push(
        ...frameMessage(kind.nested.schema, nested),
        filled(data, kind.nested.bytes(nested), new Uint8Array(0)),
      );
    }
    return parts;
  }
  const size = kind.extra?.(message, first);
  if (size === undefined) return [];
  if (kindName === "TCP_STREAM") {
    if (!isObject(extra)) throw wrong(where, "an object of inq and outq is wanted");
    return [bytesIn(extra.inq, `${where}.inq`), bytesIn(extra.outq, `${where}.outq`)];
  }
  if (kindName === "IPCNS_SEM") {
    if (!Array.isArray(extra) || extra.length !== num(message, "nsems"))
      throw wrong(where, "as many numbers as nsems says are wanted");
    const values = Uint8Array.from(extra.flatMap((value) => [Number(value) & 255, (Number(value) >> 8) & 255]));
    return [filled(values, size, padding)];
  }
  const data = bytesIn(extra, where);
  return [kindName === "IPCNS_SHM" ? filled(data.subarray(0, num(message, "size")), size, padding) : data];
};

/** Encodes an image from JSON. Throws ERR_JSON naming the path of what is wrong. */
export const writeImage = (sink: Sink, json: Json): void => {
  if (isObject(json) && json.magic === RAW) {
    sink.write(rawBytes(json));
    sink.flush();
    return;
  }
  if (!isObject(json) || typeof json.magic !== "string" || !Array.isArray(json.entries))
    throw wrong("image", "an object of magic and entries is wanted");
  if (!Object.hasOwn(KINDS, json.magic)) throw wrong("magic", `there is no image \`${json.magic}\``);
  const kindName = json.magic as KindName;
  const kind: Kind = KINDS[kindName];
  sink.write(magicsOf(kind));
  for (const [index, entry] of json.entries.entries()) {
    const path = `entries[${index}]`;
    const schema = schemaOf(kind, index);
    const message = messageOf(schema, entry, path);
    for (const part of frameMessage(schema, message)) sink.write(part);
    for (const part of extraBytes(kindName, message, entry as JsonObject, index === 0, path)) sink.write(part);
  }
  sink.flush();
};
