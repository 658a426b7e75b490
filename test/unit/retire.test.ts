// SPDX-License-Identifier: Apache-2.0
// One mount takes another's place under a program that uses it in every way and checks itself (test/workloads/retired.c).
import { type ChildProcess, spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RetireReport, retire } from "../../spfs/retire.js";

let dir = "";
let shell: ChildProcess;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-retire-"));
  for (const name of ["data", "mnt"]) mkdirSync(join(dir, name));
});
afterEach(() => {
  shell?.kill("SIGKILL");
  rmSync(dir, { recursive: true, force: true });
});

const until = async (what: string, holds: () => boolean): Promise<void> => {
  for (let tries = 0; !holds(); tries++) {
    if (tries > 400) throw new Error(`never: ${what}`);
    await sleep(25);
  }
};
const out = (): string => (existsSync(join(dir, "out")) ? readFileSync(join(dir, "out"), "utf8") : "");

/** Runs a shell in a mount namespace of its own, in which `mount` has been done; becomes the program. */
const start = async (mount: string, program: string): Promise<number> => {
  const script = `set -e; mount --make-rprivate /; ${mount}; exec ${program}`;
  shell = spawn("unshare", ["-m", "sh", "-c", script], { stdio: ["ignore", "inherit", "inherit"] });
  await until("ready", () => out().includes("ready") || shell.exitCode !== null);
  expect(shell.exitCode).toBeNull();
  return shell.pid!;
};
const retired = (): string => `build/workloads/retired ${dir}/mnt ${dir}/out ${dir}/go apart`;

const retireOf = async (
  root: number,
  real = join(dir, "data"),
  mountpoint = join(dir, "mnt"),
): Promise<RetireReport> => {
  const fd = openSync(real, 0o200000);
  try {
    return await retire({ root, mountpoint, real: fd });
  } finally {
    closeSync(fd);
  }
};

const mountinfo = (pid: number): string[][] =>
  readFileSync(`/proc/${pid}/mountinfo`, "utf8")
    .trim()
    .split("\n")
    .map((line) => line.split(" "));
const mountAt = (pid: number, path: string): string[] | undefined =>
  mountinfo(pid).findLast((words) => words[4] === path);
/** Descriptors, by number, that are on a mount. */
const onMount = (pid: number, id: string): string[] =>
  readdirSync(`/proc/${pid}/fdinfo`).filter((fd) =>
    new RegExp(`^mnt_id:\\s+${id}$`, "m").test(readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")),
  );

const finished = async (): Promise<void> => {
  const rounds = (): number => Number(/ok (\d+)\n(?!.*ok)/s.exec(out())?.[1] ?? 0);
  const before = rounds();
  await until("it goes on", () => rounds() > before + 30 || out().includes("BAD"));
  writeFileSync(join(dir, "go"), "");
  await until("done", () => out().includes("done") || shell.exitCode !== null);
  expect(
    out()
      .split("\n")
      .filter((line) => line.startsWith("BAD")),
  ).toEqual([]);
};

/** Not a word of the program's that anything was other than it must be, before and after. */
const expectRetired = async (pid: number, old: string, report: RetireReport): Promise<void> => {
  const now = mountAt(pid, `${dir}/mnt`)![0]!;
  expect(report.left).toEqual([]);
  expect(now).not.toBe(old);
  expect(onMount(pid, old)).toEqual([]);
  expect(onMount(pid, now).length).toBeGreaterThan(12);
  expect(mountinfo(pid).filter((words) => words[4] === `${dir}/mnt`)).toHaveLength(1);
};

test("a mount takes the place of another under a program that uses it in every way", async () => {
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt`, retired());
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  expect(onMount(pid, old).length).toBeGreaterThan(12);
  const report = await retireOf(pid);
  expect(report.mounts).toBe(1);
  await expectRetired(pid, old, report);
  await finished();
});

test("again and again, under load", async () => {
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt`, retired());
  for (let round = 0; round < 10; round++) {
    const old = mountAt(pid, `${dir}/mnt`)![0]!;
    await expectRetired(pid, old, await retireOf(pid));
  }
  await finished();
});

