// SPDX-License-Identifier: Apache-2.0
// io_uring requests of every kind in flight (test/workloads/inflight.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Waits for the program, lets it check, and shows what it found. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out" || { cat "$1/out"; exit 1; }; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = "\${2-39}" ]; }
start() { mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
program="/cryoshim/build/workloads/inflight /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@" || { cat i/cryoshim.log; return 1; }; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d || { cat i/cryoshim.log; tail -n 5 i/r.log; return 1; }; }
`;

test("CRIU alone refuses a process with a ring", async () => {
  const { code, output } = await bare(`${WORDS}
start $program; code=0; criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toContain("anon_inode:[io_uring]");
});

/** IORING_SETUP_* */
describe.each([
  ["a plain ring", "0"],
  ["SINGLE_ISSUER and DEFER_TASKRUN", "0x3000"],
  ["COOP_TASKRUN", "0x100"],
  ["SQPOLL", "2"],
])("%s", (_, flags) => {
  test("what was in flight goes on after a restore", () =>
    holds(`${WORDS}
start $program ${flags}; dump; restore; checked l`));

  test("--leave-running leaves it in flight", () =>
    holds(`${WORDS}
start $program ${flags}; dump -R; checked l`));

  test("a dump that fails leaves it in flight", () =>
    holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program ${flags}
fails "" criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l`));
});

test.each(["0x3000", "2"])(
  "ticks, terminals, and what does not wait itself in chains that do: flags %s",
  async (flags) => {
    await holds(`${WORDS}
start $program ${flags} more; dump -R; rm -r i; mkdir i; dump; restore; checked l 13`);
  },
);

test("1000 requests of one ring are in flight again", () =>
  holds(`${WORDS}
start $program 0 1000; dump; restore; checked l 2`));

/** A worker of the kernel opens a FIFO, and waits for whoever writes to it. */
const FIFO = `${WORDS}
mkfifo fifo; start $program 0 /tmp/fifo
ended() { : >/tmp/fifo & touch l/go; until_true grep -q done l/out; grep -q "result $1 of 1" l/out || { cat l/out; no "it ended otherwise"; }; }
`;

describe("what cannot be submitted again", () => {
  test("is refused with opcode and user_data, and goes on", () =>
    holds(`${FIFO}
fails "" criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job
grep "OPENAT, user_data 0x4d" i/cryoshim.log; [ ! -e i/cryoshim.img ]; ended 0`));

  test("is waited for, and what it gave is there after the restore", () =>
    holds(`${FIFO}
mkdir -p /etc/cryoshim; printf '[io-uring]\nwait = 20000\n' >/etc/cryoshim/config.toml
(sleep 2; : >/tmp/fifo) & dump; restore; ended 0`));

  test("completes with ECANCELED after the restore where the configuration says so", () =>
    holds(`${FIFO}
mkdir -p /etc/cryoshim; printf '[io-uring]\npolicy = "cancel"\n' >/etc/cryoshim/config.toml
dump; restore; ended -125`));
});

describe.each(["runc", "crun"])("%s", (runtime) => {
  test("what is in flight in a container goes on", () =>
    holds(`${WORDS}
mkdir l i; cp /cryoshim/build/workloads/inflight l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/inflight /lab/out /lab/go
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l`));
});

test("podman exports a container with requests in flight, and imports it under another name", () =>
  holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/inflight l
podman run -d --name c1 --network none --security-opt seccomp=unconfined -v /tmp/l:/lab localhost/busybox /lab/inflight /lab/out /lab/go 0x3000 >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar.gz c1; podman rm c1 >/dev/null
podman container restore --import /tmp/c1.tar.gz --name c2; checked l`));

test("a ring of another container, with as much in flight, is left alone", () =>
  holds(`${WORDS}
mkdir m; setsid /cryoshim/build/workloads/inflight /tmp/m/out /tmp/m/go </dev/null >/dev/null 2>&1 & ready m
start $program; dump; checked m; restore; checked l`));
