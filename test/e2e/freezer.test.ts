// SPDX-License-Identifier: Apache-2.0
// The freeze around a dump, in a cgroup whose freezer CRIU is told to use; of v1, but for the last test.
import { test } from "vitest";
import { holds } from "../support/lab.js";

const started = `
group=/sys/fs/cgroup/freezer/tested; mkdir $group
state() { cat $group/freezer.state; }
# The command's caller may be quicker than the shim.
thawed() { until_true grep -q THAWED $group/freezer.state; }
mkdir l i
(echo $BASHPID >$group/cgroup.procs; exec setsid sh -c "$(sed s,/lab/,/tmp/l/,g <<<"$counter")" </dev/null >/dev/null 2>&1) & pid=$!
counting l
dump() { rm -rf i/*; timeout 60 criu dump -t $pid -D i -o d.log -v4 --freeze-cgroup $group --manage-cgroups=full "$@"; }
`;

test("CRIU finds the cgroup frozen and never waits its 100 ms, and the cgroup runs after the dump", () =>
  holds(`${started}
    for round in $(seq 10); do
      dump -R; thawed; counting l
      ! grep -q "freezer.state=FREEZING" i/d.log || no "CRIU waited"
    done`));

test("what was frozen for the dump comes back running, and CRIU alone restores it", () =>
  holds(`${started}
    dump; standing l
    PATH=/usr/sbin:/usr/bin:/sbin:/bin criu restore -d -D i -o r.log -v4 --manage-cgroups=full
    [ "$(state)" = THAWED ]; counting l`));

test("a cgroup that its owner has frozen is dumped, stays frozen, and runs again when its owner says so", () =>
  holds(`${started}
    echo FROZEN >$group/freezer.state; until_true grep -q FROZEN $group/freezer.state
    dump -R; [ "$(state)" = FROZEN ]; standing l
    echo THAWED >$group/freezer.state; counting l`));

test("a dump that fails leaves the cgroup running", () =>
  holds(`${started}
    ln -s /etc/hostname i/x; chmod 500 i
    fails "" timeout 60 criu dump -t $pid -D /proc/self/fd/nonsense --freeze-cgroup $group
    thawed
    rm -rf i; mkdir i; mount -t tmpfs -o size=4k tmpfs i
    fails "" timeout 60 criu dump -t $pid -D i --freeze-cgroup $group
    thawed; counting l`));

test.each([
  ["hybrid", "/sys/fs/cgroup/freezer/tested"],
  ["unified", "/sys/fs/cgroup/tested"],
])(
  "a program that nearly always waits for a child of vfork(2) is dumped and restored (%s cgroups)",
  async (cgroups, group) => {
    await holds(
      `mkdir ${group} i
    setsid /cryoshim/build/workloads/vforks /tmp/log </dev/null >/dev/null 2>&1 & pid=$!
    echo $pid >${group}/cgroup.procs
    grown() { [ "$(wc -l <log)" -gt "$1" ]; }
    more() { until_true grown $(($(wc -l <log) + 2)); }
    more
    for round in $(seq 5); do
      timeout 60 criu dump -R -t $pid -D i -o d.log -v4 --freeze-cgroup ${group} || no "$(grep Error i/d.log)"
      rm -r i/*; more
    done
    timeout 60 criu dump -t $pid -D i -o d.log -v4 --freeze-cgroup ${group} || no "$(grep Error i/d.log)"
    criu restore -d -D i -o r.log -v4; more
    seq "$(wc -l <log)" | cmp - log`,
      { LAB_CGROUP: cgroups },
    );
  },
);
