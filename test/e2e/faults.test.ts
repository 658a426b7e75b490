// SPDX-License-Identifier: Apache-2.0
// Every step of saving and restoring carried objects fails once, one after the other: after each the programs go on with all their
// objects, or there is nothing of the restore left, and the log says what failed. FAULT_ALL=1: not only the first and last of each kind.
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";

/** A tree with one program of each kind (test/workloads/), each of which checks itself. */
const TREE = `
mkdir -p /etc/cryoshim q i l/queues l/corks l/pidfds l/rings; ip link set lo up; mount -t mqueue none q
cp /cryoshim/test/fixtures/fault-carrier.mjs /etc/cryoshim/
echo 'carriers.extra = ["/etc/cryoshim/fault-carrier.mjs"]' >/etc/cryoshim/config.toml
cat >tree <<'END'
#!/bin/sh
cd /tmp/l
for kind in queues corks pidfds; do /cryoshim/build/workloads/$kind $kind/out $kind/go & done
/cryoshim/build/workloads/rings rings/out rings/go plain single shared buffers eventfd &
wait
END
chmod 755 tree
setsid ./tree </dev/null >/dev/null 2>&1 & pid=$!
for kind in queues corks pidfds rings; do until_true grep -q ready l/$kind/out; done
plan() { : >fault.log; echo '{"kind":"'$1'","nth":'$2',"errno":"'$3'"}' >fault.json; }
fresh() { rm -rf i; mkdir i; }
dump() { timeout 60 criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { timeout 60 criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
checked() {
	for kind in queues:21 corks:17 pidfds:17 rings:23; do
		name=\${kind%:*}; touch l/$name/go; until_true grep -q done l/$name/out
		! grep BAD l/$name/out || no "$name: it is not as it was"
		[ "$(grep -c ^ok l/$name/out)" = \${kind#*:} ] || no "$(cat l/$name/out)"
	done
}
# Without the one that nobody has open: in a namespace that others use it is left alone.
queues() { ls q | grep -vx closed || true; }
forget() { for queue in $(queues); do rm q/$queue; done; }
none_left() { ! pgrep -x "tree|queues|corks|pidfds|rings" >/dev/null; }
# The first and the last step of each kind, or all of them, as KIND:N.
chosen() { awk -v all="\${FAULT_ALL:-}" '{ n[$0]++ } all || n[$0] == 1 { print $0 ":" n[$0] }
	END { if (!all) for (name in n) if (n[name] > 1) print name ":" n[name] }' fault.log; }
all_run() { for name in queues corks pidfds rings; do for p in $(pgrep -x $name); do until_true grep -q "^State:.S" /proc/$p/status; done; done; [ "$(pgrep -xc "queues|corks|pidfds|rings")" -ge 8 ]; }
`;

describe("each step that fails", () => {
  test.each(["EIO", "ENOSPC"])(
    "of a dump, with %s: every program goes on as if nothing had happened",
    async (errno) => {
      const said = await holds(`FAULT_ALL=${process.env.FAULT_ALL ?? ""}${TREE}
plan none 0 ${errno}; fresh; dump -R; steps=$(chosen); all_run
for each in $steps; do
	step=\${each%:*} n=\${each#*:}; plan $step $n ${errno}; fresh; rc=0; dump -R >/dev/null 2>&1 || rc=$?
	all_run || no "step $n, $step: not all run"
	if [ $rc = 0 ]; then echo "$n $step tolerated"; continue; fi
	grep -q "the test wants $step to fail" i/cryoshim.log || no "step $n, $step: the log does not say it"
	[ ! -e i/cryoshim.img ] || no "step $n, $step: images that look whole"
	echo "$n $step"
done
plan none 0 ${errno}; fresh; dump; restore; checked`);
      const steps = said.split("\n").filter((line) => /^\d+ /.test(line));
      expect(steps.length).toBeGreaterThan(10);
      for (const name of ["external", "pidfdGetfd", "swapMapping", "swapRing", "writeFileSync", "renameSync"])
        expect(
          steps.some((line) => line.endsWith(` ${name}`)),
          said,
        ).toBe(true);
    },
  );

  test("of a restore: nothing is left of it, and the next one restores everything", async () => {
    const said = await holds(`FAULT_ALL=${process.env.FAULT_ALL ?? ""}${TREE}
plan none 0 EIO; fresh; dump; forget
plan none 0 EIO; restore; steps=$(chosen); all_run
end() { pkill -9 -x "tree|queues|corks|pidfds|rings" || true; until_true none_left; forget; }
end
for each in $steps; do
	step=\${each%:*} n=\${each#*:}; plan $step $n EIO; rc=0; rm -f i/cryoshim.log; restore >/dev/null 2>&1 || rc=$?
	if [ $rc = 0 ]; then echo "$n $step: it is done without"; all_run; end; continue; fi
	until_true none_left || no "step $n, $step: tasks are left"
	[ -z "$(queues)" ] || no "step $n, $step: queues are left"
	grep -q "the test wants $step to fail" i/cryoshim.log || no "step $n, $step: the log does not say it"
	echo "$n $step"
done
plan none 0 EIO; restore; checked`);
    const steps = said.split("\n").filter((line) => /^\d+ /.test(line));
    for (const name of [
      "mqueueCreate",
      "mqueueSend",
      "sendTo",
      "pidfdOpenAs",
      "swapFd",
      "writeMemory",
      "mapOwn",
      "submit",
    ])
      expect(
        steps.some((line) => line.endsWith(` ${name}`)),
        said,
      ).toBe(true);
  });
});
