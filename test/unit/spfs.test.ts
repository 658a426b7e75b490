// SPDX-License-Identifier: Apache-2.0
// The stub-proxy file system on the kernel's own FUSE, with a directory as backend.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { closeFd, receiveMessage, sendMessage, seqpacketConnect } from "../../native/index.js";
import { type Remembered, recall, remember, SPFS_STATE } from "../../shim/remote/state.js";
import { listSpfs, openSpfs, type RecordedNode, type Spfs, type SpfsOptions, startSpfs } from "../../spfs/control.js";
import { encodeCommand, OFFSET, TYPE } from "../../spfs/wire.js";
import { endTasks, isPending, makePlaces, recordAll, recordOf, startTask, until } from "../support/spfs.js";

let spfs: Spfs | undefined;
let places: ReturnType<typeof makePlaces>;
let number = 0;

const start = async (options: Partial<SpfsOptions> = {}, nodes: Iterable<RecordedNode> = recordAll(places.backend)) => {
  spfs = await startSpfs(
    {
      id: `unit-${process.pid}-${++number}`,
      mountpoint: places.mountpoint,
      timeoutMs: 0,
      passthrough: "auto",
      onLoss: "stub",
      ...options,
    },
    nodes,
  );
  return spfs;
};
const proxy = (gone: "error" | "stub" = "error") => places.lend((fd) => spfs!.proxy(fd, { gone, sameInodes: true }));
const at = (path: string): string => join(places.mountpoint, path);
const behind = (path: string): string => join(places.backend, path);

