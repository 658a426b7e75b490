// SPDX-License-Identifier: Apache-2.0
//
// kill.mjs OPERATION VICTIM[,VICTIM...] ROUNDS SEED [busy], inside the lab: SIGKILL at random moments of a dump or a restore of runc.
//
// Each round makes a counting container, starts the operation, kills the victim, waits for the operation to end, and
// judges what is left. Prints one JSON object: how often each outcome came, and what each round left that it should not.
// Acceptable: the container runs unharmed, or is gone as runc reports it. The victims: shim (node), engine (criu), both,
// runtime (runc); of several the rounds take one after the other. A victim that never came up, or ended before its moment, counts as
// "too late". busy: the container holds what carriers swap and take along (test/workloads/busy.c), and half of the moments are those
// in which its tasks are stopped.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { seeded } from "./random.mjs";

const [operation, victimWords, roundsWord, seedWord, workload] = process.argv.slice(2);
const rounds = Number(roundsWord);
const victims = victimWords.split(",");
const busy = workload === "busy";
const random = seeded(Number(seedWord));

const place = "/tmp/kill";
const PROGRAM = ["/lab/busy", "/data"];
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

/** The container's own. */
const tasksOf = (all = processes()) => all.filter(({ command }) => /\/lab\/(log|busy)/.test(command));

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
  for (const { pid } of tasksOf()) spawnSync("kill", ["-KILL", `${pid}`]);
  for (let tries = 0; tries < 100 && tasksOf().length > 0; tries++) await sleep(10);
  // Not while a worker of io_uring's still ends in the cgroup of its process.
  for (let tries = 0; tries < 20 && runcQuiet("delete", "-f", id) !== 0; tries++) await sleep(50);
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
  execFileSync("lab-runc-bundle", [`${place}/b`, ...(busy ? PROGRAM : ["sh", "-c", counter])], {
    env: { ...process.env, LAB_BIND: `${place}/l`, LAB_NETNS: "/run/netns/kill" },
  });
  if (busy) {
    copyFileSync("/cryoshim/build/workloads/busy", `${place}/l/busy`);
    const config = readFileSync(`${place}/b/config.json`, "utf8");
    const more = config.replaceAll('"CAP_KILL"', '"CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"');
    writeFileSync(`${place}/b/config.json`, more);
  }
  if (runcQuiet("run", "-d", "-b", `${place}/b`, id) !== 0) throw new Error("runc run failed");
  while (!existsSync(`${place}/l/log`) || lines() < 2) await sleep(5);
}

const words = {
  dump: (id) => ["checkpoint", "--image-path", `${place}/i`, "--work-path", `${place}/w`, id],
  restore: (id) => ["restore", "-d", "-b", `${place}/b`, "--image-path", `${place}/i`, "--work-path", `${place}/w`, id],
};

