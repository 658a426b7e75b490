// SPDX-License-Identifier: Apache-2.0
// Restores whose server is not there: SPFS stands for it until it is back. test/workloads/remote.c checks itself.
import { describe, expect, test } from "vitest";
import { holds as run } from "../support/lab.js";

const env = { LAB_PACKAGES: "bindfs sshfs openssh-sftp-server" };
const holds = (script: string): Promise<string> => run(`. /cryoshim/test/support/remote.sh\n${script}`, env);

/** A bundle whose root file system has the mount in it: it is in the container, and in no list of the runtime's. */
const bundle = (runtime: string, edit = ""): string => `
mkdir l i; cp /cryoshim/build/workloads/remote l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/remote /mnt /lab/out /lab/go
${edit}
up b/rootfs/mnt
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
dump() { ${runtime} checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i "$@" c1; }
restore() { ${runtime} restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; }
away() { dump; down b/rootfs/mnt; }
`;

describe.each(["runc", "crun"])("%s, a mount within the container", (runtime) => {
  test("the container waits for its server, goes on when it is back, and leaves nothing behind", () =>
    holds(`${bundle(runtime)}away; restore; waits l
cryoshim spfs list | grep -q "its server is not there yet: it is not mounted on this host"
up other; checked l; nothing_left`));
});

test.each(["runc", "crun"])(
  "podman + %s: a volume whose server is not mounted, with a FIFO, sockets and a root directory there",
  async (runtime) => {
    await holds(`
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/remote l; served_locally m
podman --runtime ${runtime} run -d --name c1 --network none -v /tmp/l:/lab -v /tmp/m:/data localhost/busybox /lab/remote /data /lab/out /lab/go all >/dev/null; ready l
podman container checkpoint --file-locks c1 >/dev/null; down m
podman container restore --file-locks c1 >/dev/null; waits l
served_locally m; checked l 29; nothing_left`);
  },
);

test("podman: a volume whose server has died is prepared, or the restore would fail before CRIU starts", () =>
  holds(`
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/remote l; up m
podman run -d --name c1 --network none -v /tmp/l:/lab -v /tmp/m:/data localhost/busybox /lab/remote /data /lab/out /lab/go >/dev/null; ready l
podman container checkpoint --file-locks --export /tmp/c1.tar.gz c1 >/dev/null; podman rm c1 >/dev/null
kill -9 $(pidof sshfs); until_true no_server
fails "" podman container restore --file-locks --import /tmp/c1.tar.gz
podman rm -f c1 >/dev/null 2>&1 || true
cryoshim spfs prepare c1.tar.gz | grep -q "/tmp/m: .*ENOTCONN"
podman container restore --file-locks --import /tmp/c1.tar.gz >/dev/null
[ "$(grep -c fuse.spfs /proc/self/mountinfo)" = 0 ]; waits l
umount -l m; up m; checked l; nothing_left`));

test("LXC: a mount within the container", () =>
  holds(`
lab-lxc-create c1 /lab/remote /mnt /lab/out /lab/go
r=/var/lib/lxc/c1/rootfs; mkdir -p $r/lab $r/mnt d; cp /cryoshim/build/workloads/remote $r/lab; up $r/mnt
lxc-start -d -n c1; ready $r/lab
lxc-checkpoint -n c1 -D /tmp/d -s; down $r/mnt; lxc-checkpoint -n c1 -D /tmp/d -r; waits $r/lab
up other; checked $r/lab; nothing_left`));

test("LXC: a mount that is bound from the host, with a FIFO, sockets and a root directory there", () =>
  holds(`
served_locally m; mkdir d; lab-lxc-create c1 /lab/remote /data /lab/out /lab/go all
r=/var/lib/lxc/c1/rootfs; mkdir -p $r/lab; cp /cryoshim/build/workloads/remote $r/lab
echo "lxc.mount.entry = /tmp/m data none bind,create=dir 0 0" >>/var/lib/lxc/c1/config
lxc-start -d -n c1; ready $r/lab
lxc-checkpoint -n c1 -D /tmp/d -s; down m; lxc-checkpoint -n c1 -D /tmp/d -r; waits $r/lab
served_locally m; checked $r/lab 29; nothing_left`));

