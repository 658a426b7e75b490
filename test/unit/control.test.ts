// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { addon } from "../../native/index.js";
import { decodeControl, encodeControl, MAGIC, MAX_DATA, OFFSET, SIZE, TYPE, VERSION } from "../../shim/control/wire.js";

test("the control socket's messages are the same to C and to TypeScript", () => {
  const layout = (addon.controlLayout as () => unknown)();
  expect(layout).toEqual({
    size: SIZE,
    magic: MAGIC,
    version: VERSION,
    maxData: MAX_DATA,
    fields: OFFSET,
    types: TYPE,
  });
});

test("a message is read as it was written", () => {
  const i32 = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
  const any = fc.record({
    type: fc.nat(0xffff),
    hook: fc.nat(0xffff),
    seq: fc.nat(0xffffffff),
    pid: i32,
    ret: fc.maxSafeInteger(),
    err: i32,
    fd: i32,
    addr: u64,
    len: u64,
    flags: fc.nat(0xffffffff),
    args: fc.array(u64, { minLength: 7, maxLength: 7 }),
    data: fc.uint8Array({ maxLength: 500 }).map((bytes) => Buffer.from(bytes)),
  });
  fc.assert(
    fc.property(any, (m) => {
      expect(decodeControl(encodeControl(m))).toEqual(m);
    }),
  );
});

test("what is no message, or is cut, is refused", () => {
  const whole = encodeControl({ type: TYPE.LOG, data: Buffer.from("text") });
  for (let length = 0; length < whole.length; length++)
    expect(() => decodeControl(whole.subarray(0, length))).toThrow(RangeError);
  expect(() => decodeControl(Buffer.concat([whole, Buffer.from("x")]))).toThrow(RangeError);
  expect(() => encodeControl({ type: TYPE.WRITE, data: Buffer.alloc(MAX_DATA + 1) })).toThrow(RangeError);
});
