// SPDX-License-Identifier: Apache-2.0
// CRIU's protobuf (proto2) messages by schemas that are data. Every field that a schema does not name is kept as raw
// bytes and written back, so a message of a newer CRIU passes through unharmed.
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { CryoshimError, reason } from "../shim/error.js";
import { type Budget, Cursor } from "./wire.js";

/** Scalar types of proto2 that CRIU uses. 64-bit ones are bigint, enums are numbers. */
export type Scalar =
  | "int32"
  | "uint32"
  | "sint32"
  | "fixed32"
  | "int64"
  | "uint64"
  | "sint64"
  | "fixed64"
  | "bool"
  | "string"
  | "bytes"
  | "enum";
export type Label = "required" | "optional" | "repeated" | "packed";

/** Names of numbers. */
export type Names = Readonly<Record<number, string>>;

/** How a value is written in JSON: enums by name always, all others only where people read them. */
export type Show =
  | "hex"
  | "ip"
  /** A device as the kernel keeps it, and as stat(2) tells it. */
  | "dev"
  | "odev"
  /** The name of a UNIX socket, whose zero bytes and the like are escaped. */
  | "unix_name"
  | { readonly enum: Names }
  | { readonly dict: string; readonly names: Names }
  | { readonly flags: string; readonly bits: Readonly<Record<string, number>> };

export type Field = readonly [number: number, type: Scalar | (() => Schema), label?: Label, show?: Show];

/** A message type: its name in CRIU's .proto and its fields by name. */
export interface Schema {
  readonly name: string;
  readonly fields: Readonly<Record<string, Field>>;
}

export type Value = number | bigint | boolean | string | Uint8Array | Message | Value[];

/** What follows fields that are not in the schema: [number, wire type, bytes] in the order they came. */
export const UNKNOWN = Symbol("unknown fields");

/** A decoded message; a field that was not there is not here. */
export interface Message {
  [field: string]: Value | undefined;
  [UNKNOWN]?: [number, number, Uint8Array][];
}

/** Declares a message type. */
export const message = (name: string, fields: Record<string, Field>): Schema => ({ name, fields });

const MAX_DEPTH = 64;

/** Bytes of memory, about: a message, a value in it, more for one of 64 bits, and strings, bytes, unknown fields beside their length. */
const COST = { message: 80, value: 12, wide: 24, bytes: 112, unknown: 256 };

const WIRE: Readonly<Record<Scalar, WireType>> = {
  int32: WireType.Varint,
  uint32: WireType.Varint,
  sint32: WireType.Varint,
  fixed32: WireType.Bit32,
  int64: WireType.Varint,
  uint64: WireType.Varint,
  sint64: WireType.Varint,
  fixed64: WireType.Bit64,
  bool: WireType.Varint,
  string: WireType.LengthDelimited,
  bytes: WireType.LengthDelimited,
  enum: WireType.Varint,
};

/** A field with all that decoding, encoding and showing it want to know, made once. */
export interface FieldPlan {
  readonly name: string;
  readonly number: number;
  readonly scalar: Scalar | undefined;
  readonly nested: (() => Schema) | undefined;
  readonly wire: WireType;
  readonly repeated: boolean;
  readonly label: Label;
  readonly show: Show | undefined;
}
export interface Plan {
  /** In the order of numbers, which is that of protobuf-c's output. */
  readonly fields: readonly FieldPlan[];
  readonly byNumber: ReadonlyMap<number, FieldPlan>;
}

const plans = new WeakMap<Schema, Plan>();
export const planOf = (schema: Schema): Plan => {
  let plan = plans.get(schema);
  if (plan === undefined) {
    const fields = Object.entries(schema.fields)
      .map(([name, [number, type, label = "optional", show]]): FieldPlan => {
        const scalar = typeof type === "function" ? undefined : type;
        return {
          name,
          number,
          scalar,
          nested: typeof type === "function" ? type : undefined,
          wire: scalar === undefined ? WireType.LengthDelimited : WIRE[scalar],
          repeated: label === "repeated" || label === "packed",
          label,
          show,
        };
      })
      .sort((a, b) => a.number - b.number);
    plan = { fields, byNumber: new Map(fields.map((field) => [field.number, field])) };
    plans.set(schema, plan);
  }
  return plan;
};

