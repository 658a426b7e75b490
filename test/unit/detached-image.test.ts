// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { DetachedImage } from "../../shim/carriers/detached-image.js";
import { passes } from "../../shim/carriers/detached-socket.js";
import { CryoshimError } from "../../shim/error.js";

const latin = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));
const REG = 0o100644;
const DIR = 0o40755;
const MOUNT = { id: 0, host: true, path: latin("/mnt"), attributes: 2 };
const FILE = { mount: 0, path: latin("a/b"), mode: REG, ino: 5n, ids: [7], flags: [2], positions: [3n] };
const GONE = { ...FILE, path: latin("."), uid: 0, gid: 0, size: 10n, rdev: 0n, atime: 1n, mtime: 2n };
const TREE = { tree: { id: 0, bytes: 4096n, inodes: 10n } };
const node = (path: string, mode: number, more: Message = {}): Message => ({
  node: { path: latin(path), mode, uid: 0, gid: 0, size: 4n, rdev: 0n, atime: 1n, mtime: 2n, ...more },
});

const directory = (bytes: Uint8Array): string => {
  const dir = mkdtempSync(join(tmpdir(), "cryoshim-test-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  writeFileSync(join(dir, "cryoshim-detached.img"), bytes);
  return dir;
};
const encoded = (entries: Message[]): Uint8Array =>
  encodeImage({ kind: "CRYOSHIM_DETACHED", entries: entries.map((message) => ({ message })) });
const load = (...entries: Message[]): DetachedImage => new DetachedImage(directory(encoded(entries)));

const WHOLE: Message[] = [
  TREE,
  node(".", DIR),
  node("d", DIR, { xattrs: [{ name: latin("user.a"), value: latin("b") }] }),
  node("d/f", REG),
  node("g", REG, { link: 2 }),
  node("s", 0o120777, { target: latin("../../etc") }),
  { mount: { ...MOUNT, path: latin("/"), tree: 0 } },
  { mount: { ...MOUNT, id: 1, base: latin("/proc/driver") } },
  { mount: { ...MOUNT, id: 2, mark: latin("mark"), elsewhere: true } },
  { file: { ...FILE, path: latin("d/f") } },
  { file: { ...GONE, mount: 1 } },
  { file: { ...FILE, mount: 2, inode: latin("inode"), pipe_size: 4096, pipe: latin("waits") } },
  { file: { ...GONE, path: latin("d/s"), mode: 0o140755, bound: latin("/mnt/../s") } },
  { data: { node: 2, offset: 0n, data: latin("abcd") } },
  { data: { file: 1, offset: 6n, data: latin("end") } },
];

test("files, mounts, trees and contents are read as they were written", () => {
  const image = load(...WHOLE);
  expect(image.files.map(({ path }) => path)).toEqual(["d/f", ".", "a/b", "d/s"]);
  const [first, second, third, fourth] = image.files;
  expect(fourth).toMatchObject({ bound: "/mnt/../s", gone: { uid: 0 } });
  expect(first).toMatchObject({
    mount: { path: "/", tree: { bytes: 4096n } },
    open: new Map([[7, { flags: 2, pos: 3n }]]),
  });
  expect(second).toMatchObject({ mount: { base: "/proc/driver" }, gone: { size: 10n } });
  expect(third).toMatchObject({
    mount: { elsewhere: true, mark: Buffer.from("mark") },
    inode: Buffer.from("inode"),
    pipe: { size: 4096, data: Buffer.from("waits") },
  });
  const { nodes } = first!.mount.tree!;
  expect(nodes.map(({ path, link, target }) => [path, link, target])).toEqual([
    [".", undefined, undefined],
    ["d", undefined, undefined],
    ["d/f", undefined, undefined],
    ["g", 2, undefined],
    ["s", undefined, "../../etc"],
  ]);
  const read: [string, number][] = [];
  for (const of of [nodes[2]!, second!])
    image.contents(of, (bytes, at) => read.push([Buffer.from(bytes).toString(), at]));
  expect(read).toEqual([
    ["abcd", 0],
    ["end", 6],
  ]);
});

test.each<[string, Message[]]>([
  ["a mount whose path leads up", [{ mount: { ...MOUNT, path: latin("/mnt/../etc") } }]],
  ["a mount whose path is relative", [{ mount: { ...MOUNT, path: latin("mnt") } }]],
  ["a mount with attributes of no mount", [{ mount: { ...MOUNT, attributes: 16 } }]],
  ["a mount that is to be attached over something", [{ mount: { ...MOUNT, base: latin("/etc") } }]],
  ["a mount of a tree that is not there", [{ mount: { ...MOUNT, tree: 1 } }]],
  ["a file of a mount that is not there", [{ file: FILE }]],
  ["a file whose path leads up", [{ mount: MOUNT }, { file: { ...FILE, path: latin("a/../../b") } }]],
  ["a file whose path is absolute", [{ mount: MOUNT }, { file: { ...FILE, path: latin("/a") } }]],
  ["a file whose path has an end within", [{ mount: MOUNT }, { file: { ...FILE, path: latin("a\0b") } }]],
  ["a file with more descriptors than flags", [{ mount: MOUNT }, { file: { ...FILE, ids: [1, 2] } }]],
  ["a socket of nobody's", [{ mount: MOUNT }, { file: { ...FILE, bound: latin("/s") } }]],
  ["a socket with no name", [{ mount: MOUNT }, { file: { ...GONE, bound: latin("") } }]],
  ["a socket with a name that is too long", [{ mount: MOUNT }, { file: { ...GONE, bound: latin("/".repeat(109)) } }]],
  ["a nameless file of no size", [{ mount: MOUNT }, { file: { ...FILE, uid: 0, gid: 0 } }]],
  [
    "contents beyond the end",
    [{ mount: MOUNT }, { file: GONE }, { data: { file: 0, offset: 8n, data: latin("abc") } }],
  ],
  [
    "contents of a file with a name",
    [{ mount: MOUNT }, { file: FILE }, { data: { file: 0, offset: 0n, data: latin("a") } }],
  ],
  ["contents of nothing", [{ data: { offset: 0n, data: latin("a") } }]],
  ["a node before any tree", [node(".", DIR)]],
  ["a tree whose root is no directory", [TREE, node(".", REG)]],
  ["a node in a directory that is not there", [TREE, node(".", DIR), node("a/b", REG)]],
  ["a node in a file", [TREE, node(".", DIR), node("a", REG), node("a/b", REG)]],
  [
    "a node behind a symbolic link",
    [TREE, node(".", DIR), node("a", 0o120777, { target: latin("/etc") }), node("a/b", REG)],
  ],
  ["a node that leads up", [TREE, node(".", DIR), node("..", DIR)]],
  ["a node of an empty name", [TREE, node(".", DIR), node("a//b", REG)]],
  ["two nodes of one name", [TREE, node(".", DIR), node("a", REG), node("a", REG)]],
  ["a link of a directory", [TREE, node(".", DIR), node("a", REG, { link: 0 })]],
  ["a link of what comes after it", [TREE, node(".", DIR), node("a", REG, { link: 2 })]],
  ["a symbolic link to nowhere", [TREE, node(".", DIR), node("a", 0o120777)]],
  ["a mount that is anywhere", [{ mount: { ...MOUNT, elsewhere: true } }]],
  ["an entry of no kind", [{}]],
])("an image with %s is refused, and the entry named", (_, entries) => {
  expect(() => load(...entries)).toThrow(
    expect.objectContaining({ code: "ERR_IMAGE", message: expect.stringContaining(`entry ${entries.length - 1} of`) }),
  );
});

test("an image that is cut or changed anywhere is refused, or is one", () => {
  const whole = encoded(WHOLE);
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.boolean(), fc.nat(255), (at, cut, byte) => {
      const bytes = cut ? whole.slice(0, at) : Uint8Array.from(whole);
      if (!cut) bytes[at] = byte;
      const dir = mkdtempSync(join(tmpdir(), "cryoshim-test-"));
      try {
        writeFileSync(join(dir, "cryoshim-detached.img"), bytes);
        const image = new DetachedImage(dir);
        for (const file of image.files) expect(file.path.split("/")).not.toContain("..");
      } catch (error) {
        if (!(error instanceof CryoshimError)) throw error;
        expect(error.code).toBe("ERR_IMAGE");
      } finally {
        rmSync(dir, { recursive: true });
      }
    }),
    { numRuns: Number(process.env.FUZZ_RUNS ?? 500) },
  );
});

test.each([
  ["/a/b/s", { start: ".", directories: ["a", "a/b"], end: "a/b/s" }],
  ["/s", { start: ".", directories: [], end: "s" }],
  ["s", { start: ".", directories: [], end: "s" }],
  ["./a//s", { start: ".", directories: ["a"], end: "a/s" }],
  ["/../a/../../b/./s", { start: ".", directories: ["a", "b"], end: "b/s" }],
])("a socket of the name %s is bound below a directory", (name, passed) => {
  expect(passes(name)).toEqual(passed);
});

test("one whose relative name climbs begins as deep, in a directory of no such name", () => {
  const { start, directories, end } = passes("../../x/s");
  const [first, second] = start.split("/");
  expect(directories).toEqual([first, start, "x"]);
  expect([first!.length, second!.length, end]).toEqual([109, 109, "x/s"]);
});
