// SPDX-License-Identifier: Apache-2.0
// Arbitrary images of every kind, for property tests.
import fc from "fast-check";
import { type Image, KINDS, type KindName } from "../../crit/image.js";
import { encode, type Message, type Schema, type Value } from "../../crit/message.js";

export const U64 = (1n << 64n) - 1n;
const I32 = { min: -(2 ** 31), max: 2 ** 31 - 1 };
const U32 = { max: 2 ** 32 - 1 };

const scalar = (type: string): fc.Arbitrary<Value> => {
  if (type === "bool") return fc.boolean();
  if (type === "string") return fc.string({ unit: "grapheme", maxLength: 12 });
  if (type === "bytes") return fc.uint8Array({ maxLength: 12 });
  if (type === "uint64" || type === "fixed64") return fc.bigInt(0n, U64);
  if (type.endsWith("64")) return fc.bigInt(-(1n << 63n), (1n << 63n) - 1n);
  return type === "uint32" || type === "fixed32" ? fc.nat(U32) : fc.integer(I32);
};

/** Any message of a schema; at depth 0 its optional submessages are left out. */
export const anyMessage = (schema: Schema, depth = 3): fc.Arbitrary<Message> => {
  const required: Record<string, fc.Arbitrary<Value>> = {};
  const optional: Record<string, fc.Arbitrary<Value>> = {};
  for (const [name, [, type, label]] of Object.entries(schema.fields)) {
    const nested = typeof type === "function";
    if (nested && depth === 0 && label !== "required") continue;
    const one = nested ? anyMessage(type(), Math.max(0, depth - 1)) : scalar(type);
    if (label === "required") required[name] = one;
    else optional[name] = label === "repeated" ? fc.array(one, { minLength: 1, maxLength: 3 }) : one;
  }
  const keys = Object.keys(required);
  return fc.record({ ...required, ...optional }, { requiredKeys: keys }) as fc.Arbitrary<Message>;
};

/** What a message must say of the data behind it. */
const SAYS: Partial<Record<KindName, (size: number) => Message>> = {
  PIPES_DATA: (bytes) => ({ bytes }),
  FIFO_DATA: (bytes) => ({ bytes }),
  SK_QUEUES: (length) => ({ length }),
  TCP_STREAM: (size) => ({ inq_len: size >> 1, outq_len: size - (size >> 1) }),
  BPFMAP_DATA: (size) => ({ keys_bytes: size >> 1, values_bytes: size - (size >> 1) }),
  IPCNS_SEM: (size) => ({ nsems: size >> 1 }),
  IPCNS_SHM: (size) => ({ size: BigInt(size), in_pagemaps: false }),
};
/** A queue of System V messages, each with its bytes behind it. */
const anyQueue = fc.array(fc.uint8Array({ minLength: 1, maxLength: 20 }), { maxLength: 3 }).map((texts) => {
  const parts = texts.flatMap((text) => {
    const body = encode(KINDS.IPCNS_MSG.nested.schema, { mtype: 1n, msize: text.length });
    return [Uint8Array.of(body.length, 0, 0, 0), body, text, new Uint8Array(-text.length & 7)];
  });
  return { says: { qnum: texts.length }, extra: new Uint8Array(Buffer.concat(parts)) };
});
const anyExtra = (kind: KindName): fc.Arbitrary<{ says: Message; extra?: Uint8Array }> => {
  const says = SAYS[kind];
  if (kind === "IPCNS_MSG") return anyQueue;
  if (says === undefined) return fc.constant({ says: {} });
  // Multiples of eight: what fills up to them is part of the data.
  return fc
    .nat(5)
    .chain((n) => fc.uint8Array({ minLength: 8 * n, maxLength: 8 * n }).map((extra) => ({ says: says(8 * n), extra })));
};
const anyEntry = (kind: KindName): fc.Arbitrary<Image["entries"][number]> =>
  fc
    .tuple(anyMessage(KINDS[kind].entry), anyExtra(kind))
    .map(([message, { says, extra }]) => ({ message: { ...message, ...says }, ...(extra && { extra }) }));

/** A deleted file, whole or in chunks. */
const anyGhost = fc
  .tuple(anyMessage(KINDS.GHOST_FILE.head), fc.array(fc.uint8Array({ maxLength: 20 }), { maxLength: 3 }), fc.boolean())
  .map(([head, parts, chunks]): Image => {
    const data = new Uint8Array(Buffer.concat(parts));
    const chunk = (extra: Uint8Array) => ({ message: { len: BigInt(extra.length), off: 7n }, extra });
    const message = { ...head, chunks };
    return {
      kind: "GHOST_FILE",
      entries: chunks ? [{ message }, ...parts.map(chunk)] : [{ message, extra: data }],
    };
  });

/** Any image of a kind, with the head and the data behind messages that the kind has. */
export const anyImage = (kind: KindName): fc.Arbitrary<Image> => {
  if (kind === "GHOST_FILE") return anyGhost;
  const entries = fc.array(anyEntry(kind), { maxLength: 4 });
  if (kind !== "PAGEMAP") return entries.map((all) => ({ kind, entries: all }));
  return fc
    .tuple(anyMessage(KINDS.PAGEMAP.head), entries)
    .map(([message, rest]) => ({ kind, entries: [{ message }, ...rest] }));
};

export const kinds = Object.keys(KINDS) as KindName[];
