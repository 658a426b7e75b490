// SPDX-License-Identifier: Apache-2.0
//
// What cryoshim costs over bare CRIU, inside the lab: pairs by turns, medians. The freeze is measured by the workload
// itself (test/workloads/stamps.c): the largest gap between its readings of the wall clock over a dump that leaves it
// running. Cases called "defaults" compare what users get; the others leave the network lock to CRIU (network.lock =
// "caller"), so that both sides do the same work. So that both sides get the same, each dump is of a container that is left running, and each restore is of
// one that was dumped by the same side.
import { execFileSync, spawnSync } from "node:child_process";
import { closeSync, cpSync, mkdirSync, openSync, readSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const pairs = Number(option("--pairs", "20"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const place = "/tmp/bench";
const barePath = process.env.PATH.replace("/usr/local/sbin:", "");
const environments = { cryoshim: process.env, bare: { ...process.env, PATH: barePath } };

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/** Runs a command; gives its milliseconds. */
function timed(side, [program, ...args]) {
  const start = process.hrtime.bigint();
  const { status, error } = spawnSync(program, args, { env: environments[side], stdio: "ignore" });
  const time = Number(process.hrtime.bigint() - start) / 1e6;
  if (status !== 0) throw new Error(`${side}: ${program} ${args.join(" ")}: ${error?.message ?? `exit ${status}`}`);
  return time;
}

/** The answer's time is taken by the client: its own start does not count. */
function answered(side, hex) {
  const out = execFileSync("python3", ["/cryoshim/test/bench/swrk.py", "--time", hex], { env: environments[side] });
  return Number(out.toString());
}

const stampFile = `${place}/l/stamps`;
function gap(reset = false) {
  const fd = openSync(stampFile, "r+");
  const words = Buffer.alloc(16);
  if (reset) writeSync(fd, Buffer.alloc(8), 0, 8, 0);
  else readSync(fd, words, 0, 16, 0);
  closeSync(fd);
  return { ms: Number(words.readBigInt64LE(0)) / 1e6, ticks: words.readBigInt64LE(8) };
}

async function ticking() {
  for (let tries = 0; tries < 2000; tries++) {
    try {
      const { ticks } = gap();
      await sleep(20);
      if (gap().ticks > ticks) return;
    } catch {
      await sleep(20);
    }
  }
  throw new Error("the workload does not run");
}

/** Runs dump (left running) and measures the freeze. */
async function frozen(side, command) {
  await sleep(100);
  gap(true);
  const ms = timed(side, command);
  await sleep(30);
  return { ms, freeze: gap().ms };
}

function fresh() {
  rmSync(place, { recursive: true, force: true });
  mkdirSync(`${place}/l`, { recursive: true });
  cpSync("/cryoshim/build/workloads/stamps", `${place}/l/workload`);
}

const emptied = (name) => {
  rmSync(`${place}/${name}`, { recursive: true, force: true });
  mkdirSync(`${place}/${name}`);
  return `${place}/${name}`;
};

/** A bundle of the runtime alone. */
function bundle(runtime, words) {
  return {
    start: async () => {
      fresh();
      execFileSync("lab-runc-bundle", [`${place}/b`, "/lab/workload", "/lab/stamps", ...words], {
        env: { ...process.env, LAB_BIND: `${place}/l` },
      });
      timed("bare", [runtime, "run", "-d", "-b", `${place}/b`, "bench"]);
      await ticking();
    },
    leave: () => [
      runtime,
      "checkpoint",
      "--leave-running",
      "--image-path",
      emptied("i"),
      "--work-path",
      emptied("w"),
      "bench",
    ],
    dump: () => [runtime, "checkpoint", "--image-path", emptied("i"), "--work-path", emptied("w"), "bench"],
    restore: () => [
      runtime,
      "restore",
      "-d",
      "-b",
      `${place}/b`,
      "--image-path",
      `${place}/i`,
      "--work-path",
      `${place}/w`,
      "bench",
    ],
    stop: () => spawnSync(runtime, ["delete", "-f", "bench"], { stdio: "ignore" }),
  };
}

function podman(runtime) {
  const p = ["podman", "--runtime", runtime];
  return {
    start: async () => {
      fresh();
      execFileSync("lab-podman-image", { stdio: "ignore" });
      timed("bare", [
        ...p,
        "run",
        "-d",
        "--name",
        "bench",
        "--network",
        "none",
        "-v",
        `${place}/l:/lab`,
        "localhost/busybox",
        "/lab/workload",
        "/lab/stamps",
      ]);
      await ticking();
    },
    leave: () => [...p, "container", "checkpoint", "--leave-running", "bench"],
    dump: () => [...p, "container", "checkpoint", "bench"],
    restore: () => [...p, "container", "restore", "bench"],
    stop: () => spawnSync("podman", ["rm", "-f", "-t", "0", "bench"], { stdio: "ignore" }),
  };
}

const wall = (run) => async (count) => {
  const seen = { cryoshim: [], bare: [] };
  for (let pair = 0; pair < count; pair++)
    for (const side of pair % 2 === 0 ? ["cryoshim", "bare"] : ["bare", "cryoshim"])
      seen[side].push({ ms: await run(side) });
  return [["", seen]];
};

/** Dumps that leave it running (with freeze), then dump and restore in turn, all by pairs. */
const container = (kind) => async (count) => {
  const left = { cryoshim: [], bare: [] };
  const restored = { cryoshim: [], bare: [] };
  await kind.start();
  try {
    for (const side of ["cryoshim", "bare"]) await frozen(side, kind.leave()); // warm
    for (let pair = 0; pair < count; pair++) {
      for (const side of pair % 2 === 0 ? ["cryoshim", "bare"] : ["bare", "cryoshim"]) {
        left[side].push(await frozen(side, kind.leave()));
        await sleep(50);
        timed(side, kind.dump());
        restored[side].push({ ms: timed(side, kind.restore()) });
        await ticking();
      }
    }
  } finally {
    kind.stop();
  }
  return [
    ["dump", left],
    ["restore", restored],
  ];
};

/** With what cryoshim does by itself, or with CRIU's own lock. */
const configured = (lock, run) => async (count) => {
  mkdirSync("/etc/cryoshim", { recursive: true });
  writeFileSync("/etc/cryoshim/config.toml", `network.lock = "${lock}"\n`);
  return run(count);
};

const cases = {
  "criu --version": { run: wall((side) => timed(side, ["criu", "--version"])), times: 3 },
  "swrk VERSION": { run: wall((side) => answered(side, "080a")), times: 3 },
  "swrk FEATURE_CHECK": { run: wall((side) => answered(side, "08093a020801")), times: 3 },
  "idle, runc": { run: configured("caller", container(bundle("runc", []))), times: 1 },
  "idle, crun": { run: configured("caller", container(bundle("crun", []))), times: 1 },
  "idle, podman and crun": { run: configured("caller", container(podman("crun"))), times: 1 },
  "defaults: idle, podman and runc": { run: configured("auto", container(podman("runc"))), times: 1 },
  "defaults: idle, runc": { run: configured("auto", container(bundle("runc", []))), times: 1 },
  "defaults: idle, crun": { run: configured("auto", container(bundle("crun", []))), times: 1 },
  "500 processes, runc": { run: configured("caller", container(bundle("runc", ["500"]))), times: 1 },
  "1 GiB, runc": { run: configured("caller", container(bundle("runc", ["0", "1024"]))), times: 1 },
};

for (const [name, { run, times }] of Object.entries(cases)) {
  if (!name.includes(only)) continue;
  for (const [suffix, { cryoshim, bare }] of await run(pairs * times)) {
    const middle = (side, field) => Math.round(median(side.map((one) => one[field])) * 100) / 100;
    const p90 = (side) => {
      const sorted = side.map(({ freeze }) => freeze).sort((a, b) => a - b);
      return Math.round(sorted[Math.ceil(sorted.length * 0.9) - 1] * 100) / 100;
    };
    const ratio = (a, b) => Math.round((a / b) * 1000) / 1000;
    const [ours, theirs] = [middle(cryoshim, "ms"), middle(bare, "ms")];
    const line = { bench: "overhead", case: suffix ? `${suffix}: ${name}` : name, pairs: cryoshim.length };
    Object.assign(line, { cryoshim_ms: ours, bare_ms: theirs, ratio: ratio(ours, theirs) });
    if (suffix === "dump") {
      const [freeze, bareFreeze] = [middle(cryoshim, "freeze"), middle(bare, "freeze")];
      Object.assign(line, {
        freeze_cryoshim_ms: freeze,
        freeze_bare_ms: bareFreeze,
        freeze_ratio: ratio(freeze, bareFreeze),
        freeze_p90_cryoshim_ms: p90(cryoshim),
        freeze_p90_bare_ms: p90(bare),
      });
    }
    if (json) console.log(JSON.stringify(line));
    else {
      const freeze = line.freeze_ratio
        ? `; freeze ${line.freeze_cryoshim_ms} / ${line.freeze_bare_ms} ms, ${line.freeze_ratio}`
        : "";
      console.log(
        `${line.case.padEnd(32)} ${ours} / ${theirs} ms, ratio ${line.ratio} (+${(ours - theirs).toFixed(2)})${freeze}`,
      );
    }
  }
}
rmSync(place, { recursive: true, force: true });
