// SPDX-License-Identifier: Apache-2.0
// Containers with files on a server (test/workloads/remote.c checks itself) through checkpoint and restore, the server being
// sshfs without a network.
import { describe, expect, test } from "vitest";
import { bare, holds as run } from "../support/lab.js";

const env = { LAB_PACKAGES: "bindfs sshfs openssh-sftp-server" };
const WORDS = ". /cryoshim/test/support/remote.sh\n";
const holds = (script: string): Promise<string> => run(WORDS + script, env);

/** A bundle whose root file system has the mount in it: it is in the container, and in no list of the runtime's. */
const bundle = (runtime: string): string => `
mkdir l i; cp /cryoshim/build/workloads/remote l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/remote /mnt /lab/out /lab/go
up b/rootfs/mnt
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
dump() { ${runtime} checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i "$@" c1; }
restore() { ${runtime} restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; }
`;

/** A process in a mount namespace of its own, for criu's command line. */
const PROCESS = `
mkdir -p l i m; cp /cryoshim/build/workloads/remote l
start() { setsid unshare -m "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --file-locks "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job --file-locks -d "$@"; }
program="/tmp/l/remote /tmp/m /tmp/l/out /tmp/l/go"
`;

test("CRIU alone refuses a container with a FUSE mount", async () => {
  const { code, output } = await bare(
    `${WORDS}${bundle("runc")}code=0; dump || code=$?; grep -h Error i/dump.log; exit $code`,
    env,
  );
  expect(code).toBe(1);
  expect(output).toMatch(/failed to dump fs .*\/mnt \(fuse\): always fail/);
});

describe.each(["runc", "crun"])("%s, a mount within the container", (runtime) => {
  test("files are as they were, after the server has been mounted anew on another path", () =>
    holds(`${bundle(runtime)}dump; down b/rootfs/mnt; up other; restore; checked l`));

  test("doctor names it, and --leave-running leaves every file as it is", () =>
    holds(`${bundle(runtime)}cryoshim doctor --container c1 >said
grep -q "mount ./mnt. (fuse.sshfs, server:/tmp/served): its files are on a server: carried by cryoshim" said
dump --leave-running; checked l`));
});

test("a mount of a single file of a server is restored", () =>
  holds(`
mkdir -p l i m; cp /cryoshim/build/workloads/remote l; up m; echo one >m/file
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "exec 3</mnt; while [ ! -e /lab/go ]; do sleep 0.1; done; cat <&3 >/lab/out"
touch b/rootfs/mnt; mount --bind m/file b/rootfs/mnt
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; sleep 0.5
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1; umount b/rootfs/mnt; down m; up other
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
touch l/go; until_true grep -q one l/out`));

test("a file that has grown at the server is told", () =>
  holds(`configure '[remote]
policy = "never"'
${bundle("runc")}dump; echo more >>served/only-read; fails "" restore
grep -q "only-read. has 65541 bytes and not 65536" i/cryoshim.log`));

test("images cut short are refused, and say which", () =>
  holds(`${bundle("runc")}dump; truncate -s 200 i/cryoshim-remote.img; fails "" restore
grep -q "cryoshim-remote.img" i/cryoshim.log`));

test("podman restores a volume on a server, mounted anew, with a FIFO, sockets and a root directory there", () =>
  holds(`
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/remote l; served_locally m
podman run -d --name c1 --network none -v /tmp/l:/lab -v /tmp/m:/data localhost/busybox /lab/remote /data /lab/out /lab/go all >/dev/null; ready l
podman container checkpoint --file-locks c1 >/dev/null; down m; served_locally m
podman container restore --file-locks c1 >/dev/null; checked l 29`));

test("LXC restores a mount within the container", () =>
  holds(`
lab-lxc-create c1 /lab/remote /mnt /lab/out /lab/go
r=/var/lib/lxc/c1/rootfs; mkdir -p $r/lab $r/mnt d; cp /cryoshim/build/workloads/remote $r/lab; up $r/mnt
lxc-start -d -n c1; ready $r/lab
lxc-checkpoint -n c1 -D /tmp/d -s; down $r/mnt; up $r/mnt; lxc-checkpoint -n c1 -D /tmp/d -r; checked $r/lab
`));

describe("criu's command line", () => {
  test("in the mount namespace of the host nothing has to be told to CRIU", () =>
    holds(`${PROCESS}up m; setsid $program </dev/null >/dev/null 2>&1 & pid=$!; ready l; dump; [ ! -e i/cryoshim.img ]
restore; checked l`));
});

describe("refused before anything is stopped, and the process goes on", () => {
  const unharmed = `[ ! -e i/cryoshim.img ]; ! grep -q "Seizing\\|Unseizing" i/d.log; checked l`;

  test("a server that does not answer", () =>
    holds(`${PROCESS}up m; start $program; kill -STOP $(pidof sshfs)
fails "" dump; grep -q "has not answered within 2000 ms" i/d.log; kill -CONT $(pidof sshfs); ${unharmed}`));

  test("a task that waits for its server", () =>
    holds(`${PROCESS}up m; start $program; kill -STOP $(pidof sshfs); touch l/go; sleep 0.2
fails "" dump; grep -q "has not answered within 2000 ms" i/d.log; kill -CONT $(pidof sshfs); ${unharmed}`));

  test("a server that is gone", () =>
    holds(`${PROCESS}up m; start $program; kill -9 $(pidof sshfs); until_true no_server
fails "" dump; grep -q "its server is gone (ENOTCONN)" i/d.log; [ ! -e i/cryoshim.img ]; kill -0 $pid`));

  test.each(["", "in a user namespace of its own"])("a server within the container %s", async (where) => {
    await holds(`${PROCESS}
start() { setsid unshare ${where === "" ? "-m" : "-Urm"} "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
cat >inside <<'END'
mount --make-rprivate /
sshfs -f -o ssh_command=/tmp/transport,cache=no server:/tmp/served /tmp/m &
while ! mountpoint -q /tmp/m; do sleep 0.05; done
/tmp/l/remote /tmp/m /tmp/l/out /tmp/l/go & wait
END
start sh inside; fails "" dump; grep -q "of the container serves it" i/d.log || no "$(cat i/d.log)"; ${unharmed}`);
  });

  test("a mount that only a nested mount namespace has", () =>
    holds(`${PROCESS}
cat >nested <<'END'
sleep 1000 & unshare -m bash -c '. /cryoshim/test/support/remote.sh; up /tmp/m; exec /tmp/l/remote /tmp/m /tmp/l/out /tmp/l/go' & wait
END
start bash nested; fails "" dump; grep -q "alone, and not in that of the container" i/d.log || grep -q "serves it" i/d.log; ${unharmed}`));
});