/** The descriptors of the container's tasks, by what they are, without numbers that a restore changes; and their rings' mappings. */
function holdings() {
  const found = [];
  for (const { pid } of tasksOf()) {
    try {
      for (const fd of readdirSync(`/proc/${pid}/fd`))
        found.push(`${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`).replace(/:\[\d+\]/, "")}`);
    } catch {
      found.push("a task that ends");
    }
    const maps = read(`/proc/${pid}/maps`).split("\n");
    found.push(`${maps.filter((line) => line.endsWith("anon_inode:[io_uring]")).length} mappings of rings`);
  }
  return found.sort().join("\n");
}

/** Resolves when the container's tasks are stopped for a dump, or the operation has ended. */
async function seized(hasEnded) {
  while (!hasEnded() && !tasksOf().some(({ tracer }) => tracer !== "0" && tracer !== "")) await sleep(1);
}

/** Runs the operation; kills the victim at the moment (ms after the start, or after the stop), or as soon as it is there. */
async function operate(id, victim, { from, moment }) {
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
  if (from === "stop") await seized(() => ended);
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

/** Whether a dump had come so far that the engine ends the container's tasks. */
const isDumped = () => /Unfreezing tasks into/.test(read(`${place}/w/dump.log`));

/** What is left once all has come to rest: an outcome that may be, or the harm. */
async function judge(id, held) {
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
  const tasks = tasksOf();
  for (const { state: letter, tracer } of tasks) {
    if ("tT".includes(letter)) harm.push(`a task is stopped (${letter})`);
    if (tracer !== "0" && tracer !== "") harm.push("a task is traced");
  }
  const runcSays = statusOf(id);
  // Only a container that does not run has a lock that waits for its restore: ours, or that of a CRIU that ran alone.
  if (process.env.LAB === "cryoshim" && (tasks.length > 0 || waiting() === 0) && !passes())
    harm.push("the network stays locked");
  for (const line of read(`${place}/l/wrong`).split("\n").filter(Boolean)) harm.push(`the program saw: ${line}`);
  let outcome;
  if (tasks.length > 0 && runcSays === "running" && (await counts()) && whole()) outcome = "runs unharmed";
  else if (tasks.length === 0 && (runcSays === "none" || runcSays === "stopped"))
    outcome = operation === "restore" || isDumped() ? "gone" : "harmed: it has ended without having been dumped";
  else
    outcome = `harmed: runc says ${runcSays}, ${tasks.length} task(s) left${whole() ? "" : ", count or offset lost"}`;
  // The counter starts programs all the time, which are seen or not.
  if (busy && operation === "dump" && outcome === "runs unharmed" && holdings() !== held)
    harm.push(`it holds other things than before: ${holdings()}; before: ${held}`);
  if (busy && outcome === "runs unharmed") harm.push(...(await looked(id)));
  return { outcome, harm };
}

/** What has only waited in the busy container: looked at by itself. And what its mounts and descriptors are. */
async function looked(id) {
  const wrong = [];
  writeFileSync(`${place}/l/check`, "");
  for (let tries = 0; tries < 500 && !read(`${place}/l/checked`).endsWith("done\n"); tries++) await sleep(20);
  const said = read(`${place}/l/checked`).split("\n").filter(Boolean);
  if (said.at(-1) !== "done" || said.filter((line) => line.startsWith("ok")).length !== 9)
    wrong.push(`it says of itself: ${said.filter((line) => !line.startsWith("ok")).join(", ")}`);
  for (const { pid } of tasksOf())
    for (const line of read(`/proc/${pid}/mountinfo`).split("\n"))
      if (/ \/proc\/driver |cryoshim/.test(line)) wrong.push(`left in ${id}: the mount ${line}`);
  return wrong;
}

/** A moment of an operation that takes `typical` ms in all, and stops tasks for its last `stop` ms. */
function anyMoment({ typical, stop }) {
  const [phase, share] = [random(), random()];
  if (!busy || phase < 0.4) return { from: "start", moment: share * typical * 0.95 };
  if (operation === "dump") return { from: "stop", moment: share * stop };
  return { from: "start", moment: typical * (0.5 + share * 0.5) };
}

/** How long an operation takes: in all, and from when tasks are stopped. */
async function timed(words) {
  const start = performance.now();
  const child = spawn("runc", words, { stdio: "ignore" });
  let ended = false;
  const end = new Promise((resolve) => child.on("exit", resolve)).then(() => {
    ended = true;
  });
  await seized(() => ended);
  const stopped = performance.now();
  await end;
  return { typical: performance.now() - start, stop: performance.now() - stopped };
}

async function main() {
  const outcomes = {};
  const harms = [];
  await begin("warm-up"); // what is made once, such as /run/cryoshim and runc's cgroups, is not left behind
  let times = await timed(words.dump("warm-up"));
  if (operation === "restore") times = await timed(words.restore("warm-up"));
  else if (!busy) times.typical = 200;
  await clearAway("warm-up");
  const before = new Set(surroundings());
  let left = rounds;
  // In a busy container's round that came too late nothing was tried.
  for (let round = 0; left > 0 && round < rounds * 3; round++) {
    const id = `kill-${round}`;
    await begin(id);
    if (operation === "restore" && runcQuiet(...words.dump(id)) !== 0) throw new Error("the dump failed");
    const victim = victims[round % victims.length];
    const moment = anyMoment(times);
    const held = holdings();
    const { code, hit } = await operate(id, victim, moment);
    // The first of all took longer than the others do.
    if (hit || !busy) left--;
    if (busy && !hit) times = { typical: times.typical * 0.85, stop: times.stop * 0.85 };
    const { outcome, harm } = await judge(id, held);
    if (code === "hangs") harm.push(`runc ${operation} hangs`);
    const log = ["cryoshim.log", `${operation}.log`]
      .flatMap((name) =>
        read(`${place}/w/${name}`)
          .split("\n")
          .filter((line) => /guard|cryoshim|Error/.test(line)),
      )
      .slice(-20);
    await clearAway(id);
    for (const left of surroundings()) {
      if (before.has(left)) continue;
      // Empty directories and caches, made once.
      if (left.startsWith("/sys/fs/bpf/cryoshim/kit")) continue;
      if (left.startsWith("/run/cryoshim/code")) continue;
      if (["/sys/fs/bpf/cryoshim", "/run/cryoshim/locks", "/run/cryoshim/btf-ids"].includes(left)) continue;
      before.add(left);
      // What runc makes and only runc can remove: killed itself, it leaves state directory, mount and cgroups, also with
      // CRIU alone, and `runc delete` then knows of no such container.
      if (victim === "runtime" && operation === "restore" && new RegExp(`/${id}(/criu-root)?$`).test(left)) continue;
      harm.push(`left ${left.replace(id, "ID")}`);
    }
    const key = `${victims.length > 1 ? `${victim}: ` : ""}${hit ? outcome : `too late, ${outcome}`}`;
    outcomes[key] = (outcomes[key] ?? 0) + 1;
    if (outcome.startsWith("harmed")) harm.push(outcome);
    if (harm.length > 0)
      harms.push({ round, victim, outcome, from: moment.from, moment: Math.round(moment.moment), code, harm, log });
  }
  unmountAll();
  rmSync(place, { recursive: true, force: true });
  console.log(
    JSON.stringify({
      kind: process.env.LAB,
      operation,
      victim: victimWords,
      rounds,
      seed: Number(seedWord),
      outcomes,
      harms,
    }),
  );
}

await main();
