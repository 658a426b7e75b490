// SPDX-License-Identifier: Apache-2.0
// crun on a host with cgroup v1 hierarchies beside cgroup2, which it takes for pure v2: bare CRIU refuses the restore.
import { expect, test } from "vitest";
import { inLab } from "../support/script.js";

const HYBRID = { LAB_CGROUP: "unified" };
const SCRIPT = `
mkdir /tmp/cs && mount -t cgroup -o cpuset cpuset /tmp/cs && echo 0 > /tmp/cs/cgroup.clone_children
podman() { command podman --runtime crun "$@"; }
cnt() { podman exec c cat /cnt; }
before() { find /tmp/cs -mindepth 1 -type d | sort; }
lab-podman-image >/dev/null
podman run -d --name c --network none $ANNOTATION localhost/busybox sh -c "$counter" >/dev/null
sleep 0.5; dirs=$(before)
round() {
	local n; n=$(number cnt)
	podman container checkpoint c >/dev/null 2>/tmp/err || { echo "checkpoint failed"; cat /tmp/err; return 1; }
	podman container restore --keep c >/dev/null 2>/tmp/err || { echo "restore failed"; cat /tmp/err; return 1; }
	goes_on "$n" cnt
	podman exec c cat /proc/1/cgroup | grep ^0::
}
round && round
[ "$(before)" = "$dirs" ] && echo "no v1 directory more" || echo "LEAKED $(before)"
grep -h cgroup $(find /var/lib/containers -name cryoshim.log) 2>/dev/null
podman rm -f -t 0 c >/dev/null 2>&1; umount /tmp/cs`;

test("bare CRIU refuses crun's restore there", async () => {
  const { stdout } = await inLab(`ANNOTATION=${SCRIPT}`, { bare: true, env: HYBRID });
  expect(stdout).toContain("restore failed");
});

test("through cryoshim it restores, twice, in its own cgroup namespace, and leaves v1 alone", async () => {
  const { stdout } = await inLab(`ANNOTATION=${SCRIPT}`, { env: HYBRID });
  expect(stdout).toContain("goes on\n0::/\ngoes on\n0::/\nno v1 directory more\n");
  expect(stdout).toContain("own roots for");
});

test("the annotation of a container overrides the policy", async () => {
  const { stdout } = await inLab(`ANNOTATION="--annotation io.cryoshim.cgroup.manage=caller"${SCRIPT}`, {
    env: HYBRID,
  });
  expect(stdout).toContain("restore failed");
});

test("the configuration of the host overrides the policy", async () => {
  const config = `mkdir -p /etc/cryoshim; printf '[cgroup]\\nmanage = "caller"\\n' > /etc/cryoshim/config.toml\n`;
  const { stdout } = await inLab(`${config}ANNOTATION=${SCRIPT}`, { env: HYBRID });
  expect(stdout).toContain("restore failed");
});
