// SPDX-License-Identifier: Apache-2.0
// A message from JSON: of ours or of CRIU's Python crit, pretty or not.
import { CryoshimError } from "../../shim/error.js";
import { type FieldPlan, type Message, planOf, type Scalar, type Schema, UNKNOWN, type Value } from "../message.js";
import { addressWords } from "./address.js";
import { fromBase64, fromStrayString, unquote } from "./escape.js";
import type { Json, JsonObject } from "./read.js";
import { UNKNOWN_KEY } from "./write.js";

export const wrong = (path: string, why: string): CryoshimError =>
  new CryoshimError("ERR_JSON", {
    what: `cannot encode \`${path}\``,
    why,
    fix: "give what `crit decode` has printed",
  });

export const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const LIMITS: Partial<Record<Scalar, readonly [bigint, bigint]>> = {
  int32: [-(1n << 31n), (1n << 31n) - 1n],
  sint32: [-(1n << 31n), (1n << 31n) - 1n],
  enum: [-(1n << 31n), (1n << 31n) - 1n],
  uint32: [0n, (1n << 32n) - 1n],
  fixed32: [0n, (1n << 32n) - 1n],
  int64: [-(1n << 63n), (1n << 63n) - 1n],
  sint64: [-(1n << 63n), (1n << 63n) - 1n],
  uint64: [0n, (1n << 64n) - 1n],
  fixed64: [0n, (1n << 64n) - 1n],
};

/** "12", "0x1f", "-3" */
const numeral = (text: string): bigint | undefined => {
  const found = /^\s*(-?)(0x[0-9a-f]+|0o[0-7]+|0b[01]+|\d+)\s*$/i.exec(text);
  if (found === null) return undefined;
  const value = BigInt(found[2]!);
  return found[1] === "-" ? -value : value;
};

const named = (names: Readonly<Record<number, string>>, text: string): bigint | undefined => {
  const found = Object.entries(names).find(([, name]) => name === text);
  return found && BigInt(found[0]);
};

/** A number from what stands for it: a name, flags, a device, hexadecimal. */
const numberOf = ({ show }: FieldPlan, text: string): bigint | undefined => {
  if (show === "dev" || show === "odev") {
    const found = /^(\d+):(\d+)$/.exec(text);
    if (found !== null) {
      const [major, minor] = [BigInt(found[1]!), BigInt(found[2]!)];
      if (show === "dev") return (major << 20n) | minor;
      return (minor & 0xffn) | ((major & 0xfffn) << 8n) | ((minor & ~0xffn) << 12n);
    }
  }
  if (typeof show === "object") {
    if ("bits" in show) {
      if (text === "") return 0n;
      let sum = 0n;
      for (const part of text.split("|").map((each) => each.trim())) {
        const bit = Object.hasOwn(show.bits, part) ? BigInt(show.bits[part]!) : numeral(part);
        if (bit === undefined) return undefined;
        sum += bit;
      }
      return sum;
    }
    const value = named("enum" in show ? show.enum : show.names, text);
    if (value !== undefined) return value;
  }
  return numeral(text);
};

const scalarOf = (field: FieldPlan, json: Json, path: string): Value => {
  const scalar = field.scalar!;
  if (scalar === "bool") {
    if (typeof json === "boolean") return json;
    throw wrong(path, "true or false is wanted");
  }
  if (scalar === "string" || scalar === "bytes") {
    if (typeof json !== "string") throw wrong(path, "a string is wanted");
    if (scalar === "string") return fromStrayString(json);
    return field.show === "unix_name" ? unquote(json) : fromBase64(json);
  }
  let value: bigint | undefined;
  if (typeof json === "bigint") value = json;
  else if (typeof json === "number" && Number.isInteger(json)) value = BigInt(json);
  else if (typeof json === "string") value = numberOf(field, json);
  if (value === undefined) throw wrong(path, "that is not the number that is wanted");
  const [min, max] = LIMITS[scalar]!;
  if (value < min || value > max) throw wrong(path, `${value} does not fit ${scalar}`);
  return scalar.endsWith("64") ? value : Number(value);
};

const listOf = (field: FieldPlan, json: Json, path: string): Value[] => {
  if (!Array.isArray(json)) throw wrong(path, "a list is wanted");
  if (field.show === "ip" && typeof json[0] === "string") {
    const words = addressWords(json[0]);
    if (words === undefined) throw wrong(path, `\`${json[0]}\` is no address`);
    return words;
  }
  return json.map((item, index) => one(field, item, `${path}[${index}]`));
};

const one = (field: FieldPlan, json: Json, path: string): Value =>
  field.nested === undefined ? scalarOf(field, json, path) : messageOf(field.nested(), json, path);

/** Throws ERR_JSON naming the path of what is wrong in it. Members that the schema does not name are passed over. */
export const messageOf = (schema: Schema, json: Json, path: string): Message => {
  if (!isObject(json)) throw wrong(path, `a ${schema.name} is wanted`);
  const out: Message = {};
  for (const field of planOf(schema).fields) {
    const value = json[field.name];
    if (value === undefined) {
      if (field.label === "required") throw wrong(`${path}.${field.name}`, "it is required");
      continue;
    }
    const where = `${path}.${field.name}`;
    out[field.name] = field.repeated ? listOf(field, value, where) : one(field, value, where);
  }
  const unknown = json[UNKNOWN_KEY];
  if (Array.isArray(unknown))
    out[UNKNOWN] = unknown.map((row, index) => {
      const [number, wire, raw] = Array.isArray(row) ? row : [];
      if (typeof number !== "number" || typeof wire !== "number" || typeof raw !== "string")
        throw wrong(`${path}.${UNKNOWN_KEY}[${index}]`, "[number, wire type, base64] is wanted");
      return [number, wire, fromBase64(raw)];
    });
  return out;
};