test("sshfs over a network: its server is down at the restore, and up 5 s later", () =>
  holds(`
cat >serve.py <<'END'
import socket, subprocess
server = socket.create_server(("10.9.0.2", 7007))
while True: subprocess.Popen(["/usr/lib/openssh/sftp-server"], stdin=(one := server.accept()[0]), stdout=one)
END
wire server
serves() { exec 9<>/dev/tcp/10.9.0.2/7007; }
serve() { ip netns exec server python3 serve.py & server=$!; until_true eval "(serves)"; }
up() { mkdir -p "$1"; sshfs -o directport=7007,allow_other,idmap=none,cache=no,attr_timeout=0,entry_timeout=0 10.9.0.2:/tmp/served "$1"; }
serve; ${bundle("runc")}away; kill $server; until_true no_server; restore; waits l
sleep 5; serve; up other; checked l; nothing_left`));

test("two parts of one file system are one file system afterwards, too", () =>
  holds(`
mkdir -p l i served/deep/a served/deep/b; LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "exec 3>>/a/x 4<>/b/y; echo 1 >&3; while [ ! -e /lab/go ]; do sleep 0.1; done; echo 2 >&3; echo 3 >&4; cat /a/x /b/y >/lab/out"
up m; mkdir -p b/rootfs/a b/rootfs/b; mount --bind m/deep/a b/rootfs/a; mount --bind m/deep/b b/rootfs/b
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; until_true test -s served/deep/a/x
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1; umount b/rootfs/a b/rootfs/b; down m
runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
[ "$(ls /run/cryoshim/spfs | wc -l)" = 1 ]; touch l/go; up other
until_true grep -q 3 l/out; [ "$(cat l/out | tr -d '\n')" = 123 ]; nothing_left`));

test("criu's command line: a process without mounts of its own gets SPFS on the host", () =>
  holds(`
mkdir -p l i m; cp /cryoshim/build/workloads/remote l; up m
setsid l/remote /tmp/m /tmp/l/out /tmp/l/go </dev/null >/dev/null 2>&1 & pid=$!; ready l
criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --file-locks; down m
criu restore -D /tmp/i -o r.log -v4 --shell-job --file-locks -d; waits l
up other; checked l; umount -l m; nothing_left`));

test("a program that runs from the server, and works there", () =>
  holds(`
mkdir l i; cp /cryoshim/build/workloads/remote served
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /mnt/remote /mnt /lab/out /lab/go; up b/rootfs/mnt
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
runc checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i c1; down b/rootfs/mnt
runc restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
up other; checked l; nothing_left`));

test("a checkpoint while the server is away is refused at once; once it is back the next checkpoint is of the real one", () =>
  holds(`${bundle("runc")}away; restore
(cryoshim doctor --container c1 || true) | grep -q "SPFS stands for it, and its server is not back"
mkdir j; fails "" runc checkpoint --file-locks --image-path /tmp/j --work-path /tmp/j c1
grep -q "SPFS stands for it, and its server is not back" j/dump.log; ! grep -q Seizing j/dump.log
up other; until_true grep -q '"proxied"' /run/cryoshim/spfs/*/session
rm -r i; mkdir i; dump; until_true no_spfs
cryoshim crit show i/cryoshim-remote.img | grep -q "fuse.sshfs"
down other; restore; waits l; up third; checked l; nothing_left`));

test("a checkpoint on SPFS is restored on the real mount where that is there", () =>
  holds(`${bundle("runc")}away; restore; up other; until_true grep -q '"proxied"' /run/cryoshim/spfs/*/session
rm -r i; mkdir i; dump; restore; [ -z "$(pidof spfs)" ]; checked l`));

describe("a restore that fails leaves nothing behind", () => {
  test("by itself", () =>
    holds(`${bundle("runc")}away; f=$(ls i/core-*.img | tail -1); : >"$f"; fails "" restore; nothing_left`));

  const pids = {
    engine: "$PPID",
    shim: "$(pgrep -f [s]him.cjs)",
    "shim and engine": "$(pgrep -f [s]him.cjs) $PPID",
    "shim, engine and guard": '$(pgrep -f "[c]riu swrk")',
  };
  test.each(Object.entries(pids))("killed: %s", async (_, kill) => {
    await holds(`${bundle("runc")}away
printf '#!/bin/sh\\n[ "$CRTOOLS_SCRIPT_ACTION" != post-restore ] || { pidof spfs >/tmp/was; kill -9 ${kill}; sleep 1; }\\n' >script; chmod 755 script
mkdir -p /etc/criu; echo "action-script /tmp/script" >/etc/criu/runc.conf
fails "" restore; [ -s was ]; nothing_left; [ "$(cat l/out)" = ready ]
rm /etc/criu/runc.conf; runc delete -f c1 2>/dev/null || true; restore; waits l; up other; checked l; nothing_left`);
  });
});

