// SPDX-License-Identifier: Apache-2.0
// pidfds of every kind (test/workloads/pidfds.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Waits for the program, lets it check, and shows what it found. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() {
	touch "$1/go"
	[ -z "\${lives:-}" ] || { until_true grep -q "kill it" "$1/out"; kill -9 "$lives"; }
	until_true grep -q done "$1/out"
	! grep BAD "$1/out" || no "it is not as it was"
	[ "$(grep -c ^ok "$1/out")" = $2 ] || no "$(cat "$1/out")"
}
outside() { setsid sleep 1000 </dev/null >/dev/null 2>&1 & lives=$!; setsid sleep 1000 </dev/null >/dev/null 2>&1 & dies=$!; }
start() { mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>l/err & pid=$!; ready l; }
program="/cryoshim/build/workloads/pidfds /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

test("CRIU alone refuses them", async () => {
  const { code, output } = await bare(`${WORDS}
start $program; code=0; dump || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toMatch(/PIDFD_THREAD flag is currently not supported/);
});

describe("criu's command line", () => {
  test("pidfds of threads are of the same threads again, and are shared, waited for and sent as they were", () =>
    holds(`${WORDS}start $program; dump; restore; checked l 17`));

  test("pidfds of processes outside are of the same again while they live, and over when they have died", () =>
    holds(`${WORDS}
outside; start $program $lives $dies; dump; kill -9 $dies; wait $dies || true; restore; checked l 22
# Attributes go with the process whose they are (Linux 6.17); before, there are none.
grep -q "attributes . 0" l/out`));

  test("a number that another process has by now is not taken for the one that had it", () =>
    holds(`${WORDS}
outside; start $program $lives $dies; dump; kill -9 $dies; wait $dies || true
echo $((dies - 1)) >/proc/sys/kernel/ns_last_pid; setsid sleep 1000 </dev/null >/dev/null 2>&1 & other=$!
[ "$other" = "$dies" ] || no "pid $dies was not given again"
echo 20000 >/proc/sys/kernel/ns_last_pid
restore; checked l 22`));

  test("--leave-running leaves every pidfd as it is", () =>
    holds(`${WORDS}
outside; start $program $lives $dies; dump -R; kill -9 $dies; wait $dies || true; checked l 22`));

  test("a dump that fails leaves every pidfd as it is, and no image", () =>
    holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program
fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l 17`));

  test("one of a thread that is nowhere but in a message on its way is refused, by name, and the process goes on", () =>
    holds(`${WORDS}
mkdir -p l i; setsid /cryoshim/build/workloads/refused pidfd-thread-sent /tmp/l/out </dev/null >/dev/null 2>&1 & pid=$!; until_true test -s l/out
fails "" dump; grep -q "a message on its way" i/cryoshim.log; [ ! -e i/cryoshim.img ]
until_true grep -q "^State:.S" /proc/$pid/status`));

  test("one of a process that the pid namespace of the checkpoint does not show is refused, and the process goes on", () =>
    holds(`${WORDS}
mkdir -p i; cat >inner <<'END'
. /cryoshim/test/support/scenario.sh
setsid sleep 1000 </dev/null >/dev/null 2>&1 & pid=$!
exec 9>&-
fails "" criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job
grep -q "cannot be seen from the pid namespace" i/cryoshim.log; [ ! -e i/cryoshim.img ]
until_true grep -q "^State:.S" /proc/$pid/status
END
setsid sleep 1000 </dev/null >/dev/null 2>&1 & other=$!
python3 -c "import os; os.dup2(os.pidfd_open($other), 9); os.execvp('unshare', ['unshare', '--pid', '--fork', '--mount-proc', 'bash', '/tmp/inner'])"`));

  test("images cut short are refused, and say which", () =>
    holds(`${WORDS}
start $program; dump; truncate -s 30 i/cryoshim-pidfd.img
fails "" restore; grep -q "cryoshim-pidfd.img" i/r.log i/cryoshim.log`));
});

describe.each(["runc", "crun"])("%s", (runtime) => {
  test("a container's pidfds are as they were", () =>
    holds(`${WORDS}
mkdir l i; cp /cryoshim/build/workloads/pidfds l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/pidfds /lab/out /lab/go
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l 17`));
});

test("podman exports a container with pidfds, and imports it under another name", () =>
  holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/pidfds l
podman run -d --name c1 --network none -v /tmp/l:/lab localhost/busybox /lab/pidfds /lab/out /lab/go >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar.gz c1; podman rm c1 >/dev/null
podman container restore --import /tmp/c1.tar.gz --name c2; checked l 17`));

test("LXC restores a container's pidfds", () =>
  holds(`${WORDS}
lab-lxc-create c1 /lab/pidfds /lab/out /lab/go
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/pidfds $l
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l 17
lxc-stop -k -n c1 || true`));
