// SPDX-License-Identifier: Apache-2.0
//
// kill.mjs OPERATION VICTIM ROUNDS SEED, inside the lab: SIGKILL at random moments of a dump or a restore of runc.
//
// Each round makes a counting container, starts the operation, kills the victim, waits for the operation to end, and
// judges what is left. Prints one JSON object: how often each outcome came, and what each round left that it should not.
// Acceptable: the container runs unharmed, or is gone as runc reports it. The victims: shim (node), engine (criu), both,
// runtime (runc). A victim that never came up, or ended before its moment, counts as "too late".
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const [operation, victim, roundsWord, seedWord] = process.argv.slice(2);
const rounds = Number(roundsWord);
let state = Number(seedWord) >>> 0;

/** Mulberry32: the same seed gives the same moments. */
function random() {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}

const place = "/tmp/kill";
const counter = "echo start >>/lab/starts; exec 3>/lab/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.02; done";

const read = (path) => {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
};

/** The processes of the lab: pid, parent, command line, state letter, tracer. Threads and kernel threads left out. */
function processes() {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      const status = read(`/proc/${pid}/status`);
      const field = (name) => new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(status)?.[1] ?? "";
      const command = read(`/proc/${pid}/cmdline`).replaceAll("\0", " ").trim();
      let program = "";
      try {
        program = readlinkSync(`/proc/${pid}/exe`);
      } catch {
        // it has ended
      }
      return {
        pid: Number(pid),
        parent: Number(field("PPid")),
        name: field("Name"),
        state: field("State"),
        tracer: field("TracerPid"),
        command,
        program,
      };
    });
}

const isShim = ({ command }) => command.includes("dist/shim.cjs");
const isGuard = ({ name }) => name === "cryoshim-guard";
// The engine's own children have its name too; the engine is the one whose parent is not called criu.
const isEngine = ({ program, parent, name }, all) =>
  /\/criu$/.test(program) &&
  name !== "cryoshim-guard" &&
  !all.some(({ pid, program: name }) => pid === parent && /\/criu$/.test(name));

const runc = (...args) => {
  const { status, stdout, stderr } = spawnSync("runc", args, {
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 20_000,
    encoding: "utf8",
  });
  return { code: status, stdout, stderr };
};
const runcQuiet = (...args) => spawnSync("runc", args, { stdio: "ignore", timeout: 20_000 }).status;

function statusOf(id) {
  const { code, stdout } = runc("state", id);
  return code === 0 ? JSON.parse(stdout).status : "none";
}

const lines = () => read(`${place}/l/log`).split("\n").length - 1;

async function counts() {
  const before = lines();
  for (let tries = 0; tries < 100; tries++) {
    if (lines() > before + 1) return true;
    await sleep(20);
  }
  return false;
}

/** Whether every number is there once, and the container was started once. */
function whole() {
  const numbers = read(`${place}/l/log`).split("\n").slice(0, -1);
  return numbers.every((line, index) => Number(line) === index + 1) && read(`${place}/l/starts`) === "start\n";
}

/** What there is besides processes: mounts, files in /tmp and /run, cgroups. */
function surroundings() {
  const found = execFileSync("sh", [
    "-c",
    "find /sys/fs/cgroup -type d; find /sys/fs/bpf /tmp /run /dev/shm -path /tmp/kill -prune -o -print; awk '{print \"mount \" $5}' /proc/self/mountinfo",
  ]);
  return found
    .toString()
    .split("\n")
    .filter((line) => line !== "");
}

async function clearAway(id) {
  // What a frozen container needs before it can be killed.
  for (const path of execFileSync("find", ["/sys/fs/cgroup", "-name", "freezer.state", "-path", `*/${id}/*`])
    .toString()
    .split("\n")
    .filter(Boolean))
    spawnSync("sh", ["-c", `echo THAWED >${path}`]);
  runcQuiet("kill", id, "KILL");
  for (const { pid, command } of processes()) if (command.includes("/lab/log")) spawnSync("kill", ["-KILL", `${pid}`]);
  for (let tries = 0; tries < 100 && processes().some(({ command }) => command.includes("/lab/log")); tries++)
    await sleep(10);
  runcQuiet("delete", "-f", id);
  if (process.env.LAB === "cryoshim")
    spawnSync("node", ["dist/cli.js", "lock", "clear", "--all"], { cwd: "/cryoshim" });
}

/** How many network locks wait for a restore. */
const waiting = () =>
  (existsSync("/run/cryoshim/locks") ? readdirSync("/run/cryoshim/locks").length : 0) +
  Number(/^:CRIU /m.test(spawnSync("ip", ["netns", "exec", "kill", "iptables-save"], { encoding: "utf8" }).stdout));

/** Whether packets pass in the container's network namespace. */
const passes = () => spawnSync("ip", ["netns", "exec", "kill", "ping", "-c1", "-W1", "127.0.0.1"]).status === 0;

/** CRIU's mounts in its working directory, which a kill leaves: reported as harm before. */
function unmountAll() {
  const mounts = read("/proc/self/mountinfo")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "");
  for (const path of mounts.filter((path) => path.startsWith(`${place}/w/`)).reverse())
    spawnSync("umount", ["-l", path]);
}

async function begin(id) {
  execFileSync("sh", ["-c", "ip netns del kill 2>&-; ip netns add kill && ip -n kill link set lo up"]);
  unmountAll();
  rmSync(place, { recursive: true, force: true });
  for (const name of ["i", "w", "l"]) mkdirSync(`${place}/${name}`, { recursive: true });
  execFileSync("lab-runc-bundle", [`${place}/b`, "sh", "-c", counter], {
    env: { ...process.env, LAB_BIND: `${place}/l`, LAB_NETNS: "/run/netns/kill" },
  });
  if (runcQuiet("run", "-d", "-b", `${place}/b`, id) !== 0) throw new Error("runc run failed");
  while (!existsSync(`${place}/l/log`) || lines() < 2) await sleep(5);
}