test("a mount that cannot be replaced stays, and all descriptors are as they were", async () => {
  // Mounts that come from another user namespace are locked.
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt`, `unshare -Urm ${retired()}`);
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  const before = onMount(pid, old);
  await expect(retireOf(pid)).rejects.toMatchObject({
    code: "ERR_RETIRE",
    why: expect.stringContaining("move_mount beneath"),
  });
  expect(mountAt(pid, `${dir}/mnt`)![0]).toBe(old);
  expect(onMount(pid, old)).toEqual(before);
  await finished();
});

test("a mount of a user namespace's own is replaced", async () => {
  const mount = `mount --bind ${dir}/data ${dir}/mnt`;
  const pid = await start("true", `unshare -Urm sh -c "${mount}; exec ${retired()}"`);
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  await expectRetired(pid, old, await retireOf(pid));
  await finished();
});

test("mounts that stand on it are taken along, and the attributes are the old one's", async () => {
  const script = `mount --bind ${dir}/data ${dir}/mnt; mount -o remount,bind,nosuid,noatime ${dir}/mnt; mkdir -p ${dir}/data/on/deep; mount -t tmpfs none ${dir}/mnt/on; mkdir ${dir}/mnt/on/top; mount -t tmpfs none ${dir}/mnt/on/top; mount --make-shared ${dir}/mnt`;
  const pid = await start(script, retired());
  const old = mountAt(pid, `${dir}/mnt`)!;
  const children = ["on", "on/top"].map((name) => mountAt(pid, `${dir}/mnt/${name}`)![0]);
  await expectRetired(pid, old[0]!, await retireOf(pid));
  const now = mountAt(pid, `${dir}/mnt`)!;
  expect(["on", "on/top"].map((name) => mountAt(pid, `${dir}/mnt/${name}`)![0])).toEqual(children);
  expect(mountAt(pid, `${dir}/mnt/on`)![1]).toBe(now[0]);
  expect(now[5]).toBe(old[5]);
  expect(now[6]).toMatch(/^shared:/);
  await finished();
});

test("where a parent propagates, the namespaces that have a copy get theirs", async () => {
  const script = `mkdir ${dir}/p; mount -t tmpfs none ${dir}/p; mount --make-shared ${dir}/p; mkdir ${dir}/p/mnt; mount --bind ${dir}/data ${dir}/p/mnt; rmdir ${dir}/mnt; ln -s p/mnt ${dir}/mnt; { unshare -m --propagation unchanged sh -c 'exec 5<${dir}/p/mnt; cd ${dir}/p/mnt; echo $$ >${dir}/other; exec sleep 1000' & }`;
  const pid = await start(script, retired());
  await until("the other one", () => existsSync(join(dir, "other")));
  const other = Number(readFileSync(join(dir, "other"), "utf8"));
  const point = `${dir}/p/mnt`;
  const [old, copy] = [mountAt(pid, point)![0]!, mountAt(other, point)![0]!];
  expect(copy).not.toBe(old);
  const report = await retireOf(pid, join(dir, "data"), point);
  expect(report).toMatchObject({ left: [], mounts: 2 });
  expect(onMount(pid, old)).toEqual([]);
  expect(onMount(other, copy)).toEqual([]);
  const now = mountAt(other, point)![0]!;
  expect(now).not.toBe(copy);
  expect(onMount(other, now)).toEqual(["5"]);
  for (const task of [pid, other]) expect(mountinfo(task).filter((words) => words[4] === point)).toHaveLength(1);
  process.kill(other, "SIGKILL");
  await finished();
});

test("a program that would die of what it does for us, if we were killed, is refused and left as it was", async () => {
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt`, retired().replace("apart", "strict"));
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  const before = onMount(pid, old);
  await expect(retireOf(pid)).rejects.toMatchObject({
    code: "ERR_RETIRE",
    why: expect.stringContaining("seccomp filter"),
  });
  expect(onMount(pid, old)).toEqual(before);
  await finished();
});

/** A Python program on the mount that goes on when `go` is there and then says that all is well. */
const python = (before: string, after: string): string => {
  const program = `import os, time, fcntl, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
os.chdir("${dir}/mnt")
${before}
open("${dir}/out", "w").write("ready\\n")
while not os.path.exists("${dir}/go"): time.sleep(0.01)
${after}
open("${dir}/out", "w").write("done\\n")
`;
  writeFileSync(join(dir, "program.py"), program);
  return `python3 ${dir}/program.py`;
};
const saysDone = async (): Promise<void> => {
  writeFileSync(join(dir, "go"), "");
  await until("done", () => out().includes("done") || shell.exitCode !== null);
  expect(out()).toContain("done");
};

