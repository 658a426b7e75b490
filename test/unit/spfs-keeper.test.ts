// SPDX-License-Identifier: Apache-2.0
// Who brings the backend back, and who restores: what becomes of a file system when they die.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { artefact } from "../../native/index.js";
import { listSpfs, type Spfs, type SpfsOptions, startSpfs } from "../../spfs/control.js";
import { encodeCommand, encodeRecord, OWN, TYPE } from "../../spfs/wire.js";
import { endTasks, makePlaces, recordAll, startTask, type Task, until } from "../support/spfs.js";

let places: ReturnType<typeof makePlaces>;
let spfs: Spfs;
let number = 0;

const beside = (name: string): string => join(places.backend, "..", name);
const at = (path: string): string => join(places.mountpoint, path);
const proxy = () => places.lend((fd) => spfs.proxy(fd, { gone: "error" }));
const log = (): string => readFileSync(`/run/cryoshim/spfs/${spfs.id}/log`, "utf8");
const ended = async (): Promise<boolean> => !listSpfs().includes(spfs.id);

/** A keeper: notes its pid, and stays until the file `end` is there, or the directory is not. */
const KEEPER =
  'echo $$ >>"$1/pids"; echo "a word of $SPFS_ID" >&2; while [ -d "$1" ] && [ ! -e "$1/end" ]; do sleep 0.05; done';
const keepers = (): number[] =>
  existsSync(beside("pids")) ? readFileSync(beside("pids"), "utf8").trim().split("\n").map(Number) : [];

const start = async (options: Partial<SpfsOptions> = {}): Promise<void> => {
  spfs = await startSpfs(
    {
      ...{ id: `keeper-${process.pid}-${++number}`, mountpoint: places.mountpoint, timeoutMs: 0 },
      ...{ passthrough: "off", onLoss: "stub", keeper: ["/bin/sh", "-c", KEEPER, "keeper", beside(".")] },
      ...options,
    },
    recordAll(places.backend),
  );
};

/** A process that says that it restores. */
const owner = async (flags: number): Promise<Task> => {
  const task = startTask();
  const command = encodeCommand(TYPE.OWN, 1, flags).toString("hex");
  await task.run(
    `s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect("/run/cryoshim/spfs/${spfs.id}/control")
s.send(bytes.fromhex("${command}")); r = len(s.recv(4096))`,
  );
  return task;
};
const kill = async (task: Task): Promise<void> => {
  task.kill();
  await task.ended;
};

beforeEach(() => {
  places = makePlaces({ file: "contents" });
});
afterEach(async () => {
  endTasks();
  writeFileSync(beside("end"), "");
  await spfs.stop().catch(() => {});
  places.remove();
});

test("a keeper that is killed, or ends before its work is done, is started again, and its words are in the log", async () => {
  await start();
  await spfs.stub();
  expect(keepers()).toEqual([]);
  await spfs.keep();
  await until(() => keepers().length === 1);
  process.kill(keepers()[0]!, "SIGKILL");
  await until(() => keepers().length === 2);
  writeFileSync(beside("end"), "");
  await until(() => keepers().length === 3);
  expect(log()).toMatch(/the keeper has ended before its work was done/);
  expect(log()).toContain(`a word of ${spfs.id}`);
  await proxy();
  await spfs.kept();
  const known = keepers().length;
  // It would have started some by now; one may have been on its way.
  await sleep(1500);
  expect(keepers().length - known).toBeLessThanOrEqual(1);
});

test("the keeper outlives a worker that is killed, and the next worker watches it", async () => {
  await start();
  await spfs.stub();
  await spfs.keep();
  await until(() => keepers().length === 1);
  const { pid } = await spfs.status();
  process.kill(pid, "SIGKILL");
  await until(async () => (await spfs.status()).pid !== pid);
  expect(keepers()).toHaveLength(1);
  process.kill(keepers()[0]!, "SIGKILL");
  await until(() => keepers().length === 2);
});

test("one that says that all is done, while the backend has been lost again, is not believed", async () => {
  await start();
  await spfs.stub();
  await spfs.keep();
  await until(() => keepers().length === 1);
  await spfs.kept();
  process.kill(keepers()[0]!, "SIGKILL");
  await until(() => keepers().length === 2);
});

test("a program that cannot be executed is told in the log", async () => {
  await start({ keeper: ["/nowhere/at-all"] });
  await spfs.keep();
  await until(() => /the keeper cannot be executed/.test(log()));
});

