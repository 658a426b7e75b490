// SPDX-License-Identifier: Apache-2.0
// Unix sockets whose names are on unmounted mounts (test/workloads/bound.c checks itself): who comes by a name finds them after a restore.
import { readFileSync } from "node:fs";
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = "$2" ]; }
start() { mkdir -p l i d; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
bound="/cryoshim/build/workloads/bound /tmp/d /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
left() { [ -z "$(find "$1" -name '.cryoshim*')" ] || no "a name is left"; }
listening() { # at/socket by a process of which nothing else is on that mount; it answers each client
  mkdir -p l i at; \${mounted:-mount -t tmpfs none at}
  cat >serve.py <<'END'
import os, socket, sys
sk = socket.socket(socket.AF_UNIX); sk.bind("/tmp/at/socket"); sk.listen()
if os.getenv("directory"): os.dup2(os.open("/tmp/at", os.O_RDONLY), 9)
open("/tmp/l/out", "w").write("ready\\n")
while True:
    client = sk.accept()[0]; client.sendall(sk.getsockname().encode()); client.close()
END
  setsid python3 serve.py </dev/null >/dev/null 2>&1 & pid=$!; ready l
}
server() { pgrep -f '^python3 serve.py'; }
asks() { python3 -c 'import socket, sys; sk = socket.socket(socket.AF_UNIX); sk.connect(sys.argv[1]); print(sk.recv(100).decode())' "$1"; }
`;

const filesystems = readFileSync("/proc/filesystems", "utf8");
/** Whether this kernel has a file system. */
const knows = (type: string): boolean => filesystems.includes(`\t${type}\n`);

const on = async (script: string, env?: Record<string, string>): Promise<void> => {
  await holds(`${WORDS}\n${script}`, env);
};

describe("criu's command line", () => {
  test("streams, datagrams, relative names, renamed and deleted ones", () =>
    on(`start $bound; dump; restore; checked l 51; left d`));

  test("on a mount that is read-only", () => on(`start $bound ro; dump; restore; checked l 52; left d`));

  test("--leave-running leaves them as they are", () => on(`start $bound; dump -R; checked l 51; left d`));

  test("a dump that fails leaves them as they are, and no image", () =>
    on(`
start /cryoshim/build/workloads/locked /tmp/l/lock $bound; fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l 51`));

  test("what has been restored can be dumped again", () =>
    on(`start $bound; dump; restore; rm -r i; mkdir i; pid=$(pgrep -x -o bound); dump; restore; checked l 51; left d`));

  test("a process of which nothing but a socket is on the mount", () =>
    on(
      `mkdir sub; mounted="mount --bind sub at" listening; umount -l at; dump; restore; [ "$(asks sub/socket)" = /tmp/at/socket ]; left sub`,
    ));

  test("on a tmpfs that is mounted nowhere else they are there with it", () =>
    on(`
directory=1 listening; umount -l at; dump; restore; [ "$(asks /proc/$(server)/fd/9/socket)" = /tmp/at/socket ]
rm -r i; mkdir i; pid=$(server); dump; restore; [ "$(asks /proc/$(server)/fd/9/socket)" = /tmp/at/socket ]`));

  test("on a file system that is mounted nowhere else and cannot be made again they keep their names", () =>
    on(`
mkdir lower upper work; mounted="mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay at" listening; umount -l at
dump; restore; [ "$(grep -c /tmp/at/socket /proc/$(server)/net/unix)" = 1 ]; rm -r i; mkdir i; pid=$(server); dump; restore; kill -0 $(server)`));
});

describe("what others have there by the restore", () => {
  test("a dead socket gives way", () =>
    on(`mkdir sub; mounted="mount --bind sub at" listening; umount -l at; dump
rm sub/socket; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/tmp/sub/socket")'; restore
[ "$(asks sub/socket)" = /tmp/at/socket ]; left sub`));

  test("one that lives, or a file, is left alone", () =>
    on(`mkdir sub; mounted="mount --bind sub at" listening; umount -l at; dump; rm sub/socket; echo mine >sub/socket; restore
[ "$(cat sub/socket)" = mine ]; grep -q "others have it by now" i/cryoshim.log; kill -9 $(server); rm sub/socket
python3 -c 'import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind("/tmp/sub/socket"); open("/tmp/up", "w"); print(s.recv(10).decode())' >said &
until_true test -e up; restore
python3 -c 'import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"here", "/tmp/sub/socket")'; until_true grep -q here said; left sub`));

  test("its file is where it was moved to meanwhile; without a directory there is none", () =>
    on(`mkdir m; mount -t tmpfs none m; mkdir -p m/sub/a; mounted="mount --bind m/sub at" listening; umount -l at; dump
mv m/sub/socket m/sub/a/moved; restore; [ "$(asks m/sub/a/moved)" = /tmp/at/socket ]; [ ! -e m/sub/socket ]; left m
kill -9 $(server); mv m/sub/a/moved m/outside; restore; fails "" asks m/outside; left m`));
});

describe.each([
  ["ext4", "mkfs.ext4 -q"],
  ["xfs", "mkfs.xfs -q"],
  ["btrfs", "mkfs.btrfs -q"],
])("on %s", (type, mkfs) => {
  test.skipIf(!knows(type))("they are there", () =>
    on(
      `truncate -s 400M image; ${mkfs} image; for n in $(seq 0 15); do [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n; done
mkdir d; mount -t ${type} -o loop image d; start $bound; dump; restore; checked l 51; left d`,
      { LAB_PACKAGES: "e2fsprogs btrfs-progs xfsprogs" },
    ),
  );
});

test.each([
  ["tmpfs", "-t tmpfs none"],
  ["overlay", "-t overlay -o lowerdir=/tmp/lower,upperdir=/tmp/layers/upper,workdir=/tmp/layers/work overlay"],
])("on %s they are there", (_, how) =>
  on(
    `mkdir d layers lower; mount -t tmpfs none layers; mkdir layers/upper layers/work; mount ${how} d; start $bound; dump; restore; checked l 51; left d`,
  ),
);

test.each(["runc", "crun"])("%s restores those of a container's own root file system", (runtime) =>
  on(`mkdir l i; cp /cryoshim/build/workloads/bound l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "mkdir /lab/d; exec /lab/bound /lab/d /lab/out /lab/go"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"|g' /tmp/b/config.json
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l 51; left l`),
);

test.each(["/data", "/run/data"])("podman restores those of a container: %s", (directory) =>
  on(`lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/bound l
podman run -d --name c1 --cap-add SYS_ADMIN --cap-add NET_ADMIN --network none --tmpfs /run:rw,dev,exec -v /tmp/l:/lab localhost/busybox sh -c "mkdir ${directory}; exec /lab/bound ${directory} /lab/out /lab/go" >/dev/null; ready l
podman container checkpoint c1 >/dev/null; podman container restore c1 >/dev/null; checked l 51
podman exec c1 sh -c "[ -z \\"\\$(find ${directory} -name .cryoshim*)\\" ]"`),
);

test("LXC restores those of a container", () =>
  on(`lab-lxc-create c1 sh /lab/start
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/bound $l
echo "mkdir /lab/d; exec /lab/bound /lab/d /lab/out /lab/go" >$l/start
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l 51; left $l
lxc-stop -k -n c1`));

test.each(["shim", "engine"])(
  "a container's restore whose %s is killed at whatever moment leaves no task, and the next one has them all",
  async (who) => {
    await on(`
mkdir l i; cp /cryoshim/build/workloads/bound l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "mkdir /data; exec /lab/bound /data /lab/out /lab/go"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"|g; s|"readonly": true|"readonly": false|' b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l; runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
victim() { [ ${who} = engine ] && pgrep -x criu | head -1 || pgrep -f "dist/shim[.]cjs" | head -1; }
for moment in 0.1 0.13 0.16 0.19 0.22 0.26; do
  runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1 & restore=$!
  sleep $moment; kill -9 $(victim) 2>/dev/null || true; wait $restore || true; runc delete -f c1 >/dev/null 2>&1 || true
  until_true eval '! pgrep -x bound'; until_true eval '! grep ^cryoshim /proc/mounts'
done
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; checked l 51`);
  },
);
