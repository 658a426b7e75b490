// SPDX-License-Identifier: Apache-2.0
// Large reads in proxy that the kernel does not pass by: the backend's pages go through a pipe (spfs/proxy_splice.c).
import { createHash, randomBytes } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { type Spfs, startSpfs } from "../../spfs/control.js";
import { endTasks, makePlaces, recordAll, startTask } from "../support/spfs.js";

const CRASHES = 30;
/** Of the server (spfs/proxy_splice.c): PIPES, two descriptors each. */
const MOST_PIPES = 8;

let spfs: Spfs | undefined;
let places: ReturnType<typeof makePlaces>;
let number = 0;
const at = (path: string): string => join(places.mountpoint, path);
const behind = (path: string): string => join(places.backend, path);

const start = async (files: Record<string, Uint8Array>): Promise<void> => {
  places = makePlaces(files);
  spfs = await startSpfs(
    {
      id: `splice-${process.pid}-${++number}`,
      mountpoint: places.mountpoint,
      timeoutMs: 0,
      passthrough: "off",
      onLoss: "stub",
    },
    recordAll(places.backend),
  );
  await spfs.stub();
  await places.lend((fd) => spfs!.proxy(fd, { gone: "error" }));
};

/** How many ends of pipes the worker has. */
const pipes = async (): Promise<number> => {
  const fds = `/proc/${(await spfs!.status()).pid}/fd`;
  return readdirSync(fds).filter((fd) => {
    try {
      return readlinkSync(join(fds, fd)).startsWith("pipe:");
    } catch {
      return false; // closed meanwhile
    }
  }).length;
};

const sha = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");

afterEach(async () => {
  endTasks();
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

test("what is read is what the file has, whatever its length, through the page cache and with O_DIRECT", async () => {
  const lengths = [65_535, 65_536, 65_537, 131_072, 131_073, 200_000, 258_048, 262_144, 300_001, 1_048_576, 3_000_005];
  const files = Object.fromEntries(lengths.map((length) => [`f${length}`, randomBytes(length)]));
  await start(files);
  const task = startTask();
  await task.run(`
import hashlib
def whole(path, flags, size):
    fd = os.open(path, os.O_RDONLY | flags)
    buffer = mmap.mmap(-1, size)
    digest, at = hashlib.sha256(), 0
    while True:
        n = os.preadv(fd, [buffer], at)
        if not n: break
        digest.update(buffer[:n]); at += n
    os.close(fd)
    return digest.hexdigest()`);
  for (const length of lengths)
    for (const [flags, size] of [
      ["0", 1 << 20],
      ["os.O_DIRECT", 1 << 20],
      ["os.O_DIRECT", 128 << 10],
      ["os.O_DIRECT", 100_001],
    ])
      expect([length, flags, size, await task.run(`r = whole("${at(`f${length}`)}", ${flags}, ${size})`)]).toEqual([
        length,
        flags,
        size,
        sha(files[`f${length}`]!),
      ]);
  expect((await spfs!.status()).restarts).toBe(0);
});

test("small reads make no pipe, large ones do, and keep it", async () => {
  await start({ small: randomBytes(20_000), large: randomBytes(1 << 20) });
  expect(sha(readFileSync(at("small")))).toBe(sha(readFileSync(behind("small"))));
  expect(await pipes()).toBe(0);
  const right = sha(readFileSync(behind("large")));
  for (let turn = 0; turn < 20; turn++) expect(sha(readFileSync(at("large")))).toBe(right);
  const made = await pipes();
  expect(made).toBeGreaterThan(0);
  expect(made).toBeLessThanOrEqual(MOST_PIPES);
});

test("a file that another has cut or let grow ends where it ends, though another end was known", async () => {
  await start({ file: randomBytes(256 << 10) });
  const task = startTask();
  await task.run(`
fd = os.open("${at("file")}", os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
def ask(size, at): return os.preadv(fd, [memoryview(buffer)[:size]], at)`);
  expect(await task.run("r = ask(131072, 0)")).toBe(131_072);
  truncateSync(behind("file"), 100_000);
  expect(await task.run("r = ask(131072, 0)")).toBe(100_000);
  expect(await task.run("r = buffer[:100000].hex()")).toBe(readFileSync(behind("file")).toString("hex"));
  expect(await task.run("r = ask(131072, 131072)")).toBe(0);
  writeFileSync(behind("file"), randomBytes(400_000));
  await sleep(1100); // what the kernel trusts for a second
  expect(await task.run("r = os.fstat(fd).st_size")).toBe(400_000);
  expect(await task.run("r = ask(131072, 262144)")).toBe(131_072);
  expect(await task.run("r = buffer[:131072].hex()")).toBe(
    readFileSync(behind("file")).subarray(262_144, 393_216).toString("hex"),
  );
});

test("a worker that is killed under large reads: every byte is right, and its pipes are gone", async () => {
  const file = randomBytes(4 << 20);
  await start({ file });
  const task = startTask();
  await task.run(`
stop, problems, counts = False, [], []
with open("${behind("file")}", "rb") as f: right = f.read()
def work(flags, size):
    fd = os.open("${at("file")}", os.O_RDONLY | flags)
    buffer, count = mmap.mmap(-1, size), 0
    try:
        while not stop:
            if not flags: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for at in range(0, len(right), size):
                n = os.preadv(fd, [buffer], at)
                if buffer[:n] != right[at:at + size]: problems.append("%d bytes at %d" % (n, at))
                count += 1
    except OSError as e: problems.append(errno.errorcode[e.errno])
    counts.append(count)
threads = [threading.Thread(target=work, args=(flags, size)) for flags in (0, os.O_DIRECT) for size in (128 << 10, 1 << 20)]
threads += [threading.Thread(target=work, args=(os.O_DIRECT, 192 << 10)) for _ in range(4)]
for t in threads: t.start()`);
  let restarts = 0;
  for (let round = 0; round < CRASHES; round++) {
    process.kill((await spfs!.status()).pid, "SIGKILL");
    await sleep(20 + Math.random() * 40);
    ({ restarts } = await spfs!.status());
  }
  expect(restarts).toBeGreaterThan(CRASHES / 2);
  await task.run("stop = True\nfor t in threads: t.join()");
  expect(await task.run("r = problems[:10]")).toEqual([]);
  expect(Math.min(...((await task.run("r = counts")) as number[]))).toBeGreaterThan(10);
  expect(await pipes()).toBeLessThanOrEqual(MOST_PIPES);
}, 60_000);
