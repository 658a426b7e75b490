// SPDX-License-Identifier: Apache-2.0
// Checkpoints that were made to do harm, and large ones: bounded memory, errors of our own, nothing followed or written.
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createGzip, gzipSync } from "node:zlib";
import fc from "fast-check";
import { pack } from "tar-stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { details } from "../../crit/details.js";
import { fdSource, type Sink } from "../../crit/io.js";
import { writeJson } from "../../crit/json/image.js";
import { netlinkEntries } from "../../crit/netlink.js";
import { overview } from "../../crit/overview.js";
import { dumpRegion } from "../../crit/region.js";
import { streamImage } from "../../crit/stream.js";

import { everyWay, files, image, members, PAGE, START, tar } from "../support/checkpoints.js";

const RUNS = Number(process.env.FUZZ_RUNS ?? 300);

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-archive-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

test("any bytes are a dump of ip's, or none, and never an error", () => {
  const magic = fc.constantFrom(0x47361222, 0x45311224, 0x71706986);
  fc.assert(
    fc.property(magic, fc.constantFrom(20, 24, 32, 99), fc.uint8Array({ maxLength: 60 }), (word, type, body) => {
      const head = Buffer.alloc(20);
      head.writeUInt32LE(word);
      head.writeUInt32LE(16 + body.length, 4);
      head.writeUInt16LE(type, 8);
      expect(netlinkEntries(Buffer.concat([head, body]))).toHaveLength(1);
      expect(netlinkEntries(Buffer.concat([head, body.subarray(1)]))).toEqual(
        body.length === 0 ? [expect.anything()] : undefined,
      );
    }),
    { numRuns: RUNS },
  );
});

/** Memory of this process, in MiB, at its largest so far. */
const peak = (): number => process.resourceUsage().maxRSS / 1024;

test("100 GiB of pages are never in memory", async () => {
  const size = 100 * 2 ** 30;
  const [path] = await everyWay(dir, files());
  truncateSync(join(path!, "pages-1.img"), size);
  const fd = openSync(join(path!, "pages-1.img"), "r+");
  writeSync(fd, "far away", 60 * 2 ** 30);
  closeSync(fd);
  writeFileSync(
    join(path!, "pagemap-1.img"),
    image("PAGEMAP", { pages_id: 1 }, { vaddr: START, compat_nr_pages: 0, nr_pages: BigInt(size / PAGE), flags: 4 }),
  );
  const before = peak();
  const checkpoint = await openCheckpoint(path!);
  expect(overview(checkpoint).bytes.pages).toBe(size);
  const start = START + 60n * (1n << 30n);
  expect((await dumpRegion(checkpoint, { pid: 1, start, end: start + 16n }))[0]).toContain("far away");
  expect(peak() - before).toBeLessThan(64);
});

test("a deleted file of any size goes through decode in pieces", () => {
  const path = join(dir, "ghost-file-1.img");
  writeFileSync(path, image("GHOST_FILE", { uid: 0, gid: 0, mode: 0o100644 }));
  const head = readFileSync(path).length;
  truncateSync(path, head + 256 * 2 ** 20);
  let written = 0;
  const sink: Sink = {
    write: (data) => {
      written += data.length;
    },
    flush: () => {},
  };
  const before = peak();
  const fd = openSync(path, "r");
  writeJson(sink, streamImage(fdSource(fd), path));
  closeSync(fd);
  expect(written).toBeGreaterThan(256 * 2 ** 20);
  expect(peak() - before).toBeLessThan(100);
});

test("a bomb of zeros goes by in pieces; one that would have to be kept is refused", async () => {
  const bomb = async (name: string, size: number, path: string): Promise<void> => {
    const archive = pack();
    const packed = archive.pipe(createGzip({ level: 1 }));
    for (const [header, data] of members(files())) if (!header.name.endsWith(name)) archive.entry(header, data);
    const entry = archive.entry({ name: `checkpoint/${name}`, size });
    const chunks: Buffer[] = [];
    const end = (async () => {
      for await (const chunk of packed) chunks.push(chunk as Buffer);
    })();
    const zeros = Buffer.alloc(1 << 20);
    for (let left = size; left > 0; left -= zeros.length)
      if (!entry.write(zeros)) await new Promise<void>((resolve) => entry.once("drain", () => resolve()));
    entry.end(undefined);
    archive.finalize();
    await end;
    writeFileSync(path, Buffer.concat(chunks));
  };
  await bomb("pages-1.img", 400 << 20, join(dir, "pages"));
  await bomb("core-1.img", 65 << 20, join(dir, "core"));
  const before = peak();
  expect(overview(await openCheckpoint(join(dir, "pages"))).bytes.pages).toBe(400 << 20);
  await expect(openCheckpoint(join(dir, "core"))).rejects.toThrow("core-1.img has 68157440 bytes");
  expect(peak() - before).toBeLessThan(100);
});

