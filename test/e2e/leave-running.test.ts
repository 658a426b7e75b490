// SPDX-License-Identifier: Apache-2.0
// A container that holds queues, corked sockets, pidfds, and files and sockets on unmounted mounts is left running by its runtime's
// checkpoint, twice, and then goes on there, or in a restore: each program finds all as it was (test/workloads/ check themselves).
import { test } from "vitest";
import { holds } from "../support/lab.js";

const PROGRAMS = "queues 21, corks 17, pidfds 17, unmounted 33, detached 26, bound 51";
const names = PROGRAMS.split(", ").map((each) => each.split(" ")[0]!);

const WORDS = `
names="${names.join(" ")}"
put() { mkdir -p "$1"; for each in $names; do cp /cryoshim/build/workloads/$each "$1"; mkdir "$1/$each.d"; done
  cat >"$1/start" <<'END'
ip link set lo up; mkdir -p /data/unmounted /data/detached /data/bound
for each in queues corks pidfds; do /lab/$each /lab/$each.d/out /lab/$each.d/go & done
for each in unmounted detached bound; do /lab/$each /data/$each /lab/$each.d/out /lab/$each.d/go & done
wait
END
}
ready() { for each in $names; do until_true grep -q ready "$1/$each.d/out" || no "$each"; done; }
checked() { for each in $names; do touch "$1/$each.d/go"; done
  echo "${PROGRAMS}" | tr , '\\n' | while read -r name count; do until_true grep -q done "$1/$name.d/out"
    ! grep BAD "$1/$name.d/out" || no "$name: it is not as it was"; [ "$(grep -c ^ok "$1/$name.d/out")" = "$count" ] || no "$name: $(cat "$1/$name.d/out")"; done; }
`;

test.each([
  ["runc", "goes on"],
  ["crun", "goes on"],
  ["runc", "is restored"],
  ["crun", "is restored"],
])("%s: it %s", async (runtime, then) => {
  await holds(`${WORDS}
put l; mkdir i j; LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh /lab/start
sed -i 's|"CAP_KILL"|"CAP_KILL", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_MKNOD", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"|g; s|"readonly": true|"readonly": false|' b/config.json
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
for images in i j; do ${runtime} checkpoint --leave-running --image-path /tmp/$images --work-path /tmp/$images c1; done
[ "${then}" = "goes on" ] || { mkdir k; ${runtime} checkpoint --image-path /tmp/k --work-path /tmp/k c1
  ${runtime} restore -d -b /tmp/b --image-path /tmp/k --work-path /tmp/k c1 </dev/null >/dev/null 2>&1; }
checked l; ${runtime} delete -f c1`);
});

test.each(["goes on", "is restored"])("podman: it %s", async (then) => {
  await holds(`${WORDS}
lab-podman-image >/dev/null; put l
podman run -d --name c1 --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add MKNOD -v /tmp/l:/lab localhost/busybox sh /lab/start >/dev/null; ready l
podman container checkpoint --leave-running c1 >/dev/null; podman container checkpoint --leave-running --export /tmp/c1.tar c1 >/dev/null
[ "${then}" = "goes on" ] || { podman container checkpoint c1 >/dev/null; podman container restore c1 >/dev/null; }
checked l; podman rm -f c1 >/dev/null`);
});

test.each(["goes on", "is restored"])("LXC: it %s", async (then) => {
  await holds(`${WORDS}
lab-lxc-create c1 sh /lab/start; put /var/lib/lxc/c1/rootfs/lab; mkdir d e
lxc-start -d -n c1; ready /var/lib/lxc/c1/rootfs/lab
lxc-checkpoint -n c1 -D /tmp/d; lxc-checkpoint -n c1 -D /tmp/e
[ "${then}" = "goes on" ] || { mkdir f; lxc-checkpoint -n c1 -D /tmp/f -s; lxc-checkpoint -n c1 -D /tmp/f -r; }
checked /var/lib/lxc/c1/rootfs/lab
lxc-stop -k -n c1`);
});
