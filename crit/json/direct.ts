// SPDX-License-Identifier: Apache-2.0
// A message's JSON straight from its bytes, without the message between: several times as fast as by decoding, and in as
// little memory as the text goes away in. Only for messages as CRIU writes them: fields in the order of their numbers, each
// at most once, none unknown. For all others, and for damaged ones, whoever calls it goes the long way, which tells more.
import { type FieldPlan, planOf, readScalar, type Schema } from "../message.js";
import { Cursor } from "../wire.js";
import { addressText } from "./address.js";
import { base64Lines, jsonString } from "./escape.js";
import { scalarText } from "./write.js";

/** Gone through in one go, and for longer ones once more before, to see that they are regular. */
const SHORT = 64 << 10;
const PIECE = 57 << 10;
/** A text of this length goes away: the parts that it was joined of, an object each, die while they are young. */
const ENOUGH = 8 << 10;
const MAX_DEPTH = 64;
const IRREGULAR = new RangeError("not as CRIU writes it");

interface Field {
  readonly number: number;
  readonly wire: number;
  readonly plan: FieldPlan;
  /** `"name": ` */
  readonly key: string;
  readonly text: (cursor: Cursor, bytes: Buffer) => string;
  readonly nested: (() => Fields) | undefined;
}
type Fields = readonly (Field | undefined)[];

/** As a number where it can be one, which spares BigInt nearly always. */
const whole = (low: number, high: number): number | bigint =>
  high < 0x200000 ? high * 0x100000000 + low : (BigInt(high) << 32n) | BigInt(low);

/** Printable, and nothing to escape. */
const isPlain = (bytes: Buffer, from: number, to: number): boolean => {
  for (let at = from; at < to; at++) {
    const byte = bytes[at]!;
    if (byte < 0x20 || byte > 0x7e || byte === 0x22 || byte === 0x5c) return false;
  }
  return true;
};

/** How a value of a field becomes text. */
const textOf = (plan: FieldPlan, pretty: boolean, hex: boolean): Field["text"] => {
  const { scalar, show } = plan;
  if (scalar === undefined) return () => "";
  const asHex = pretty && (hex || show === "hex");
  const named = typeof show === "object" ? pretty || "enum" in show : pretty && show !== undefined && show !== "hex";
  const bare = !named || show === "ip";
  if (scalar === "string")
    return (cursor, bytes) => {
      const start = cursor.at;
      const from = cursor.text();
      if (isPlain(bytes, from, cursor.at)) return `"${bytes.toString("latin1", from, cursor.at)}"`;
      cursor.at = start;
      return scalarText(plan, readScalar(cursor, scalar), pretty, hex);
    };
  if (scalar === "uint64" && bare)
    return asHex
      ? (cursor) => {
          const low = cursor.varint();
          return `"0x${whole(low, cursor.high).toString(16)}"`;
        }
      : (cursor) => {
          const low = cursor.varint();
          return cursor.high === 0 ? `${low}` : `${whole(low, cursor.high)}`;
        };
  if (scalar === "uint32" && bare)
    return asHex ? (cursor) => `"0x${cursor.varint().toString(16)}"` : (cursor) => `${cursor.varint()}`;
  return (cursor) => scalarText(plan, readScalar(cursor, scalar), pretty, hex);
};

const known = new WeakMap<Schema, (Fields | undefined)[]>();
/** The fields of a message type by their numbers, made once for each style. */
const fieldsOf = (schema: Schema, pretty: boolean, hex: boolean): Fields => {
  let styles = known.get(schema);
  if (styles === undefined) {
    styles = [];
    known.set(schema, styles);
  }
  const style = (pretty ? 2 : 0) + (hex ? 1 : 0);
  let fields = styles[style];
  if (fields === undefined) {
    const made: (Field | undefined)[] = [];
    for (const plan of planOf(schema).fields) {
      const { nested, show } = plan;
      made[plan.number] = {
        number: plan.number,
        wire: plan.wire,
        plan,
        key: `"${plan.name}": `,
        text: textOf(plan, pretty, hex),
        nested: nested && (() => fieldsOf(nested(), pretty, hex || show === "hex")),
      };
    }
    fields = made;
    styles[style] = fields;
  }
  return fields;
};

class Writer {
  out = "";
  readonly #cursor: Cursor;
  readonly #bytes: Buffer;
  readonly #pretty: boolean;
  readonly #spill: ((text: string) => void) | undefined;

  constructor(body: Uint8Array, pretty: boolean, spill?: (text: string) => void) {
    this.#cursor = new Cursor(body);
    this.#bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
    this.#pretty = pretty;
    this.#spill = spill;
  }

  #lighten(): void {
    if (this.#spill === undefined || this.out.length < ENOUGH) return;
    this.#spill(this.out);
    this.out = "";
  }

