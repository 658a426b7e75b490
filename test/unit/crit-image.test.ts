// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeImage, encodeImage, type Image, identify, KINDS, type KindName } from "../../crit/image.js";
import { encode, type Message, type Schema, UNKNOWN, type Value } from "../../crit/message.js";

const U64 = (1n << 64n) - 1n;
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
const anyMessage = (schema: Schema, depth = 3): fc.Arbitrary<Message> => {
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
const anyImage = (kind: KindName): fc.Arbitrary<Image> => {
  if (kind === "GHOST_FILE") return anyGhost;
  const entries = fc.array(anyEntry(kind), { maxLength: 4 });
  if (kind !== "PAGEMAP") return entries.map((all) => ({ kind, entries: all }));
  return fc
    .tuple(anyMessage(KINDS.PAGEMAP.head), entries)
    .map(([message, rest]) => ({ kind, entries: [{ message }, ...rest] }));
};

const kinds = Object.keys(KINDS) as KindName[];

test.each(kinds)("what is written as %s is read as the same", (kind) => {
  fc.assert(
    fc.property(anyImage(kind), (image) => {
      const bytes = encodeImage(image);
      expect(identify(bytes)).toBe(kind);
      expect(decodeImage(bytes)).toEqual(image);
      expect(Buffer.from(encodeImage(decodeImage(bytes)))).toEqual(Buffer.from(bytes));
    }),
    { numRuns: 50 },
  );
});

test("fields of a newer CRIU are kept, byte for byte", () => {
  const newer: Schema = {
    name: "pstree_entry",
    fields: { ...KINDS.PSTREE.entry.fields, later: [77, "string"], more: [78, "uint64", "repeated"] },
  };
  const body = encode(newer, { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: [1], later: "x", more: [1n, U64] });
  const head = Buffer.from(encodeImage({ kind: "PSTREE", entries: [] }));
  const bytes = Buffer.concat([head, Buffer.from(Uint32Array.of(body.length).buffer), body]);
  const image = decodeImage(bytes);
  expect(image.entries[0]?.message[UNKNOWN]).toHaveLength(3);
  expect(Buffer.from(encodeImage(image))).toEqual(bytes);
});

const pstree = Buffer.from(
  encodeImage({ kind: "PSTREE", entries: [{ message: { pid: 1, ppid: 0, pgid: 1, sid: 1 } }] }),
);
const changed = (at: number, value: number): Buffer => {
  const bytes = Buffer.from(pstree);
  bytes.writeUInt32LE(value, at);
  return bytes;
};

test.each([
  ["nothing", Buffer.alloc(0), 0],
  ["half a magic", pstree.subarray(0, 3), 0],
  ["one magic of two", pstree.subarray(0, 6), 4],
  ["half a length", pstree.subarray(0, 10), 8],
  ["half an entry", pstree.subarray(0, -1), 8],
  ["a length of 4 GiB", changed(8, 0xffffffff), 8],
  ["a negative length", changed(8, 0x80000000), 8],
  ["another file's magic", changed(0, 0x7f454c46), 0],
  ["the outer magic of statistics", changed(0, 0x55105940), 0],
  ["a kind that no CRIU has", changed(4, 0x12345678), 4],
  ["a broken message", changed(12, 0xffffffff), 8],
])("an image of %s is refused with its name and the byte", (_, bytes, at) => {
  expect(() => decodeImage(bytes, "pstree.img")).toThrow(
    expect.objectContaining({
      code: "ERR_IMAGE",
      what: `cannot read image \`pstree.img\` at byte ${at}`,
      fix: expect.any(String),
    }),
  );
});

test("a pipe whose data is cut off is refused", () => {
  const whole = encodeImage({
    kind: "PIPES_DATA",
    entries: [{ message: { pipe_id: 1, bytes: 4 }, extra: Uint8Array.of(1, 2, 3, 4) }],
  });
  expect(() => decodeImage(whole.subarray(0, -1), "pipes-data.img")).toThrow("4 bytes should follow, 3 are left");
});

test("a cut or a flipped bit gives an image or ERR_IMAGE, never another error", () => {
  const all = fc.constantFrom(...kinds).chain(anyImage);
  fc.assert(
    fc.property(all, fc.nat(), fc.nat(7), fc.boolean(), (image, at, bit, cut) => {
      const data = Buffer.from(encodeImage(image));
      if (!cut) data[at % data.length]! ^= 1 << bit;
      try {
        decodeImage(cut ? data.subarray(0, at % data.length) : data, "some.img");
      } catch (error) {
        expect(error).toMatchObject({ code: "ERR_IMAGE", what: expect.stringMatching(/`some\.img` at byte \d+$/) });
      }
    }),
    { numRuns: 500 },
  );
});
