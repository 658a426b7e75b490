// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";
import { inLab } from "../support/script.js";

const started = `
mkdir i l
setsid sh -c "\${counter//\\/lab/\\/tmp/l}" </dev/null >/dev/null 2>&1 & pid=$!
counting l
`;

describe("the criu command line", () => {
  test("dumps a tree and restores it detached, with a pid file", () =>
    holds(`${started}
      criu dump -t $pid -D i -o dump.log; standing l
      ! kill -0 $pid 2>/dev/null
      criu restore -d -D i -o restore.log --pidfile /tmp/pid; counting l
      [ "$(cat /tmp/pid)" = $pid ]; kill -0 $pid`));

  test("--leave-running and --leave-stopped do what they say", () =>
    holds(`${started}
      criu dump -t $pid -D i --leave-running; counting l
      mkdir j; criu dump -t $pid -D j --leave-stopped; standing l
      grep -q '^State:.T' /proc/$pid/status
      kill -CONT -$pid; counting l # the whole group: sleep is stopped as well`));

  test("--restore-detached --restore-sibling makes the restored task the caller's child", () =>
    holds(`${started}
      criu dump -t $pid -D i
      bash -c 'criu restore --restore-detached --restore-sibling -D i --pidfile /tmp/pid
               awk "/^PPid/ { print \\$2 }" /proc/$(cat /tmp/pid)/status >/tmp/parent; echo $$ >/tmp/self'
      [ "$(cat parent)" = "$(cat self)" ]; counting l`));

  test("not detached, it waits for the restored task and ends when that does", () =>
    holds(`${started}
      criu dump -t $pid -D i
      criu restore -D i & waiting=$!
      counting l; kill -0 $waiting
      kill -KILL $pid
      wait $waiting || true
      [ -z "$(pgrep -x criu || true)" ]`));

  test("--exec-cmd becomes the command, as the restored tree's parent", () =>
    holds(`${started}
      criu dump -t $pid -D i
      criu restore -D i --exec-cmd -- sh -c 'echo $$ >/tmp/executed; sleep 100' & command=$!
      counting l
      [ "$(cat executed)" = $command ]
      [ "$(awk '/^PPid/ { print $2 }' /proc/$pid/status)" = $command ]`));

  test("--shell-job dumps and restores what has the caller's terminal", () =>
    holds(`${started}
      kill -KILL $pid; rm l/*
      cat >job.sh <<'END'
. /cryoshim/test/support/scenario.sh
sh -c "\${counter//\\/lab/\\/tmp/l}" & pid=$!
counting l
criu dump -t $pid -D i --shell-job; standing l
criu restore -d -D i --shell-job; counting l
kill -KILL $pid
END
      script -qec "bash job.sh" /dev/null </dev/null`));

  test("an action script sees each stage, and its environment", async () => {
    const stdout = await holds(`${started}
      printf '#!/bin/sh\\necho "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR $CRTOOLS_INIT_PID" >>/tmp/actions\\n' >action; chmod +x action
      criu dump -t $pid -D i --action-script /tmp/action
      criu restore -d -D i --action-script /tmp/action; counting l
      cat actions`);
    for (const action of ["pre-dump", "post-dump", "pre-restore", "post-restore", "pre-resume", "post-resume"])
      expect(stdout).toContain(`${action} `);
  });

  test("the verbs that need no session reach the engine: check, --version, cpuinfo", () =>
    holds(`mkdir i
      criu check 2>&1 | grep -q "Looks good"
      criu --version | grep -q "^Version: 4.2"
      criu cpuinfo dump -D i && ls i/cpuinfo.img && criu cpuinfo check -D i`));
});

test("a restore by command line whose shim is killed says so, and leaves no task", async () => {
  const { stdout } = await inLab(`
mkdir -p /tmp/i
setsid /cryoshim/build/workloads/patient /tmp/out threads </dev/null >/dev/null 2>&1 & sleep 0.5
criu dump -t $! -D /tmp/i -o d.log -v4 --shell-job 2>/dev/null; echo "dump $?"
for k in $(seq 40 4 100); do
	criu restore -D /tmp/i -o r.log -v4 --shell-job -d 2>/dev/null & R=$!
	sleep $(printf 0.%03d $k); pkill -9 -f 'shim.cjs'
	wait $R; rc=$?
	for i in $(seq 100); do pgrep -x cryoshim-guard >/dev/null || break; sleep 0.05; done
	pgrep -x patient >/dev/null && l=lives || l=gone
	echo "restore $rc: $l"; pkill -9 -x patient
	for i in $(seq 100); do pgrep -x patient >/dev/null || break; sleep 0.02; done
done; left_behind`);
  const outcomes = stdout.split("\n").filter((line) => line.startsWith("restore "));
  expect(outcomes).toHaveLength(16);
  for (const outcome of outcomes)
    expect(["restore 0: lives", "restore 137: gone", "restore 1: gone"]).toContain(outcome);
  expect(stdout).not.toContain("LEFT");
});