afterEach(async () => {
  endTasks();
  // A worker that died would have been replaced without anyone seeing it.
  if (spfs !== undefined) expect((await spfs.status()).restarts).toBe(0);
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

test("in restore it shows what the checkpoint recorded: types, modes, sizes, numbers, links; contents are zeros", async () => {
  places = makePlaces({ "d/file": "contents", other: "x" });
  symlinkSync("d/file", behind("link"));
  utimesSync(behind("d/file"), 1_000_000_000, 1_100_000_000);
  await start();
  expect(readdirSync(places.mountpoint).sort()).toEqual(["d", "link", "other"]);
  expect(readlinkSync(at("link"))).toBe("d/file");
  expect(readFileSync(at("link"))).toEqual(Buffer.alloc(8));
  for (const path of ["", "d", "d/file", "other", "link"]) {
    const [here, there] = [lstatSync(at(path)), lstatSync(behind(path))];
    for (const field of ["ino", "mode", "nlink", "size", "uid", "gid", "mtimeMs"] as const)
      expect(here[field], `${field} of ${path}`).toBe(there[field]);
  }
  expect(existsSync(at("unknown"))).toBe(false);
  expect((await spfs!.status()).phase).toBe("restore");
});

test("what CRIU makes and takes away in restore stays in the file system: ghosts, links, directories, fifos, sockets", async () => {
  places = makePlaces({ "d/file": "contents" });
  await start();
  const task = startTask();
  // criu/files-reg.c: a ghost is made, opened and unlinked; link_remap.N is linked to the old name, opened, unlinked.
  await task.run(`
ghost = os.open("${at("d/x.cr.1.ghost")}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
os.write(ghost, b"of the ghost")
os.unlink("${at("d/x.cr.1.ghost")}")
os.link("${at("d/file")}", "${at("d/back")}")
linked = os.open("${at("d/back")}", os.O_RDONLY)
os.unlink("${at("d/back")}")
os.mkdir("${at("new")}"); os.mkfifo("${at("new/fifo")}"); os.chmod("${at("new/fifo")}", 0o622)
s = socket.socket(socket.AF_UNIX); s.bind("${at("new/sock")}"); s.listen()
os.rename("${at("new/fifo")}", "${at("new/renamed")}")
`);
  expect(
    await task.run("r = [os.pread(ghost, 100, 0).decode(), os.fstat(ghost).st_nlink, os.fstat(ghost).st_size]"),
  ).toEqual(["of the ghost", 0, 12]);
  expect(readdirSync(at("d"))).toEqual(["file"]);
  expect(readdirSync(at("new")).sort()).toEqual(["renamed", "sock"]);
  expect(statSync(at("new/renamed")).mode & 0o7777).toBe(0o622);
  expect(readdirSync(places.backend)).toEqual(["d"]);

  await spfs!.stub();
  expect((await proxy()).differs).toEqual([]);
  expect(await task.run("r = [os.pread(ghost, 100, 0).decode(), os.pread(linked, 100, 0).decode()]")).toEqual([
    "of the ghost",
    "contents",
  ]);
  await task.run(`c = socket.socket(socket.AF_UNIX); c.connect("${at("new/sock")}")`);
  expect(statSync(behind("new/renamed")).mode & 0o7777).toBe(0o622);
  expect(lstatSync(behind("new/sock")).isSocket()).toBe(true);
  expect(readdirSync(behind("d"))).toEqual(["file"]);
});

test("a recorded name that is removed in restore is removed at the backend once its file is open there", async () => {
  places = makePlaces({ "link_remap.1": "silly", keep: "x" });
  await start();
  const task = startTask();
  await task.run(`
os.link("${at("link_remap.1")}", "${at(".nfs01")}")
fd = os.open("${at(".nfs01")}", os.O_RDWR)
os.unlink("${at(".nfs01")}"); os.unlink("${at("link_remap.1")}")
`);
  await spfs!.stub();
  await proxy();
  expect(readdirSync(places.backend)).toEqual(["keep"]);
  expect(await task.run("r = [os.read(fd, 10).decode(), os.fstat(fd).st_nlink]")).toEqual(["silly", 0]);
});

test("no zero of restore's stays in a mapping: neither in clean private pages nor in shared ones", async () => {
  places = makePlaces({ file: "a".repeat(4096) + "b".repeat(4096) + "c".repeat(4096) });
  await start();
  const task = startTask();
  await task.run(`
fd = os.open("${at("file")}", os.O_RDWR)
private = mmap.mmap(fd, 12288, mmap.MAP_PRIVATE); shared = mmap.mmap(fd, 12288, mmap.MAP_SHARED)
seen = [private[0], shared[4096]]
private[8192] = 0x5a
`);
  expect(await task.run("r = seen")).toEqual([0, 0]);
  await spfs!.stub();
  await proxy();
  expect(
    await task.run(
      "r = [private[0:2].decode(), private[4096:4098].decode(), list(private[8192:8194]), shared[8192:8194].decode()]",
    ),
  ).toEqual(["aa", "bb", [0x5a, 0], "cc"]);
});

test("in stub the record's metadata is told, everything else waits and goes on with the backend's contents", async () => {
  places = makePlaces({ "d/file": "contents" });
  await start();
  const [reader, opener, lister] = [startTask(), startTask(), startTask()];
  await reader.run(`fd = os.open("${at("d/file")}", os.O_RDONLY); os.lseek(fd, 3, 0)`);
  await spfs!.stub();
  const read = reader.run("r = os.read(fd, 100).decode()");
  const open = opener.run(`r = open("${at("d/file")}").read()`);
  const list = lister.run(`r = os.listdir("${at("d")}")`);
  await until(async () => (await spfs!.status()).blocked === 3);
  expect(await isPending(Promise.race([read, open, list]))).toBe(true);
  expect(lstatSync(at("d/file")).size).toBe(8);
  expect(await spfs!.status()).toMatchObject({ phase: "stub", blocked: 3, open: 1 });
  expect(await proxy()).toEqual({ reopened: 1, differs: [] });
  expect([await read, await open, await list]).toEqual(["tents", "contents", ["file"]]);
  expect(await spfs!.status()).toMatchObject({ phase: "proxy", blocked: 0 });
});

test("a task that waits in stub dies of SIGKILL and of a signal that kills; one that it handles does not end the wait", async () => {
  places = makePlaces({ 0: "contents", 1: "contents", 2: "contents" });
  await start();
  const tasks = [startTask(), startTask(), startTask()];
  for (const [i, task] of tasks.entries()) await task.run(`fd = os.open("${at(`${i}`)}", os.O_RDONLY)`);
  await tasks[2]!.run(
    "import signal; count = [0]\ndef handle(*_): count[0] += 1\nsignal.signal(signal.SIGUSR1, handle)",
  );
  await spfs!.stub();
  const [, , third] = tasks.map((task) => task.run("r = os.read(fd, 100).decode()").catch(String));
  await until(async () => (await spfs!.status()).blocked === 3);
  tasks[0]!.kill("SIGKILL");
  tasks[1]!.kill("SIGTERM");
  tasks[2]!.kill("SIGUSR1");
  expect(await tasks[0]!.ended).toBe("SIGKILL");
  expect(await tasks[1]!.ended).toBe("SIGTERM");
  expect(await isPending(third!, 500)).toBe(true);
  expect((await spfs!.status()).blocked).toBe(1);
  await proxy();
  expect(await third).toBe("contents");
  expect(await tasks[2]!.run("r = count[0]")).toBe(1);
  // Killed after a signal that it handles: nobody tells of the second one.
  await spfs!.stub();
  const again = tasks[2]!.run(`open("${at("0")}")`).catch(String);
  await until(async () => (await spfs!.status()).blocked > 0);
  tasks[2]!.kill("SIGUSR1");
  expect(await isPending(again, 300)).toBe(true);
  tasks[2]!.kill("SIGKILL");
  expect(await tasks[2]!.ended).toBe("SIGKILL");
});

test("with a time limit what waits in stub gets EIO", async () => {
  places = makePlaces({ file: "contents" });
  await start({ timeoutMs: 200 });
  const task = startTask();
  await task.run(`fd = os.open("${at("file")}", os.O_RDONLY)`);
  await spfs!.stub();
  await expect(task.run("os.read(fd, 1)")).rejects.toThrow("EIO");
  await proxy();
  expect(await task.run("r = os.read(fd, 100).decode()")).toBe("contents");
});

test("nobody is busy while tasks wait in stub, also after a signal and with a time limit", async () => {
  places = makePlaces({ file: "contents" });
  await start({ timeoutMs: 60_000 });
  const task = startTask();
  await task.run(`
import signal; signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open("${at("file")}", os.O_RDONLY)`);
  await spfs!.stub();
  const reads = task.run(`
threads = [threading.Thread(target=os.pread, args=(fd, 1, 0)) for _ in range(40)]
for thread in threads: thread.start()
r = len(os.read(fd, 100))`);
  await until(async () => (await spfs!.status()).blocked >= 1);
  task.kill("SIGUSR1");
  const { pid, holder } = await spfs!.status();
  // Hundredths of a second of a processor's.
  const spent = (): number =>
    [pid, holder]
      .map((each) => readFileSync(`/proc/${each}/stat`, "latin1").split(") ")[1]!.split(" "))
      .reduce((sum, fields) => sum + Number(fields[11]) + Number(fields[12]), 0);
  const before = spent();
  expect(await isPending(reads, 2000)).toBe(true);
  expect(spent() - before).toBeLessThan(10);
  await proxy();
  expect(await reads).toBe(8);
});

test("what has changed at the backend is reported, and the policy decides on what is gone", async () => {
  places = makePlaces({ gone: "1", grown: "1", cut: "123", touched: "1", turned: "1", swapped: "1", same: "1" });
  await start();
  const task = startTask();
  await task.run(`fds = [os.open("${places.mountpoint}/" + n, os.O_RDONLY) for n in ("gone", "grown")]`);
  await spfs!.stub();
  renameSync(behind("gone"), behind("elsewhere"));
  writeFileSync(behind("grown"), "12");
  writeFileSync(behind("cut"), "1");
  utimesSync(behind("touched"), 1, 1);
  const { atime, mtime } = statSync(behind("swapped"));
  writeFileSync(behind("other"), "2");
  utimesSync(behind("other"), atime, mtime);
  renameSync(behind("other"), behind("swapped"));
  rmSync(behind("turned"));
  mkdirSync(behind("turned"));
  const sorted = (differs: { path: Uint8Array; what: string }[]) =>
    Object.fromEntries(differs.map(({ path, what }) => [Buffer.from(path).toString(), what]));
  expect(sorted((await proxy("error")).differs)).toEqual({
    gone: "gone",
    grown: "grown",
    cut: "size",
    touched: "mtime",
    turned: "type",
    swapped: "replaced",
  });
  await expect(task.run("os.read(fds[0], 1)")).rejects.toThrow("ESTALE");
  expect(await task.run("r = os.read(fds[1], 9).decode()")).toBe("12");

  await spfs!.stub();
  expect(sorted((await proxy("stub")).differs)).toEqual({ gone: "gone", turned: "type" });
  const waits = task.run("r = os.read(fds[0], 9).decode()");
  expect(await isPending(waits)).toBe(true);
  renameSync(behind("elsewhere"), behind("gone"));
  expect((await proxy("stub")).differs.map(({ what }) => what)).toEqual(["type"]);
  expect(await waits).toBe("1");
});

test("a file system that runs is found again by its id, and stopped leaves nothing", async () => {
  places = makePlaces({ file: "x" });
  const { id } = await start();
  expect(listSpfs()).toContain(id);
  const again = await openSpfs(id);
  expect(again.mountpoint).toBe(places.mountpoint);
  const { pid, holder } = await again.status();
  await again.stop();
  expect(listSpfs()).not.toContain(id);
  expect(readdirSync(places.mountpoint)).toEqual([]);
  await until(() => !existsSync(`/proc/${pid}`) && !existsSync(`/proc/${holder}`));
  await expect(openSpfs(id)).rejects.toMatchObject({ code: "ERR_SPFS" });
  spfs = undefined;
});

test("it ends without its state directory while somebody writes down what has become of it", async () => {
  places = makePlaces({ file: "x" });
  const { id } = await start();
  const fs = { type: "fuse.x", source: "s", options: "", base: "/", mounts: [] };
  const state = { version: 1, id, fs, treatment: {}, paths: [], since: "" } as unknown as Remembered;
  // As one who was killed half way.
  writeFileSync(join(SPFS_STATE, id, "session.1"), "");
  let ended = false;
  const stopped = spfs!.stop().then(() => {
    ended = true;
  });
  do {
    for (let times = 0; times < 100; times++) remember(state);
    await new Promise(setImmediate);
  } while (!ended);
  await stopped;
  await until(() => !existsSync(join(SPFS_STATE, id)));
  expect(recall(id)).toBeUndefined();
  remember(state);
  expect(existsSync(join(SPFS_STATE, id))).toBe(false);
  spfs = undefined;
});

test("it is not in the caller's session, has nothing of the caller's open, and its state is root's alone", async () => {
  places = makePlaces({ file: "x" });
  await start();
  const { pid, holder } = await spfs!.status();
  for (const one of [pid, holder]) {
    const [, , , session] = readFileSync(`/proc/${one}/stat`, "utf8").split(") ")[1]!.split(" ");
    expect(Number(session)).not.toBe(Number(readFileSync("/proc/self/stat", "utf8").split(") ")[1]!.split(" ")[3]));
    const open = readdirSync(`/proc/${one}/fd`).map((fd) => readlinkSync(`/proc/${one}/fd/${fd}`));
    expect(
      open.filter((path) => !/^\/dev\/(null|fuse)$|spfs|^socket:|^anon_inode:\[(eventfd|pidfd)\]|^\/proc/.test(path)),
    ).toEqual([]);
    expect(readlinkSync(`/proc/${one}/cwd`)).toBe("/");
  }
  const directory = `/run/cryoshim/spfs/${spfs!.id}`;
  expect(statSync(directory).mode & 0o7777).toBe(0o700);
  for (const file of readdirSync(directory)) expect(statSync(join(directory, file)).mode & 0o7777).toBe(0o600);
});

test.each<[string, (good: RecordedNode) => RecordedNode[]]>([
  ["a path with ..", (n) => [{ ...n, path: Buffer.from("d/../../etc") }]],
  ["a path with .", (n) => [{ ...n, path: Buffer.from("./file") }]],
  ["an absolute path", (n) => [{ ...n, path: Buffer.from("/file") }]],
  ["a path that ends in /", (n) => [{ ...n, path: Buffer.from("file/") }]],
  ["an empty component", (n) => [{ ...n, path: Buffer.from("a//b") }]],
  ["a NUL in a path", (n) => [{ ...n, path: Buffer.from("fi\0le") }]],
  ["a component that is too long", (n) => [{ ...n, path: Buffer.alloc(256, "x") }]],
  ["a path that is too long", (n) => [{ ...n, path: Buffer.from(`${"d/".repeat(3000)}f`) }]],
  ["the same path twice", (n) => [n, n]],
  ["a file below a file", (n) => [n, { ...n, path: Buffer.from("file/below") }]],
  ["a root that is a file", (n) => [{ ...n, path: Buffer.alloc(0) }]],
  ["no type", (n) => [{ ...n, mode: 0o644 }]],
  ["a link without a target", (n) => [{ ...n, mode: 0o120777 }]],
  ["a target of a file", (n) => [{ ...n, target: Buffer.from("x") }]],
  ["a size that is none", (n) => [{ ...n, size: 2n ** 63n }]],
])("a record with %s is refused, and nothing is left of it", async (_, make) => {
  places = makePlaces({ file: "x" });
  const id = `unit-${process.pid}-hostile`;
  const before = listSpfs();
  await expect(start({ id }, make(recordOf(places.backend, "file")))).rejects.toMatchObject({ code: "ERR_SPFS" });
  expect(listSpfs()).toEqual(before);
  expect(readdirSync(places.mountpoint)).toEqual([]);
});

test("symbolic links in a circle, names of one file, and directories that nobody recorded are as the kernel has them", async () => {
  places = makePlaces({ "deep/er/file": "x" });
  symlinkSync("b", behind("a"));
  symlinkSync("a", behind("b"));
  const file = { ...recordOf(places.backend, "deep/er/file"), nlink: 2 };
  await start({}, [
    file,
    { ...file, path: Buffer.from("second") },
    recordOf(places.backend, "a"),
    recordOf(places.backend, "b"),
  ]);
  expect(() => readFileSync(at("a"))).toThrow("ELOOP");
  expect(statSync(at("deep/er")).isDirectory()).toBe(true);
  expect(statSync(at("second")).ino).toBe(statSync(at("deep/er/file")).ino);
});

test("whoever sends what is no command is hung up on, and it keeps none of the descriptors that came along", async () => {
  places = makePlaces({ file: "x" });
  await start();
  const { pid } = await spfs!.status();
  const open = (): number => readdirSync(`/proc/${pid}/fd`).length;
  const before = open();
  const good = encodeCommand(TYPE.STATUS, 1);
  const changed = (offset: number, value: number): Buffer => {
    const bytes = Buffer.from(good);
    bytes.writeUInt32LE(value, offset);
    return bytes;
  };
  const garbage = [
    Buffer.alloc(1),
    Buffer.alloc(good.length),
    Buffer.alloc(100_000, 0xff),
    good.subarray(0, good.length - 1),
    Buffer.concat([good, Buffer.from("x")]),
    changed(OFFSET.magic, 1),
    changed(OFFSET.version, 99),
    changed(OFFSET.data_len, 1),
  ];
  for (const bytes of garbage) {
    const fd = seqpacketConnect(`/run/cryoshim/spfs/${spfs!.id}/control`);
    sendMessage(fd, bytes, [0, 1, 2, 0, 1, 2]);
    await until(() => {
      try {
        return receiveMessage(fd) === undefined;
      } catch (error) {
        return (error as { code?: string }).code === "ECONNRESET";
      }
    });
    closeFd(fd);
  }
  // No such command, a proxy without a backend: an answer. More clients than it serves, who say nothing: they are let go.
  for (const command of [encodeCommand(77, 1), encodeCommand(TYPE.PROXY, 1)]) {
    const fd = seqpacketConnect(`/run/cryoshim/spfs/${spfs!.id}/control`);
    sendMessage(fd, command, []);
    await sleep(50);
    expect(receiveMessage(fd)!.data.readInt32LE(OFFSET.err)).toBeGreaterThan(0);
    closeFd(fd);
  }
  const silent = Array.from({ length: 20 }, () => seqpacketConnect(`/run/cryoshim/spfs/${spfs!.id}/control`));
  expect((await spfs!.status()).phase).toBe("restore");
  for (const fd of silent) closeFd(fd);
  await until(() => open() <= before);
  expect(await spfs!.status()).toMatchObject({ pid, restarts: 0 });
});