describe("what has changed at the server", () => {
  const seen = (what: string): string => `until_true grep -q '"what":"${what}"' /run/cryoshim/spfs/*/session
cryoshim spfs list | grep -q "not as it was: only-read: ${what}"`;

  test("a file that has grown is told, and read on", () =>
    holds(
      `${bundle("runc")}away; echo more >>served/only-read; restore; up other; ${seen("grown")}; checked l; nothing_left`,
    ));

  test('a file that is gone fails, with gone = "fail"', () =>
    holds(`${bundle("runc")}away; rm served/only-read; restore; up other; ${seen("gone")}
touch l/go; until_true grep -q done l/out; grep -q "BAD read " l/out; [ "$(grep -c BAD l/out)" = 1 ]; nothing_left`));

  test('what uses a file that is gone waits, with gone = "stub"', () =>
    holds(`configure '[remote]
gone = "stub"'
${bundle("runc")}away; rm served/only-read; restore; up other; ${seen("gone")}; waits l; runc kill c1 KILL; nothing_left`));
});

describe("configuration", () => {
  test("another path to the same is named for a source, and is used at once if it is there", () =>
    holds(`configure '[[remote.mount]]
source = "server:/tmp/*"
path = "/tmp/elsewhere"'
${bundle("runc")}away; mv served moved; up elsewhere moved; restore; [ -z "$(pidof spfs)" ]; checked l`));

  test("what is named is mounted, and seen nowhere", () =>
    holds(`configure '[[remote.mount]]
source = "server:*"
from = "other:/tmp/moved"
options = "ssh_command=/tmp/transport,allow_other,cache=no"'
${bundle("runc")}away; mv served moved; restore; until_true pgrep -f "mount.fuse.[s]shfs"; unseen() { ! grep sshfs /proc/self/mountinfo; }; until_true unseen
checked l; nothing_left; gone() { ! pgrep -f "mount.fuse.[s]shfs"; }; until_true gone`));

  test("an annotation of the container names it", () =>
    holds(`${bundle("runc", `sed -i 's|"ociVersion"|"annotations": {"io.cryoshim.remote.map": "server:/tmp/served=/tmp/elsewhere"}, "ociVersion"|' b/config.json`)}
away; restore; mv served moved; up elsewhere moved; checked l; nothing_left`));

  test('policy = "never": nothing stands for it, and the restore is refused', () =>
    holds(`configure '[remote]
policy = "never"'
${bundle("runc")}away; fails "" restore; grep -q "it is not mounted on this host" i/cryoshim.log; nothing_left`));

  test('policy = "always": the server is there, and SPFS passes everything on', () =>
    holds(`configure '[remote]
policy = "always"'
${bundle("runc")}dump; down b/rootfs/mnt; up other; restore; until_true grep -q '"proxied"' /run/cryoshim/spfs/*/session
checked l; nothing_left`));

  test('retire = "always": the real mount takes its place under all that is open, and nothing of ours stays', () =>
    holds(`configure '[remote]
retire = "always"'
${bundle("runc")}away; restore; up other; until_true no_spfs
runc exec c1 cat /proc/mounts | grep -q "^server:/tmp/served /mnt fuse.sshfs"
rm -r i; mkdir i; dump; down other; up third; restore; checked l; nothing_left`));

  test("retired by hand, with what is mounted for it", () =>
    holds(`configure '[[remote.mount]]
source = "server:*"
from = "other:/tmp/moved"
options = "ssh_command=/tmp/transport,allow_other,cache=no"'
${bundle("runc")}away; mv served moved; restore; until_true grep -q '"proxied"' /run/cryoshim/spfs/*/session
cryoshim spfs retire "$(ls /run/cryoshim/spfs)" | grep -q "swapped"; until_true no_spfs; ! grep sshfs /proc/self/mountinfo
runc exec c1 cat /proc/mounts | grep -q "^other:/tmp/moved /mnt fuse.sshfs"
checked l; nothing_left`));

  test("timeout: what waits fails with EIO", () =>
    holds(`configure '[remote]
timeout = 0.5'
${bundle("runc")}away; restore; touch l/go; until_true grep -q "BAD read (I/O error)" l/out; runc kill c1 KILL; nothing_left`));
});

