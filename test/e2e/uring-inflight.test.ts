// SPDX-License-Identifier: Apache-2.0
// io_uring requests of every kind in flight (test/workloads/inflight.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Waits for the program, lets it check, and shows what it found. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out" || { cat "$1/out"; exit 1; }; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = "\${2-37}" ]; }
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

test("1000 requests of one ring are in flight again", () =>
  holds(`${WORDS}
start $program 0 1000; dump; restore; checked l 2`));
