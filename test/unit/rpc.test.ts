// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { decode, encode, type Message, type Schema, UNKNOWN, type Value } from "../../crit/message.js";
import { criuReq, criuResp } from "../../crit/schema/rpc.js";

/** Any message of a schema, with any of its fields. */
const anyMessage = (schema: Schema): fc.Arbitrary<Message> =>
  fc.record(
    Object.fromEntries(
      Object.entries(schema.fields).map(([name, [, type, label]]): [string, fc.Arbitrary<Value>] => {
        const scalars: Record<string, fc.Arbitrary<Value>> = {
          int32: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
          enum: fc.nat(20),
          uint32: fc.nat(0xffffffff),
          bool: fc.boolean(),
          string: fc.string(),
        };
        const one = typeof type === "function" ? anyMessage(type()) : scalars[type]!;
        return [
          name,
          label === "repeated" ? fc.array(one as fc.Arbitrary<Value>, { minLength: 1, maxLength: 3 }) : one,
        ];
      }),
    ),
    { requiredKeys: [] },
  ) as fc.Arbitrary<Message>;

test.each([criuReq, criuResp])("what is encoded is decoded the same: $name", (schema) => {
  fc.assert(
    fc.property(anyMessage(schema), (value) => {
      expect(decode(schema, encode(schema, value))).toEqual(value);
    }),
  );
});

test("fields that 4.2 does not know, at any depth, survive a round trip byte for byte", () => {
  // type = DUMP; opts { images_dir_fd = 5, pid = 7, 200: "new", 201: 1 }; keep_open = 0; 99: fixed32
  const bytes = Buffer.from("0801120d08051007c20c036e6577c80c012000" + "9d0601020304", "hex");
  const request = decode(criuReq, bytes);
  expect((request.opts as Message).pid).toBe(7);
  expect((request.opts as Message)[UNKNOWN]).toHaveLength(2);
  expect(Buffer.from(encode(criuReq, request)).toString("hex")).toBe(bytes.toString("hex"));
});

test("a name that is not UTF-8 survives", () => {
  const bytes = Buffer.from("0802" + "1207" + "0805" + "6a03ff2fc0", "hex");
  expect(Buffer.from(encode(criuReq, decode(criuReq, bytes))).toString("hex")).toBe(bytes.toString("hex"));
});

test.each(["08", "12ff", "1205080a", "0f", "12ffffffffffffffffff01"])(
  "bytes that are no request are refused: %s",
  (hex) => {
    expect(() => decode(criuReq, Buffer.from(hex, "hex"))).toThrow(expect.objectContaining({ code: "ERR_MESSAGE" }));
  },
);

test("no bytes at all make the decoder throw anything but its own error", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        decode(criuReq, bytes);
      } catch (error) {
        expect(error).toMatchObject({ code: "ERR_MESSAGE" });
      }
    }),
    { numRuns: 2000 },
  );
});
