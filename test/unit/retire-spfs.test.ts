// SPDX-License-Identifier: Apache-2.0
// The stub-proxy file system retires: all phases from the restore on, and a program that uses the proxy in every way.
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { type Spfs, startSpfs } from "../../spfs/control.js";
import { retire } from "../../spfs/retire.js";
import { makePlaces, recordAll } from "../support/spfs.js";

let spfs: Spfs | undefined;
let task: ChildProcess | undefined;
let places: ReturnType<typeof makePlaces>;
let number = 0;

afterEach(async () => {
  task?.kill("SIGKILL");
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

const until = async (what: string, holds: () => boolean): Promise<void> => {
  for (let tries = 0; !holds(); tries++) {
    if (tries > 400) throw new Error(`never: ${what}`);
    await sleep(25);
  }
};
const start = async (): Promise<Spfs> => {
  const options = { mountpoint: places.mountpoint, timeoutMs: 0, passthrough: "auto", onLoss: "stub" } as const;
  spfs = await startSpfs({ ...options, id: `retire-${process.pid}-${++number}` }, recordAll(places.backend));
  return spfs;
};
const toProxy = (): Promise<unknown> => places.lend((fd) => spfs!.proxy(fd, { gone: "error" }));
const base = (): string => join(places.mountpoint, "..");
const out = (): string => (existsSync(join(base(), "out")) ? readFileSync(join(base(), "out"), "utf8") : "");
const run = (...command: string[]): number => {
  task = spawn("unshare", ["-m", ...command], { stdio: ["ignore", "inherit", "inherit"] });
  return task.pid!;
};
const retireFrom = (root: number) => places.lend((real) => retire({ root, mountpoint: places.mountpoint, real }));
/** Ends the proxy: whoever still needed it would see it now. */
const endProxy = async (): Promise<void> => {
  await spfs!.stop();
  spfs = undefined;
};

test("a program that uses the proxy in every way does not notice that it goes", async () => {
  places = makePlaces();
  mkdirSync(join(places.backend, "d"));
  await start();
  await spfs!.stub();
  await toProxy();
  const pid = run(
    `${process.cwd()}/build/workloads/retired`,
    join(places.mountpoint, "d"),
    join(base(), "out"),
    join(base(), "go"),
    "apart",
  );
  await until("ready", () => out().includes("ready") || task!.exitCode !== null);
  const report = await retireFrom(pid);
  expect(report).toMatchObject({ mounts: 1, left: [] });
  await endProxy();
  const rounds = (): number => out().match(/^ok/gm)?.length ?? 0;
  const before = rounds();
  await until("it goes on", () => rounds() > before + 5 || out().includes("BAD"));
  writeFileSync(join(base(), "go"), "");
  await until("done", () => out().includes("done") || task!.exitCode !== null);
  expect([
    ...new Set(
      out()
        .split("\n")
        .filter((line) => line.startsWith("BAD")),
    ),
  ]).toEqual([]);
});

test("what was opened in restore is on the real mount after stub, proxy and retire", async () => {
  places = makePlaces({ file: "contents of the file", other: "x".repeat(9000), log: "before\n" });
  await start();
  const program = `
import mmap, os, time
os.chdir("${places.mountpoint}")
f = os.open("file", os.O_RDWR); os.lseek(f, 9, os.SEEK_SET)
log = os.open("log", os.O_WRONLY | os.O_APPEND)
o = os.open("other", os.O_RDONLY)
m = mmap.mmap(o, 9000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
m[0:4096] = b"o" * 4096
os.close(o)
open("${base()}/out", "w").write("ready")
while not os.path.exists("${base()}/go"): time.sleep(0.02)
assert os.read(f, 20) == b"of the file"
os.pwrite(f, b"C", 0)
os.write(log, b"after\\n")
assert m[0:4096] == b"o" * 4096 and m[4096:9000] == b"x" * 4904
assert os.stat("log").st_size == 13
open("${base()}/out", "w").write("all is there")
`;
  const pid = run("python3", "-c", program);
  await until("ready", () => out() === "ready" || task!.exitCode !== null);
  await spfs!.stub();
  await toProxy();
  expect(await retireFrom(pid)).toMatchObject({ mounts: 1, left: [] });
  await endProxy();
  writeFileSync(join(base(), "go"), "");
  await until("it has looked", () => task!.exitCode !== null);
  expect(out()).toBe("all is there");
  expect(readFileSync(join(places.backend, "file"), "utf8")).toBe("Contents of the file");
  expect(readFileSync(join(places.backend, "log"), "utf8")).toBe("before\nafter\n");
});

test("in stub, where a task waits and cannot be stopped, it is refused, and the task goes on", async () => {
  places = makePlaces({ file: "contents" });
  await start();
  const pid = run(
    "python3",
    "-c",
    `
import os, time
f = os.open("${places.mountpoint}/file", os.O_RDWR)
open("${base()}/out", "w").write("ready")
while not os.path.exists("${base()}/go"): time.sleep(0.02)
assert os.read(f, 20) == b"contents"
open("${base()}/out", "w").write("all is there")
`,
  );
  await until("ready", () => out() === "ready");
  await spfs!.stub();
  writeFileSync(join(base(), "go"), "");
  while ((await spfs!.status()).blocked === 0) await sleep(20);
  await expect(retireFrom(pid)).rejects.toMatchObject({
    code: "ERR_RETIRE",
    why: expect.stringMatching(/waits in the kernel/),
  });
  await toProxy();
  // Node takes a stop of its own child for its end.
  await until("it has looked", () => out() === "all is there");
  expect(out()).toBe("all is there");
});
