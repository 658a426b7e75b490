// SPDX-License-Identifier: Apache-2.0
// Between a dump and a restore files on unmounted mounts are renamed, replaced and deleted: a restore has the same inodes, or says
// that it cannot.
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
start() { # FILE=FD...: a process with these files of m/sub open, on a mount that is unmounted; its working directory is m/sub/dir
  mkdir -p i at m/sub m/elsewhere m/sub/dir; mount --bind m/sub at
  redirections=; for each; do echo \${each%=*} >at/\${each%=*}; redirections="$redirections \${each#*=}<>at/\${each%=*}"; done
  echo 'while [ ! -e /tmp/go ]; do sleep 0.05; done; ls -di . >/tmp/cwd; for fd in 3 4 5 6; do read -r line <&$fd && echo "$fd $line"; done >/tmp/said; sleep 1000' >loop
  setsid sh -c "exec $redirections; cd at/dir; touch /tmp/up; . /tmp/loop" </dev/null >/dev/null 2>&1 & pid=$!
  until_true test -e up; umount -l at
}
inode() { stat -L -c %i "$1"; }
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { rm -f /tmp/pid; criu restore -D /tmp/i -o r.log -v4 --shell-job -d --pidfile /tmp/pid && pid=$(cat /tmp/pid); }
told() { cat i/r.log i/cryoshim.log | grep -q "$1" || no "not told: $1"; rm -f i/r.log i/cryoshim.log; }
detached() { # no mount of a descriptor is one that mountinfo has
  for fd in "$@"; do ! grep -q "^$(awk '$1 == "mnt_id:" { print $2 }' /proc/$pid/fdinfo/$fd) " /proc/$pid/mountinfo || no "$fd: its mount is there"; done
}
said() { touch go; until_true grep -q "^6" said; echo "$1" | diff - said; }
`;

describe("on a tmpfs", () => {
  const on = (script: string): Promise<string> => holds(`${WORDS}\nmkdir m; mount -t tmpfs none m\n${script}`);

  test("files that were renamed, moved and replaced are opened by what they are", () =>
    on(`
start renamed=3 moved=4 replaced=5 same=6; dump
old=$(inode m/sub/dir); renamed=$(inode m/sub/renamed)
mv m/sub/renamed m/sub/dir/name; mv m/sub/moved m/elsewhere/moved; mv m/sub/replaced m/sub/original; echo wrong >m/sub/replaced
mv m/sub/dir m/sub/moved-dir; mkdir m/sub/dir
restore; detached 3 4 5 6
[ "$(inode /proc/$pid/fd/3)" = $renamed ]; [ "$(readlink /proc/$pid/fd/3)" = /moved-dir/name ]; [ "$(readlink /proc/$pid/fd/5)" = /original ]
said "3 renamed
4 moved
5 replaced
6 same"
[ "$(awk '{ print $1 }' cwd)" = $old ] || no "another working directory"
echo more >>m/sub/moved-dir/name; [ "$(stat -L -c %s /proc/$pid/fd/3)" = "$(stat -c %s m/sub/moved-dir/name)" ]`));

  test("what is renamed, replaced and deleted just before the freeze is what it is then", () =>
    on(`
start renamed=3 replaced=4 deleted=5 same=6
cat >script <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0
cd /tmp/m/sub; mv renamed name; mv replaced original; echo wrong >replaced; rm deleted; echo wrong >deleted; touch /tmp/done
END
chmod 755 script; dump --action-script /tmp/script; [ -e done ]; restore; detached 3 4 5 6
[ "$(inode /proc/$pid/fd/3)" = "$(inode m/sub/name)" ]; [ "$(inode /proc/$pid/fd/4)" = "$(inode m/sub/original)" ]; [ "$(stat -L -c %h /proc/$pid/fd/5)" = 0 ]
said "3 renamed
4 replaced
5 deleted
6 same"`));

  test("what is mounted elsewhere just before the freeze is looked for there", () =>
    on(`
start a=3 b=4 c=5 d=6
cat >script <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0
cd /tmp; mkdir n; mount --bind m n; umount m; touch done
END
chmod 755 script; dump --action-script /tmp/script; [ -e done ]; restore; detached 3 4 5 6; [ "$(inode /proc/$pid/fd/3)" = "$(inode n/sub/a)" ]
said "3 a
4 b
5 c
6 d"`));

  test("a file that was deleted is told, also where another has its name", () =>
    on(`
start a=3 b=4 deleted=5 c=6; dump
rm m/sub/deleted; fails "" restore; told "cannot open .deleted. below ./tmp/m/sub. again.*deleted since the checkpoint"
echo deleted >m/sub/deleted; fails "" restore; told "deleted since the checkpoint"; until_true eval '! kill -0 $pid'`));

  test("one that was deleted and is still open elsewhere is that one", () =>
    on(`
start a=3 b=4 deleted=5 c=6; dump
exec 9<m/sub/deleted; rm m/sub/deleted; echo another >m/sub/deleted
restore; said "3 a
4 b
5 deleted
6 c"`));

  test("in a copy of the directory files are those of their names", () =>
    on(`
start a=3 b=4 d=5 c=6; dump
cp -a m/sub m/copy; mv m/sub m/original; mv m/copy m/sub; inode=$(inode m/sub/b)
restore; [ "$(inode /proc/$pid/fd/4)" = $inode ]; detached 3 4 5 6`));
});

