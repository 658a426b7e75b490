// SPDX-License-Identifier: Apache-2.0
// The server's processes are killed at any moment; what the tasks see is a delay and nothing else.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { type Spfs, startSpfs } from "../../spfs/control.js";
import { endTasks, makePlaces, recordAll, startTask, until } from "../support/spfs.js";

/** Kills; SPFS_ROUNDS=1000 for a long run. */
const ROUNDS = Number(process.env.SPFS_ROUNDS ?? "100");

let spfs: Spfs | undefined;
let places: ReturnType<typeof makePlaces>;
const at = (path: string): string => join(places.mountpoint, path);
const proxy = () => places.lend((fd) => spfs!.proxy(fd, { gone: "error" }));

const kill = (pid: number): void => {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it is being started again
  }
};

afterEach(async () => {
  endTasks();
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

// Every operation's result is looked at; what it has written is read again.
const LOAD = `
import random, hashlib
def work(seed, name):
    rnd = random.Random(seed)
    files = {}
    problems = []
    count = 0
    base = "MNT/" + name
    os.mkdir(base)
    shadow = bytearray(200000)
    log = os.open(base + "/log", os.O_CREAT | os.O_RDWR)
    lines = os.open(base + "/append", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    while not stop:
        count += 1
        try:
            what = rnd.randrange(9)
            n = "f%d" % rnd.randrange(20)
            path = base + "/" + n
            if what == 0:
                fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC); data = rnd.randbytes(rnd.randrange(9000))
                if os.write(fd, data) != len(data): problems.append("short write")
                os.close(fd); files[n] = data
            elif what == 1 and n in files:
                with open(path, "rb") as f:
                    if f.read() != files[n]: problems.append("contents of " + n)
            elif what == 2 and n in files:
                os.unlink(path); del files[n]
            elif what == 3 and n in files:
                m = "f%d" % rnd.randrange(20)
                os.rename(path, base + "/" + m); files[m] = files.pop(n) if m != n else files[n]
            elif what == 4:
                if sorted(os.listdir(base)) != sorted(["log", "append"] + list(files)): problems.append("listing")
            elif what == 5:
                off = rnd.randrange(150000); data = rnd.randbytes(rnd.randrange(50000))
                if os.pwrite(log, data, off) != len(data): problems.append("short pwrite")
                shadow[off:off + len(data)] = data
            elif what == 6:
                off = rnd.randrange(150000); got = os.pread(log, 20000, off)
                if got != bytes(shadow[off:off + len(got)]): problems.append("contents of log")
            elif what == 7:
                os.mkdir(path + ".d"); os.link(base + "/log", path + ".l")
                if os.stat(path + ".l").st_nlink < 2: problems.append("nlink")
                os.unlink(path + ".l"); os.rmdir(path + ".d")
            elif what == 8:
                os.write(lines, b"%06d\\n" % count)
                files.setdefault("", []).append(count) if False else appended.setdefault(name, []).append(count)
        except OSError as e:
            problems.append("%s in %d of %s" % (errno.errorcode.get(e.errno), what, n))
    if os.pread(lines, 1 << 24, 0).decode().split() != ["%06d" % c for c in appended.get(name, [])]: problems.append("appended lines")
    return [count, problems[:10]]
appended = {}
stop = False
results = []
threads = [threading.Thread(target=lambda s=s: results.append(work(s, "t%d" % s))) for s in SEEDS]
for t in threads: t.start()
`;

test.each(["auto", "off"] as const)(
  "a worker that is killed under load, passthrough %s: no task sees an error",
  async (passthrough) => {
    places = makePlaces({ file: "contents" });
    spfs = await startSpfs(
      { id: `crash-${process.pid}`, mountpoint: places.mountpoint, timeoutMs: 0, passthrough, onLoss: "stub" },
      recordAll(places.backend),
    );
    const held = startTask();
    await held.run(`fd = os.open("${at("file")}", os.O_RDONLY)`);
    await spfs.stub();
    const waiting = held.run("r = os.pread(fd, 100, 0).decode()");
    await until(async () => (await spfs!.status()).blocked > 0);
    for (let round = 0; round < ROUNDS / 4; round++) {
      kill((await spfs.status()).pid);
      if (round % 5 === 0) await sleep(60);
    }
    await proxy();
    expect(await waiting).toBe("contents");

    const task = startTask();
    await task.run(LOAD.replace("MNT", places.mountpoint).replace("SEEDS", "(1, 2, 3)"));
    const before = (await spfs.status()).restarts;
    for (let round = 0; round < ROUNDS; round++) {
      kill((await spfs.status()).pid);
      await sleep(Math.random() * 80);
    }
    expect((await spfs.status()).restarts).toBeGreaterThan(before + ROUNDS / 2);
    const results = (await task.run("stop = True\nfor t in threads: t.join()\nr = results")) as [number, string[]][];
    expect(results).toHaveLength(3);
    for (const [count, problems] of results) {
      expect(problems).toEqual([]);
      expect(count).toBeGreaterThan(10);
    }
    expect(await held.run("r = os.pread(fd, 100, 0).decode()")).toBe("contents");
  },
  120_000,
);

test("a holder that is killed is replaced, and the new one starts workers as the first did", async () => {
  places = makePlaces({ file: "contents" });
  spfs = await startSpfs(
    { id: `crash-${process.pid}`, mountpoint: places.mountpoint, timeoutMs: 0, passthrough: "auto", onLoss: "stub" },
    recordAll(places.backend),
  );
  await spfs.stub();
  await proxy();
  for (let round = 0; round < 10; round++) {
    const { holder, pid } = await spfs.status();
    kill(round % 2 ? pid : holder);
    await until(async () => {
      const now = await spfs!.status();
      return round % 2 ? now.pid !== pid : now.holder !== holder;
    });
    expect(readFileSync(at("file"), "utf8")).toBe("contents");
  }
  const { holder, pid } = await spfs.status();
  await spfs.stop();
  spfs = undefined;
  await until(() => !existsSync(`/proc/${pid}`) && !existsSync(`/proc/${holder}`));
  expect(readdirSync(places.mountpoint)).toEqual([]);
});
