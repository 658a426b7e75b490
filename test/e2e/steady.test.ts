// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { holds } from "../support/lab.js";

/** A container of runc named $1, seen at /tmp/$1/l. */
const make = `make() {
  mkdir -p $1/l $1/i $1/w
  LAB_BIND=/tmp/$1/l lab-runc-bundle /tmp/$1/b sh -c "$counter"
  runc run -d -b /tmp/$1/b $1 </dev/null >/dev/null 2>&1
  counting $1/l
}
dump() { runc checkpoint --image-path /tmp/$1/i --work-path /tmp/$1/w $1; }
restore() { runc restore -d -b /tmp/$1/b --image-path /tmp/$1/i --work-path /tmp/$1/w $1 </dev/null >/dev/null 2>&1; }
`;

test("two containers are checkpointed, and restored, at the same time", () =>
  holds(`${make}
    make one; make two
    dump one & first=$!; dump two & second=$!
    wait $first; wait $second
    standing one/l; standing two/l
    restore one & first=$!; restore two & second=$!
    wait $first; wait $second
    counting one/l; counting two/l`));

test("twenty checkpoints and restores in a row let no file, mount, cgroup, process or memory grow", async () => {
  const stdout = await holds(`${make}
    make one
    grown() {
      find /tmp /run /dev/shm -path /tmp/one -prune -o -print | wc -l
      wc -l </proc/self/mountinfo
      find /sys/fs/cgroup -type d | wc -l
      ps -eo comm= >/tmp/one/ps # not through a pipe: whether its other end runs yet would be seen
      grep -vcx sleep /tmp/one/ps
      ls /proc/$(runc state one | awk -F'[:,]' '/"pid"/ { print $2 + 0 }')/fd | wc -l
    }
    kilobytes() { awk '/^Shmem:/ { print $2 }' /proc/meminfo; }
    for round in 1 2; do dump one; restore one; counting one/l; done
    until_true sh -c '! pgrep -f [d]ist/shim.cjs'
    before=$(grown); memory=$(kilobytes)
    for round in $(seq 20); do dump one; restore one; counting one/l; done
    until_true sh -c '! pgrep -f [d]ist/shim.cjs'
    after=$(grown)
    echo "$(echo $before) then $(echo $after) then $(($(kilobytes) - memory))"`);
  const [, before, after, memory] = /^(.*) then (.*) then (-?\d+)$/m.exec(stdout) ?? [];
  expect(after).toBe(before);
  // What twenty rounds could leave in memory-backed files, other labs' and the counter's own log included.
  expect(Number(memory)).toBeLessThan(20_000);
});
