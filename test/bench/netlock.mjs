// SPDX-License-Identifier: Apache-2.0
//
// The network lock by BPF against CRIU's own, inside the lab: `criu dump --leave-running` of an echo server with
// connections, by turns. The freeze is measured by a neighbour of it in the same tree (test/workloads/stamps.c). Left
// out: iptables above 100 connections of a shared namespace (two runs for each: minutes), nftables there from 1000 on (CRIU
// 4.2.1 fails, "Can't check shutdown state of inet socket").
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { closeSync, cpSync, mkdirSync, openSync, readFileSync, readSync, rmSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const pairs = Number(option("--pairs", "11"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const place = "/tmp/bench";
const barePath = process.env.PATH.replace("/usr/local/sbin:", "");

const METHODS = {
  cryoshim: { env: process.env, args: [] },
  skip: { env: { ...process.env, PATH: barePath }, args: ["--network-lock", "skip"] },
  nftables: { env: { ...process.env, PATH: barePath }, args: ["--network-lock", "nftables"] },
  iptables: { env: { ...process.env, PATH: barePath }, args: ["--network-lock", "iptables"] },
};
const CASES = [
  { name: "own namespace, idle", own: true, connections: 0 },
  { name: "own namespace, 1 connection", own: true, connections: 1 },
  { name: "own namespace, 100 connections", own: true, connections: 100 },
  { name: "own namespace, 1000 connections", own: true, connections: 1000 },
  { name: "host's namespace, 100 connections", own: false, connections: 100, few: ["iptables"] },
  { name: "host's namespace, 1000 connections", own: false, connections: 1000, without: ["iptables", "nftables"] },
  { name: "host's namespace, 10000 connections", own: false, connections: 10000, without: ["iptables", "nftables"] },
];

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};
const round = (value) => (value === undefined ? null : Math.round(value * 1000) / 1000);

function gap(reset = false) {
  const fd = openSync(`${place}/stamps`, "r+");
  const words = Buffer.alloc(16);
  if (reset) writeSync(fd, Buffer.alloc(8), 0, 8, 0);
  else readSync(fd, words, 0, 16, 0);
  closeSync(fd);
  return { ms: Number(words.readBigInt64LE(0)) / 1e6, ticks: words.readBigInt64LE(8) };
}

async function until(what, holds) {
  for (let tries = 0; tries < 3000; tries++) {
    try {
      if (await holds()) return;
    } catch {
      // not yet
    }
    await sleep(10);
  }
  throw new Error(`never: ${what}`);
}

/** A tree of two: the echo server and what measures its freeze. */
async function start({ own, connections }) {
  rmSync(place, { recursive: true, force: true });
  mkdirSync(place, { recursive: true });
  for (const name of ["echo", "stamps"]) cpSync(`/cryoshim/build/workloads/${name}`, `${place}/${name}.run`);
  const inside = own ? ["nsenter", "--net=/run/netns/bench"] : [];
  if (own) {
    for (const words of [
      "netns add bench",
      "link add out type veth peer name eth0 netns bench",
      "address add 10.9.0.1/24 dev out",
      "link set out up",
      "-n bench address add 10.9.0.2/24 dev eth0",
      "-n bench link set eth0 up",
      "-n bench link set lo up",
    ])
      execFileSync("ip", words.split(" "));
  } else execFileSync("ip", ["link", "set", "lo", "up"]);
  const script = `${place}/stamps.run ${place}/stamps & exec ${place}/echo.run 7000 ${place}/status`;
  const [program, ...words] = [...inside, "sh", "-c", script];
  const tree = spawn(program, words, { stdio: "ignore", detached: true });
  await until("the server runs", () => readFileSync(`${place}/status`).length > 0 && gap().ticks > 0n);
  const client = spawn(
    "python3",
    [
      "-c",
      `import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
all = [socket.create_connection(("${own ? "10.9.0.2" : "127.0.0.1"}", 7000)) for _ in range(${connections})]
time.sleep(100000)`,
    ],
    { stdio: "ignore" },
  );
  await until("all are connected", () => Number(readFileSync(`${place}/status`, "utf8").slice(0, 10)) === connections);
  return {
    pid: tree.pid,
    async stop() {
      client.kill("SIGKILL");
      spawnSync("pkill", ["-KILL", "-f", `${place}/`]);
      await until("all are dead", () => spawnSync("pgrep", ["-f", `${place}/`]).status !== 0);
      if (!own) return;
      spawnSync("ip", ["link", "del", "out"]);
      spawnSync("ip", ["netns", "del", "bench"]);
      await until("the device is gone", () => spawnSync("ip", ["link", "show", "out"]).status !== 0);
    },
  };
}

async function dump(pid, { env, args }) {
  const images = `${place}/i`;
  rmSync(images, { recursive: true, force: true });
  mkdirSync(images);
  await sleep(150);
  gap(true);
  // The namespace was there before and stays: as a runtime tells CRIU of one that it made.
  const common = ["dump", "-t", `${pid}`, "-D", images, "-o", "dump.log", "-v2", "-R", "--tcp-established"];

  const begin = process.hrtime.bigint();
  const { status } = spawnSync("criu", [...common, ...args], { env, stdio: "ignore" });
  const wall = Number(process.hrtime.bigint() - begin) / 1e6;
  if (status !== 0) throw new Error(`dump: ${readFileSync(`${images}/dump.log`, "utf8").slice(-600)}`);
  await sleep(50);
  let record;
  try {
    record = JSON.parse(readFileSync(`${images}/cryoshim.json`, "utf8")).networkLock;
  } catch {
    // bare
  }
  return { freeze: gap().ms, wall, lock: record?.lockMs, unlock: record?.unlockMs };
}

for (const one of CASES) {
  if (!one.name.includes(only)) continue;
  const tree = await start(one);
  const seen = {};
  try {
    const methods = Object.keys(METHODS).filter((name) => !one.without?.includes(name));
    const external = one.own
      ? [
          "--external",
          `net[${execFileSync("stat", ["-Lc%i", `/proc/${tree.pid}/ns/net`])
            .toString()
            .trim()}]:extRootNetNS`,
        ]
      : [];
    for (let turn = -1; turn < pairs; turn++) {
      for (const name of turn % 2 === 0 ? methods : [...methods].reverse()) {
        if (one.few?.includes(name) && turn > 1) continue;
        const { env, args } = METHODS[name];
        const result = await dump(tree.pid, { env, args: [...args, ...external] });
        seen[name] ??= [];
        if (turn >= 0) seen[name].push(result);
      }
    }
  } finally {
    await tree.stop();
  }
  const middle = (name, field) =>
    seen[name] && seen[name][0][field] !== undefined ? median(seen[name].map((each) => each[field])) : undefined;
  for (const name of Object.keys(seen)) {
    const freeze = middle(name, "freeze");
    const line = {
      bench: "netlock",
      case: one.name,
      method: name,
      runs: seen[name].length,
      freeze_ms: round(freeze),
      wall_ms: round(middle(name, "wall")),
      lock_ms: round(middle(name, "lock")),
      unlock_ms: round(middle(name, "unlock")),
      freeze_ratio_skip: round(freeze / middle("skip", "freeze")),
      freeze_ratio_iptables: seen.iptables ? round(freeze / middle("iptables", "freeze")) : null,
    };
    if (json) console.log(JSON.stringify(line));
    else
      console.log(
        `${line.case.padEnd(36)} ${name.padEnd(9)} freeze ${line.freeze_ms} ms (x ${line.freeze_ratio_skip} of skip), wall ${line.wall_ms} ms` +
          (line.lock_ms === null ? "" : `, lock ${line.lock_ms} ms, unlock ${line.unlock_ms} ms`),
      );
  }
}

// What users get: podman and runc with the defaults of both sides, dump (left running) and restore.
if ("idle-total".includes(only)) {
  const words = [
    "/cryoshim/test/bench/overhead.mjs",
    "--json",
    "--pairs",
    `${pairs}`,
    "--case",
    "defaults: idle, podman",
  ];
  for (const text of execFileSync("node", words).toString().trim().split("\n")) {
    const one = JSON.parse(text);
    for (const [method, side] of [
      ["cryoshim", "cryoshim"],
      ["iptables", "bare"],
    ]) {
      const line = {
        bench: "netlock",
        case: `idle-total, ${one.case.split(":")[0]}`,
        method,
        runs: one.pairs,
        freeze_ms: one[`freeze_${side}_ms`] ?? null,
        freeze_p90_ms: one[`freeze_p90_${side}_ms`] ?? null,
        wall_ms: one[`${side}_ms`],
        freeze_ratio_iptables: method === "cryoshim" ? (one.freeze_ratio ?? null) : 1,
        wall_ratio_iptables: method === "cryoshim" ? one.ratio : 1,
      };
      if (json) console.log(JSON.stringify(line));
      else
        console.log(`${line.case.padEnd(36)} ${method.padEnd(9)} freeze ${line.freeze_ms} ms, wall ${line.wall_ms} ms`);
    }
  }
}
rmSync(place, { recursive: true, force: true });
