// SPDX-License-Identifier: Apache-2.0
// A message as JSON text, letter by letter what CRIU's Python crit prints for it.
import { type FieldPlan, type Message, planOf, type Schema, UNKNOWN, type Value } from "../message.js";
import { addressText } from "./address.js";
import { base64Lines, jsonString, quote, strayString } from "./escape.js";

/** Fields that the schema does not name, for the way back: [[number, wire type, base64], ...]. Others skip this key. */
export const UNKNOWN_KEY = "@unknown";

export interface Style {
  /** Values where people read them: hexadecimal, names of flags, addresses; with line breaks. */
  pretty: boolean;
}

const flagsText = (value: number, bits: Readonly<Record<string, number>>): string => {
  const names: string[] = [];
  let rest = value;
  for (const [name, bit] of Object.entries(bits)) {
    if (Math.floor(value / bit) % 2 !== 1 || bit === 0) continue;
    names.push(name);
    rest -= bit;
  }
  if (rest !== 0) names.push(`0x${rest.toString(16)}`);
  return names.join(" | ");
};

const deviceText = (value: number, old: boolean): string => {
  if (!old) return `${Math.floor(value / 0x100000)}:${value % 0x100000}`;
  return `${(value >>> 8) & 0xfff}:${(value & 0xff) | ((value >>> 12) & 0xfff00)}`;
};

/** One value as JSON. */
export const scalarText = (field: FieldPlan, value: Value, pretty: boolean, hex: boolean): string => {
  const { show } = field;
  if (typeof value === "boolean") return value ? "true" : "false";
  if (typeof value === "string") return jsonString(value);
  if (value instanceof Uint8Array) {
    if (field.scalar === "string") return jsonString(strayString(value));
    return jsonString(show === "unix_name" ? quote(value) : base64Lines(value));
  }
  const number = value as number | bigint;
  if (typeof show === "object" && "enum" in show) {
    const name = show.enum[number as number];
    return name === undefined ? String(number) : `"${name}"`;
  }
  if (!pretty) return String(number);
  if (hex || show === "hex") return `"0x${number.toString(16)}"`;
  if (show === "dev" || show === "odev") return `"${deviceText(number as number, show === "odev")}"`;
  if (typeof show === "object" && "bits" in show) return `"${flagsText(number as number, show.bits)}"`;
  if (typeof show === "object" && "names" in show) {
    const name = show.names[number as number];
    return name === undefined ? String(number) : `"${name}"`;
  }
  return String(number);
};

const listText = (items: readonly string[], pretty: boolean, indent: string): string => {
  if (items.length === 0) return "[]";
  if (!pretty) return `[${items.join(", ")}]`;
  const inner = `${indent}    `;
  return `[\n${inner}${items.join(`,\n${inner}`)}\n${indent}]`;
};

/** An object of members whose values are JSON text already. */
export const objectText = (members: readonly string[], pretty: boolean, indent: string): string => {
  if (members.length === 0) return "{}";
  if (!pretty) return `{${members.join(", ")}}`;
  const inner = `${indent}    `;
  return `{\n${inner}${members.join(`,\n${inner}`)}\n${indent}}`;
};

const fieldText = (field: FieldPlan, value: Value, pretty: boolean, hex: boolean, indent: string): string => {
  const inner = pretty ? `${indent}    ` : indent;
  const isHex = hex || field.show === "hex";
  const { nested } = field;
  if (!field.repeated)
    return nested === undefined
      ? scalarText(field, value, pretty, hex)
      : messageText(nested(), value as Message, pretty, inner, [], isHex);
  const list = value as Value[];
  if (pretty && field.show === "ip") {
    const address = addressText(list as number[]);
    if (address !== undefined) return listText([`"${address}"`], pretty, inner);
  }
  const deeper = pretty ? `${inner}    ` : inner;
  return listText(
    list.map((item) =>
      nested === undefined
        ? scalarText(field, item, pretty, hex)
        : messageText(nested(), item as Message, pretty, deeper, [], isHex),
    ),
    pretty,
    inner,
  );
};

/** A message as JSON; `more` are members to add at its end. */
export const messageText = (
  schema: Schema,
  message: Message,
  pretty: boolean,
  indent: string,
  more: readonly string[] = [],
  hex = false,
): string => {
  const members: string[] = [];
  for (const field of planOf(schema).fields) {
    const value = message[field.name];
    if (value !== undefined) members.push(`"${field.name}": ${fieldText(field, value, pretty, hex, indent)}`);
  }
  const unknown = message[UNKNOWN];
  if (unknown !== undefined) {
    const rows = unknown.map(([number, wire, raw]) => `[${number}, ${wire}, ${jsonString(base64Lines(raw))}]`);
    members.push(`"${UNKNOWN_KEY}": [${rows.join(", ")}]`);
  }
  members.push(...more);
  return objectText(members, pretty, indent);
};
