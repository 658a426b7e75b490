// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { addon } from "../../native/index.js";
import * as wire from "../../spfs/wire.js";

test("the control socket's messages and the record are the same to C and to TypeScript", () => {
  expect((addon.spfsLayout as () => unknown)()).toEqual({
    size: wire.SIZE,
    nodeSize: wire.NODE_SIZE,
    recordSize: wire.RECORD_SIZE,
    magic: wire.MAGIC,
    version: wire.VERSION,
    maxData: wire.MAX_DATA,
    fields: wire.OFFSET,
    node: wire.NODE_OFFSET,
    types: wire.TYPE,
  });
});

test("what is no answer, or is cut, is refused", () => {
  const whole = wire.encodeCommand(wire.TYPE.STATUS, 7);
  expect(wire.decodeAnswer(whole)).toMatchObject({ type: wire.TYPE.STATUS, seq: 7, err: 0 });
  for (let length = 0; length < whole.length; length++)
    expect(() => wire.decodeAnswer(whole.subarray(0, length))).toThrow(RangeError);
  expect(() => wire.decodeAnswer(Buffer.concat([whole, Buffer.from("x")]))).toThrow(RangeError);
});