/** Reads one value, of which lists are made, too. */
export const readScalar = (cursor: Cursor, type: Scalar): Value => {
  switch (type) {
    case "int32":
    case "enum":
      return cursor.varint() | 0;
    case "uint32":
      return cursor.varint();
    case "sint32": {
      const value = cursor.varint();
      return (value >>> 1) ^ -(value & 1);
    }
    case "fixed32":
      return cursor.fixed32();
    case "int64":
      cursor.spend(COST.wide);
      return cursor.int64();
    case "uint64":
      cursor.spend(COST.wide);
      return cursor.uint64();
    case "sint64":
      cursor.spend(COST.wide);
      return cursor.sint64();
    case "fixed64":
      cursor.spend(COST.wide);
      return cursor.fixed64();
    case "bool":
      return cursor.varint() !== 0 || cursor.high !== 0;
    case "string": {
      // protobuf-c does not check UTF-8, and file names need not be any: keep such bytes as they are.
      const from = cursor.text();
      cursor.spend(COST.bytes + cursor.at - from);
      return text(cursor.bytes, from, cursor.at);
    }
    case "bytes": {
      const from = cursor.delimited();
      cursor.spend(COST.bytes + cursor.at - from);
      return cursor.bytes.slice(from, cursor.at);
    }
  }
};

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const text = (bytes: Uint8Array, from: number, to: number): string | Uint8Array => {
  // Most are short and ASCII.
  if (to - from < 32) {
    let short = "";
    let at = from;
    for (; at < to && bytes[at]! < 0x80; at++) short += String.fromCharCode(bytes[at]!);
    if (at === to) return short;
  }
  try {
    return utf8.decode(bytes.subarray(from, to));
  } catch {
    return bytes.slice(from, to);
  }
};

const readNested = (cursor: Cursor, schema: Schema, depth: number): Message => {
  const from = cursor.delimited();
  const { end, at: after } = cursor;
  cursor.at = from;
  cursor.end = after;
  const inner = decodeAt(schema, cursor, depth + 1);
  cursor.end = end;
  return inner;
};

const decodeAt = (schema: Schema, cursor: Cursor, depth: number): Message => {
  if (depth > MAX_DEPTH) throw new RangeError("messages nested too deep");
  cursor.spend(COST.message);
  const { byNumber } = planOf(schema);
  const out: Message = {};
  while (cursor.at < cursor.end) {
    const start = cursor.at;
    const tag = cursor.varint();
    const wire = tag & 7;
    const number = tag >>> 3;
    if (number === 0 || cursor.high !== 0) throw new RangeError(`at byte ${start}: that is no field`);
    const field = byNumber.get(number);
    // Several numbers in one field, though the schema has them one by one: protobuf allows both.
    const packed = wire === WireType.LengthDelimited && field?.repeated === true && field.wire !== wire;
    if (field === undefined || (wire !== field.wire && !packed)) {
      const from = cursor.at;
      cursor.skipField(wire);
      cursor.spend(COST.unknown + cursor.at - from);
      out[UNKNOWN] ??= [];
      out[UNKNOWN].push([number, wire, cursor.bytes.slice(from, cursor.at)]);
      continue;
    }
    const { name, scalar, nested } = field;
    try {
      if (!field.repeated) {
        cursor.spend(COST.value);
        out[name] = scalar === undefined ? readNested(cursor, nested!(), depth) : readScalar(cursor, scalar);
        continue;
      }
      let list = out[name] as Value[] | undefined;
      if (list === undefined) {
        list = [];
        out[name] = list;
      }
      if (scalar === undefined) list.push(readNested(cursor, nested!(), depth));
      else if (packed) {
        const from = cursor.delimited();
        const { at: after } = cursor;
        cursor.at = from;
        while (cursor.at < after) {
          cursor.spend(COST.value);
          list.push(readScalar(cursor, scalar));
        }
        if (cursor.at !== after) throw new RangeError("its numbers do not end where it ends");
      } else {
        cursor.spend(COST.value);
        list.push(readScalar(cursor, scalar));
      }
    } catch (error) {
      throw new RangeError(`${name} at byte ${start}: ${reason(error)}`);
    }
  }
  return out;
};

