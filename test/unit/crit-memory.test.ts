// SPDX-License-Identifier: Apache-2.0
// How much memory the commands take of images that were made to take much: each in a process of its own.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, expect, test } from "vitest";
import { encodeImage, KINDS, type KindName } from "../../crit/image.js";
import { COMMON_MAGIC } from "../../crit/kind.js";

const MOST_MIB = 200;
/** As large as a message may be. */
const SIZE = (32 << 20) - 64;

let dir = "";
beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-memory-"));
  await build({
    stdin: {
      contents: `import { readFileSync, writeSync } from "node:fs";
        import { critCommand } from "./crit/cli/command.ts";
        // That of this process alone: getrusage(2) counts what its parent had, too.
        process.on("exit", () => writeSync(2, readFileSync("/proc/self/status", "utf8").match(/VmHWM:.*/)[0] + "\\n"));
        critCommand("test").parseAsync(process.argv.slice(2), { from: "user" }).catch((error) => {
          writeSync(2, error.code + " " + error.message + "\\n");
          process.exitCode = 1;
        });`,
      resolveDir: process.cwd(),
    },
    bundle: true,
    platform: "node",
    format: "cjs",
    outfile: join(dir, "crit.cjs"),
    logLevel: "error",
  });
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const length = (n: number): number[] => (n < 128 ? [n] : [(n & 127) | 128, ...length(n >>> 7)]);
const field = (tag: number, body: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from([tag, ...length(body.length)]), body]);
const full = (unit: readonly number[], size = SIZE): Buffer =>
  Buffer.alloc(size - (size % unit.length), Buffer.from(unit));
const image = (kind: KindName, body: Buffer): Buffer =>
  Buffer.concat([Buffer.from(Uint32Array.of(COMMON_MAGIC, KINDS[kind].magic, body.length).buffer), body]);
/** A mapping with all its fields; a field that no CRIU has. */
const VMA = [
  0x72, 26, 8, 128, 128, 128, 128, 128, 64, 16, 128, 128, 128, 128, 128, 65, 24, 1, 32, 2, 40, 3, 48, 4, 56, 5, 64, 7,
];
const ODD = Buffer.from([0xf8, 0x3f, 1]);

const OK = /^VmHWM/;
const REFUSED = /^ERR_IMAGE .*would take too much memory/;
/** What it is, the image, and what decode, export and anonymise say; the last as export, unless it is told. */
const cases: [string, string, () => Buffer, RegExp, RegExp, RegExp?][] = [
  ["mappings without end", "mm-1.img", () => image("MM", full(VMA)), OK, REFUSED],
  ["empty mappings", "mm-1.img", () => image("MM", full([0x72, 0])), OK, REFUSED],
  [
    "mappings and a field of a later CRIU",
    "mm-1.img",
    () => image("MM", Buffer.concat([full(VMA), ODD])),
    REFUSED,
    REFUSED,
  ],
  ["numbers", "pstree.img", () => image("PSTREE", full([0x28, 1])), OK, REFUSED],
  ["packed numbers", "pstree.img", () => image("PSTREE", field(0x2a, full([1]))), OK, REFUSED],
  ["fields that nobody knows", "pstree.img", () => image("PSTREE", full([0x78, 1])), REFUSED, REFUSED],
  ["bytes", "tty-data.img", () => image("TTY_DATA", field(0x12, full([255]))), OK, OK, REFUSED],
  ["one name", "files.img", () => image("REG_FILES", field(0x32, full([255]))), /^ERR_IMAGE .*a text of/, /^ERR_IMAGE/],
  ["short names", "cgroup.img", () => image("CGROUP", field(0x12, full([0x0a, 0]))), OK, OK, REFUSED],
  [
    "entries of nothing",
    "files.img",
    () => Buffer.concat([image("FILES", Buffer.alloc(0)), Buffer.alloc(SIZE >> 3)]),
    OK,
    OK,
  ],
];

test.each(cases)(
  "of an image of %s no command takes more than its bound",
  (_, file, data, decoded, exported, anonymised) => {
    const images = join(dir, "images");
    rmSync(images, { recursive: true, force: true });
    mkdirSync(images);
    const small = (kind: KindName, message: object): Uint8Array =>
      encodeImage({ kind, entries: [{ message: message as Record<string, number> }] });
    writeFileSync(join(images, "inventory.img"), small("INVENTORY", { img_version: 2 }));
    writeFileSync(join(images, "pstree.img"), small("PSTREE", { pid: 1, ppid: 0, pgid: 1, sid: 1 }));
    writeFileSync(join(images, file), data());
    rmSync(join(dir, "copy"), { recursive: true, force: true });
    for (const [args, expected] of [
      [["decode", "-i", join(images, file)], decoded],
      [["export", images], exported],
      [["anonymise", images, join(dir, "copy")], anonymised ?? exported],
    ] as const) {
      const { stderr } = spawnSync(process.execPath, [join(dir, "crit.cjs"), ...args], {
        stdio: ["ignore", "ignore", "pipe"],
        encoding: "utf8",
      });
      expect(stderr, args[0]).toMatch(expected);
      expect(Number(/VmHWM:\s+(\d+)/.exec(stderr)?.[1]) / 1024, args[0]).toBeLessThan(MOST_MIB);
    }
  },
);