// It opens no inode by a handle, but since Linux 6.6 it tells them apart.
describe("on an overlay", () => {
  const on = (script: string): Promise<string> =>
    holds(`${WORDS}
mkdir m layers; mount -t tmpfs none layers; mkdir -p layers/upper layers/work layers/lower/sub; echo below >layers/lower/sub/below
mounted() { mount -t overlay -o lowerdir=layers/lower,upperdir=layers/upper,workdir=layers/work overlay m; }; mounted
${script}`);

  test("files that were renamed and replaced are opened by what they are, also when it has been mounted anew", () =>
    on(`
start renamed=3 moved=4 replaced=5 same=6; dump; until_true umount m; mounted
mv m/sub/renamed m/sub/dir/name; mv m/sub/moved m/sub/another; echo wrong >m/sub/moved; mv m/sub/replaced m/sub/original; echo wrong >m/sub/replaced
mv m/sub/dir m/sub/moved-dir; mkdir m/sub/dir
restore; detached 3 4 5 6
[ "$(inode /proc/$pid/fd/3)" = "$(inode m/sub/moved-dir/name)" ]; [ "$(readlink /proc/$pid/fd/4)" = /another ]
said "3 renamed
4 moved
5 replaced
6 same"
[ "$(awk '{ print $1 }' cwd)" = "$(inode m/sub/moved-dir)" ] || no "another working directory"`));

  test("one that is not below any more is told, unless another has its name", () =>
    on(`
start a=3 b=4 deleted=5 c=6; dump
mv m/sub/deleted m/elsewhere; fails "" restore; told "cannot open .deleted. below ./tmp/m/sub. again.*deleted since the checkpoint"; ! kill -0 $pid
echo another >m/sub/deleted; restore
said "3 a
4 b
5 another
6 c"`));

  test("another overlay of the same layers has its own files of these names", () =>
    on(`
start a=3 b=4 d=5 c=6; dump; until_true umount m; mkdir other work; cp -a layers/upper/. other
mount -t tmpfs none work; mkdir work/upper work/work; cp -a other/. work/upper; mount -t overlay -o lowerdir=layers/lower,upperdir=work/upper,workdir=work/work overlay m
inode=$(inode m/sub/b); restore; [ "$(inode /proc/$pid/fd/4)" = $inode ]; detached 3 4 5 6
said "3 a
4 b
5 d
6 c"`));
});

test("a container's working directory that has another name since, on its own file system, is told", () =>
  holds(`
mkdir l i; cat >l/program <<'END'
mkdir -p /data/sub/x /data/at; mount -o bind /data/sub /data/at; cd /data/at/x; umount -l /data/at
echo ready >/lab/out; while [ ! -e /lab/go ]; do sleep 0.1; done; touch here; echo done >>/lab/out; sleep 1000
END
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh /lab/program
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN"|g; s|"readonly": true|"readonly": false|' /tmp/b/config.json
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; until_true grep -q ready l/out
runc checkpoint --image-path /tmp/i --work-path /tmp/i c1
again() { runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; }
mv b/rootfs/data/sub/x b/rootfs/data/sub/y; fails "" again; grep -h "CRIU opens it by the old one" i/*.log
mkdir b/rootfs/data/sub/x; fails "" again; until_true eval '! grep -q ^cryoshim /proc/mounts'; runc delete -f c1 || true
rmdir b/rootfs/data/sub/x; mv b/rootfs/data/sub/y b/rootfs/data/sub/x; again
touch l/go; until_true grep -q done l/out; [ -e b/rootfs/data/sub/x/here ]`));

describe("a tmpfs that others have mounted, in a mount namespace of their own", () => {
  const OTHERS = `
mount --make-rprivate /; mkdir m; mount -t tmpfs none m
`;
  test("is not made anew: the files are theirs", () =>
    holds(`${WORDS}${OTHERS}
start a=3 b=4 gone=5 c=6; rm m/sub/gone
unshare -m sh -c 'touch /tmp/there; exec sleep 1000' & other=$!; until_true test -e there; umount -l m
dump; mv /proc/$other/root/tmp/m/sub/a /proc/$other/root/tmp/m/sub/other; restore; detached 3 4 5 6
[ "$(inode /proc/$pid/fd/3)" = "$(inode /proc/$other/root/tmp/m/sub/other)" ]
[ "$(inode /proc/$pid/cwd)" = "$(inode /proc/$other/root/tmp/m/sub/dir)" ]
said "3 a
4 b
5 gone
6 c"
kill $other`));

  test("who has it no more at the restore is told", () =>
    holds(`${WORDS}${OTHERS}
start a=3 b=4 c=5 d=6
unshare -m sh -c 'touch /tmp/there; exec sleep 1000' & other=$!; until_true test -e there; umount -l m
dump; kill $other; until_true eval '! kill -0 $other'; fails "" restore
told "no process has it mounted any more"; ! kill -0 $pid`));

  test("in one of the container's own it is refused before anything is stopped", () =>
    holds(`${WORDS}${OTHERS}
mkdir i; echo 1 >m/file
setsid sh -c 'exec 3<m/file; unshare -m sh -c "touch /tmp/there; sleep 1000" & until [ -e /tmp/go ]; do sleep 0.1; touch alive; done' </dev/null >/dev/null 2>&1 & pid=$!
until_true test -e there; umount -l m; fails "" dump
grep -q "mounted in another mount namespace of the container's" i/d.log; ! grep -q "Seized task" i/d.log || no "tasks were stopped"; rm alive; until_true test -e alive; pkill -g $pid`));
});
