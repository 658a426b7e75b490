// SPDX-License-Identifier: Apache-2.0
//
// What io_uring rings cost, inside the lab: `criu dump --leave-running`, then a dump and a restore, of a tree with rings, and by turns
// of the same tree without one. A neighbour in the tree measures the freeze (test/workloads/stamps.c); a restore is
// measured from outside, from its start to its end.
import { spawn, spawnSync } from "node:child_process";
import { closeSync, cpSync, existsSync, mkdirSync, openSync, readFileSync, readSync, rmSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const pairs = Number(option("--pairs", "7"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const place = "/tmp/bench";
const rings = (kind) => ["rings", kind];
/** What it is called, a program of test/workloads with its arguments after OUT and GO, how often it is measured, and tried before. */
const CASES = [
  ["1 idle ring", rings("idle=1"), pairs, 1],
  ["10 idle rings", rings("idle=10"), pairs, 1],
  ["100 idle rings", rings("idle=100"), pairs, 1],
  ["100000 operations done", rings("plain=100000"), pairs, 1],
  ["10000000 operations done", rings("plain=10000000"), 3, 1],
  ["1000 registered buffers of 4 KiB", rings("many-buffers=1000"), pairs, 1],
  ["1000 polls in flight", ["inflight", "0", "1000"], pairs, 1],
  // Two minutes until it is ready, and two for each restore.
  ["2147483648 operations done", rings("plain=2147483648"), 1, 0],
];

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const round = (value) => Math.round(value * 1000) / 1000;

const gap = (at, reset = false) => {
  const fd = openSync(`${at}/stamps`, "r+");
  const words = Buffer.alloc(16);
  if (reset) writeSync(fd, Buffer.alloc(8), 0, 8, 0);
  else readSync(fd, words, 0, 16, 0);
  closeSync(fd);
  return Number(words.readBigInt64LE(0)) / 1e6;
};

const has = (path, word) => existsSync(path) && readFileSync(path, "utf8").includes(word);

/** A tree of two, in a network namespace of its own: who has rings, and who measures. */
async function start(at, [workload, ...words]) {
  rmSync(at, { recursive: true, force: true });
  mkdirSync(at, { recursive: true });
  cpSync("/cryoshim/build/workloads/stamps", `${at}/stamps.run`);
  cpSync(`/cryoshim/build/workloads/${workload}`, `${at}/rings.run`);
  const script = `ip link set lo up; ${at}/stamps.run ${at}/stamps & exec ${at}/rings.run ${at}/out ${at}/go ${words.join(" ")}`;
  const tree = spawn("setsid", ["unshare", "--net", "sh", "-c", script], { stdio: ["ignore", "ignore", "inherit"] });
  for (let tries = 0; !has(`${at}/out`, "ready") || !existsSync(`${at}/stamps`); tries++) {
    if (tries > 60_000) throw new Error(`${words}: the rings are not ready`);
    await sleep(20);
  }
  return { at, pid: tree.pid };
}

const criu = (images, log, args) => {
  const { status } = spawnSync("criu", [...args, "-D", images, "-o", log, "-v2"]);
  if (status !== 0) throw new Error(`${args[0]}: ${readFileSync(`${images}/${log}`, "utf8").slice(-600)}`);
};

const freshDir = (dir) => {
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir);
  return dir;
};

/** The freeze of a dump that leaves the tree running. */
async function freeze({ at, pid }) {
  const images = freshDir(`${at}/i`);
  await sleep(100);
  gap(at, true);
  criu(images, "dump.log", ["dump", "-t", `${pid}`, "-R"]);
  await sleep(50);
  return gap(at);
}

/** How long a restore takes; afterwards the tree runs again. */
async function restore({ at, pid }) {
  const images = freshDir(`${at}/i`);
  criu(images, "dump.log", ["dump", "-t", `${pid}`]);
  await sleep(50);
  const from = process.hrtime.bigint();
  criu(images, "restore.log", ["restore", "-d"]);
  return Number(process.hrtime.bigint() - from) / 1e6;
}

for (const [name, program, runs, before] of CASES) {
  if (!name.includes(only)) continue;
  rmSync(place, { recursive: true, force: true });
  const seen = { rings: { freeze: [], restore: [] }, none: { freeze: [], restore: [] } };
  try {
    const trees = {
      rings: await start(`${place}/rings`, program),
      none: await start(`${place}/none`, rings("idle=0")),
    };
    for (let turn = -before; turn < runs; turn++)
      for (const which of turn % 2 === 0 ? ["rings", "none"] : ["none", "rings"]) {
        const [frozen, restored] = [await freeze(trees[which]), await restore(trees[which])];
        if (turn < 0) continue;
        seen[which].freeze.push(frozen);
        seen[which].restore.push(restored);
      }
  } finally {
    spawnSync("pkill", ["-KILL", "-f", `${place}/`]);
  }
  const line = {
    bench: "io-uring",
    case: name,
    runs,
    freeze_ms: round(median(seen.rings.freeze)),
    freeze_added_ms: round(median(seen.rings.freeze) - median(seen.none.freeze)),
    restore_ms: round(median(seen.rings.restore)),
    restore_added_ms: round(median(seen.rings.restore) - median(seen.none.restore)),
  };
  console.log(
    json
      ? JSON.stringify(line)
      : `${name.padEnd(34)} adds ${line.freeze_added_ms} ms to the freeze, ${line.restore_added_ms} ms to the restore`,
  );
}
