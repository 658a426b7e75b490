// SPDX-License-Identifier: Apache-2.0
//
// The demonstration, inside the lab: a container is checkpointed, is gone, is restored, and has lost nothing.
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { counted, longestPause, median, numbersAreWhole, run, served, status } from "./commands.mjs";

const quick = process.argv.includes("--quick");
const place = "/var/tmp/demo";
const port = "7000";
const start = performance.now();

/** One step, told with the milliseconds that it took and the time since the start. */
function tell(what, time) {
  const took = time === undefined ? "" : `${time.toFixed(0)} ms`;
  console.log(
    `${((performance.now() - start) / 1000).toFixed(1).padStart(6)} s  ${what.padEnd(84)} ${took.padStart(7)}`.trimEnd(),
  );
}

/** A directory that a container sees at /lab, with the workload in it. */
function directory(name) {
  const path = `${place}/${name}`;
  mkdirSync(path, { recursive: true });
  copyFileSync("/cryoshim/build/workloads/workload", `${path}/workload`);
  return path;
}

/** Throws unless what must hold holds: the demonstration ends there, with exit code 1. */
function must(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

async function podmanStart(name, words, runtime = "runc") {
  const path = directory(name);
  const network = name.endsWith("alone") ? ["--network", "none"] : [];
  const command = ["podman", "--runtime", runtime, "run", "-d", "--name", name, ...network, "-v", `${path}:/lab`];
  const { time } = await run([...command, "localhost/busybox", "/lab/workload", ...words, "/lab"]);
  return { path, time };
}

const address = async (name) =>
  (await run(["podman", "inspect", name, "--format", "{{.NetworkSettings.IPAddress}}"])).output;

/** How each runtime is asked to checkpoint, to restore, and for the process id of the container's init. */
const podman = (runtime) => ({
  pid: async (name) => Number((await run(["podman", "inspect", name, "--format", "{{.State.Pid}}"])).output),
  checkpoint: (name) => run(["podman", "--runtime", runtime, "container", "checkpoint", "--tcp-established", name]),
  restore: (name) => run(["podman", "--runtime", runtime, "container", "restore", "--tcp-established", name]),
});
const lxc = {
  pid: async (name) => Number((await run(["lxc-info", "-n", name, "-pH"])).output || 0),
  checkpoint: (name) => run(["lxc-checkpoint", "-n", name, "-D", `${place}/${name}.images`, "-s"]),
  restore: (name) => run(["lxc-checkpoint", "-n", name, "-D", `${place}/${name}.images`, "-r"]),
};

/** Checkpoint, gone, restore, going on: throws when any of it does not hold, and gives what was seen on the way. */
async function roundTrip(runtime, name, path, server, say) {
  const before = await counted(path, status(path).count, 200);
  const pid = await runtime.pid(name);
  say(`counts: ${before.count}, file offset ${before.offset}, port ${before.port}, process ${pid}`);

  const checkpoint = await runtime.checkpoint(name);
  must(!existsSync(`/proc/${pid}`), `process ${pid} still exists after the checkpoint`);
  const asleep = status(path);
  // The peer's kernel sends again 0.2, 0.6 and 1.4 s after the freeze: podman's moment without a lock is to fall between.
  await sleep(800);
  must(status(path).count === asleep.count, "it still counts after the checkpoint");
  say(`checkpointed: its processes are gone, the count stands at ${asleep.count}`, checkpoint.time);

  const restore = await runtime.restore(name);
  const after = await counted(path, asleep.count, 200);
  must((await runtime.pid(name)) > 0, "the runtime knows no process of the restored container");
  say(`restored: counts on at ${after.count}`, restore.time);

  must(after.offset === after.count * 16, `offset ${after.offset} is not 16 bytes for each of ${after.count} numbers`);
  must(numbersAreWhole(path, after.count), "the file misses a number, or has one twice");
  say(`file: the offset went on, ${after.offset}; every number from 1 to ${after.count} is there once`);
  say("pipe: no number was lost in it (the workload exits if one is)");
  must(after.port === before.port, `the connection is another one: port ${after.port}, it was ${before.port}`);
  const { connections, bytes } = served(server);
  must(connections === 1, `the server saw ${connections} connections instead of one`);
  must(bytes >= after.count * 8, `the server echoed ${bytes} bytes, less than ${after.count} numbers`);
  say(`connection: still the first and only one, port ${after.port}; the server has echoed ${bytes} bytes`);
  return { before, asleep, after, checkpoint: checkpoint.time, restore: restore.time };
}

/** One line for a runtime whose round trip need not be told in full. */
async function oneLine(title, runtime, name, path, server) {
  await counted(path, 0);
  const seen = await roundTrip(runtime, name, path, server, () => {});
  const times = `checkpoint ${seen.checkpoint.toFixed(0)} ms, restore ${seen.restore.toFixed(0)} ms`;
  tell(`${title}: count ${seen.asleep.count}, then ${seen.after.count}; file, pipe, connection went on; ${times}`);
}

async function podmanRunc() {
  const image = await run(["lab-podman-image"]);
  tell("podman + runc: an image of busybox", image.time);
  const server = await podmanStart("server", ["serve", port]);
  const serverAddress = await address("server");
  tell(`container "server" echoes what it is sent, on ${serverAddress}`, server.time);
  const counter = await podmanStart("counter", ["count", serverAddress, port]);
  tell(`container "counter" counts: two processes, a pipe, a file, a connection to "server"`, counter.time);
  await counted(counter.path, 0);
  await roundTrip(podman("runc"), "counter", counter.path, server.path, tell);
  return counter.path;
}

/**
 * podman sets a container's network up before it starts the restore. What the other container sends in that moment is
 * refused, which ends its connection: by chance, and with CRIU alone as well. Then it is done again.
 */
async function unlessRefused(what) {
  for (let left = 3; ; left--) {
    try {
      return await what();
    } catch (error) {
      if (left === 0 || !/Connection reset/.test(error.message)) throw error;
      tell("the server sent just while podman set up the network: refused, as with CRIU alone; once more");
      await run(["podman", "rm", "-f", "-a", "-t", "0"]);
      rmSync(place, { recursive: true, force: true });
    }
  }
}

/** The longest pause of the workload over a checkpoint that leaves it running, with cryoshim and with bare CRIU by turns. */
async function freezeTimes(path) {
  const seen = { cryoshim: [], bare: [] };
  for (let pair = 0; pair < 5; pair++) {
    for (const kind of pair % 2 === 0 ? ["cryoshim", "bare"] : ["bare", "cryoshim"]) {
      await counted(path, status(path).count, 300);
      const since = Date.now();
      const command = ["podman", "container", "checkpoint", "--leave-running", "--tcp-established", "counter"];
      await run(command, { bare: kind === "bare" });
      await counted(path, status(path).count, 300);
      seen[kind].push(longestPause(path, since));
    }
  }
  const words = (values) => `${median(values).toFixed(1)} ms (${values.map((value) => value.toFixed(0)).join(", ")})`;
  tell(`freeze with cryoshim: median ${words(seen.cryoshim)}`);
  tell(`freeze with CRIU bare: median ${words(seen.bare)}`);
}

async function podmanCrun() {
  const server = await podmanStart("crun-server", ["serve", port], "crun");
  const counter = await podmanStart("crun-counter", ["count", await address("crun-server"), port], "crun");
  await oneLine("podman + crun", podman("crun"), "crun-counter", counter.path, server.path);
}

/** What CRIU refuses, each in a container of its own: the program, what it holds, what podman must allow it. */
const REFUSED = [
  ["queues", "POSIX message queues", []],
  ["corks", "corked UDP sockets", []],
  ["rings", "io_uring rings", ["--security-opt", "seccomp=unconfined"]],
];

/** A program that checks itself is refused by CRIU alone, and goes on through cryoshim with all that it holds. */
async function refusedByCriu([program, what, options]) {
  const path = directory(program);
  const said = () => (existsSync(`${path}/out`) ? readFileSync(`${path}/out`, "utf8") : "");
  const saysWithin = async (word) => {
    for (let tries = 0; tries < 1000 && !said().includes(word); tries++) await sleep(10);
    must(said().includes(word), `${program} has not said ${word} within 10 s: ${said()}`);
  };
  copyFileSync(`/cryoshim/build/workloads/${program}`, `${path}/${program}`);
  const words = program === "rings" ? ["plain", "defer", "sqpoll"] : [];
  const command = ["podman", "run", "-d", "--name", program, ...options, "-v", `${path}:/lab`, "localhost/busybox"];
  await run([...command, `/lab/${program}`, "/lab/out", "/lab/go", ...words]);
  await saysWithin("ready");
  const alone = await run(["podman", "container", "checkpoint", program], { bare: true }).then(
    () => "CRIU alone carries it, too",
    async () => {
      const log = await run(["podman", "inspect", program, "--format", "{{.StaticDir}}/dump.log"]);
      const errors = [...readFileSync(log.output, "utf8").matchAll(/Error \(.*?\): (.*)/g)].map(([, error]) => error);
      // Not what stops it: where root lacks CAP_SYS_RESOURCE every run says it.
      return `CRIU alone: ${errors.find((error) => !error.startsWith("rlimit:"))}`;
    },
  );
  const checkpoint = await run(["podman", "container", "checkpoint", program]);
  const restore = await run(["podman", "container", "restore", program]);
  writeFileSync(`${path}/go`, "");
  await saysWithin("done");
  const bad = said().match(/^.*BAD.*$/m)?.[0];
  must(bad === undefined, `${program} is not as it was: ${bad}`);
  const times = `checkpoint ${checkpoint.time.toFixed(0)} ms, restore ${restore.time.toFixed(0)} ms`;
  tell(`${what}: all ${said().match(/^ok/gm)?.length} things that it checks are as they were; ${times}`);
  tell(`  ${alone}`);
  await run(["podman", "rm", "-f", "-t", "0", program]);
}

async function lxcContainer() {
  await run(["lab-lxc-create", "lxc-counter", "/lab/workload", "solo", port, "/lab"]);
  const path = "/var/lib/lxc/lxc-counter/rootfs/lab";
  copyFileSync("/cryoshim/build/workloads/workload", `${path}/workload`);
  mkdirSync(`${place}/lxc-counter.images`);
  await run(["lxc-start", "-d", "-n", "lxc-counter"]);
  await oneLine("LXC", lxc, "lxc-counter", path, path);
  await run(["lxc-stop", "-k", "-n", "lxc-counter"]);
}

async function demonstrate() {
  const engine = (await run(["criu", "--version"])).output.split("\n")[0];
  const stands = (await run(["sh", "-c", "readlink -f $(command -v criu)"])).output;
  tell(`criu in PATH is ${stands} (${engine})`);
  const path = await unlessRefused(podmanRunc);
  if (!quick && process.env.LAB === "cryoshim") await freezeTimes(path);
  if (!quick) {
    await unlessRefused(podmanCrun);
    await lxcContainer();
    if (process.env.LAB === "cryoshim") for (const each of REFUSED) await refusedByCriu(each);
  }
  await run(["podman", "rm", "-f", "-a", "-t", "0"]);
  tell("everything went on");
}

await demonstrate().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
