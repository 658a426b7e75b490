// SPDX-License-Identifier: Apache-2.0
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { commonBase, NoRemoteMounts, withParents } from "../../shim/carriers/remote-dump.js";
import { type RemoteFs, readRemote, writeRemote } from "../../shim/carriers/remote-image.js";
import { look } from "../../shim/carriers/remote-look.js";
import { isRemote, locksAtServer, matches, publicOptions, within } from "../../shim/carriers/remote-mounts.js";
import { givenMounts } from "../../shim/session/request.js";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-remote-"));
});
afterEach(() => rmSync(dir, { recursive: true }));

const FS: RemoteFs = {
  type: "nfs4",
  source: "nas:/ex\xffport",
  options: "rw,vers=4.2",
  base: "/",
  dev: "0:53",
  mounts: [{ mntId: 7, key: "cryoshim-remote-0", ours: true, root: "/", point: "/mnt", flags: "rw,nodev" }],
  nodes: [
    {
      path: "a\xff/link",
      ino: 2n ** 63n,
      ...{ mode: 0o120777, nlink: 1, uid: 4294967295, gid: 0, rdev: 0, size: 3n },
      ...{ atime: -1n, mtime: 1_000_000_001n, ctime: 0n },
      target: "b\xfec",
    },
  ],
};

test("the record comes back as it was, whatever bytes its names have", () => {
  writeRemote(dir, [FS]);
  expect(readRemote(dir)).toEqual([FS]);
});

test.each([
  ["a path that leads out", { nodes: [{ ...FS.nodes[0]!, path: "a/../../b" }] }],
  ["an absolute path", { nodes: [{ ...FS.nodes[0]!, path: "/etc" }] }],
  ["a key that would end early", { mounts: [{ ...FS.mounts[0]!, key: "a]:/etc" }] }],
])("a record with %s is refused", (_, wrong) => {
  writeRemote(dir, [{ ...FS, ...wrong }]);
  expect(() => readRemote(dir)).toThrow(/cannot use entry \d of image/);
});

test("secrets are not recorded, and what means nothing elsewhere is not", () => {
  expect(publicOptions("rw,username=a,password=b,pass=c,vers=3.1.1,secret=d,fd=3,clientaddr=10.0.0.1")).toBe(
    "rw,username=a,vers=3.1.1",
  );
});

test("what is remote, and what is the host's own view of itself", () => {
  expect(["nfs", "nfs4", "fuse", "fuse.sshfs", "cifs", "9p", "ceph"].every(isRemote)).toBe(true);
  expect(["ext4", "fusectl", "fuse.lxcfs", "overlay", "tmpfs"].some(isRemote)).toBe(false);
});

test.each([
  ["nfs4", "rw,vers=4.2,local_lock=none", true],
  ["nfs", "rw,vers=3,local_lock=all", false],
  ["nfs", "rw,nolock", false],
  ["cifs", "rw,vers=3.1.1", true],
  ["cifs", "rw,nobrl", false],
  ["fuse.sshfs", "rw", false],
])("whether locks of %s with %s are its server's", (type, options, expected) => {
  expect(locksAtServer({ type, options })).toBe(expected);
});

test("a mapping's source names whole sources, and a star stands for anything", () => {
  expect(matches("nas:/export/*", "nas:/export/a/b")).toBe(true);
  expect(matches("nas:/export", "nas:/export/a")).toBe(false);
  expect(matches("n.s:*", "nas:/")).toBe(false);
});

test("paths below others", () => {
  expect(within("/a", "/ab")).toBeUndefined();
  expect(within("/", "/ab")).toBe("ab");
  expect(commonBase(["/a/b", "/a/bc"])).toBe("/a");
  expect(withParents("a/b")).toEqual(["", "a", "a/b"]);
});

test("the mounts that a caller names, in either way", () => {
  const given = givenMounts(["mnt[/a]:b", "mnt[]:sm", "net[4]:x"], [{ key: "/c", val: "/d" }]);
  expect([...given]).toEqual([
    ["/c", "/d"],
    ["/a", "b"],
  ]);
});

test("files are looked at by another process: no link is followed, and nothing outside is reached", async () => {
  writeFileSync(join(dir, "file"), "123");
  symlinkSync("/etc", join(dir, "out"));
  const { top, files } = await look(
    { base: dir, top: "", files: ["file", "out", "out/passwd", "../etc/passwd", "none"] },
    5000,
  );
  expect(top).toMatchObject({ mode: expect.any(Number) });
  expect(files[0]).toMatchObject({ size: 3n, mode: 0o100644 });
  expect(files[1]).toMatchObject({ target: "/etc" });
  expect(files.slice(2)).toEqual(["ELOOP", "EXDEV", "ENOENT"]);
  expect(readFileSync(join(dir, "file"), "utf8")).toBe("123");
});

test("that a tree has no remote mounts holds until something is mounted, in whichever of its namespaces", async () => {
  // What other tests have mounted meanwhile does not count there.
  const script = 'umount -alt fuse,fuse.spfs; echo; read x; mount -t tmpfs none "$1"; echo; read x';
  const child = spawn("unshare", ["--mount", "sh", "-c", script, "-", dir]);
  try {
    await once(child.stdout, "data");
    const none = NoRemoteMounts.of(child.pid!)!;
    try {
      expect([none.still, none.still]).toEqual([true, true]);
      child.stdin.write("\n");
      await once(child.stdout, "data");
      expect(none.still).toBe(false);
    } finally {
      none.close();
    }
  } finally {
    child.kill("SIGKILL");
    await once(child, "close");
  }
});
