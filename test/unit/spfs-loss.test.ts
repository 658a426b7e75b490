// SPDX-License-Identifier: Apache-2.0
// The backend goes away while it is proxied. It is a FUSE mount (a second file system of the same kind), whose server is killed
// or stopped: what an sshfs or an NFS server does when it dies or does not answer.
import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Spfs, type SpfsOptions, startSpfs } from "../../spfs/control.js";
import { endTasks, isPending, makePlaces, recordAll, startTask, until } from "../support/spfs.js";

/** The directory, the mount of the remote server on it, the mount of the stub-proxy on that. */
let remote: ReturnType<typeof makePlaces>;
let local: ReturnType<typeof makePlaces>;
const servers: Spfs[] = [];
let spfs: Spfs;
let number = 0;

const at = (path: string): string => join(local.mountpoint, path);
const behind = (path: string): string => join(remote.backend, path);

/** Starts the remote server: `local.backend` is where its mount is. */
const startRemote = async (timeoutMs = 0): Promise<Spfs> => {
  const server = await startSpfs(
    {
      id: `remote-${process.pid}-${++number}`,
      mountpoint: local.backend,
      timeoutMs,
      passthrough: "off",
      onLoss: "error",
    },
    recordAll(remote.backend),
  );
  servers.push(server);
  await remote.lend((fd) => server.proxy(fd, { gone: "error" }));
  return server;
};

/** Both processes at once: the connection ends. */
const signalRemote = async (
  server: Spfs,
  signal: "SIGKILL" | "SIGSTOP" | "SIGCONT",
  pids?: number[],
): Promise<number[]> => {
  const { pid, holder } = pids === undefined ? await server.status() : { pid: 0, holder: 0 };
  const all = pids ?? [pid, holder];
  if (signal === "SIGKILL") process.kill(all[0]!, "SIGSTOP");
  for (const pid of [...all].reverse()) process.kill(pid, signal);
  return all;
};

const startLocal = async (options: Partial<SpfsOptions>): Promise<void> => {
  spfs = await startSpfs(
    {
      id: `loss-${process.pid}-${++number}`,
      mountpoint: local.mountpoint,
      timeoutMs: 0,
      passthrough: "off",
      onLoss: "stub",
      ...options,
    },
    recordAll(remote.backend),
  );
  servers.push(spfs);
};
const proxy = () => local.lend((fd) => spfs.proxy(fd, { gone: "error" }));

beforeEach(() => {
  remote = makePlaces({ file: "contents", other: "of the other" });
  local = makePlaces();
});

afterEach(async () => {
  endTasks();
  for (const server of servers.splice(0).reverse()) await server.stop();
  local.remove();
  remote.remove();
});

test("a backend that dies is lost: tasks wait, its keeper is started, and all goes on when it has come back", async () => {
  const told = join(local.backend, "..", "told");
  const server = await startRemote();
  await startLocal({
    keeper: ["/bin/sh", "-c", `echo "$SPFS_ID $1" >>${told}; exec sleep 60`, "sh", "a word; and more"],
  });
  await spfs.stub();
  await proxy();
  const [reader, writer, lister] = [startTask(), startTask(), startTask()];
  await reader.run(`fd = os.open("${at("file")}", os.O_RDONLY)`);
  await writer.run(`fd = os.open("${at("other")}", os.O_RDWR)`);
  expect(readFileSync(at("file"), "utf8")).toBe("contents");
  await signalRemote(server, "SIGKILL");
  const results = [
    writer.run('r = os.pwrite(fd, b"written", 0)'),
    lister.run(`r = sorted(os.listdir("${local.mountpoint}"))`),
    reader.run(`r = os.stat("${at("file")}").st_size, open("${at("other")}").read()`),
  ];
  await until(async () => (await spfs.status()).phase === "stub");
  for (const result of results.slice(0, 2)) expect(await isPending(result)).toBe(true);
  await until(() => existsSync(told));
  await startRemote();
  expect((await proxy()).differs).toEqual([]);
  expect(await results[0]).toBe(7);
  expect(await results[1]).toEqual(["file", "other"]);
  expect(await results[2]).toEqual([8, expect.stringMatching(/^(written|of the)/)]);
  expect(readFileSync(behind("other"), "utf8")).toBe("writtenother");
  expect(readFileSync(told, "utf8")).toBe(`${spfs.id} a word; and more\n`);
});

