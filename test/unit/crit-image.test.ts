// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeImage, encodeImage, identify, KINDS } from "../../crit/image.js";
import { encode, type Schema, UNKNOWN } from "../../crit/message.js";
import { anyImage, kinds, U64 } from "../support/images.js";

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

test.each([
  ["messages", KINDS.MM, [0x72, 0x00]],
  ["numbers", KINDS.PSTREE, [0x28, 0x01]],
  ["fields that nobody knows", KINDS.PSTREE, [0x78, 0x01]],
])("an image of nothing but %s is refused before it fills the memory", (_, { magic }, unit) => {
  const body = Buffer.alloc(32 << 20, Buffer.from(unit));
  const head = Buffer.alloc(12);
  for (const [i, word] of [0x54564319, magic, body.length].entries()) head.writeUInt32LE(word, 4 * i);
  expect(() => decodeImage(Buffer.concat([head, body]), "bomb.img")).toThrow("would take too much memory");
});