test("an archive of nothing but long names is refused before they fill the memory", async () => {
  const some = Array.from({ length: 300 }, (_, i): [{ name: string }, Buffer] => [
    { name: `${i}${"/n".repeat(2000)}` },
    Buffer.alloc(0),
  ]);
  // Without the zeros at its end, thirty times.
  const part = (await tar(some)).subarray(0, -1024);
  const archive = Buffer.concat(new Array<Buffer>(30).fill(part));
  for (const data of [archive, gzipSync(archive, { level: 1 })]) {
    writeFileSync(join(dir, "names"), data);
    await expect(openCheckpoint(join(dir, "names"))).rejects.toThrow("its descriptions are over 64 MiB");
  }
});

test.each(["-1536", "-1", "abc", "9007199254740993"])("a size of %s in a pax header is refused", async (size) => {
  const data = await tar([[{ name: "inventory.img", pax: { size: "12345" } }, Buffer.alloc(12345)]]);
  const said = `size=${size}\n`;
  const length = said.length + (said.length < 7 ? 2 : 3);
  data.fill(0, 512, 1024);
  data.write(`${length} ${said}`, 512);
  data.write(`${length.toString(8).padStart(11, "0")}\0`, 124);
  // The header's sum, anew.
  data.fill(" ", 148, 156);
  const sum = data.subarray(0, 512).reduce((all, byte) => all + byte, 0);
  data.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  writeFileSync(join(dir, "p.tar"), data);
  await expect(openCheckpoint(join(dir, "p.tar"))).rejects.toThrow("a member at byte 1024 claims");
  writeFileSync(join(dir, "p.tar.gz"), gzipSync(data));
  await expect(openCheckpoint(join(dir, "p.tar.gz"))).rejects.toMatchObject({ code: "ERR_CHECKPOINT" });
});

test("members that point elsewhere, and links, are never followed, and nothing is written", async () => {
  const hostile = await tar([
    ...members(files()).filter(([{ name }]) => name !== "checkpoint/core-1.img"),
    [{ name: "checkpoint/core-1.img", type: "symlink", linkname: "/etc/passwd" }, Buffer.alloc(0)],
    [{ name: "../../escape" }, Buffer.from("x")],
    [{ name: "/tmp/cryoshim-escape" }, Buffer.from("x")],
  ]);
  for (const [name, data] of [
    ["h.tar", hostile],
    ["h.tar.gz", gzipSync(hostile)],
  ] as const) {
    writeFileSync(join(dir, name), data);
    expect(overview(await openCheckpoint(join(dir, name))).tasks[0]?.comm).toBe("?");
  }
  expect(readdirSync(dir).sort()).toEqual(["h.tar", "h.tar.gz"]);
  expect(existsSync("/tmp/cryoshim-escape")).toBe(false);
});

test("an archive that is cut, flipped or full of lies: a checkpoint or an error of its own, from each kind", async () => {
  const plain = await tar(members(files()));
  const [, , , zst] = await everyWay(dir, files());
  const kinds = { tar: plain, gz: gzipSync(plain), zst: readFileSync(zst!) };
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom("tar" as const, "gz" as const),
      fc.nat(),
      fc.nat(7),
      fc.boolean(),
      async (kind, at, bit, cut) => {
        const data = Buffer.from(kinds[kind]);
        // Headers are few: aim at one of them half of the time.
        const place = at % 2 ? at % data.length : (at % 5) * 512 + (at % 512);
        if (!cut) data[place % data.length]! ^= 1 << bit;
        const path = join(dir, "damaged");
        writeFileSync(path, cut ? data.subarray(0, place % data.length) : data);
        try {
          await details(await openCheckpoint(path), { commands: true, environment: true });
        } catch (error) {
          expect((error as { code?: string }).code).toMatch(/^ERR_(CHECKPOINT|IMAGE)$/);
        }
      },
    ),
    { numRuns: RUNS },
  );
  for (const cut of [5, 20, 0.5, -1]) {
    const end = Number.isInteger(cut) ? (cut < 0 ? kinds.zst.length + cut : cut) : Math.floor(kinds.zst.length * cut);
    writeFileSync(join(dir, "cut.zst"), kinds.zst.subarray(0, end));
    await expect(openCheckpoint(join(dir, "cut.zst"))).rejects.toMatchObject({ code: "ERR_CHECKPOINT" });
  }
});
