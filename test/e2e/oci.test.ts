// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";

/** A container c1 of the runtime alone, seen at /tmp/l; images in /tmp/i, logs in /tmp/w. */
const started = (runtime: string): string => `
r=${runtime}
mkdir l i w
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "$counter"
$r run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
counting l
dump() { $r checkpoint --image-path /tmp/i --work-path /tmp/w "$@" c1; }
restore() { $r restore "$@" -b /tmp/b --image-path /tmp/i --work-path /tmp/w c1 </dev/null >/dev/null 2>&1; }
`;

describe.each(["runc", "crun"])("%s", (runtime) => {
  test("checkpoints into --image-path and --work-path, and restores detached", () =>
    holds(`${started(runtime)}
      dump; standing l
      fails "does not exist|No such file" $r state c1
      ls i/inventory.img w/dump.log; [ ! -e i/dump.log ]
      restore -d; counting l
      ls w/restore.log; $r state c1 | grep -q running`));

  test("restored without --detach, it waits for the container and ends with its code", async () => {
    const stdout = await holds(`${started(runtime)}
      dump
      restore & waiting=$!
      counting l
      kill -0 $waiting
      $r kill c1 KILL
      code=0; wait $waiting || code=$?; echo "code $code"`);
    expect(stdout).toContain("code 137");
  });

  test("a connection over the loopback device of the container's own network goes on", () =>
    holds(`r=${runtime}; mkdir -p l/s l/c i w; cp /cryoshim/build/workloads/workload l
      LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "/lab/workload serve 7000 /lab/s & sleep 0.3; exec /lab/workload count 127.0.0.1 7000 /lab/c"
      $r run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
      grown() { [ "$(stat -c %s l/c/numbers)" -gt "$1" ]; }
      until_true grown 1600
      $r checkpoint --tcp-established --image-path /tmp/i --work-path /tmp/w c1
      at=$(stat -c %s l/c/numbers)
      $r restore -d --tcp-established -b /tmp/b --image-path /tmp/i --work-path /tmp/w c1 </dev/null || no "$(grep Error w/restore.log)"
      settled() { [ -e l/c/failure ] || [ -e l/s/failure ] || grown $((at + 1600)); }
      until_true settled; [ ! -e l/c/failure ] && [ ! -e l/s/failure ] || no "$(cat l/?/failure)"`));

  test("--leave-running leaves it running, and it can be dumped again", () =>
    holds(`${started(runtime)}
      dump --leave-running; counting l
      rm i/*; dump; standing l
      restore -d; counting l`));

  test("a failed restore leaves no container and no process", () =>
    holds(`${started(runtime)}
      dump
      : >i/core-1.img
      if restore -d; then no "restored from an empty image"; fi
      fails "does not exist|No such file" $r state c1
      [ -z "$(pgrep -f 3.[/]lab/log || true)" ]
      # crun itself leaves the cgroups of a restore that failed, runc does not.
      [ $r = crun ] || [ -z "$(find /sys/fs/cgroup -type d -name c1)" ]`));
});

describe("lazy pages", () => {
  test("runc restores with --lazy-pages from criu lazy-pages", () =>
    holds(`${started("runc")}
      dump; standing l
      criu lazy-pages --images-dir /tmp/i --work-dir /tmp/w -o lazy.log & daemon=$!
      until_true test -S w/lazy-pages.socket
      restore -d --lazy-pages; counting l
      wait $daemon`));
});