test("what is passed through fails with its backend; kept from that, it waits, with the same kernel", async () => {
  for (const passthrough of [true, false]) {
    const server = await startRemote();
    await startLocal({ passthrough: "auto" });
    await spfs.stub();
    await local.lend((fd) => spfs.proxy(fd, { gone: "error", passthrough }));
    // Without passthrough (before Linux 6.9) there is nothing to be kept from.
    const passes = passthrough && (await spfs.status()).passthrough;
    const task = startTask();
    await task.run(`fd = os.open("${at("file")}", os.O_RDWR)`);
    await signalRemote(server, "SIGKILL");
    const read = task.run("r = os.pread(fd, 99, 0).decode()");
    if (passes) await expect(read).rejects.toThrow("ENOTCONN");
    else expect(await isPending(read)).toBe(true);
    await startRemote();
    await proxy();
    if (!passes) expect(await read).toBe("contents");
    task.kill();
    await task.ended;
    for (const each of servers.splice(0).reverse()) await each.stop();
  }
});

test("told to hand errors on, it does, and the next proxy heals open files", async () => {
  const server = await startRemote();
  await startLocal({ onLoss: "error" });
  await spfs.stub();
  await proxy();
  const task = startTask();
  await task.run(`fd = os.open("${at("file")}", os.O_RDWR)`);
  await signalRemote(server, "SIGKILL");
  await expect(task.run('os.pwrite(fd, b"x", 0)')).rejects.toThrow("ENOTCONN");
  expect((await spfs.status()).phase).toBe("proxy");
  await startRemote();
  await proxy();
  expect(await task.run("r = os.pread(fd, 99, 0).decode()")).toBe("contents");
});

test("a backend that no longer answers is lost as well, and one that answers late is not", async () => {
  const server = await startRemote();
  await startLocal({ lossAfterMs: 300 });
  await spfs.stub();
  await proxy();
  const [first, second] = [startTask(), startTask()];
  for (const task of [first, second]) await task.run(`fd = os.open("${at("file")}", os.O_RDWR)`);
  // Late: longer than one request may take, but it answers when it is asked.
  const pids = await signalRemote(server, "SIGSTOP");
  const late = first.run('r = os.pwrite(fd, b"late", 0)');
  expect(await isPending(late)).toBe(true);
  await signalRemote(server, "SIGCONT", pids);
  expect(await late).toBe(4);
  expect((await spfs.status()).phase).toBe("proxy");
  // Not at all.
  await signalRemote(server, "SIGSTOP", pids);
  const never = first.run('r = os.pwrite(fd, b"never", 0)');
  await until(async () => (await spfs.status()).phase === "stub");
  const waiting = second.run('r = os.pwrite(fd, b"2", 10)');
  expect(await isPending(waiting)).toBe(true);
  await signalRemote(server, "SIGKILL", pids);
  await startRemote();
  await proxy();
  expect([await never, await waiting]).toEqual([5, 1]);
  expect(readFileSync(behind("file"), "latin1")).toBe("nevernts\0\x002");
}, 60_000);

test.each(["error", "stub"] as const)(
  "what cannot be read half way is not the end of the file (on loss: %s)",
  async (onLoss) => {
    writeFileSync(behind("large"), Buffer.alloc(300_000, "x"));
    const server = await startRemote(200);
    await startLocal({ onLoss });
    await spfs.stub();
    await proxy();
    const task = startTask();
    await task.run(`fd = os.open("${at("large")}", os.O_RDONLY)`);
    // The first pages are there without the server.
    await startTask().run(`
near = os.open("${join(local.backend, "large")}", os.O_RDONLY); os.posix_fadvise(near, 0, 0, os.POSIX_FADV_RANDOM)
os.pread(near, 65536, 0)`);
    if (onLoss === "error") {
      await server.stub();
      await task.run("try: os.pread(fd, 300000, 0)\nexcept OSError: pass");
      await expect(task.run("r = len(os.pread(fd, 100, 65536))")).rejects.toThrow("EIO");
      return;
    }
    await signalRemote(server, "SIGKILL");
    const read = task.run("r = len(os.pread(fd, 300000, 0))");
    await until(async () => (await spfs.status()).phase === "stub");
    await startRemote();
    await proxy();
    expect(await read).toBe(300_000);
  },
);

