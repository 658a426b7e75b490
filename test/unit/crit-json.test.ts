// SPDX-License-Identifier: Apache-2.0
import fc from "fast-check";
import { expect, test } from "vitest";
import { decodeImage, encodeImage, type Image, KINDS } from "../../crit/image.js";
import { bytesSource, type Sink } from "../../crit/io.js";
import { addressText, addressWords } from "../../crit/json/address.js";
import { writeDirect } from "../../crit/json/direct.js";
import { fromStrayString, jsonString, quote, strayString, unquote } from "../../crit/json/escape.js";
import { type DecodeOptions, writeImage, writeJson } from "../../crit/json/image.js";
import { parseJson } from "../../crit/json/read.js";
import { messageText } from "../../crit/json/write.js";
import { decode, encode, type Message, type Schema, UNKNOWN } from "../../crit/message.js";
import { streamImage } from "../../crit/stream.js";
import { anyImage, anyMessage, kinds } from "../support/images.js";

/** More of them: FUZZ_RUNS=100000 npx vitest run --project unit test/unit/crit-json.test.ts */
const RUNS = Number(process.env.FUZZ_RUNS ?? 300);

const collect = (work: (sink: Sink) => void): Buffer => {
  const parts: Buffer[] = [];
  work({ write: (data) => parts.push(Buffer.from(data as string)), flush: () => {} });
  return Buffer.concat(parts);
};
const toJson = (bytes: Uint8Array, options: DecodeOptions): string =>
  collect((sink) => writeJson(sink, streamImage(bytesSource(bytes), "some.img"), options)).toString();
const toImage = (json: string): Buffer => collect((sink) => writeImage(sink, parseJson(json, "json")));

const withUnknown = (image: Image): Image => {
  const [first] = image.entries;
  if (first !== undefined) first.message[UNKNOWN] = [[536_870_911, 2, Uint8Array.of(3, 0, 255, 10)]];
  return image;
};

test.each(kinds)(
  "%s becomes JSON and the same bytes again, pretty or not, unknown fields and stray bytes included",
  (kind) => {
    fc.assert(
      fc.property(anyImage(kind).map(withUnknown), fc.boolean(), (image, pretty) => {
        const bytes = encodeImage(image);
        const json = toJson(bytes, { pretty });
        expect(() => JSON.parse(json)).not.toThrow();
        expect(toImage(json).equals(bytes)).toBe(true);
      }),
      { numRuns: 25 },
    );
  },
);

const SCHEMAS = kinds.map((kind): [string, Schema] => [kind, KINDS[kind].entry]);
test.each(SCHEMAS)(
  "JSON straight from the bytes of %s is that of its message, and any message of CRIU's is written so",
  (_, schema) => {
    fc.assert(
      fc.property(anyMessage(schema), fc.boolean(), fc.boolean(), (value, pretty, unknown) => {
        if (unknown) value[UNKNOWN] = [[536_870_911, 0, Uint8Array.of(1)]];
        const bytes = encode(schema, value);
        const parts: string[] = [];
        const direct = writeDirect((text) => parts.push(text), schema, bytes, pretty, "  ");
        // Addresses that are none, and lists of nothing, go the long way as well.
        if (unknown) expect(direct).toBe(false);
        if (direct) expect(parts.join("")).toBe(messageText(schema, decode(schema, bytes), pretty, "  "));
        else expect(parts).toEqual([]);
        if (!unknown && !pretty) expect(direct).toBe(true);
      }),
      { numRuns: 25 },
    );
  },
);

test("a message too long for one piece becomes the same JSON in pieces; a damaged one nothing", () => {
  const schema = KINDS.MM.entry;
  const vma = { start: 4096n, end: 1n << 62n, pgoff: 0n, shmid: 3n, prot: 7, flags: 34, status: 513, fd: -1n };
  const value = { exe_file_id: 1, mm_saved_auxv: [1n, (1n << 64n) - 1n], vmas: new Array(9000).fill(vma) as Message[] };
  const bytes = encode(schema, value);
  for (const pretty of [false, true]) {
    const parts: string[] = [];
    expect(writeDirect((text) => parts.push(text), schema, bytes, pretty, "")).toBe(true);
    expect(parts.length).toBeGreaterThan(5);
    expect(parts.join("")).toBe(messageText(schema, decode(schema, bytes), pretty, ""));
    expect(writeDirect(expect.unreachable, schema, bytes.subarray(0, -1), pretty, "")).toBe(false);
  }
  const blob = { tty_id: 1, data: Buffer.alloc(200_000, "x") };
  const parts: string[] = [];
  expect(
    writeDirect((text) => parts.push(text), KINDS.TTY_DATA.entry, encode(KINDS.TTY_DATA.entry, blob), false, ""),
  ).toBe(true);
  expect(parts.join("")).toBe(messageText(KINDS.TTY_DATA.entry, blob, false, ""));
});

