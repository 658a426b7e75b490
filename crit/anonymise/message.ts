// SPDX-License-Identifier: Apache-2.0
// Messages by the rules: a new message is made of what the rules let through, nothing is taken out of the old one.
import { type Message, planOf, type Scalar, type Schema, UNKNOWN, type Value } from "../message.js";
import type { Alias } from "./alias.js";
import { REPLACED, type Replaced, RULES, type Rule } from "./rules.js";

const byField = new Map<string, Rule>();
for (const [message, rules] of Object.entries(RULES))
  for (const [rule, fields] of Object.entries(rules))
    for (const field of fields.split(" ")) byField.set(`${message}.${field}`, rule as Rule);

export const ruleOf = (message: string, field: string): Rule | undefined => byField.get(`${message}.${field}`);
export const isReplaced = (rule: string): rule is Replaced => (REPLACED as readonly string[]).includes(rule);

/** How often which field was treated how: "message.field" to rule and count. */
export type Counts = Map<string, { rule: string; count: number }>;
export interface Work {
  alias: Alias;
  keep: ReadonlySet<string>;
  /** Whether numbers of users and groups are replaced. */
  ids: boolean;
  counts: Counts;
}

const count = ({ counts }: Work, what: string, rule: string): void => {
  const known = counts.get(what);
  if (known === undefined) counts.set(what, { rule, count: 1 });
  else known.count++;
};

const blank = (value: Value, type: Scalar): Value => {
  if (Array.isArray(value)) return value.map((each) => blank(each, type));
  if (type === "string") return "";
  if (value instanceof Uint8Array) return new Uint8Array(value.length);
  if (typeof value === "bigint") return 0n;
  return typeof value === "boolean" ? false : 0;
};

/** Words of an address, as CRIU keeps them, to bytes and back. */
const words = (alias: Alias, value: Value[]): Value[] => {
  if (value.length !== 1 && value.length !== 4) return value.map(() => 0);
  const bytes = Buffer.alloc(value.length * 4);
  for (const [i, word] of value.entries()) bytes.writeUInt32LE(Number(word) >>> 0, i * 4);
  const out = Buffer.from(alias.ip(bytes));
  return value.map((_, i) => out.readUInt32LE(i * 4));
};

const replace = (alias: Alias, rule: Replaced, value: Value): Value => {
  if (rule === "ip") return words(alias, value as Value[]);
  if (Array.isArray(value)) return value.map((each) => replace(alias, rule, each));
  if (rule === "mac") return alias.mac(value as Uint8Array);
  const bytes = value instanceof Uint8Array;
  // Each byte a character: names need not be UTF-8, and the same name may be text in one field and bytes in another.
  const text = bytes ? Buffer.from(value).toString("latin1") : Buffer.from(value as string).toString("latin1");
  const alike = rule === "path" ? alias.path(text) : rule === "device" ? alias.device(text) : alias.name(text);
  return bytes ? Uint8Array.from(Buffer.from(alike, "latin1")) : alike;
};

const newId = (alias: Alias, value: Value): Value => {
  if (Array.isArray(value)) return value.map((each) => newId(alias, each));
  return typeof value === "number" ? alias.id(value) : value;
};

export const anonymiseMessage = (schema: Schema, message: Message, work: Work): Message => {
  const out: Message = {};
  for (const { name, scalar, nested, label } of planOf(schema).fields) {
    const value = message[name];
    if (value === undefined) continue;
    const what = `${schema.name}.${name}`;
    let rule = ruleOf(schema.name, name) ?? "drop";
    if (work.keep.has(rule) || (rule === "id" && !work.ids)) rule = "keep";
    if (rule === "drop" && label === "required") rule = "blank";
    if (rule === "inside" && nested !== undefined) {
      const inner = (each: Value): Message => anonymiseMessage(nested(), each as Message, work);
      out[name] = Array.isArray(value) ? value.map(inner) : inner(value);
      continue;
    }
    if (rule !== "keep" || isReplaced(ruleOf(schema.name, name) ?? "")) count(work, what, rule);
    if (rule === "keep") out[name] = value;
    else if (scalar === undefined || rule === "drop") continue;
    else if (rule === "id") out[name] = newId(work.alias, value);
    else if (rule === "one") out[name] = typeof value === "bigint" ? 1n : 1;
    else if (isReplaced(rule)) out[name] = replace(work.alias, rule, value);
    else out[name] = blank(value, scalar);
  }
  for (const [number] of message[UNKNOWN] ?? []) count(work, `${schema.name} field ${number}`, "drop");
  return out;
};
