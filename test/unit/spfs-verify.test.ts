// SPDX-License-Identifier: Apache-2.0
// Programs that know what must be in their files, while the file system changes its phase and its worker is killed under them.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { type Spfs, startSpfs } from "../../spfs/control.js";
import { makePlaces, recordAll } from "../support/spfs.js";

/** Steps of each program; SPFS_STEPS=200000 for a long run. */
const STEPS = Number(process.env.SPFS_STEPS ?? "3000");

let spfs: Spfs | undefined;
let places: ReturnType<typeof makePlaces>;
const proxy = () => places.lend((fd) => spfs!.proxy(fd, { gone: "error" }));
const start = async (passthrough: "auto" | "off"): Promise<void> => {
  // Of the one a checkpoint has told the size, the other is new.
  places = makePlaces({ file1: "" });
  spfs = await startSpfs(
    { id: `verify-${process.pid}`, mountpoint: places.mountpoint, timeoutMs: 0, passthrough, onLoss: "stub" },
    recordAll(places.backend),
  );
  await spfs.stub();
  await proxy();
};

const run = async (program: string, ...words: string[]): Promise<string> => {
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (text += data));
  const [code, signal] = (await once(child, "close")) as [number | null, string | null];
  return code === 0 ? text : `${text}\nended with ${code ?? signal}`;
};

afterEach(async () => {
  await spfs?.stop();
  spfs = undefined;
  places.remove();
});

/** Switches and kills until something is over. */
const disturb = async (over: Promise<unknown>): Promise<number> => {
  let on = true;
  let times = 0;
  void over.finally(() => {
    on = false;
  });
  // No more than it takes: each costs the programs a delay.
  for (; on && times < 40; times++) {
    if (times % 3 === 0) {
      await spfs!.stub();
      await sleep(20);
      await proxy();
    } else process.kill((await spfs!.status()).pid, "SIGKILL");
    await sleep(Math.random() * 100);
  }
  return times;
};

test.each(["auto", "off"] as const)(
  "random operations on a file find what they must, through switches and crashes (passthrough %s)",
  async (passthrough) => {
    await start(passthrough);
    const programs = Promise.all(
      [1, 2].map((seed) =>
        run("build/workloads/exercise", join(places.mountpoint, `file${seed}`), `${seed}`, `${STEPS}`),
      ),
    );
    const times = await disturb(programs);
    expect(await programs).toEqual(["ok\n", "ok\n"]);
    expect(times).toBeGreaterThan(2);
  },
  120_000,
);

test.each(["auto", "off"] as const)(
  "fio verifies what it has written: random writes, direct and buffered, mapped, by two jobs at once (passthrough %s)",
  async (passthrough) => {
    await start(passthrough);
    const common = [
      "--size=4m",
      "--rw=randwrite",
      "--bs=4k",
      "--verify=crc32c",
      "--do_verify=1",
      "--verify_fatal=1",
      "--verify_state_save=0",
      "--numjobs=2",
    ];
    for (const [name, ...engine] of [
      ["buffered", "--ioengine=psync", "--fsync=64"],
      ["direct", "--ioengine=psync", "--direct=1"],
      ["mapped", "--ioengine=mmap"],
      ["aio", "--ioengine=libaio", "--direct=1", "--iodepth=16"],
    ] as const) {
      const result = run("fio", `--name=${name}`, `--directory=${places.mountpoint}`, ...common, ...engine);
      const times = name === "buffered" ? await disturb(result) : 1;
      expect(await result).not.toMatch(/ended with|verify:|error=/);
      expect(times).toBeGreaterThan(0);
      expect(statSync(join(places.backend, `${name}.0.0`)).size).toBe(4 << 20);
    }
  },
  120_000,
);
