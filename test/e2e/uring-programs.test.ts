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

/** A few of each kind; test/proof/liburing.sh without names runs all of them. */
const TESTS = ["accept.t", "link.t", "poll.t", "fsync.t", "link_drain.t", "futex.t", "nop.t", "poll-cancel.t"];

test("tests of liburing's own end well with a checkpoint in their middle", async () => {
  const { stdout } = await promisify(execFile)("test/proof/liburing.sh", TESTS);
  const rows = stdout.trim().split("\n");
  expect(rows.map((row) => row.trim())).toEqual(TESTS.map((name) => `${name}\tok`));
});