test("cryoshim spfs: each step by hand, and what there is not", async () => {
  const said = await holds(`${bundle("runc")}away; restore; id=$(ls /run/cryoshim/spfs)
mkdir elsewhere; mount --bind served elsewhere
cryoshim spfs proxy $id --backend elsewhere >/dev/null; cryoshim spfs list | grep -q "^$id  proxy"
cryoshim spfs stub $id; cryoshim spfs list | grep -q "^$id  stub"
fails "ERR_SPFS" cryoshim spfs retire $id
cryoshim spfs list --json; cryoshim spfs stop $id; until_true no_spfs; runc kill c1 KILL
fails "ERR_SPFS" cryoshim spfs proxy nobody; cryoshim spfs list | grep -q "stands for nothing"`);
  const [state] = JSON.parse(said) as { phase: string; remembered: { fs: { source: string } } }[];
  expect(state).toMatchObject({ phase: "stub", remembered: { fs: { source: "server:/tmp/served" } } });
});

// The server has holes, copies and mappings to offer that sshfs has not: bindfs.
test.each(["auto", "off"])(
  "random operations on a file go on through a checkpoint, a restore without the server and its return, passthrough %s",
  async (passthrough) => {
    await run(
      `. /cryoshim/test/support/remote.sh
configure '[remote]
passthrough = "${passthrough}"
on_loss = "eio"'
mkdir -p l i m served; cp /cryoshim/build/workloads/exercise l
serve() { bindfs -f /tmp/served /tmp/m -o allow_other & until_true mountpoint -q m; }
serve
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "/lab/exercise /data/file 7 60000 >/lab/out 2>&1; echo ended >>/lab/out"
sed -i 's|"mounts": \\[|"mounts": [ { "destination": "/data", "type": "bind", "source": "/tmp/m", "options": ["bind"] },|' b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; until_true test -s served/file; sleep 1
[ ! -s l/out ] || no "it ended before the checkpoint: $(cat l/out)"
runc checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i c1; umount -l m
runc restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
sleep 1; [ ! -s l/out ] || no "it did not wait: $(cat l/out)"
serve; for try in $(seq 600); do grep -q ended l/out && break; sleep 0.1; done; cat l/out; grep -q ^ok l/out`,
      { LAB_PACKAGES: "bindfs sshfs openssh-sftp-server" },
    );
  },
);

test("fio finds every block right that it has written before and after a restore without the server", () =>
  run(
    `. /cryoshim/test/support/remote.sh
. /cryoshim/test/support/pack.sh
mkdir -p l m served; lab-podman-image >/dev/null
serve() { bindfs -f /tmp/served /tmp/m -o allow_other & until_true mountpoint -q m; }
serve; pack /usr/bin/fio
podman run -d --name c1 --network none -v /tmp/l:/lab -v /tmp/m:/data localhost/busybox /bin/sh -c "$(in_pack fio) --name=v --ioengine=psync \\
  --thread --rw=randrw --bs=4k --size=48m --rate_iops=1500,1500 --verify=crc32c --verify_fatal=1 --directory=/data --output=/lab/out --eta=never; \\
  echo \\$? >/lab/code; sleep 1000" >/dev/null
until_true test -s served/v.0.0; sleep 1; [ ! -e l/code ]
podman container checkpoint --file-locks c1 >/dev/null; umount -l m
podman container restore --file-locks c1 >/dev/null; sleep 1; [ ! -e l/code ]
serve; for try in $(seq 600); do [ -s l/code ] && break; sleep 0.1; done
[ "$(cat l/code)" = 0 ] || { cat l/out; exit 1; }; grep "issued rwts" l/out`,
    { LAB_PACKAGES: "bindfs fio sshfs openssh-sftp-server" },
  ));