const words = {
  dump: (id) => ["checkpoint", "--image-path", `${place}/i`, "--work-path", `${place}/w`, id],
  restore: (id) => ["restore", "-d", "-b", `${place}/b`, "--image-path", `${place}/i`, "--work-path", `${place}/w`, id],
};

/** Runs the operation; kills the victim at the moment (ms after the start), or as soon as it is there. */
async function operate(id, moment) {
  const child = spawn("runc", words[operation](id), { stdio: "ignore" });
  const start = performance.now();
  let ended = false;
  const end = new Promise((resolve) =>
    child.on("exit", (code, signal) => {
      ended = true;
      resolve(code ?? signal);
    }),
  );
  let hit = false;
  await sleep(moment);
  while (!ended && !hit) {
    const all = processes();
    const targets = {
      runtime: () => [child],
      shim: () => all.filter(isShim),
      engine: () => all.filter((task) => isEngine(task, all)),
      both: () => {
        const shims = all.filter(isShim);
        const engines = all.filter((task) => isEngine(task, all));
        return shims.length > 0 && engines.length > 0 ? [...shims, ...engines] : [];
      },
      none: () => [],
    }[victim]();
    for (const { pid } of targets) {
      try {
        process.kill(pid, "SIGKILL");
        hit = true;
      } catch {
        // it has just ended
      }
    }
    if (!hit) await sleep(1);
  }
  const timeout = sleep(15_000, "hangs", { ref: false });
  const code = await Promise.race([end, timeout]);
  if (code === "hangs") child.kill("SIGKILL");
  return { code, hit, time: performance.now() - start };
}

/** What is left once all has come to rest: an outcome that may be, or the harm. */
async function judge(id) {
  // The shim, and an engine whose runtime is gone, may still be tidying up.
  let helpers = [];
  for (let tries = 0; tries < 200; tries++) {
    const all = processes();
    helpers = all.filter((task) => isShim(task) || isGuard(task) || /\/criu$/.test(task.program));
    if (helpers.length === 0) break;
    await sleep(25);
  }
  const harm = helpers.map(({ name, command }) => `stray ${name} (${command.slice(0, 60)})`);
  await sleep(50);
  const tasks = processes().filter(({ command }) => command.includes("/lab/log"));
  for (const { state: letter, tracer } of tasks) {
    if ("tT".includes(letter)) harm.push(`a task is stopped (${letter})`);
    if (tracer !== "0" && tracer !== "") harm.push("a task is traced");
  }
  const runcSays = statusOf(id);
  // Only a container that does not run has a lock that waits for its restore: ours, or that of a CRIU that ran alone.
  if (process.env.LAB === "cryoshim" && (tasks.length > 0 || waiting() === 0) && !passes())
    harm.push("the network stays locked");
  let outcome;
  if (tasks.length > 0 && runcSays === "running" && (await counts()) && whole()) outcome = "runs unharmed";
  else if (tasks.length === 0 && (runcSays === "none" || runcSays === "stopped")) outcome = "gone";
  else
    outcome = `harmed: runc says ${runcSays}, ${tasks.length} task(s) left${whole() ? "" : ", count or offset lost"}`;
  return { outcome, harm };
}

async function main() {
  const outcomes = {};
  const harms = [];
  let typical = 200;
  await begin("warm-up"); // what is made once, such as /run/cryoshim and runc's cgroups, is not left behind
  spawnSync("runc", words.dump("warm-up"), { stdio: "ignore" });
  const warm = performance.now();
  if (operation === "restore") {
    spawnSync("runc", words.restore("warm-up"), { stdio: "ignore" });
    typical = performance.now() - warm;
  }
  await clearAway("warm-up");
  const before = new Set(surroundings());
  for (let round = 0; round < rounds; round++) {
    const id = `kill-${round}`;
    await begin(id);
    if (operation === "restore" && runcQuiet(...words.dump(id)) !== 0) throw new Error("the dump failed");
    const moment = random() * typical * 0.95;
    const { code, hit } = await operate(id, moment);
    const { outcome, harm } = await judge(id);
    if (code === "hangs") harm.push(`runc ${operation} hangs`);
    await clearAway(id);
    for (const left of surroundings()) {
      if (before.has(left)) continue;
      // Empty directories and a cache, made once.
      if (left.startsWith("/sys/fs/bpf/cryoshim/kit")) continue;
      if (["/sys/fs/bpf/cryoshim", "/run/cryoshim/locks", "/run/cryoshim/btf-ids"].includes(left)) continue;
      before.add(left);
      // What runc makes and only runc can remove: killed itself, it leaves state directory, mount and cgroups, also with
      // CRIU alone, and `runc delete` then knows of no such container.
      if (victim === "runtime" && operation === "restore" && new RegExp(`/${id}(/criu-root)?$`).test(left)) continue;
      harm.push(`left ${left.replace(id, "ID")}`);
    }
    const key = hit ? outcome : `too late, ${outcome}`;
    outcomes[key] = (outcomes[key] ?? 0) + 1;
    if (outcome.startsWith("harmed")) harm.push(outcome);
    if (harm.length > 0) harms.push({ round, moment: Math.round(moment), code, harm });
  }
  unmountAll();
  rmSync(place, { recursive: true, force: true });
  console.log(
    JSON.stringify({ kind: process.env.LAB, operation, victim, rounds, seed: Number(seedWord), outcomes, harms }),
  );
}

await main();
