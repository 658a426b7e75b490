// SPDX-License-Identifier: Apache-2.0
// The freeze around a dump, on a freezer of v1 that CRIU is told to use.
import { test } from "vitest";
import { holds } from "../support/lab.js";

const started = `
group=/sys/fs/cgroup/freezer/tested; mkdir $group
state() { cat $group/freezer.state; }
mkdir l i
setsid sh -c "$(sed s,/lab/,/tmp/l/,g <<<"$counter")" </dev/null >/dev/null 2>&1 & pid=$!
counting l; echo $pid >$group/cgroup.procs; for child in $(cat /proc/$pid/task/$pid/children); do echo $child >$group/cgroup.procs; done
dump() { rm -rf i/*; timeout 60 criu dump -t $pid -D i -o d.log -v4 --freeze-cgroup $group --manage-cgroups=full "$@"; }
`;

test("CRIU finds the cgroup frozen and never waits its 100 ms, and the cgroup runs after the dump", () =>
  holds(`${started}
    for round in $(seq 10); do
      dump -R; [ "$(state)" = THAWED ]; counting l
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
    [ "$(state)" = THAWED ]
    rm -rf i; mkdir i; mount -t tmpfs -o size=4k tmpfs i
    fails "" timeout 60 criu dump -t $pid -D i --freeze-cgroup $group
    [ "$(state)" = THAWED ]; counting l`));
