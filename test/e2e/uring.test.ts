// SPDX-License-Identifier: Apache-2.0
// io_uring rings of every kind (test/workloads/rings.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Starts the program with kinds of rings, waits for it, lets it check, and shows what it found. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; grep -q ^ok "$1/out"; }
program="/cryoshim/build/workloads/rings /tmp/l/out /tmp/l/go"
start() { mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

test("CRIU alone refuses a process with a ring", async () => {
  const { code, output } = await bare(`${WORDS}
start $program plain; code=0; dump || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toContain("anon_inode:[io_uring]");
});

describe("criu's command line", () => {
  test.each([
    "plain clamp submit-all coop cqsize",
    "single defer enabled disabled iopoll",
    "sqe128 cqe32 no-sqarray no-mmap",
    "registered-only plain registered-only=20000 defer",
    "sqpoll attach sq-aff",
    "shared dup registered epoll",
    "mapped",
    "overflow overflow-defer full full-single dropped",
    "buffers files eventfd personality workers napi napi-static",
    "waits waits-limited waits-signal posted affinity",
    "waits-own waits-kernel waits-own=20000",
    "direct affinity-sqpoll",

    "restricted provided pbuf-ring pbuf-mmap pbuf-inc pbuf-low",
    "plain=100000 defer=20000 sqpoll=5000 cqe32=70000",
  ])("rings are made again as they were, with what is in them and registered: %s", async (kinds) => {
    await holds(`${WORDS}
start $program ${kinds}; dump; restore; checked l`);
  });

  test.each(["personality-other", "personality-user", "personality-lower"])(
    "credentials that are not the process's own are registered again, each as it was: %s",
    async (kind) => {
      await holds(`${WORDS}
words() { cryoshim crit decode -i i/cryoshim-uring.img --pretty | grep -A60 '"credentials"' >$1; }
start $program ${kind}; dump; words a; restore; rm -r i; mkdir i; dump -R; words b; cmp a b; checked l`);
    },
  );

  test.each([
    ["", 3],
    ["setpriv --bounding-set -ipc_lock", 3],
  ])(
    "a long history is gone through while CRIU restores, and memory is charged to the same user: %s",
    async (as, ahead) => {
      await holds(`${WORDS}
start ${as} $program charged=150000 shared=200000 plain=300000 defer=100000
dump; restore; cat i/r.log i/cryoshim.log | grep "brought on while CRIU restores: ${ahead}"; checked l; kill -9 $pid`);
    },
  );

  test("--leave-running leaves every ring as it is, and again", () =>
    holds(`${WORDS}
start $program plain sqe128 defer sqpoll no-sqarray registered-only epoll dup shared overflow buffers pbuf-ring pbuf-mmap waits waits-limited waits-signal waits-own waits-kernel
dump -R; rm -r i; mkdir i; dump -R; checked l`));

  test("a dump that fails leaves every ring as it is, and no image", () =>
    holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program plain defer sqpoll waits
fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l`));

  test("what is not carried is refused, says why, and goes on", () =>
    holds(`${WORDS}
start $program plain registered-closed
fails "" dump; grep -q "registered only" i/d.log i/cryoshim.log; [ ! -e i/cryoshim.img ]; checked l`));

  test.each([
    ["multishot", "more often than it has made submissions"],
    ["hybrid-iopoll", "flags that this version does not know"],
    ["direct-socket", "registered file 1 is open nowhere else: it is a socket, and not of TCP or UDP"],
    ["direct-gone", "is not its name any more"],
  ])("before anything is written it refuses what it could not make again: %s", async (kind, why) => {
    await holds(`${WORDS}
start $program plain ${kind}
fails "" dump; grep -q "${why}" i/d.log i/cryoshim.log; [ ! -e i/cryoshim.img ]; checked l; kill -9 $pid`);
  });

  test.each([
    ["the engine", "kill -9 $c"],
    ["the shim", "pkill -9 -f [d]ist/shim.cjs"],
    ["both", "kill -9 $c; pkill -9 -f [d]ist/shim.cjs"],
  ])("whoever dies in a dump, rings are put back: %s", async (_, kill) => {
    await holds(`${WORDS}
for delay in 0.1 0.25 0.4 0.6; do
  rm -rf l i
  start $program plain defer sqpoll epoll overflow
  dump -R >/dev/null 2>&1 & c=$!
  sleep $delay; { ${kill}; } >/dev/null 2>&1 || true
  wait $c || true
  until_true grep -q "^State:.[SR]" /proc/$pid/status
  checked l; kill -9 $pid
done`);
  });

  test("doctor foretells what is not carried, and a restore that will take long", () =>
    holds(`${WORDS}
start $program registered-closed plain=20000000
cryoshim doctor --pid $pid >said || true; grep "not carried: .*registered only" said; grep "takes a restore about 1 s" said
kill -9 $pid`));

  test("images cut short are refused, and say which", () =>
    holds(`${WORDS}
start $program plain; dump; truncate -s 300 i/cryoshim-uring.img
fails "" restore; grep -q "cryoshim-uring.img" i/r.log i/cryoshim.log`));
});

describe.each(["runc", "crun"])("%s", (runtime) => {
  test("a container's rings are made again", () =>
    holds(`${WORDS}
mkdir l i; cp /cryoshim/build/workloads/rings l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/rings /lab/out /lab/go plain defer sqpoll shared epoll buffers files
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l`));
});

test("podman exports a container with rings, and imports it under another name", () =>
  holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/rings l
podman run -d --name c1 --network none --security-opt seccomp=unconfined -v /tmp/l:/lab localhost/busybox \\
  /lab/rings /lab/out /lab/go plain defer sqpoll shared epoll eventfd pbuf-ring >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar.gz c1; podman rm c1 >/dev/null
podman container restore --import /tmp/c1.tar.gz --name c2; checked l`));

test("LXC restores a container's rings", () =>
  holds(`${WORDS}
lab-lxc-create c1 /lab/rings /lab/out /lab/go plain defer sqpoll
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/rings $l
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l
lxc-stop -k -n c1`));
