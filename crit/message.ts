// SPDX-License-Identifier: Apache-2.0
// CRIU's protobuf (proto2) messages by schemas that are data. Every field that a schema does not name is kept as raw
// bytes and written back, so a message of a newer CRIU passes through unharmed.
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { CryoshimError, reason } from "../shim/error.js";

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
  [UNKNOWN]?: [number, WireType, Uint8Array][];
}

/** Declares a message type. */
export const message = (name: string, fields: Record<string, Field>): Schema => ({ name, fields });

const MAX_DEPTH = 64;

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

/** Schemas by field number, made at the first use. */
const byNumber = new WeakMap<Schema, Map<number, [string, Field]>>();
const numbered = (schema: Schema): Map<number, [string, Field]> => {
  let map = byNumber.get(schema);
  if (map === undefined) {
    map = new Map(Object.entries(schema.fields).map(([name, field]) => [field[0], [name, field]]));
    byNumber.set(schema, map);
  }
  return map;
};

const readScalar = (reader: BinaryReader, type: Scalar): Value => {
  switch (type) {
    case "int32":
    case "enum":
      return reader.int32();
    case "uint32":
      return reader.uint32();
    case "sint32":
      return reader.sint32();
    case "fixed32":
      return reader.fixed32();
    case "int64":
      return BigInt(reader.int64());
    case "uint64":
      return BigInt(reader.uint64());
    case "sint64":
      return BigInt(reader.sint64());
    case "fixed64":
      return BigInt(reader.fixed64());
    case "bool":
      return reader.bool();
    case "string":
      // protobuf-c does not check UTF-8, and file names need not be any: keep such bytes as they are.
      return text(reader.bytes());
    case "bytes":
      return reader.bytes().slice();
  }
};

const utf8 = new TextDecoder("utf-8", { fatal: true });
const text = (bytes: Uint8Array): string | Uint8Array => {
  try {
    return utf8.decode(bytes);
  } catch {
    return bytes.slice();
  }
};

const decodeAt = (schema: Schema, bytes: Uint8Array, depth: number): Message => {
  if (depth > MAX_DEPTH) throw new RangeError("messages nested too deep");
  const reader = new BinaryReader(bytes);
  const fields = numbered(schema);
  const out: Message = {};
  while (reader.pos < reader.len) {
    const at = reader.pos;
    const [number, wire] = reader.tag();
    const known = fields.get(number);
    const want =
      known === undefined
        ? undefined
        : typeof known[1][1] === "function"
          ? WireType.LengthDelimited
          : WIRE[known[1][1]];
    const packed = wire === WireType.LengthDelimited && want !== wire;
    const repeated = known?.[1][2] === "repeated" || known?.[1][2] === "packed";
    if (known === undefined || (wire !== want && !(packed && repeated))) {
      const raw = reader.skip(wire, number);
      out[UNKNOWN] ??= [];
      out[UNKNOWN].push([number, wire, raw.slice()]);
      continue;
    }
    const [name, [, type]] = known;
    try {
      if (!repeated) {
        out[name] = typeof type === "function" ? decodeAt(type(), reader.bytes(), depth + 1) : readScalar(reader, type);
        continue;
      }
      out[name] ??= [];
      const list = out[name] as Value[];
      if (typeof type === "function") list.push(decodeAt(type(), reader.bytes(), depth + 1));
      else if (packed)
        for (const end = reader.uint32() + reader.pos; reader.pos < end; ) list.push(readScalar(reader, type));
      else list.push(readScalar(reader, type));
    } catch (error) {
      throw new RangeError(`${name} at byte ${at}: ${reason(error)}`);
    }
  }
  return out;
};

/** Reads one message. Throws CryoshimError ERR_MESSAGE on bytes that are none. */
export const decode = (schema: Schema, bytes: Uint8Array): Message => {
  try {
    return decodeAt(schema, bytes, 0);
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
  for (const [number, wire, raw] of value[UNKNOWN] ?? []) parts.push([number, () => writer.tag(number, wire).raw(raw)]);
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
