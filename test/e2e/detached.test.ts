// SPDX-License-Identifier: Apache-2.0
// Files on lazily unmounted mounts (test/workloads/detached.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = "\${2:-26}" ]; }
start() { mkdir -p l i d; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
program="/cryoshim/build/workloads/detached /tmp/d /tmp/l/out /tmp/l/go"
inside="/cryoshim/build/workloads/inside /tmp/d /tmp/l/out /tmp/l/go"
alone="/cryoshim/build/workloads/alone /tmp/d /tmp/l/out /tmp/l/go"
kinds="/cryoshim/build/workloads/unmounted /tmp/d /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

test("CRIU alone refuses a process with a file on an unmounted mount", async () => {
  const { code, output } = await bare(`${WORDS}
start $program; code=0; dump || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toMatch(/Can't lookup mount=\d+ for fd=\d+ path=/);
});

describe("criu's command line", () => {
  test("files, directories and deleted files are opened again on a mount that is nowhere to be seen", () =>
    holds(`${WORDS}start $program; dump; restore; checked l`));

  test("devices, FIFOs with what is in them, other links, symbolic links and what has no name any more", () =>
    holds(`${WORDS}start $kinds; dump; restore; checked l 33`));

  test("FIFOs of the same number in two file systems keep each what waits in it", () =>
    holds(`${WORDS}
mkdir l i one two; for each in one two; do mount -t tmpfs none $each; mkfifo $each/fifo; done
[ "$(stat -c %i one/fifo)" = "$(stat -c %i two/fifo)" ]
setsid sh -c 'exec 3<>one/fifo 4<>two/fifo; echo first >&3; echo second >&4; echo ready >l/out
  while [ ! -e l/go ]; do sleep 0.05; done; read -r a <&3; read -r b <&4; echo "done $a $b" >>l/out; sleep 1000' </dev/null >/dev/null 2>&1 & pid=$!
ready l; umount -l one two; dump; restore; touch l/go; until_true grep -q "^done first second$" l/out`));

  test("--leave-running leaves these as they are", () => holds(`${WORDS}start $kinds; dump -R; checked l 33`));

  test("--leave-running leaves every file as it is", () => holds(`${WORDS}start $program; dump -R; checked l`));

  test("working directory, program and mapped files", () =>
    holds(`${WORDS}start $inside; dump; restore; checked l 10`));

  test("a root", () => holds(`${WORDS}start $inside chroot; dump; restore; checked l 11`));

  test("--leave-running leaves a root as it is", () => holds(`${WORDS}start $inside chroot; dump -R; checked l 11`));

  test("a tmpfs that is mounted nowhere else is made again with all that is in it", () =>
    holds(`${WORDS}start $alone directory; dump; restore; checked l 22`));

  test("of one with no directory open, the open files are made again", () =>
    holds(`${WORDS}start $alone files; dump; restore; checked l 10`));

  test("--leave-running leaves it as it is, and what was restored can be dumped again", () =>
    holds(`${WORDS}
start $alone directory; dump -R; checked l 22; kill -9 $pid; rm -r l i d
start $alone directory; dump; restore; rm -r i; mkdir i; pid=$(pgrep -x alone); dump; restore; checked l 22`));

  test("of one with a part of it open as a directory, that part and the open files are made again", () =>
    holds(`${WORDS}
mkdir -p l i m at; mount -t tmpfs none m; mkdir m/sub; echo outside >m/file; echo inside >m/sub/file; ln m/sub/file m/sub/link; mount --bind m/sub at
setsid sh -c 'exec 3<m/file 4<at; echo ready >l/out; while [ ! -e l/go ]; do sleep 0.05; done
  read -r a <&3; echo "done $a $(cat /proc/self/fd/4/link) $(stat -c %h /proc/self/fd/4/file) $(ls /proc/self/fd/4/ | tr -d "\\n")" >>l/out; sleep 1000' </dev/null >/dev/null 2>&1 & pid=$!
ready l; umount -l at m; dump; restore; touch l/go; until_true grep -q ^done l/out; grep "^done outside inside 2 filelink$" l/out`));

  test("one that is too large is refused before anything is stopped", () =>
    holds(`${WORDS}
mkdir -p /etc/cryoshim; printf '[detached]\nlargest = 1\n' >/etc/cryoshim/config.toml
mkdir -p i at; mount -t tmpfs none at; head -c 2M /dev/zero >at/file
sh -c 'exec 3<at/file; touch up; while :; do sleep 0.1; touch alive; done' </dev/null >/dev/null 2>&1 & pid=$!; until_true test -e up; umount -l at
fails "" dump; grep -q "it would be saved whole, 2097152 bytes of it" i/d.log
! grep -q "Seized task" i/d.log; rm alive; until_true test -e alive
sed -i s/1/2/ /etc/cryoshim/config.toml; rm -r i; mkdir i; dump; ! kill -0 $pid`));

  test("a file system that is mounted nowhere else and cannot be made again is refused before anything is stopped", () =>
    holds(`${WORDS}
mkdir -p i lower upper work at; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay at; echo 1 >at/file
sh -c 'exec 3<at/file; touch up; while :; do sleep 0.1; touch alive; done' </dev/null >/dev/null 2>&1 & pid=$!; until_true test -e up; umount -l at
fails "" dump; grep -q "ERR_DETACHED\\|cannot carry descriptor 3 of process $pid, ./file. on a mount" i/d.log
! grep -q "Seized task" i/d.log; rm alive; until_true test -e alive; kill -9 $pid`));

  test("--leave-running leaves these as well", () => holds(`${WORDS}start $inside; dump -R; checked l 10`));

  test("what has been restored can be dumped again", () =>
    holds(`${WORDS}
start $inside; dump; restore; rm -r i; mkdir i; pid=$(pgrep -x inside); dump; restore; checked l 10
kill -9 $(pgrep -x inside); rm -r l i d; start $kinds; dump; restore; rm -r i; mkdir i; pid=$(pgrep -x unmounted); dump; restore; checked l 33`));

  test("a file system that is gone at the restore is told", () =>
    holds(`${WORDS}
mkdir -p d; mount -t tmpfs none d; start $program; dump; umount -l d
fails "" restore; grep -q "ERR_DETACHED\\|cannot open .* again" i/r.log i/cryoshim.log`));

  test("images cut short are refused, and say which", () =>
    holds(`${WORDS}
start $program; dump; truncate -s 100 i/cryoshim-detached.img
fails "" restore; grep -q "cryoshim-detached.img" i/r.log i/cryoshim.log`));
});

test.each([
  ["runc", "detached", 26],
  ["crun", "detached", 26],
  ["runc", "unmounted", 33],
  ["crun", "unmounted", 33],
  ["runc", "inside", 10],
  ["crun", "inside", 10],
  ["runc", "inside chroot", 11],
  ["crun", "inside chroot", 11],
  ["runc", "alone directory", 22],
  ["crun", "alone directory", 22],
])("%s restores a container's files on its own root file system (%s)", async (runtime, workload, checks) => {
  await holds(`${WORDS}
mkdir l i; set -- ${workload}; cp /cryoshim/build/workloads/$1 l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "mkdir /lab/d; exec /lab/$1 /lab/d /lab/out /lab/go \${2:-}"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_CHROOT", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"|g' /tmp/b/config.json
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l ${checks}`);
});

test("a container's working directory that has been removed, on an unmounted mount, is restored", () =>
  holds(`${WORDS}
mkdir l i; cat >l/program <<'END'
mkdir -p /data/sub /data/at; mount -o bind /data/sub /data/at; mkdir /data/at/x; cd /data/at/x; rmdir /data/at/x; umount -l /data/at
echo ready >/lab/out; while [ ! -e /lab/go ]; do sleep 0.1; done
{ [ -z "$(ls -A .)" ] && [ "$(stat -c %h .)" = 0 ] && ! touch here && [ "$(ls -A /data/sub)" = "" ]; } 2>/dev/null && echo ok >>/lab/out
echo done >>/lab/out; sleep 1000
END
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh /lab/program
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN"|g; s|"readonly": true|"readonly": false|' /tmp/b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; checked l 1`));

test.each([
  ["detached", "/data", 26],
  ["unmounted", "/data", 33],
  ["detached", "/run/data", 26],
  ["unmounted", "/run/data", 33],
  ["inside", "/data", 10],
  ["inside", "/run/data", 10],
  ["alone", "/data", 22],
])(
  "podman restores a container's files (%s) on its root file system and on a tmpfs: %s",
  async (workload, directory, checks) => {
    await holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/${workload} l
podman run -d --name c1 --cap-add SYS_ADMIN --cap-add MKNOD --network none --tmpfs /run:rw,dev,exec -v /tmp/l:/lab localhost/busybox sh -c "mkdir ${directory}; exec /lab/${workload} ${directory} /lab/out /lab/go ${workload === "alone" ? "directory" : ""}" >/dev/null; ready l
podman container checkpoint c1 >/dev/null; podman container restore c1 >/dev/null; checked l ${checks}`);
  },
);

test.each([
  ["detached", 26],
  ["unmounted", 33],
  ["inside", 10],
])("LXC restores a container's files on its root file system (%s)", async (workload, checks) => {
  await holds(`${WORDS}
lab-lxc-create c1 sh /lab/start
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/${workload} $l
echo "mkdir /lab/d; exec /lab/${workload} /lab/d /lab/out /lab/go" >$l/start
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l ${checks}
lxc-stop -k -n c1`);
});

test("podman restores a container from which it has exported a checkpoint: it unpacks its files anew", async () => {
  await holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/detached l
podman run -d --name c1 --cap-add SYS_ADMIN --network none -v /tmp/l:/lab localhost/busybox sh -c "mkdir /data; exec /lab/detached /data /lab/out /lab/go" >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar c1 >/dev/null; podman container restore c1 >/dev/null; checked l 26`);
});
