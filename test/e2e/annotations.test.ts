// SPDX-License-Identifier: Apache-2.0
// What a container wishes is found wherever its runtime keeps it, at the dump as at the restore.
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";

/** A container c1 of the runtime alone with these annotations: `dump`, `restore`, images in /tmp/i, logs in /tmp/w. */
const started = (runtime: string, annotations: object, root = ""): string => `
r="${runtime} ${root}"
mkdir l i w
LAB_CONFIG='${JSON.stringify({ annotations })}' LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "$counter"
$r run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
counting l
dump() { $r checkpoint --image-path /tmp/i --work-path /tmp/w "$@" c1; }
restore() { $r restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/w c1 </dev/null; }
# Written beside the images where the lock was ours.
locked() { [ -e i/cryoshim.json ]; }
unlocked() { [ -e i/inventory.img ] && [ ! -e i/cryoshim.json ]; }
`;
const NONE = { "io.cryoshim.network.lock": "none" };
const WRONG = { "io.cryoshim.network.lock": "maybe", "io.cryoshim.what": "1" };

describe.each(["runc", "crun"])("%s", (runtime) => {
  test("a container that wants no network lock gets none, others do", () =>
    holds(`${started(runtime, NONE)}
      dump; unlocked; restore >/dev/null 2>&1; counting l
      $r kill c1 KILL; until_true $r delete c1
      sed -i s/io.cryoshim.network.lock/org.example/ b/config.json; rm -rf i/* l/*
      $r run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; counting l
      dump; locked`));

  test("its bundle is found where the runtime keeps its state elsewhere", () =>
    holds(`${started(runtime, NONE, "--root /tmp/elsewhere")}
      dump; unlocked`));

  test("wrong ones are told and passed over, by dump and restore", async () => {
    const log = await holds(`${started(runtime, WRONG)}
      dump; locked; cat w/cryoshim.log; rm w/cryoshim.log; echo ---
      restore >/dev/null 2>&1; counting l; cat w/cryoshim.log`);
    for (const half of log.split("---")) {
      expect(half).toMatch(/Warn .*io\.cryoshim\.network\.lock=maybe: it wants one of auto, .*: ignored/);
      expect(half).toMatch(/Warn .*io\.cryoshim\.what=1: there is no such annotation: ignored/);
    }
  });

  test("what is logged is what was asked for", () =>
    holds(`${started(runtime, { ...WRONG, "io.cryoshim.log.level": "error" })}
      dump; [ ! -e w/cryoshim.log ]`));

  test("a strict container with a wrong one is not checkpointed, says why, and goes on", () =>
    holds(`${started(runtime, { ...WRONG, "io.cryoshim.strict": "true" })}
      fails "" dump; counting l; [ ! -e i/inventory.img ]
      grep -q "Error .*io.cryoshim.what=1: there is no such annotation" w/cryoshim.log; rm w/cryoshim.log
      sed -i s/io.cryoshim.strict/org.example/ b/config.json; dump; standing l
      sed -i s/org.example/io.cryoshim.strict/ b/config.json
      fails "" restore; standing l; grep -q "Error .*io.cryoshim.what=1" w/cryoshim.log
      fails "does not exist|No such file" $r state c1`));
});

describe.each(["runc", "crun"])("podman and %s", (runtime) => {
  test("--annotation is heard", () =>
    holds(`p="podman --runtime ${runtime}"; lab-podman-image >/dev/null; mkdir c1
      run() { $p run -d --name c1 --network none "$@" -v /tmp/c1:/lab localhost/busybox sh -c "$counter" >/dev/null; counting c1; }
      images() { $p inspect c1 --format '{{.StaticDir}}/checkpoint'; }
      run --annotation io.cryoshim.network.lock=none
      $p container checkpoint --keep c1; [ -e $(images)/inventory.img ]; [ ! -e $(images)/cryoshim.json ]
      $p container restore c1; counting c1
      $p rm -f -t 0 c1 >/dev/null; rm c1/*
      run; $p container checkpoint --keep c1; [ -e $(images)/cryoshim.json ]`));
});

describe("LXC", () => {
  const lxc = (lines: string): string => `
    lab-lxc-create c1 sh /lab/counter
    l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d
    echo "$counter" >$l/counter
    printf '${lines}' >>/var/lib/lxc/c1/config
    lxc-start -d -n c1; counting $l`;

  test("lines of its configuration are heard, by a dump, a restore, and a dump of what was restored", async () => {
    const log = await holds(`${lxc("io.cryoshim.network.lock = none\\nio.cryoshim.what = 1\\n")}
      lxc-checkpoint -n c1 -D /tmp/d/one -s; standing $l; [ ! -e d/one/cryoshim.json ]; cat d/one/cryoshim.log; rm d/one/cryoshim.log; echo ---
      lxc-checkpoint -n c1 -D /tmp/d/one -r; counting $l; cat d/one/cryoshim.log; echo ---
      lxc-checkpoint -n c1 -D /tmp/d/two -s; standing $l; [ ! -e d/two/cryoshim.json ]; cat d/two/cryoshim.log`);
    for (const part of log.split("---")) expect(part).toContain("io.cryoshim.what=1: there is no such annotation");
  });

  test("a strict container with a wrong one is not checkpointed, and goes on", () =>
    holds(`${lxc("io.cryoshim.what = 1\\nio.cryoshim.strict = true\\n")}
      fails "" lxc-checkpoint -n c1 -D /tmp/d/one -s; counting $l
      grep -q "Error .*io.cryoshim.what=1" d/one/cryoshim.log; [ ! -e d/one/inventory.img ]`));
});