test("a restore that dies before its tasks run takes the file system with it, and the directory if that is ours", async () => {
  await start();
  const task = await owner(OWN.MOUNT | OWN.DIRECTORY);
  await kill(task);
  await until(ended);
  expect(existsSync(places.mountpoint)).toBe(false);
});

test("one that was prepared before stays for another restore", async () => {
  await start();
  const task = await owner(OWN.MOUNT | OWN.PREPARED);
  await kill(task);
  expect(await spfs.status()).toMatchObject({ phase: "restore" });
  await kill(await owner(OWN.MOUNT | OWN.PREPARED));
  expect(await spfs.status()).toMatchObject({ phase: "restore" });
});

test("a restore that dies when its tasks run already: nobody else sees the mount, and the keeper is started", async () => {
  await start();
  const reader = startTask();
  await reader.run(`fd = os.open("${at("file")}", os.O_RDONLY)`);
  const task = await owner(OWN.MOUNT | OWN.DIRECTORY);
  await spfs.stub();
  await kill(task);
  await until(() => keepers().length === 1);
  expect(existsSync(places.mountpoint)).toBe(false);
  await proxy();
  expect(await reader.run("r = os.pread(fd, 99, 0).decode()")).toBe("contents");
  await kill(reader);
  await until(ended);
});

test("a restore that dies when its tasks are dead already leaves nothing", async () => {
  await start();
  const task = await owner(OWN.MOUNT | OWN.DIRECTORY);
  await spfs.stub();
  await kill(task);
  await until(ended);
  expect(existsSync(places.mountpoint)).toBe(false);
});

test("a restore that is done may end", async () => {
  await start();
  const task = await owner(OWN.MOUNT);
  await spfs.stub();
  await spfs.keep();
  await kill(task);
  expect(await spfs.status()).toMatchObject({ phase: "stub" });
  expect(existsSync(at("file"))).toBe(true);
});

test("a directory that is its own is made with it, and goes with it: no starter can leave one behind", async () => {
  await start({ mountpoint: beside("made"), own: { unsee: "mount and directory" } });
  expect(readdirSync(beside("made"))).toEqual(["file"]);
  await spfs.stop();
  expect(existsSync(beside("made"))).toBe(false);
  const words = [`dir=${beside("state")}`, "id=a", `mountpoint=${beside("made")}`, "own=3", "owner=2147483647"];
  const input = encodeRecord(recordAll(places.backend));
  expect(spawnSync(artefact("spfs"), ["serve", ...words], { input, timeout: 20_000 }).status).toBe(1);
  expect(existsSync(beside("made"))).toBe(false);
});

test("one whose starter says that it restores, and is no more, is not started", async () => {
  const words = [`dir=${beside("state")}`, "id=a", `mountpoint=${places.mountpoint}`, "owner=2147483647"];
  await start();
  const input = encodeRecord(recordAll(places.backend));
  const run = () => spawnSync(artefact("spfs"), ["serve", ...words], { input, timeout: 20_000, encoding: "utf8" });
  const { status, stderr } = run();
  expect({ status, stderr }).toEqual({ status: 1, stderr: "3\towner\n" });
  expect(existsSync(beside("state"))).toBe(false);
  // What is another's stays.
  mkdirSync(beside("state"));
  expect(run().stderr).toBe("17\tstate directory\n");
  expect(existsSync(beside("state"))).toBe(true);
});

test("one whose starter dies while it starts is over at once, whatever the kernel has asked by then", async () => {
  await start();
  const dead = await startTask().run("r = os.fork()\nif r == 0: os._exit(0)");
  const input = encodeRecord(recordAll(places.backend));
  for (let i = 0; i < 4; i++) {
    mkdirSync(beside("another"), { recursive: true });
    const words = [`dir=${beside("state")}`, "id=a", `mountpoint=${beside("another")}`, "own=3", `owner=${dead}`];
    const began = Date.now();
    spawnSync(artefact("spfs"), ["serve", ...words], { input, timeout: 20_000 });
    // Ten seconds are what the kernel is given.
    expect(Date.now() - began).toBeLessThan(8000);
    await until(() => !existsSync(beside("state")) && !existsSync(beside("another")));
  }
});

test("a starter that dies before it has told the whole record leaves nothing", async () => {
  await start();
  const words = [`dir=${beside("state")}`, "id=a", `mountpoint=${places.mountpoint}`];
  const input = encodeRecord(recordAll(places.backend)).subarray(0, -1);
  const { status } = spawnSync(artefact("spfs"), ["serve", ...words], { input, timeout: 20_000 });
  expect(status).toBe(1);
  expect(existsSync(beside("state"))).toBe(false);
});
