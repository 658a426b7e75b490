// SPDX-License-Identifier: Apache-2.0
// CRIU 4.1.1, Debian 13's own, as the engine: on Linux 6.16 and later it dumps no internet sockets, but all else that is carried.
import { expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

const OLDER = { LAB_PACKAGES: "--allow-downgrades criu/trixie" };
const WORDS = `
/usr/sbin/criu --version | grep -q 4.1.1
between() { :; }
carried() { # COUNT PROGRAM...: each of these checks itself
  rm -rf l i d; mkdir l i d; setsid /cryoshim/build/workloads/"\${@:2}" </dev/null >/dev/null 2>&1 & pid=$!; until_true grep -q ready l/out
  criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || no "$2: $(grep -h Error i/*.log)"
  between; criu restore -D /tmp/i -o r.log -v4 --shell-job -d || no "$2: $(grep -h Error i/*.log)"
  touch l/go; [ -z "\${lives:-}" ] || { until_true grep -q "kill it" l/out; kill -9 "$lives"; }
  until_true grep -q done l/out; ! grep BAD l/out || no "$2: it is not as it was"
  [ "$(grep -c ^ok l/out)" = $1 ] || no "$2: $(cat l/out)"; pkill -9 -x $2 || true
}
`;

test("pidfds of threads it refuses alone", async () => {
  const { code, output } = await bare(
    `mkdir l i; /cryoshim/build/workloads/pidfds /tmp/l/out /tmp/l/go </dev/null >/dev/null 2>&1 & pid=$!; until_true grep -q ready l/out
criu --version; code=0; criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || code=$?; grep -h Error i/d.log; exit $code`,
    OLDER,
  );
  expect(code).toBe(1);
  expect(output).toContain("Version: 4.1.1");
  expect(output).toContain("PIDFD_THREAD flag is currently not supported");
});

test("pidfds are of the same threads and processes again", () =>
  holds(
    `${WORDS}
carried 17 pidfds /tmp/l/out /tmp/l/go
setsid sleep 1000 </dev/null >/dev/null 2>&1 & lives=$!; setsid sleep 1000 </dev/null >/dev/null 2>&1 & dies=$!
between() { kill -9 $dies; wait $dies || true; }; carried 22 pidfds /tmp/l/out /tmp/l/go $lives $dies`,
    OLDER,
  ));

test("queues, files on unmounted mounts and rings are as they were", () =>
  holds(
    `${WORDS}
ip link set lo up; carried 21 queues /tmp/l/out /tmp/l/go; carried 33 unmounted /tmp/d /tmp/l/out /tmp/l/go
carried 51 bound /tmp/d /tmp/l/out /tmp/l/go; carried 11 inside /tmp/d /tmp/l/out /tmp/l/go chroot; carried 22 alone /tmp/d /tmp/l/out /tmp/l/go directory
carried 23 rings /tmp/l/out /tmp/l/go plain single shared buffers eventfd`,
    OLDER,
  ));

test("runc restores a container with pidfds, and one that holds nothing special", () =>
  holds(
    `${WORDS}
mkdir l i; cp /cryoshim/build/workloads/pidfds l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/pidfds /lab/out /lab/go
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; until_true grep -q ready l/out
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
touch l/go; until_true grep -q done l/out; ! grep BAD l/out; [ "$(grep -c ^ok l/out)" = 17 ]; runc delete -f c1
rm -rf i; mkdir i; LAB_BIND=/tmp/l lab-runc-bundle /tmp/b2 sh -c 'while :; do touch /lab/alive; sleep 0.1; done'
runc run -d -b /tmp/b2 c2 </dev/null >/dev/null 2>&1; until_true test -e l/alive
runc checkpoint --image-path /tmp/i --work-path /tmp/i c2; [ ! -e i/cryoshim.img ]; rm -f l/alive
runc restore -d -b /tmp/b2 --image-path /tmp/i --work-path /tmp/i c2 </dev/null >/dev/null 2>&1; until_true test -e l/alive`,
    OLDER,
  ));