/** Reads one message. Throws CryoshimError ERR_MESSAGE on bytes that are none, or would take more memory than there is for it. */
export const decode = (schema: Schema, bytes: Uint8Array, budget?: Budget): Message => {
  try {
    return decodeAt(schema, new Cursor(bytes, budget), 0);
  } catch (error) {
    throw new CryoshimError("ERR_MESSAGE", {
      what: `cannot decode a ${schema.name}`,
      why: reason(error),
      cause: error,
    });
  }
};

const writeScalar = (writer: BinaryWriter, type: Scalar, value: Value): void => {
  switch (type) {
    case "int32":
    case "enum":
      writer.int32(value as number);
      break;
    case "uint32":
      writer.uint32(value as number);
      break;
    case "sint32":
      writer.sint32(value as number);
      break;
    case "fixed32":
      writer.fixed32(value as number);
      break;
    case "int64":
      writer.int64(value as bigint);
      break;
    case "uint64":
      writer.uint64(value as bigint);
      break;
    case "sint64":
      writer.sint64(value as bigint);
      break;
    case "fixed64":
      writer.fixed64(value as bigint);
      break;
    case "bool":
      writer.bool(value as boolean);
      break;
    case "string":
      if (typeof value === "string") writer.string(value);
      else writer.bytes(value as Uint8Array);
      break;
    case "bytes":
      writer.bytes(value as Uint8Array);
      break;
  }
};

const writeField = (writer: BinaryWriter, [number, type]: Field, value: Value): void => {
  if (typeof type === "function") {
    writer.tag(number, WireType.LengthDelimited).bytes(encodeMessage(type(), value as Message));
    return;
  }
  writer.tag(number, WIRE[type]);
  writeScalar(writer, type, value);
};

const encodeMessage = (schema: Schema, value: Message): Uint8Array => {
  const writer = new BinaryWriter();
  const parts: [number, () => void][] = [];
  for (const [name, field] of Object.entries(schema.fields)) {
    const content = value[name];
    if (content === undefined) continue;
    const [number, type, label] = field;
    if (label === "packed" && typeof type === "string") {
      const list = content as Value[];
      if (list.length === 0) continue;
      parts.push([
        number,
        () => {
          writer.tag(number, WireType.LengthDelimited).fork();
          for (const item of list) writeScalar(writer, type, item);
          writer.join();
        },
      ]);
    } else {
      const list = label === "repeated" ? (content as Value[]) : [content];
      parts.push([
        number,
        () => {
          for (const item of list) writeField(writer, field, item);
        },
      ]);
    }
  }
  for (const [number, wire, raw] of value[UNKNOWN] ?? [])
    parts.push([number, () => writer.tag(number, wire as WireType).raw(raw)]);
  // protobuf-c writes in the order of numbers, so that is what makes a round trip byte for byte.
  for (const [, write] of parts.sort(([a], [b]) => a - b)) write();
  return writer.finish();
};

/** Writes one message. Throws CryoshimError ERR_MESSAGE for a value that its field cannot hold. */
export const encode = (schema: Schema, value: Message): Uint8Array => {
  try {
    return encodeMessage(schema, value);
  } catch (error) {
    throw new CryoshimError("ERR_MESSAGE", {
      what: `cannot encode a ${schema.name}`,
      why: reason(error),
      cause: error,
    });
  }
};