test("what is left out is told, and cannot be encoded", () => {
  const image: Image = {
    kind: "PIPES_DATA",
    entries: [{ message: { pipe_id: 1, bytes: 1536 }, extra: new Uint8Array(1536) }],
  };
  const json = toJson(encodeImage(image), { nopl: true });
  expect(json).toContain('"extra": "... <1.5KB>"');
  expect(() => toImage(json)).toThrow("entries[0].extra");
});

test("data of any size goes into JSON in lines of base64, as in one piece", () => {
  const extra = Uint8Array.from({ length: 700_001 }, (_, i) => i % 251);
  const image: Image = { kind: "PIPES_DATA", entries: [{ message: { pipe_id: 1, bytes: extra.length }, extra }] };
  const { entries } = JSON.parse(toJson(encodeImage(image), {})) as { entries: { extra: string }[] };
  const lines = entries[0]!.extra.split("\n");
  expect(lines.at(-1)).toBe("");
  expect(lines.slice(0, -2).every((line) => line.length === 76)).toBe(true);
  expect(Buffer.from(entries[0]!.extra, "base64").equals(extra)).toBe(true);
});

test("bytes as text come back: strings, socket names, addresses", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      const text = fromStrayString(JSON.parse(jsonString(strayString(bytes))) as string);
      expect(Buffer.from(text as string).equals(bytes)).toBe(true);
      expect(Buffer.from(unquote(quote(bytes))).equals(bytes)).toBe(true);
    }),
    { numRuns: RUNS },
  );
  const word = fc.oneof(fc.constant(0), fc.constant(0xffff0000), fc.nat(0xffffffff));
  fc.assert(
    fc.property(fc.oneof(fc.tuple(word), fc.tuple(word, word, word, word)), (words) => {
      expect(addressWords(addressText(words)!)).toEqual(words);
    }),
    { numRuns: RUNS },
  );
});

test.each([
  ['{"magic": "PSTREE", "entries": [{"pid": 1}]}', "entries[0].ppid"],
  ['{"magic": "NOPE", "entries": []}', "magic"],
  ['{"magic": "PSTREE"}', "image"],
  ['{"magic": "CORE", "entries": [{"mtype": "PDP11"}]}', "entries[0].mtype"],
  ['{"magic": "IDS", "entries": [{"vm_id": 4294967296}]}', "entries[0].vm_id"],
  ['{"magic": "IDS", "entries": [{"vm_id": 1.5}]}', "entries[0].vm_id"],
  ['{"magic": "PSTREE", "entries": [', "character 32"],
  ['{"magic": "PSTREE" "entries": []}', "character 19"],
  [`${"[".repeat(100_000)}`, "nested too deep"],
])("JSON that is no image is refused with where it is wrong: %.40s", (json, where) => {
  expect(() => toImage(json)).toThrow(
    expect.objectContaining({ code: "ERR_JSON", message: expect.stringContaining(where) }),
  );
});

test("a streamed image is cut, flipped or filled with lies: an image or ERR_IMAGE, and no more memory than it has", () => {
  const lie = fc.constantFrom(0x7fffffff, 0xffffffff, 0x80000000, 0x03ffffff, 0);
  fc.assert(
    fc.property(
      fc.constantFrom(...kinds).chain(anyImage),
      fc.nat(),
      fc.nat(7),
      fc.nat(2),
      lie,
      (image, at, bit, how, word) => {
        let data = Buffer.from(encodeImage(image));
        if (how === 0) data = data.subarray(0, at % data.length);
        else if (how === 1) data[at % data.length]! ^= 1 << bit;
        else data.writeUInt32LE(word, at % (data.length - 3));
        try {
          const json = toJson(data, { pretty: true });
          // What can be read at all in both ways is read as the same.
          expect(toImage(json).equals(Buffer.from(encodeImage(decodeImage(data))))).toBe(true);
        } catch (error) {
          expect((error as { code?: string }).code).toMatch(/^ERR_(IMAGE|JSON)$/);
        }
      },
    ),
    { numRuns: RUNS },
  );
});

test("broken JSON is an image or ERR_JSON", () => {
  fc.assert(
    fc.property(fc.constantFrom(...kinds).chain(anyImage), fc.nat(), fc.string({ maxLength: 3 }), (image, at, text) => {
      const json = toJson(encodeImage(image), {});
      const place = at % json.length;
      try {
        toImage(json.slice(0, place) + text + json.slice(place + 1));
      } catch (error) {
        expect((error as { code?: string }).code).toBe("ERR_JSON");
      }
    }),
    { numRuns: RUNS },
  );
});
