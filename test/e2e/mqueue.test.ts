// SPDX-License-Identifier: Apache-2.0
// POSIX message queues of every kind (test/workloads/queues.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Waits for the program, lets it check, and shows what it found. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = 21 ]; }
start() { mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
program="/cryoshim/build/workloads/queues /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

test("CRIU alone refuses a process with an open queue, and a mount with a queue in it", async () => {
  const { code, output } = await bare(`${WORDS}
start $program; code=0; dump || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toMatch(/Can't lookup mount=\d+ for fd=\d+ path=\/|mqueue isn't empty/);
});

describe("criu's command line", () => {
  test("in a namespace that goes on, queues that still exist are opened again", () =>
    holds(`${WORDS}
start $program; dump; restore; checked l`));

  test("in a namespace that goes on, queues that have gone are made again, and others are left alone", () =>
    holds(`${WORDS}
mkdir q; mount -t mqueue none q; touch q/theirs
start $program; dump; rm q/plain q/large q/full q/signal; restore; checked l
ls q/theirs`));

  test("SIGEV_NONE, a poll, several threads on one queue, one opened by its path, limits, what is left of a wait", () =>
    holds(`${WORDS}
start python3 /cryoshim/test/workloads/more-queues.py /tmp/l/out /tmp/l/go wait; dump; sleep 8; restore
touch l/go; until_true grep -q done l/out; ! grep BAD l/out || no "it is not as it was"; [ "$(grep -c ^ok l/out)" = 8 ]`));

  test("the same in an ipc namespace of its own", () =>
    holds(`${WORDS}
start unshare --ipc python3 /cryoshim/test/workloads/more-queues.py /tmp/l/out /tmp/l/go; dump; restore
touch l/go; until_true grep -q done l/out; ! grep BAD l/out || no "it is not as it was"; [ "$(grep -c ^ok l/out)" = 6 ]`));

  test("--leave-running leaves every queue as it is", () => holds(`${WORDS}start $program; dump -R; checked l`));

  test("a dump that fails leaves every queue as it is, and no image", () =>
    holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program
fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l`));

  test("a restore that fails leaves none of its queues behind", () =>
    holds(`${WORDS}
mkdir q; mount -t mqueue none q
start $program; dump; rm q/*; cp -r i j; f=$(ls i/core-*.img | tail -1); : >"$f"
fails "" restore; [ -z "$(ls q)" ] || no "left: $(ls q)"`));

  test("an engine that is killed in a restore leaves none of its queues behind", () =>
    holds(`${WORDS}
mkdir q; mount -t mqueue none q
start $program; dump; rm q/*
printf '#!/bin/sh\\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-resume ] || { ls /tmp/q >/tmp/made; kill -9 $PPID; sleep 1; }\\n' >script; chmod 755 script
fails "" criu restore -D /tmp/i -o r.log -v4 --shell-job -d --action-script /tmp/script
grep -q plain made; none() { [ -z "$(ls q)" ]; }; until_true none`));

  test("images cut short are refused, and say which", () =>
    holds(`${WORDS}
start $program; dump; truncate -s 300 i/cryoshim-mqueue.img
fails "" restore; grep -q "cryoshim-mqueue.img" i/r.log i/cryoshim.log`));
});

describe.each(["runc", "crun"])("%s", (runtime) => {
  const started = `${WORDS}
mkdir l i; cp /cryoshim/build/workloads/queues l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/queues /lab/out /lab/go
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
`;
  test("a container's queues are made anew, with the container's mount of them", () =>
    holds(`${started}
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l; [ "$(${runtime} exec c1 ls /dev/mqueue | wc -l)" = 10 ]`));
});

test("podman exports a container with queues, and imports it under another name", () =>
  holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/queues l
podman run -d --name c1 --network none -v /tmp/l:/lab localhost/busybox /lab/queues /lab/out /lab/go >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar.gz c1; podman rm c1 >/dev/null
podman container restore --import /tmp/c1.tar.gz --name c2; checked l`));

test("LXC restores a container's queues", () =>
  holds(`${WORDS}
lab-lxc-create c1 /lab/queues /lab/out /lab/go
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/queues $l
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l
lxc-stop -k -n c1`));
