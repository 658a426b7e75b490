// SPDX-License-Identifier: Apache-2.0
// The bracket inside the real CRIU: the fixture carrier operates on every task at dump and at restore.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { inLab } from "../support/script.js";

const SETUP = `
mkdir -p /etc/cryoshim /tmp/i
cp /cryoshim/test/fixtures/surgery-carrier.mjs /etc/cryoshim/
echo 'carriers.extra = ["/etc/cryoshim/surgery-carrier.mjs"]' > /etc/cryoshim/config.toml
printf fake > /tmp/placeholder; truncate -s 4096 /tmp/placeholder; mkdir /tmp/placeholder.d
: > /tmp/surgery.log
patient() { setsid "$@" </dev/null >/dev/null 2>&1 & sleep 0.5; }
health() { sleep 0.3; echo "ok lines \${1:-}: $(grep -c ^ok /tmp/out)"; echo "bad lines: $(grep -c BAD /tmp/out)"; }
grows() { local a=$(grep -c ^ok /tmp/out); sleep 0.5; [ "$(grep -c ^ok /tmp/out)" -gt "$a" ] && echo "alive" || echo "DEAD"; }
`;

/** The lines that the carrier wrote. */
const notes = (stdout: string): Record<string, unknown>[] =>
  stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);

test.each(["threads", "seccomp"])(
  "a task with %s is operated on at dump and at restore and is unharmed",
  async (kind) => {
    const { stdout } = await inLab(`${SETUP}
echo '{"swap":false}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out ${kind}; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "leave-running $?"; grows
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job; echo "dump $?"
criu restore -D /tmp/i -o r.log -v4 --shell-job -d; echo "restore $?"; grows; health
cat /tmp/surgery.log; left_behind`);
    expect(stdout).toContain("leave-running 0\nalive\ndump 0\nrestore 0\nalive\n");
    expect(stdout).toContain("bad lines: 0");
    expect(stdout).not.toContain("LEFT");
    const done = notes(stdout);
    expect(done.filter(({ hook }) => hook === "resume")).toHaveLength(kind === "threads" ? 4 : 1);
    expect(done.filter(({ hook }) => hook === "checkpoint")).toHaveLength(kind === "threads" ? 8 : 2);
    for (const { inner, seen, read, unmapped } of done) {
      expect(seen).toBe(inner);
      expect(read).toBe("scalpel");
      expect(unmapped).toBe(0);
    }
  },
);

test("a task in pid, mount and user namespaces of its own is reached by its number outside", async () => {
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":false}' > /tmp/surgery.json
patient unshare --user --map-root-user --pid --fork --mount-proc --kill-child /cryoshim/build/workloads/patient /tmp/out threads
P=$(pgrep -f '^/cryoshim/build/workloads/patient')
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "dump $?"; grows; health; grep -h Error /tmp/i/d.log
cat /tmp/surgery.log`);
  // CRIU itself refuses a copied mount namespace of the lab ("doesn't have a proper root mount"), after the hook: so
  // this is also a dump that fails after surgery.
  expect(stdout).toContain("dump 1\nalive\n");
  expect(stdout).toContain("bad lines: 0");
  const done = notes(stdout);
  expect(done).toHaveLength(4);
  for (const { pid, inner, seen } of done) {
    expect(seen).toBe(inner);
    expect(inner).not.toBe(pid);
  }
});

test("what was swapped at a dump is put back when the tasks go on", async () => {
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":true}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out files; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "dump $?"; grows; health
cat /tmp/surgery.log; left_behind`);
  expect(notes(stdout)).toEqual([
    { hook: "swapped", pid: expect.any(Number), fd: "fake", shown: true, cwd: "/tmp/placeholder.d" },
  ]);
  expect(stdout).toContain("dump 0\nalive\n");
  expect(stdout).toContain("bad lines: 0");
  expect(stdout).not.toContain("LEFT");
});

