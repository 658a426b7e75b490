// SPDX-License-Identifier: Apache-2.0
//
// What npm pack makes is installed where there is Node and CRIU but nothing that compiles, without a network.
import { execFile, execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";

const tree = fileURLToPath(new URL("../..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "cryoshim-pack-"));
const run = promisify(execFile);

/** A copy of the tree to pack in: packing rebuilds everything, and other tests use what is built here. */
function copyTree(): string {
  const copy = join(scratch, "tree");
  const made = new Set([".git", "build", "dist", "prebuilds", "coverage"].map((name) => join(tree, name)));
  cpSync(tree, copy, { recursive: true, verbatimSymlinks: true, filter: (source) => !made.has(source) });
  return copy;
}

/** npm is JavaScript: the one of this machine runs in the lab, whose own Debian has none. */
function copyNpm(): void {
  const program = realpathSync(execFileSync("sh", ["-c", "command -v npm"]).toString().trim());
  cpSync(dirname(dirname(program)), join(scratch, "npm"), { recursive: true, dereference: true });
}

let installed: Record<string, string> = {};

beforeAll(async () => {
  const copy = copyTree();
  const { stdout } = await run("npm", ["pack", "--silent", "--pack-destination", scratch], { cwd: copy });
  symlinkSync(stdout.trim().split("\n").at(-1) ?? "", join(scratch, "cryoshim.tgz"));
  rmSync(copy, { recursive: true });
  copyNpm();
  cpSync(fileURLToPath(new URL("./install.sh", import.meta.url)), join(scratch, "install.sh"));
  const environment = { ...process.env, LAB_SCRATCH: scratch, LAB_CWD: "/scratch" };
  await run(join(tree, "test/lab/lab"), ["--bare", "bash", "/scratch/install.sh"], { env: environment });
  installed = Object.fromEntries(
    readFileSync(join(scratch, "result"), "utf8")
      .split("\0")
      .filter(Boolean)
      .map((part) => [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1).trim()]),
  );
});

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

test("the system it is installed in has no compiler, no headers, no make and no working tree", () => {
  expect(installed.compilers).toBe("");
  expect(installed.headers).toBe("");
  expect(installed.tree).toBe("");
});

test("cryoshim/crit can be imported and has types, and a link called crit is the command of that name", () => {
  expect(installed.library).toBe("sh true");
  expect(installed.crit).toMatch(/^\{"magic":"PSTREE","count":\d+\}$/);
  expect(installed.files?.split("\n")).toEqual(expect.arrayContaining(["dist/crit.js", "dist/types/crit/index.d.ts"]));
});

test("npm installs it offline and nothing else beside it", () => {
  expect(installed.packages?.split("\n")).toEqual(["cryoshim"]);
});

test("the addon, the launcher, the plugin and the BPF programs are there", () => {
  expect(installed.programs?.split("\n")).toEqual([
    "644 cork.bpf.o",
    "755 criu",
    "755 cryoshim.node",
    "644 direct.bpf.o",
    "755 engine-plugin.so",
    "644 lock.bpf.o",
    "644 mount.bpf.o",
    "644 pages.bpf.o",
    "755 spfs",
    "644 uring-inflight.bpf.o",
    "644 uring.bpf.o",
    "644 xray.bpf.o",
  ]);
});

test("it carries its licences, the sources of what is GPL, and those of what it bundles", () => {
  const files = installed.files?.split("\n") ?? [];
  expect(files).toEqual(
    expect.arrayContaining(["LICENSE", "LICENSES/GPL-2.0-only.txt", "LICENSES/Apache-2.0.txt", "dist/THIRD-PARTY.md"]),
  );
  expect(files.filter((file) => /^native\/plugin\/.*\.c$/.test(file))).not.toEqual([]);
});

test("cryoshim install puts the launcher before criu, and uninstall leaves the distribution's criu in its place", () => {
  expect(installed["criu-installed"]).toMatch(/^\/usr\/local\/sbin\/criu$/);
  expect(installed["criu-uninstalled"]).toBe("/usr/sbin/criu");
});

test("hooks are put in place, work with podman, and are gone after uninstall", () => {
  expect(installed.hooks?.split("\n").map((path) => path.replace(/.*\//, ""))).toEqual([
    "cryoshim.conf",
    "create-container",
    "create-runtime",
    "lxc",
    "poststop",
    "50-cryoshim-create-container.json",
    "50-cryoshim-create-runtime.json",
    "50-cryoshim.json",
  ]);
  expect(JSON.parse(installed["taken-down"] ?? "")).toMatchObject({ annotations: { "io.cryoshim.log.level": "warn" } });
  expect(installed["hooks-left"]).toBe("");
});

test("criu --version says the same through it", () => {
  expect(installed.version).toBe(installed["version-bare"]);
  expect(installed.version).toMatch(/^Version: \d/);
});

test("doctor finds the engine", () => {
  expect(JSON.parse(installed.doctor ?? "")).toBeTypeOf("object");
  expect(installed.doctor).toContain("/usr/sbin/criu");
});

test("the network lock's programs load and are used", () => {
  expect(installed.doctor).toContain("BPF netfilter links");
  expect(installed.record).toContain('"networkLock":{"extent":"netns"');
});

test("podman checkpoints and restores a container through it", () => {
  expect(installed.before).toMatch(/^\d+$/);
  expect(installed.checkpointed).toBe("exited");
  expect(installed.restored).toBe("running");
  expect(Number(installed.after)).toBeGreaterThan(Number(installed.before));
  expect(installed.plugin).toContain('Plugin "cryoshim"');
});
