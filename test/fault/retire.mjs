// SPDX-License-Identifier: Apache-2.0
//
// Kills who replaces a mount (test/support/retire.mjs) at random moments, under a program that checks itself all the time.
// node test/fault/retire.mjs ROUNDS SEED. Prints a report as JSON.
import { spawn, spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { seeded } from "./random.mjs";

const [rounds = 20, first = Date.now() % 1_000_000] = process.argv.slice(2).map(Number);
const random = seeded(first);
const dir = mkdtempSync("/tmp/retire-");
for (const name of ["data", "mnt"]) mkdirSync(`${dir}/${name}`);
const out = () => (existsSync(`${dir}/out`) ? readFileSync(`${dir}/out`, "utf8") : "");
const complaints = () => [
  ...new Set(
    out()
      .split("\n")
      .filter((line) => line.startsWith("BAD")),
  ),
];
const until = async (what, holds) => {
  for (let tries = 0; !holds(); tries++) {
    if (tries > 1000) throw new Error(`never: ${what}; ${complaints()}`);
    await sleep(10);
  }
};

const program = `${process.cwd()}/build/workloads/retired ${dir}/mnt ${dir}/out ${dir}/go apart`;
const script = `mount --make-rprivate /; mount --bind ${dir}/data ${dir}/mnt; exec ${program}`;
const patient = spawn("unshare", ["-m", "sh", "-c", script], { stdio: ["ignore", "ignore", "inherit"] });
const pids = () => [
  patient.pid,
  ...readFileSync(`/proc/${patient.pid}/task/${patient.pid}/children`, "utf8")
    .split(" ")
    .map(Number)
    .filter((pid) => pid > 0),
];
// However this ends: it holds our stderr, which whoever runs us reads to its end.
const endPatient = () => {
  for (const pid of existsSync(`/proc/${patient.pid}`) ? pids() : []) process.kill(pid, "SIGKILL");
  rmSync(dir, { recursive: true, force: true });
};
process.on("exit", endPatient);
await until("ready", () => out().includes("ready"));
const states = () =>
  pids().flatMap((pid) =>
    readdirSync(`/proc/${pid}/task`).map((tid) => readFileSync(`/proc/${pid}/task/${tid}/status`, "utf8")),
  );
const count = () =>
  Number(
    out()
      .match(/(?<=ok )\d+(?=\n)/g)
      ?.at(-1) ?? 0,
  );

/** What `read` gives of a descriptor; undefined when it is gone: the program opens and closes some all the time. */
const ifThere = (read) => {
  try {
    return read();
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
    return undefined;
  }
};
const pathOf = (fd) => ifThere(() => readlinkSync(`/proc/${patient.pid}/fd/${fd}`));
const mountOf = (fd) =>
  ifThere(() => /^mnt_id:\s+(\d+)$/m.exec(readFileSync(`/proc/${patient.pid}/fdinfo/${fd}`, "utf8"))?.[1]);
const descriptors = () => readdirSync(`/proc/${patient.pid}/fdinfo`).filter((fd) => Number(fd) > 2);

/** Whether descriptors are on a mount that is in no namespace: it went with who was killed. */
const isHalfWay = () => {
  const ids = new Set(
    readFileSync(`/proc/${patient.pid}/mountinfo`, "utf8")
      .split("\n")
      .map((line) => line.split(" ")[0]),
  );
  return descriptors().some((fd) => {
    const mount = mountOf(fd);
    return pathOf(fd)?.startsWith("/") && mount !== undefined && !ids.has(mount);
  });
};

// The program's first ones stay.
const lasting = descriptors()
  .filter((fd) => pathOf(fd)?.startsWith(`${dir}/mnt`))
  .slice(0, 8);
const mountsOf = () => lasting.map(mountOf).join();
/** The moment in which descriptors are exchanged, seen as soon as can be. */
const firstMove = async (child) => {
  const before = mountsOf();
  for (let looks = 1; mountsOf() === before && child.exitCode === null; looks++) if (looks % 20 === 0) await sleep(0);
};

/** Ends all of it, telling where everybody stands: a driver that never ends must not keep the tests from their end. */
const giveUp = (what, driver) => {
  const standing = [...pids(), ...(driver === undefined ? [] : [driver])].flatMap((pid) => {
    const tasks = existsSync(`/proc/${pid}/task`) ? readdirSync(`/proc/${pid}/task`) : [];
    return tasks.map((tid) =>
      ["comm", "syscall", "stack"]
        .map((name) => readFileSync(`/proc/${pid}/task/${tid}/${name}`, "utf8").trim())
        .join(" "),
    );
  });
  console.error(`${what}, seed ${first}:\n${standing.join("\n")}`);
  if (driver !== undefined) process.kill(driver, "SIGKILL");
  process.exit(1);
};
/** Far more than one takes: a second. */
const PATIENCE_MS = 120_000;

const outcomes = {};
let halves = 0;
const harms = [];
const driver = ["test/support/retire.mjs", patient.pid, `${dir}/mnt`, `${dir}/data`].map(String);
spawnSync("node", ["test/support/retire.mjs", "--build"], { timeout: PATIENCE_MS });
/** How long a whole one takes, the driver's start aside. */
let lasts = 0;
for (let round = -1; round < rounds; round++) {
  const child = spawn("node", [...driver, "--wait"], { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.on("data", (data) => {
    said += data;
  });
  const ended = new Promise((resolve) => child.on("close", resolve));
  const watch = setTimeout(() => giveUp(`round ${round} does not end`, child.pid), PATIENCE_MS);
  await until("the driver starts", () => said !== "" || child.exitCode !== null);
  // The first is let through. Most of the time goes by before anything is touched, so every other round waits for that.
  const began = Date.now();
  const moment = round < 0 ? 60_000 : lasts * (0.3 + 0.8 * random());
  if (round % 2 === 1) await firstMove(child);
  else await Promise.race([sleep(moment, undefined, { ref: false }), ended]);
  const outcome = child.exitCode === null ? "killed" : child.exitCode === 0 ? "too late" : "failed";
  child.kill("SIGKILL");
  await ended;
  clearTimeout(watch);
  if (round < 0) lasts = Date.now() - began;
  if (isHalfWay()) halves++;
  outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  const before = count();
  await until("it goes on", () => count() > before + 10 || complaints().length > 0);
  const harm = complaints();
  for (const status of states()) {
    const [, state] = /^State:\s+(\S)/m.exec(status);
    const [, tracer] = /^TracerPid:\s+(\d+)/m.exec(status);
    if ("tT".includes(state) || tracer !== "0") harm.push(`state ${state}, tracer ${tracer}`);
  }
  if (outcome === "failed") harm.push(`the driver failed: ${said}`);
  if (harm.length > 0) {
    harms.push({ round, moment, harm });
    break;
  }
}
const whole = spawnSync("node", driver, { encoding: "utf8", timeout: PATIENCE_MS, killSignal: "SIGKILL" });
if (whole.signal !== null) giveUp("the last one does not end");
if (whole.status !== 0) harms.push({ round: rounds, moment: 0, harm: [whole.stderr] });
// An attempt that was killed may have left its mount beside the old one: afterwards there is one.
const stacked = readFileSync(`/proc/${patient.pid}/mountinfo`, "utf8")
  .split("\n")
  .filter((line) => line.split(" ")[4] === `${dir}/mnt`).length;
writeFileSync(`${dir}/go`, "");
await until("done", () => out().includes("done"));
const last = complaints();
if (last.length > 0) harms.push({ round: rounds, moment: 0, harm: last });
console.log(JSON.stringify({ outcomes, halves, harms, stacked, report: whole.stdout.trim() }));