test("thousands of files that are only read go in batches, each at its position", async () => {
  const pid = await start(
    `mount --bind ${dir}/data ${dir}/mnt`,
    python(
      `files = []
for i in range(5200):
    open(f"f{i}", "w").write(f"number {i}")
    files.append(open(f"f{i}", "rb", buffering=0))
    files[-1].seek(i % 5)`,
      `for i, f in enumerate(files): assert f.read() == f"number {i}".encode()[i % 5:]`,
    ),
  );
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  const report = await retireOf(pid);
  expect(report).toMatchObject({ mounts: 1, left: [], swapped: 5201 });
  expect(report.batches).toBeGreaterThan(2);
  expect(onMount(pid, old)).toEqual([]);
  await saysDone();
});

test("what is not there on the real side stays, is told, and works on; the rest goes", async () => {
  mkdirSync(join(dir, "real"));
  writeFileSync(join(dir, "real/here"), "of the real one");
  const pid = await start(
    `mount --bind ${dir}/data ${dir}/mnt`,
    python(
      `open("here", "w").write("x"); open("gone", "w").write("only here")
here, gone = open("here"), open("gone")`,
      `assert gone.read() == "only here"; assert here.read() == "of the real one"`,
    ),
  );
  const old = mountAt(pid, `${dir}/mnt`)![0]!;
  // Inode numbers of the two differ, as those of many FUSE file systems do.
  const report = await retireOf(pid, join(dir, "real"));
  expect(report.left).toEqual([
    { pid, what: expect.stringMatching(/^descriptor \d+: .*mnt\/gone$/), why: expect.stringContaining("No such file") },
  ]);
  expect(report.swapped).toBe(2);
  expect(onMount(pid, old)).toHaveLength(1);
  await saysDone();
});

test("inotify and files registered elsewhere are told", async () => {
  const watch = `import ctypes
libc = ctypes.CDLL(None); n = libc.inotify_init(); assert libc.inotify_add_watch(n, b".", 0x100) > 0`;
  const pid = await start(`mount -t tmpfs none ${dir}/mnt`, python(watch, "pass"));
  expect((await retireOf(pid)).left).toEqual([
    { pid, what: expect.stringMatching(/^descriptor \d+: inotify$/), why: expect.stringContaining("watches") },
  ]);
  await saysDone();
});

test("a task that somebody else traces is refused, and named", async () => {
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt`, python("f = open('f', 'w+')", "f.write('x')"));
  const script = `require("node-gyp-build")(process.cwd()).seize(${pid}); console.log("has it"); setTimeout(() => {}, 1e6)`;
  const tracer = spawn("node", ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  await new Promise((resolve) => tracer.stdout.once("data", resolve));
  await expect(retireOf(pid)).rejects.toMatchObject({
    code: "ERR_RETIRE",
    why: `task ${pid} is traced by process ${tracer.pid}`,
  });
  tracer.kill("SIGKILL");
  await saysDone();
});

/** A 32-bit program that writes "ready" and a newline again and again: an ELF header, a program header, code, data. */
const thirtyTwoBit = (): Buffer => {
  const [base, start] = [0x08048000, 84];
  const code = [
    ...[0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xba, 6, 0, 0, 0, 0xcd, 0x80], // write(1, text, 6)
    ...[0xb8, 162, 0, 0, 0, 0xbb, 0, 0, 0, 0, 0x31, 0xc9, 0xcd, 0x80], // nanosleep(time, NULL)
    ...[0xeb, 256 - 38],
  ];
  const text = base + start + code.length;
  const size = start + code.length + 14;
  const image = Buffer.alloc(size);
  Buffer.from([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]).copy(image);
  for (const [at, value] of [
    [16, 0x0003_0002], // EM_386, ET_EXEC
    [20, 1],
    [24, base + start],
    [28, 52],
    [40, 0x0020_0034],
    [44, 1],
  ] as const)
    image.writeUInt32LE(value, at);
  for (const [i, value] of [1, 0, base, base, size, size, 5, 4096].entries()) image.writeUInt32LE(value, 52 + 4 * i);
  Buffer.from(code).copy(image, start);
  image.writeUInt32LE(text, start + 11);
  image.writeUInt32LE(text + 6, start + 28);
  image.write("ready\n", start + code.length);
  image.writeUInt32LE(10_000_000, start + code.length + 10);
  return image;
};

test("a 32-bit program is refused, and runs on", async () => {
  writeFileSync(join(dir, "program"), thirtyTwoBit(), { mode: 0o755 });
  const pid = await start(`mount --bind ${dir}/data ${dir}/mnt; cd ${dir}/mnt`, `${dir}/program >${dir}/out`);
  await expect(retireOf(pid)).rejects.toMatchObject({
    code: "ERR_RETIRE",
    why: `task ${pid} is a 32-bit program`,
  });
  const before = out().length;
  await until("it runs on", () => out().length > before + 12);
});