test("what cannot be written half way is told: by write(2) as far as it went, then why; by fsync(2) of a mapping", async () => {
  execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k", "none", remote.backend]);
  try {
    writeFileSync(behind("written"), "");
    writeFileSync(behind("mapped"), "");
    spfs = await startSpfs(
      { id: `full-${process.pid}`, mountpoint: local.mountpoint, timeoutMs: 0, passthrough: "off", onLoss: "stub" },
      recordAll(remote.backend),
    );
    servers.push(spfs);
    await spfs.stub();
    await remote.lend((fd) => spfs.proxy(fd, { gone: "error" }));
    const task = startTask();
    await task.run(`
fd = os.open("${at("mapped")}", os.O_RDWR); os.ftruncate(fd, 400000)
m = mmap.mmap(fd, 400000)
m[:] = b"m" * 400000`);
    await expect(task.run("os.fsync(fd)")).rejects.toThrow("ENOSPC");
    await task.run(`
m.close()
try: os.close(fd)
except OSError: pass
os.truncate("${at("mapped")}", 0); fd = os.open("${at("written")}", os.O_WRONLY)`);
    expect(await task.run('r = os.write(fd, b"w" * 400000)')).toBe(statSync(behind("written")).size);
    expect(statSync(behind("written")).size).toBeGreaterThan(100_000);
    await expect(task.run('os.write(fd, b"w" * 400000)')).rejects.toThrow("ENOSPC");
    task.kill();
    await task.ended;
    await spfs.stop();
  } finally {
    execFileSync("umount", ["-l", remote.backend]);
  }
});

test("a file that has grown before the loss keeps what it has grown by: its size is not told from memory", async () => {
  await startRemote();
  await startLocal({});
  await spfs.stub();
  await proxy();
  const [task, other] = [startTask(), startTask()];
  await task.run(`fd = os.open("${at("file")}", os.O_RDWR | os.O_APPEND); os.write(fd, b", more")`);
  await spfs.stub();
  const sizes = [
    task.run("r = os.fstat(fd).st_size, os.write(fd, b', and more')"),
    other.run(`r = os.stat("${at("file")}").st_size`),
  ];
  for (const size of sizes) expect(await isPending(size)).toBe(true);
  await proxy();
  expect(await sizes[0]).toEqual([14, 10]);
  expect(await sizes[1]).toBeGreaterThanOrEqual(14);
  expect(readFileSync(behind("file"), "utf8")).toBe("contents, more, and more");
});

test("an append goes behind what another client has appended meanwhile, also done again after a crash", async () => {
  await startRemote();
  await startLocal({});
  const task = startTask();
  await task.run(`fd = os.open("${at("file")}", os.O_WRONLY | os.O_APPEND)`);
  await spfs.stub();
  const waiting = task.run('r = os.write(fd, b", ours")');
  expect(await isPending(waiting)).toBe(true);
  appendFileSync(behind("file"), ", theirs");
  process.kill((await spfs.status()).pid, "SIGKILL");
  await proxy();
  expect(await waiting).toBe(6);
  expect(readFileSync(at("file"), "utf8")).toBe("contents, theirs, ours");
  appendFileSync(behind("file"), ", theirs");
  await task.run('os.write(fd, b", ours")');
  expect(readFileSync(behind("file"), "utf8")).toBe("contents, theirs, ours, theirs, ours");
});

test("what a backend that is gone says late is not taken for the next one's", async () => {
  const server = await startRemote();
  await startLocal({});
  await spfs.stub();
  await proxy();
  // No checkpoint has seen it.
  mkdirSync(behind("new"));
  const [inside, asking] = [startTask(), startTask()];
  await inside.run(`os.chdir("${at("new")}")`);
  await sleep(1100);
  await server.stub();
  const late = asking.run(`r = os.stat("${at("new")}").st_nlink`);
  expect(await isPending(late)).toBe(true);
  await spfs.stub();
  await remote.lend(async (fd) => {
    await spfs.proxy(fd, { gone: "error" });
    await server.proxy(fd, { gone: "error" });
  });
  expect(await late).toBe(2);
  expect(await inside.run("r = os.listdir('.')")).toEqual([]);
});

test("it is stopped while the backend hangs", async () => {
  const server = await startRemote();
  await startLocal({});
  await spfs.stub();
  await proxy();
  const task = startTask();
  await task.run(`fd = os.open("${at("file")}", os.O_RDWR)`);
  const pids = await signalRemote(server, "SIGSTOP");
  const write = task.run('r = os.pwrite(fd, b"x", 0)');
  expect(await isPending(write)).toBe(true);
  await spfs.stop();
  await expect(write).rejects.toThrow(/ECONNABORTED|ENOTCONN/);
  await signalRemote(server, "SIGCONT", pids);
});

test("no backend at all, or one that is no directory, is refused, and it is still a stub", async () => {
  await startLocal({});
  await spfs.stub();
  const fd = openSync(behind("file"), "r");
  await expect(spfs.proxy(fd, { gone: "error" })).rejects.toMatchObject({ code: "ERR_SPFS", why: "ENOTDIR" });
  closeSync(fd);
  const server = await startRemote();
  await signalRemote(server, "SIGKILL");
  await expect(proxy()).rejects.toMatchObject({
    code: "ERR_SPFS",
    why: expect.stringMatching(/^ENOTCONN|ECONNABORTED$/),
  });
  expect((await spfs.status()).phase).toBe("stub");
});
