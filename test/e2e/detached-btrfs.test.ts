// SPDX-License-Identifier: Apache-2.0
// Subvolumes of btrfs on one unmounted mount: their files have the same numbers, their roots as well.
import { readFileSync } from "node:fs";
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
for n in $(seq 0 15); do [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n; done
mkdir i m at; truncate -s 300M image; mkfs.btrfs -q image; mount -t btrfs -o loop image m
for each in one two two/three; do btrfs -q subvolume create m/$each; echo $each >m/$each/file; done; mount --bind m at
[ "$(stat -c %i m/one/file)" = "$(stat -c %i m/two/three/file)" ]
cat >holds.py <<'END'
import os, socket, sys, time
os.umask(0)
what = {10: "one/file", 11: "two/file", 12: "two/three/file", 13: "one", 14: "two", 15: "two/three", 16: "."}
for fd, name in what.items(): os.dup2(os.open("/tmp/at/" + name, os.O_RDONLY), fd)
if sys.argv[1:] == ["fork"]:
    if os.fork() == 0: os.close(10); os.dup2(os.open("/tmp/at/one/file", os.O_RDWR), 20)
if sys.argv[1:] == ["cwd"]: os.chdir("/tmp/at/two")
if sys.argv[1:] == ["sent"]:
    pair = socket.socketpair(); fd = os.open("/tmp/at/two/file", os.O_RDWR); socket.send_fds(pair[0], [b"x"], [fd]); os.close(fd)
open("/tmp/up", "a").write("up\\n")
while True: time.sleep(1)
END
start() { setsid python3 holds.py "$@" </dev/null >/dev/null 2>&1 & pid=$!; until_true grep -q up up; sleep 0.3; umount -l at; }
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job; }
same() { # PID: each descriptor is the file that it was
  for each in 10=one/file 11=two/file 12=two/three/file 13=one 14=two 15=two/three 16=.; do
    [ ! -e /proc/$1/fd/10 -a \${each%%=*} = 10 ] || [ "$(stat -L -c %d:%i /proc/$1/fd/\${each%%=*})" = "$(stat -c %d:%i m/\${each#*=})" ] || no "$each: another file"; done; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

const on = async (script: string): Promise<void> => {
  await holds(WORDS + script, { LAB_PACKAGES: "e2fsprogs btrfs-progs xfsprogs" });
};

describe.skipIf(!readFileSync("/proc/filesystems", "utf8").includes("\tbtrfs\n"))("on btrfs", () => {
  test("files and directories of one number are told apart", () =>
    on("start; dump; restore; same $(pgrep -o python3)"));

  test("those of several processes, too, and when they have changed hands", () =>
    on(`
start fork; dump; restore; for each in $(pgrep python3); do same $each; done; child=$(pgrep -n python3)
[ "$(cat /proc/$child/fd/20)" = one ]; [ "$(stat -L -c %d:%i /proc/$child/fd/20)" = "$(stat -c %d:%i m/one/file)" ]
rm -r i; mkdir i; pid=$(pgrep -o python3); dump; restore; for each in $(pgrep python3); do same $each; done`));

  test.each(["", "chroot"])("a working directory, programs and mapped files of a subvolume, and its root: %s", (how) =>
    on(`
mkdir l m/two/d; setsid /cryoshim/build/workloads/inside /tmp/m/two/d /tmp/l/out /tmp/l/go ${how} </dev/null >/dev/null 2>&1 & pid=$!; until_true grep -q ready l/out
dump; restore; touch l/go; until_true grep -q done l/out; ! grep BAD l/out || no "it is not as it was"; [ "$(grep -c ^ok l/out)" = ${how === "" ? 10 : 11} ]`),
  );

  test("runc restores a container in a subvolume that is inside of an unmounted mount", () =>
    on(`
mkdir l; cp /cryoshim/build/workloads/inside l; LAB_BIND=/tmp/l lab-runc-bundle /tmp/m/two/b sh -c "mkdir /data; exec /lab/inside /data /lab/out /lab/go chroot"
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"|g; s|"readonly": true|"readonly": false|' m/two/b/config.json
runc run -d -b m/two/b c1 </dev/null >/dev/null 2>&1; until_true grep -q ready l/out; runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
runc restore -d -b /tmp/m/two/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
touch l/go; until_true grep -q done l/out; ! grep BAD l/out || no "it is not as it was"; [ "$(grep -c ^ok l/out)" = 11 ]`));

  test("one of these numbers that is a working directory is refused before anything is stopped", () =>
    on(
      `start cwd; fails "" dump; grep -q "has the same number, and CRIU takes them for one" i/d.log; ! grep -q "Seized task" i/d.log || no "tasks were stopped"; kill -0 $pid`,
    ));

  test("one that is on its way in a message is refused, and the process goes on", () =>
    on(
      `start sent; fails "" dump; grep -h "in a message on its way" i/*.log; kill -0 $pid; grep -q '^State:.S' /proc/$pid/status`,
    ));
});
