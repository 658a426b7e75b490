// SPDX-License-Identifier: Apache-2.0
// Which directory is taken for the real file system. tmpfs stands for a remote one: what counts is its type and source.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { DEFAULTS } from "../../shim/engine/launch-file.js";
import { newId } from "../../shim/id.js";
import { closeBackend, findBackend } from "../../shim/remote/backend.js";
import type { Remembered } from "../../shim/remote/state.js";

let dir: string;
let source: string;
const umount = (): void => {
  execFileSync("umount", ["-l", dir], { stdio: "ignore", timeout: 10_000 });
};
const mount = (): void => {
  execFileSync("mount", ["-t", "tmpfs", source, dir], { timeout: 10_000 });
  writeFileSync(join(dir, "file"), "");
};

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-backend-"));
  source = `of-a-test-${newId()}`;
});
afterEach(() => {
  try {
    umount();
  } catch {
    // It is unmounted.
  }
  rmSync(dir, { recursive: true });
});

const remembered = (more: Partial<Remembered> = {}): Remembered => ({
  ...{ version: 1, id: newId(), paths: [], mountpoint: "/nowhere", own: false, since: "" },
  fs: { type: "tmpfs", source, options: "rw", base: "/", dev: "0:1", mounts: [] },
  treatment: {
    ...{ policy: "auto", timeoutMs: 0, passthrough: "auto", onLoss: "block", retire: "auto", gone: "fail" },
    map: [],
  },
  ...more,
});
const settings = (mount: (typeof DEFAULTS.remote)["mount"] = []) => ({ ...DEFAULTS.remote, mount });

const found = async (of: Remembered, now = settings()): Promise<string[]> => {
  const backend = await findBackend(of, now);
  try {
    return readdirSync(`/proc/self/fd/${backend.fd}`);
  } finally {
    closeBackend(backend);
  }
};

test("it is found where it is mounted, and not before", async () => {
  await expect(found(remembered())).rejects.toThrow("it is not mounted on this host");
  mount();
  expect(await found(remembered())).toEqual(["file"]);
});

test("a mount that goes while it is looked at is not taken for the directory below it", async () => {
  mount();
  const finding = found(remembered());
  // The list of mounts has been read, nothing has been opened.
  umount();
  await expect(finding).rejects.toThrow(/unmounted|cannot be looked at/);
});

test("where a runtime binds from only what is on a server is it", async () => {
  mount();
  await expect(found(remembered({ paths: [dir], fs: { ...remembered().fs, type: "nfs4" } }))).rejects.toThrow(
    "is not on a server",
  );
});

test("a directory that is named for it may be this host's own, but an empty one is a mount that is yet to come", async () => {
  const named = settings([{ source, path: dir }]);
  await expect(found(remembered(), named)).rejects.toThrow("is empty, and nothing is mounted there");
  mkdirSync(join(dir, "directory"));
  expect(await found(remembered(), named)).toEqual(["directory"]);
});
