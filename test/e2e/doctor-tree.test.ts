// SPDX-License-Identifier: Apache-2.0
// cryoshim doctor --container, --pid on real containers. What it says of each kind of object: limits.test.ts.
import { expect, test } from "vitest";
import { holds, lab } from "../support/lab.js";

const WORDS = `
mkdir -p l; cp /cryoshim/build/workloads/queues l
ready() { until_true grep -q ready "$1/out"; }
told() {
  cryoshim doctor --container c1 >said || { cat said; exit 1; }
  ! grep -v '^ok\\|^note' said || no "a container that can be checkpointed, and"
  grep -q "POSIX message queue: carried by cryoshim" said
  head -1 said | grep -q " processes; "
}
`;

test("podman's container: what is carried is told, nothing is called a failure", () =>
  holds(`${WORDS}
lab-podman-image >/dev/null
podman run -d --name c1 -v /tmp/l:/lab localhost/busybox /lab/queues /lab/out /lab/go >/dev/null; ready l; told
podman container checkpoint c1 >/dev/null`));

test.each(["runc", "crun"])("%s's container: the same", async (runtime) => {
  await holds(`${WORDS}
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/queues /lab/out /lab/go
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l; told
${runtime} kill c1 KILL`);
});

test("LXC's container: the same", () =>
  holds(`${WORDS}
lab-lxc-create c1 /lab/queues /lab/out /lab/go
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l; cp /cryoshim/build/workloads/queues $l
lxc-start -d -n c1; ready $l; told
lxc-stop -k -n c1`));

test("a container, or a process, that there is not is an error which says so", async () => {
  const { code, output } = await lab(`
cryoshim doctor --container nobody || echo "code $?"
cryoshim doctor --pid 4194303 || echo "code $?"`);
  expect(code).toBe(0);
  expect(output).toMatch(/container `nobody`.*\[ERR_CONTAINER\]/s);
  expect(output).toMatch(/process 4194303.*\[ERR_PROCESS\]/s);
  expect(output.match(/code 1/g)).toHaveLength(2);
});