test.each([
  ["goes on", "[]", "cwd", 0],
  ["fails", '["dump"]', "cwd", 1],
  ["is one whose engine dies", '["engine"]', "dumped", 137],
])("a dump that %s is seen by no process as a signal or a stop, of a child's either", async (_, die, at, code) => {
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":true,"die":${die},"at":"${at}"}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out family; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "dump $?"
for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
for p in $(pgrep -x patient); do grep -E "^(Sig|Shd)Pnd:.*[1-9a-f]|State:.*stopped" /proc/$p/status && echo LEFT; grep -c placeholder /proc/$p/maps; done
grep -c "not held" /tmp/i/d.log; sleep 0.5; grows; health; grep BAD /tmp/out | head -3; left_behind`);
  expect(stdout).toContain(`dump ${code}\n0\n0\n0\nalive\n`);
  expect(stdout).toContain("bad lines: 0");
  expect(stdout).not.toContain("LEFT");
});

/** What the task has when nothing is left of a swap. */
const REAL = "head -c4 /proc/$P/fd/50; echo; grep -c placeholder /proc/$P/maps; readlink /proc/$P/cwd";

const STEPS = ["fd", "mapping", "cwd", "dumped"];

test.each(["dump", "shim", "engine", "engine, shim"].flatMap((who) => STEPS.map((step) => [who, step] as const)))(
  "a dump in which %s dies after the step %s leaves every object of the task as it was",
  async (who, step) => {
    const die = JSON.stringify(who.split(", "));
    // Nothing wrong has been seen at any moment, however the engine has died.
    const { stdout } = await inLab(`${SETUP}
echo '{"swap":true,"die":${die},"at":"${step}"}' > /tmp/surgery.json
cd /tmp/i; patient /cryoshim/build/workloads/patient /tmp/out files; P=$!; cd /
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job; echo "dump $?"
for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
grows; health
${REAL}; cat /tmp/i/cryoshim.log; left_behind`);
    // CRIU believes a dump done whose exit hook runs: only its end keeps it from ending the task.
    expect(stdout).toContain(`dump ${who.includes("engine") || step === "dumped" ? 137 : 1}\nalive\n`);
    expect(stdout).toContain("bad lines: 0\nreal\n0\n/tmp/i");
    expect(stdout).not.toContain("LEFT");
    expect(stdout.includes("put back"), stdout).toBe(who.includes("engine"));
  },
);

describe("an engine that dies while it stops processes for its swaps", () => {
  let scratch = "";
  beforeAll(() => {
    scratch = mkdtempSync(join(tmpdir(), "cryoshim-surgery-"));
    const flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", join(scratch, "dies.so")];
    execFileSync("gcc", [...flags, "test/fixtures/dies-masking.c"]);
  });
  afterAll(() => rmSync(scratch, { recursive: true, force: true }));

  test.each([
    ["before the stop", "0"],
    ["before it takes back the signal by which one goes on", "18"],
    ["before it takes back a parent's SIGCHLD", "17"],
  ])("%s leaves no thread's signals blocked, and all go on", async (_, but) => {
    const { stdout } = await inLab(
      `${SETUP}
echo '{"swap":true,"die":[],"at":"cwd"}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out family; P=$!
for p in $(pgrep -x patient); do grep SigBlk /proc/$p/status; done > /tmp/before
LD_PRELOAD=/scratch/dies.so DIES_BUT=${but} criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "dump $?"
for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
for p in $(pgrep -x patient); do grep SigBlk /proc/$p/status; done | diff /tmp/before - && echo "masks as before"
for p in $(pgrep -x patient); do grep -E "^(Sig|Shd)Pnd:.*[1-9a-f]|State:.*stopped" /proc/$p/status && echo LEFT; grep -c placeholder /proc/$p/maps; done
sleep 0.5; grows; grep BAD /tmp/out | grep -v "signal that nobody has sent 1[78]"; left_behind`,
      { env: { LAB_SCRATCH: scratch } },
    );
    expect(stdout).toContain("dump 137\nmasks as before\n0\n0\nalive");
    // What was on its way when nobody was there to take it back, it sees.
    expect(stdout).not.toContain("BAD");
    expect(stdout).not.toContain("LEFT");
  });
});

test.each([
  ["cgroup2", "cgroup.freeze", "1", "0"],
  ["cgroup v1", "freezer.state", "FROZEN", "THAWED"],
])("what was swapped in a task that %s has frozen is put back before it runs", async (_, file, frozen, thawed) => {
  const { stdout } = await inLab(`${SETUP}
for at in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/freezer; do mkdir -p $at/surgery 2>/dev/null; [ -e $at/surgery/${file} ] && G=$at/surgery; done
echo '{"swap":true,"die":["engine","shim"],"at":"cwd","freeze":["'$G/${file}'","${frozen}"]}' > /tmp/surgery.json
cd /tmp/i; patient /cryoshim/build/workloads/patient /tmp/out files; P=$!; cd /
echo $P > $G/cgroup.procs
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job --freeze-cgroup $G; echo "dump $?"
for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
cat $G/${file}; grows; health
${REAL}; left_behind; kill -9 $P`);
  expect(stdout).toContain(`dump 137\n${thawed}\nalive\n`);
  expect(stdout).toContain("bad lines: 0\nreal\n0\n/tmp/i");
  expect(stdout).not.toContain("LEFT");
});

test.each(["dump", "shim"])(
  "images that are not complete when the tasks run again, for %s fails then, are no success by command line or by swrk, and the tasks go on",
  async (who) => {
    const { stdout } = await inLab(`${SETUP}
echo '{"swap":true,"die":["${who}"],"at":"rest"}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out files; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "command $?"; grows
PYTHONPATH=/cryoshim/test/support python3 - $P <<'END'
import sys
from swrk import DUMP, images, nested, number
import socket, subprocess
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(20)
criu = subprocess.Popen(["criu", "swrk", str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
theirs.close()
options = {1: images, 2: int(sys.argv[1]), 3: 1, 9: 4}
ours.send(number(1, DUMP) + nested(2, b"".join(number(*each) for each in options.items())))
try:
    answer = ours.recv(1 << 20)
except ConnectionResetError:
    answer = b""
print("swrk", {b"": "end", number(2, 0): "failure", number(2, 1): "success"}[answer[2:4]])
ours.close()
criu.wait(20)
END
grows; health; for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
${REAL}; grep -h Error /tmp/i/d.log /tmp/i/cryoshim.log; left_behind; kill -9 $P`);
    expect(stdout).toContain(`command 1\nalive\nswrk ${who === "dump" ? "failure" : "end"}\nalive\n`);
    expect(stdout).toContain("bad lines: 0\nreal\n0\n");
    expect(stdout).not.toContain("LEFT");
    if (who === "dump") expect(stdout).toMatch(/the dump is not complete: the test wants this dump to fail/);
    if (who === "shim") expect(stdout).toContain("the shim died before the images were complete");
  },
);

test("a restore of several processes that ends without shim and guard: the runtime hears of it, and none of them is left", async () => {
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":false}' > /tmp/surgery.json
lab-runc-bundle /tmp/b sh -c 'sleep 1000 & wait' >/dev/null
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; sleep 0.5
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1; echo "dump $?"
echo '{"swap":true,"die":["guard","shim"],"at":"resume"}' > /tmp/surgery.json
timeout -k 1 20 runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; echo "restore $?"
pgrep -x sleep && echo LEFT; pkill -KILL -x runc; cat /tmp/i/restore.log | grep -c "is killed"; left_behind`);
  expect(stdout).toContain("dump 0\nrestore 1\n2");
  expect(stdout).not.toContain("LEFT");
});

test("a carrier that others can write is not run, and CRIU runs alone and says why", async () => {
  const { stdout, stderr } = await inLab(`${SETUP}
chmod 666 /etc/cryoshim/surgery-carrier.mjs
echo '{"swap":false}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out threads; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job -R; echo "dump $?"; grows; cat /tmp/surgery.log /tmp/i/cryoshim.log`);
  expect(stdout).toContain("dump 0\nalive\n");
  expect(notes(stdout)).toEqual([]);
  expect(stdout).toContain("others than root can write /etc/cryoshim/surgery-carrier.mjs");
  expect(stderr).toContain("CRIU runs alone");
});