  /** The message from the cursor to its end. */
  message(fields: Fields, indent: string, depth: number): void {
    if (depth > MAX_DEPTH) throw IRREGULAR;
    const cursor = this.#cursor;
    const { end } = cursor;
    const inner = this.#pretty ? `${indent}    ` : "";
    const between = this.#pretty ? `,\n${inner}` : ", ";
    let last = 0;
    while (cursor.at < end) {
      const tag = cursor.varint();
      const field = fields[tag >>> 3];
      // A field of another wire type is one that nobody knows; numbers of a list may be packed.
      if (field === undefined || cursor.high !== 0 || field.number <= last) throw IRREGULAR;
      this.out += last === 0 ? (this.#pretty ? `{\n${inner}${field.key}` : `{${field.key}`) : between + field.key;
      last = field.number;
      if (field.plan.repeated) this.#list(field, tag, inner, depth);
      else if ((tag & 7) !== field.wire) throw IRREGULAR;
      else this.#value(field, inner, depth);
    }
    this.out += last === 0 ? "{}" : this.#pretty ? `\n${indent}}` : "}";
    this.#lighten();
  }

  #value(field: Field, indent: string, depth: number): void {
    const cursor = this.#cursor;
    if (field.nested !== undefined) {
      const from = cursor.delimited();
      const { end, at } = cursor;
      cursor.at = from;
      cursor.end = at;
      this.message(field.nested(), indent, depth + 1);
      cursor.end = end;
    } else if (field.plan.scalar === "bytes" && field.plan.show === undefined) this.#blob();
    else this.out += field.text(cursor, this.#bytes);
  }

  /** Bytes in base64. Long ones in pieces. */
  #blob(): void {
    const from = this.#cursor.delimited();
    const to = this.#cursor.at;
    this.out += '"';
    for (let at = from; at < to; at += PIECE) {
      this.out += base64Lines(this.#bytes.subarray(at, Math.min(to, at + PIECE))).replaceAll("\n", "\\n");
      this.#lighten();
    }
    this.out += '"';
  }

  /** All values of a repeated field, which follow each other. */
  #list(field: Field, tag: number, indent: string, depth: number): void {
    const cursor = this.#cursor;
    if (this.#pretty && field.plan.show === "ip") {
      this.#address(field, tag, indent);
      return;
    }
    const inner = this.#pretty ? `${indent}    ` : "";
    const between = this.#pretty ? `,\n${inner}` : ", ";
    const close = this.#pretty ? `\n${indent}]` : "]";
    this.out += this.#pretty ? `[\n${inner}` : "[";
    if ((tag & 7) !== field.wire) {
      this.#packed(field, tag, () => {
        this.out += field.text(cursor, this.#bytes);
        this.#lighten();
        return between;
      });
      this.out += close;
      return;
    }
    for (;;) {
      this.#value(field, inner, depth);
      if (!this.#again(tag)) break;
      this.out += between;
      this.#lighten();
    }
    this.out += close;
  }

  /** Whether the same field follows; goes over its tag. */
  #again(tag: number): boolean {
    const cursor = this.#cursor;
    const { at } = cursor;
    if (at < cursor.end && cursor.varint() === tag && cursor.high === 0) return true;
    cursor.at = at;
    return false;
  }

  /** Numbers in one piece; an empty one is for the long way. */
  #packed(field: Field, tag: number, one: () => string): void {
    const cursor = this.#cursor;
    if ((tag & 7) !== 2 || field.wire === 2) throw IRREGULAR;
    const from = cursor.delimited();
    const { at: to, end } = cursor;
    if (from === to) throw IRREGULAR;
    cursor.at = from;
    cursor.end = to;
    for (;;) {
      const between = one();
      if (cursor.at === to) break;
      this.out += between;
    }
    cursor.end = end;
  }

  /** An address, whose words are the numbers of a list. */
  #address(field: Field, tag: number, indent: string): void {
    const words: number[] = [];
    const cursor = this.#cursor;
    const word = (): string => {
      words.push(cursor.varint());
      if (words.length > 4) throw IRREGULAR;
      return "";
    };
    if ((tag & 7) === field.wire)
      do word();
      while (this.#again(tag));
    else this.#packed(field, tag, word);
    const text = addressText(words);
    if (text === undefined) throw IRREGULAR;
    this.out += `[\n${indent}    ${jsonString(text)}\n${indent}]`;
  }
}

/**
 * Writes a message as messageText would, by pieces. False: nothing was written, because it is damaged or not as CRIU
 * writes it; decode it, and see.
 */
export const writeDirect = (
  write: (text: string) => void,
  schema: Schema,
  body: Uint8Array,
  pretty: boolean,
  indent: string,
): boolean => {
  const fields = fieldsOf(schema, pretty, false);
  try {
    if (body.length <= SHORT) {
      const writer = new Writer(body, pretty);
      writer.message(fields, indent, 0);
      write(writer.out);
      return true;
    }
    new Writer(body, pretty, () => {}).message(fields, indent, 0);
  } catch {
    return false;
  }
  const writer = new Writer(body, pretty, write);
  writer.message(fields, indent, 0);
  write(writer.out);
  return true;
};
