// SPDX-License-Identifier: Apache-2.0
// Programs of others that use io_uring, in podman's containers, checkpointed in the middle of their work.
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
. /cryoshim/test/support/pack.sh
lab-podman-image >/dev/null; mkdir -p l
run() { podman run -d --name c1 --network none --security-opt seccomp=unconfined -v /tmp/l:/lab "$@" >/dev/null; }
`;

test.each([
  ["fixed buffers and files", ""],
  ["fixed buffers and files, and a polling thread", "--sqthread_poll=1"],
])("fio writes with %s, and what it has written before and after is right", async (_, options) => {
  await holds(
    `${WORDS}
pack /usr/bin/fio
run localhost/busybox /bin/sh -c "$(in_pack fio) --name=v --ioengine=io_uring --fixedbufs=1 --registerfiles=1 ${options} \\
  --thread --rw=randwrite --bs=4k --size=16m --rate_iops=1500 --iodepth=16 --verify=crc32c --verify_fatal=1 --directory=/lab \\
  --output=/lab/out --eta=never; echo \\$? >/lab/code; sleep 1000"
until_true test -s l/v.0.0; sleep 1; [ ! -e l/code ]; checkpointed c1
until_true test -s l/code; [ "$(cat l/code)" = 0 ] || { cat l/out; exit 1; }; grep "issued rwts: total=4096,4096,0,0" l/out`,
    { LAB_PACKAGES: "fio" },
  );
});

test("Node's files by io_uring go on, and are what they should be", () =>
  holds(`${WORDS}
pack "$(command -v node)"; cp /cryoshim/test/workloads/uring-files.js l
run -e UV_USE_IO_URING=1 localhost/busybox /bin/sh -c "$(in_pack node) /lab/uring-files.js; sleep 1000"
until_true test -s l/rounds
for pid in $(pgrep -f uring-files.js); do ls -l "/proc/$pid/fd" 2>/dev/null || true; done | grep io_uring
checkpointed c1; before=$(cat l/rounds)
more() { [ "$(cat l/rounds)" -gt $((before + 5)) ]; }
until_true more; touch l/go; until_true test -s l/done; [ "$(cat l/done)" = done ] || { cat l/done; exit 1; }`));

/** A few of each kind, none that ends by its own alarm(2) of a second; test/proof/liburing.sh without names runs all of them. */
const TESTS = ["accept.t", "link.t", "poll.t", "fsync.t", "link_drain.t", "futex.t", "nop.t", "poll-cancel-all.t"];

test("tests of liburing's own end well with a checkpoint in their middle", async () => {
  const { stdout } = await promisify(execFile)("test/proof/liburing.sh", TESTS);
  const rows = stdout.trim().split("\n");
  expect(rows.map((row) => row.trim())).toEqual(TESTS.map((name) => `${name}\tok`));
});

test("Node's server that reads files by io_uring goes on with its clients, inside and outside of the container", () =>
  holds(`${WORDS}
pack "$(command -v node)"; cp /cryoshim/test/workloads/uring-serve.js l; mkdir outside l/inside; wire n1
podman run -d --name c1 --network ns:/run/netns/n1 --security-opt seccomp=unconfined -v /tmp/l:/lab -e UV_USE_IO_URING=1 localhost/busybox /bin/sh -c "
  $(in_pack node) /lab/uring-serve.js serve 8000 & until [ -e /lab/serving ]; do sleep 0.1; done
  $(in_pack node) /lab/uring-serve.js fetch 127.0.0.1 8000 /lab/inside; sleep 1000" >/dev/null
until_true test -e l/serving
node l/uring-serve.js fetch 10.9.0.2 8000 outside &
ended() { [ -s l/inside/ended ] && [ -s outside/ended ]; }
more() { for state in l/inside outside; do before=$(cat $state/fetched); until_true eval 'ended || [ "$(cat $state/fetched)" -gt $((before + 20)) ]'; done; }
rings() { for pid in $(pgrep -f "uring-serve.js serve"); do ls -l "/proc/$pid/fd" 2>/dev/null || true; done | grep io_uring; }
until_true eval '[ -s l/inside/fetched ] && [ -s outside/fetched ]'; more
rings
podman container checkpoint --leave-running --tcp-established c1 >/dev/null; more
podman container checkpoint --tcp-established c1 >/dev/null; podman container restore --tcp-established c1 >/dev/null; more
rings
touch l/inside/stop outside/stop; until_true ended
for state in l/inside outside; do [ "$(cat $state/ended)" = done ] || { cat $state/ended; exit 1; }; done`));
