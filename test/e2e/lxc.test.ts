// SPDX-License-Identifier: Apache-2.0
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

const started = `
lab-lxc-create c1 sh /lab/counter
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d
echo "$counter" >$l/counter
lxc-start -d -n c1
counting $l
`;

describe("lxc-checkpoint", () => {
  test("dumps and goes on running; with -s it stops; -r restores what was dumped", () =>
    holds(`${started}
      lxc-checkpoint -n c1 -D /tmp/d/one; counting $l
      lxc-checkpoint -n c1 -D /tmp/d/two -s; standing $l
      [ "$(lxc-info -n c1 -sH)" = STOPPED ]
      ls /tmp/d/two/inventory.img /tmp/d/two/dump.log
      lxc-checkpoint -n c1 -D /tmp/d/two -r; counting $l
      [ "$(lxc-info -n c1 -sH)" = RUNNING ]
      lxc-stop -k -n c1; until_true test "$(lxc-info -n c1 -sH)" = STOPPED`));

  test("says that it failed when there is nothing to restore", () =>
    holds(`${started}
      lxc-stop -k -n c1
      fails "restore|Restor|no such|No such|fail" lxc-checkpoint -n c1 -D /tmp/nothing -r
      [ "$(lxc-info -n c1 -sH)" = STOPPED ]`));
});
