// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { pack } from "tar-stream";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint } from "../../crit/checkpoint.js";
import { encodeImage, type KindName } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { overview } from "../../crit/overview.js";
import { show } from "../../shim/commands/show.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-show-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const image = (kind: KindName, ...messages: Message[]): Buffer =>
  Buffer.from(encodeImage({ kind, entries: messages.map((message) => ({ message })) }));

/** Two tasks, the second with a hostile name. */
const images = (): Record<string, Buffer> => {
  const pstree = [
    { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: [1, 5] },
    { pid: 9, ppid: 1, pgid: 1, sid: 1, threads: [9] },
  ];
  const core = (comm: string): Message => ({ mtype: 1, tc: { task_state: 1, exit_code: 0, comm } });
  const maps = [
    { vaddr: 1n },
    { vaddr: 4096n, compat_nr_pages: 3 },
    { vaddr: 65536n, compat_nr_pages: 0, nr_pages: 5n },
  ];
  return {
    "inventory.img": image("INVENTORY", { img_version: 2 }),
    "pstree.img": image("PSTREE", ...pstree),
    "core-1.img": image("CORE", core("init")),
    "core-9.img": image("CORE", core("a\x1b[31mb")),
    "pagemap-1.img": image("PAGEMAP", ...maps),
    "files.img": image("FILES", { type: 1, id: 1 }, { type: 4, id: 2 }, { type: 1, id: 3 }),
    "pages-1.img": Buffer.alloc(8 * 4096),
  };
};
const writeAll = (files: Record<string, Buffer>): void => {
  for (const [name, data] of Object.entries(files)) writeFileSync(join(dir, name), data);
};
const tar = async (files: Record<string, Buffer>): Promise<Buffer> => {
  const archive = pack();
  for (const [name, data] of Object.entries(files)) archive.entry({ name }, data);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
};

test("a directory's tasks, memory, threads and files are shown", async () => {
  writeAll(images());
  const o = overview(await openCheckpoint(dir));
  expect(o.tasks).toEqual([
    { pid: 1, ppid: 0, comm: "init", state: "Alive", threads: 2, memory: 8 * 4096 },
    { pid: 9, ppid: 1, comm: "a\x1b[31mb", state: "Alive", threads: 1, memory: 0 },
  ]);
  expect(o.files).toEqual({ "regular file": 2, "inet socket": 1 });
  expect(o.bytes.pages).toBe(8 * 4096);
  expect(o.needsCryoshim).toBe(false);
});

test("an archive tells the same as its directory, packed or not", async () => {
  writeAll(images());
  const expected = overview(await openCheckpoint(dir));
  const members = Object.fromEntries(Object.entries(images()).map(([name, data]) => [`checkpoint/${name}`, data]));
  const plain = await tar(members);
  writeFileSync(join(dir, "plain"), plain);
  writeFileSync(join(dir, "packed"), gzipSync(plain));
  expect(overview(await openCheckpoint(join(dir, "plain")))).toEqual(expected);
  expect(overview(await openCheckpoint(join(dir, "packed")))).toEqual(expected);
});

test("a name cannot send control characters to the terminal", async () => {
  writeAll(images());
  const screen = await show(dir);
  expect(screen).toContain("9 a?[31mb");
  expect(screen).not.toContain("\x1b");
});

test("tasks that are each other's parents do not make it run for ever", async () => {
  const loop = [2, 3].map((pid) => ({ pid, ppid: 5 - pid, pgid: 1, sid: 1 }));
  writeAll({ ...images(), "pstree.img": image("PSTREE", ...loop) });
  expect(await show(dir)).toContain("tasks        2");
});

test("every cut and every flipped bit of an image is an error of its own kind, or still an overview", async () => {
  const whole = images();
  const names = Object.keys(whole).filter((name) => name !== "pages-1.img");
  const sizes = new Map(Object.entries(whole).map(([name, data]): [string, number] => [name, data.length]));
  fc.assert(
    fc.property(fc.constantFrom(...names), fc.nat(), fc.nat(7), fc.boolean(), (name, at, bit, cut) => {
      const data = Buffer.from(whole[name]!);
      if (!cut) data[at % data.length]! ^= 1 << bit;
      const damaged = cut ? data.subarray(0, at % data.length) : data;
      try {
        overview({ sizes, files: new Map(Object.entries({ ...whole, [name]: damaged })) });
      } catch (error) {
        expect(error).toMatchObject({ code: "ERR_IMAGE", what: expect.stringMatching(`${name}\` at byte \\d+$`) });
        expect((error as { why: string }).why).not.toBe("");
      }
    }),
    { numRuns: 3000 },
  );
});

test.each([
  ["nothing there", "missing", () => {}],
  ["an empty directory", "empty", () => mkdirSync(join(dir, "empty"))],
  ["a file that is no archive", "text", () => writeFileSync(join(dir, "text"), "x".repeat(5000))],
  ["an empty file", "nothing", () => writeFileSync(join(dir, "nothing"), "")],
  ["a broken gzip", "gz", () => writeFileSync(join(dir, "gz"), Buffer.from("1f8b0800ffff", "hex"))],
])("%s is refused with the path and what to give", async (_, name, make) => {
  make();
  await expect(openCheckpoint(join(dir, name))).rejects.toMatchObject({
    code: "ERR_CHECKPOINT",
    what: expect.stringContaining(join(dir, name)),
    fix: expect.stringContaining("directory"),
  });
});

test("a link in a directory is not followed", async () => {
  writeAll(images());
  rmSync(join(dir, "core-1.img"));
  symlinkSync("/etc/shadow", join(dir, "core-1.img"));
  const o = overview(await openCheckpoint(dir));
  expect(o.tasks[0]?.comm).toBe("?");
});
