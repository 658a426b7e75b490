// SPDX-License-Identifier: Apache-2.0
//
// What carried objects add to the freeze, inside the lab: `criu dump --leave-running` of a process with N of them, and by
// turns of one with N objects that CRIU saves itself: POSIX queues of ten messages against regular files, corked UDP
// sockets with 100 bytes against sockets that are not, files on an unmounted mount against others. A neighbour in the same tree measures
// the freeze (test/workloads/stamps.c).
import { spawn, spawnSync } from "node:child_process";
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const pairs = Number(option("--pairs", "11"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const place = "/tmp/bench";
/** What is carried, what it is compared with, what it is called, how many. */
const CASES = [
  ...[0, 1, 100, 500].map((count) => ["queues", "files", "queues of 10 messages", count]),
  ...[1, 1000].map((count) => ["detached", "files", "files on an unmounted mount", count]),
  ...[1, 100, 1000].map((count) => ["corks", "sockets", "corked sockets", count]),
];

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const round = (value) => Math.round(value * 1000) / 1000;

const HOLDER = `
import ctypes, os, resource, socket, subprocess, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
kind, count, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
attr = (ctypes.c_long * 8)(0, 10, 8, 0)
held = []
if kind == "detached":
    subprocess.run(f"mkdir {place}/from {place}/at; mount --bind {place}/from {place}/at", shell=True, check=True)
for i in range(count):
    if kind == "files":
        held.append(open(f"{place}/file{i}", "w+"))
        continue
    if kind in ("corks", "sockets"):
        held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        if kind == "corks":
            held[-1].setsockopt(socket.SOL_UDP, 1, 1)
            held[-1].sendto(b"x" * 100, ("127.0.0.1", 9))
        else:
            held[-1].bind(("127.0.0.1", 0))
        continue
    if kind == "detached":
        held.append(open(f"{place}/at/file{i}", "w+"))
        continue
    q = libc.mq_open(f"/bench{i}".encode(), os.O_RDWR | os.O_CREAT, 0o600, attr)
    assert q >= 0, os.strerror(ctypes.get_errno())
    for n in range(10):
        assert libc.mq_send(q, b"12345678", 8, n % 3) == 0
if kind == "detached":
    subprocess.run(["umount", "-l", f"{place}/at"], check=True)
open(f"{place}/ready", "w").close()
time.sleep(100000)
`;

const gap = (at, reset = false) => {
  const fd = openSync(`${at}/stamps`, "r+");
  const words = Buffer.alloc(16);
  if (reset) writeSync(fd, Buffer.alloc(8), 0, 8, 0);
  else readSync(fd, words, 0, 16, 0);
  closeSync(fd);
  return Number(words.readBigInt64LE(0)) / 1e6;
};

/** A tree of two, in namespaces of its own: what holds the objects, and what measures its freeze. */
async function start(kind, count) {
  const at = `${place}/${kind}`;
  mkdirSync(at, { recursive: true });
  cpSync("/cryoshim/build/workloads/stamps", `${at}/stamps.run`);
  writeFileSync(`${at}/holder.py`, HOLDER);
  const script = `ip link set lo up; echo 2000 >/proc/sys/fs/mqueue/queues_max; ${at}/stamps.run ${at}/stamps & exec python3 ${at}/holder.py ${kind} ${count} ${at}`;
  const tree = spawn("unshare", ["--ipc", "--net", "sh", "-c", script], {
    stdio: ["ignore", "ignore", "inherit"],
    detached: true,
  });
  for (let tries = 0; !existsSync(`${at}/ready`) || !existsSync(`${at}/stamps`); tries++) {
    if (tries > 500) throw new Error(`${kind}: the holder is not ready`);
    await sleep(20);
  }
  return { at, pid: tree.pid };
}

async function dump({ at, pid }) {
  const images = `${at}/i`;
  rmSync(images, { recursive: true, force: true });
  mkdirSync(images);
  await sleep(100);
  gap(at, true);
  const { status } = spawnSync("criu", ["dump", "-t", `${pid}`, "-D", images, "-o", "dump.log", "-v2", "-R"]);
  if (status !== 0) throw new Error(`dump: ${readFileSync(`${images}/dump.log`, "utf8").slice(-600)}`);
  await sleep(50);
  return gap(at);
}

for (const [ours, theirs, what, count] of CASES) {
  const name = `${count} ${what}`;
  const kinds = [ours, theirs];
  if (!name.includes(only)) continue;
  rmSync(place, { recursive: true, force: true });
  const trees = {};
  const seen = { [ours]: [], [theirs]: [] };
  try {
    for (const kind of kinds) trees[kind] = await start(kind, count);
    for (let turn = -1; turn < pairs; turn++)
      for (const kind of turn % 2 === 0 ? kinds : [...kinds].reverse()) {
        const ms = await dump(trees[kind]);
        if (turn >= 0) seen[kind].push(ms);
      }
  } finally {
    spawnSync("pkill", ["-KILL", "-f", `${place}/`]);
  }
  const [freeze, other] = kinds.map((kind) => median(seen[kind]));
  const line = {
    bench: "carriers",
    case: name,
    runs: pairs,
    freeze_ms: round(freeze),
    peer: theirs,
    freeze_peer_ms: round(other),
    added_ms: round(freeze - other),
    added_us_each: count === 0 ? null : round(((freeze - other) * 1000) / count),
  };
  console.log(
    json
      ? JSON.stringify(line)
      : `${name.padEnd(28)} freeze ${line.freeze_ms} ms, with ${theirs} ${line.freeze_peer_ms} ms: ${line.added_us_each ?? "-"} us each`,
  );
}
