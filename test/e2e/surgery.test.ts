// SPDX-License-Identifier: Apache-2.0
// The bracket inside the real CRIU: the fixture carrier operates on every task at dump and at restore.
import { expect, test } from "vitest";
import { inLab } from "../support/script.js";

const SETUP = `
mkdir -p /etc/cryoshim /tmp/i
cp /cryoshim/test/fixtures/surgery-carrier.mjs /etc/cryoshim/
echo 'carriers.extra = ["/etc/cryoshim/surgery-carrier.mjs"]' > /etc/cryoshim/config.toml
printf fake > /tmp/placeholder; truncate -s 4096 /tmp/placeholder
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
  expect(notes(stdout)).toEqual([{ hook: "swapped", pid: expect.any(Number), fd: "fake", shown: true }]);
  expect(stdout).toContain("dump 0\nalive\n");
  expect(stdout).toContain("bad lines: 0");
  expect(stdout).not.toContain("LEFT");
});

test.each([
  ["a carrier fails", "dump"],
  ["the shim is killed", "shim"],
])("when %s between swap and dump, everything is put back and the dump fails", async (_, die) => {
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":true,"die":"${die}"}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out files; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job; echo "dump $?"; grows; health
cat /tmp/surgery.log; left_behind`);
  expect(notes(stdout)).toHaveLength(1);
  expect(stdout).toContain("dump 1\nalive\n");
  expect(stdout).toContain("bad lines: 0");
  expect(stdout).not.toContain("LEFT");
});

test("when the engine is killed with swaps in place, the shim puts everything back by its own hand", async () => {
  // The task runs from the engine's death until the shim has seized it: what it sees in that moment is not asserted.
  const { stdout } = await inLab(`${SETUP}
echo '{"swap":true,"die":"engine"}' > /tmp/surgery.json
patient /cryoshim/build/workloads/patient /tmp/out files; P=$!
criu dump -t $P -D /tmp/i -o d.log -v4 --shell-job; echo "dump $?"; sleep 0.5; : > /tmp/out; grows; health
head -c4 /proc/$P/fd/50; echo; grep -c placeholder /proc/$P/maps; cat /tmp/surgery.log; left_behind`);
  expect(notes(stdout)).toHaveLength(1);
  expect(stdout).toContain("dump 137\nalive\n");
  expect(stdout).toContain("bad lines: 0\nreal\n0\n");
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
