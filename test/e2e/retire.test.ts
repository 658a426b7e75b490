// SPDX-License-Identifier: Apache-2.0
// A FUSE mount is replaced by the real directory under the open files of containers; its server then ends, and nothing is
// left that would need it: the next checkpoint is one of ordinary files (test/workloads/retired.c checks itself).
import { execFileSync } from "node:child_process";
import { beforeAll, describe, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
retired=/cryoshim/build/workloads/retired
swap() { (cd /cryoshim; node test/support/retire.mjs "$@") | tee report >&2; }
# all_there PID: nothing was left, and nothing of the process's is on the mount whose id was $old.
id_of() { awk -v at="$2" '$5 == at { id = $1 } END { print id }' /proc/$1/mountinfo; }
all_there() {
	grep -q '"left":\\[\\]' report || no "something was left"
	[ "$(id_of $1 $2)" != "$old" ] || no "the mount is the old one"
	! grep -l "mnt_id:[[:space:]]*$old\\$" /proc/$1/fdinfo/* || no "descriptors are on the old mount"
}
go_on() { local n; n=$(grep -c ^ok $1/out); until_true eval "[ \\$(grep -c ^ok $1/out) -gt $((n + 3)) ]"; ! grep BAD $1/out || no "it is not as it was"; }
finish() { touch $1/go; until_true grep -q done $1/out; ! grep BAD $1/out || no "it is not as it was"; }
ended() { until_true eval "! pgrep -x $1"; }
`;
// The driver's bundle may be of yesterday's source.
beforeAll(() => {
  execFileSync("node", ["test/support/retire.mjs", "--build"], { timeout: 60_000 });
});
const env = { LAB_PACKAGES: "bindfs" };

test("the server of a FUSE mount ends, and no program sees it", () =>
  holds(
    `${WORDS}
mkdir l data mnt; bindfs /tmp/data /tmp/mnt
setsid unshare -m $retired /tmp/mnt /tmp/l/out /tmp/l/go </dev/null & pid=$!; until_true grep -q ready l/out
old=$(id_of $pid /tmp/mnt)
swap $pid /tmp/mnt /tmp/data; all_there $pid /tmp/mnt
umount /tmp/mnt; ended bindfs; go_on l; finish l`,
    env,
  ));

test("one FUSE mount takes the place of another, there and back", () =>
  holds(
    `${WORDS}
mkdir l data mnt other; bindfs /tmp/data /tmp/mnt; bindfs /tmp/data /tmp/other
setsid unshare -m $retired /tmp/mnt /tmp/l/out /tmp/l/go </dev/null & pid=$!; until_true grep -q ready l/out
for to in other data other; do old=$(id_of $pid /tmp/mnt); swap $pid /tmp/mnt /tmp/$to; all_there $pid /tmp/mnt; go_on l; done
finish l; umount mnt other; ended bindfs`,
    env,
  ));

describe("containers", () => {
  test.each(["runc", "crun"])(
    "%s: paused, it is refused; the mount is replaced, and then the container is checkpointed and restored",
    async (runtime) => {
      await holds(
        `${WORDS}
mkdir l data mnt i; bindfs /tmp/data /tmp/mnt; cp $retired l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/retired /mnt/d /lab/out /lab/go
python3 - <<'END'
import json
c = json.load(open("/tmp/b/config.json"))
c["mounts"].append({"destination": "/mnt", "type": "bind", "source": "/tmp/mnt", "options": ["bind", "rw"]})
json.dump(c, open("/tmp/b/config.json", "w"))
END
mkdir data/d
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; until_true grep -q ready l/out
pid=$(${runtime} state c1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
old=$(id_of $pid /mnt)
${runtime} pause c1; fails "its cgroup is frozen" swap $pid /mnt /tmp/data; ${runtime} resume c1; go_on l
swap $pid /mnt /tmp/data; all_there $pid /mnt
umount /tmp/mnt; ended bindfs; go_on l
# What the runtime names as the source is now the real directory.
mount --bind data mnt
${runtime} checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i c1 || { grep Error i/dump.log; exit 1; }
${runtime} restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1 || { grep Error i/restore.log; exit 1; }
go_on l; finish l`,
        env,
      );
    },
  );

  test("podman: the mount is replaced in a container with podman's own seccomp filter", () =>
    holds(
      `${WORDS}
mkdir l data mnt; bindfs /tmp/data /tmp/mnt; cp $retired l; lab-podman-image >/dev/null
podman run -d --name c1 --network none -v /tmp/l:/lab -v /tmp/mnt:/mnt localhost/busybox /lab/retired /mnt/d /lab/out /lab/go >/dev/null || true
mkdir data/d; podman start c1 >/dev/null; until_true grep -q ready l/out
pid=$(podman inspect -f '{{.State.Pid}}' c1); old=$(id_of $pid /mnt)
grep -q "^Seccomp:.2" /proc/$pid/status
swap $pid /mnt /tmp/data; all_there $pid /mnt
umount /tmp/mnt; ended bindfs; go_on l; finish l`,
      env,
    ));
});

test("a program on the mount, and a root directory in it, go along", () =>
  holds(
    `${WORDS}
mkdir l data mnt; bindfs /tmp/data /tmp/mnt; mkdir data/d data/bin data/lab; cp $retired data/bin
setsid unshare -m sh -c 'mount --bind /tmp/l /tmp/mnt/lab; exec chroot /tmp/mnt /bin/retired /d /lab/out /lab/go' </dev/null & pid=$!; until_true grep -q ready l/out
swap $pid /tmp/mnt /tmp/data
grep -q '"left":\\[\\]' report; go_on l
umount /tmp/mnt; ended bindfs; go_on l; finish l`,
    env,
  ));
