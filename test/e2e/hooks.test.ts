// SPDX-License-Identifier: Apache-2.0
// Hooks as each runtime calls them: in what order, what they take down, and that nothing is left whatever the end was.
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";

/** What hooks keep of containers: `kept NAME...` waits for exactly these, `field` reads a record. */
const KEPT = `
looks() { [ "$(ls /run/cryoshim/containers 2>/dev/null | paste -sd' ')" = "$*" ]; }
kept() { until_true looks "$@"; }
none_kept() { kept; [ -z "$(ls /run/cryoshim/namespaces 2>/dev/null)" ]; }
is() { [ "$(lxc-info -n c1 -sH)" = "$1" ]; }
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' /run/cryoshim/containers/$1/container.json $2; }
`;

const HOOKS = (place = "/cryoshim/hooks") => ({
  createRuntime: [{ path: `${place}/create-runtime` }],
  createContainer: [{ path: `${place}/create-container` }],
  poststop: [{ path: `${place}/poststop` }],
});
const LEVEL = { "io.cryoshim.log.level": "warn" };

/** A bundle in /tmp/b of a container that counts, seen at /tmp/l, with the hooks and annotations in its config.json. */
const bundle = (
  runtime: string,
  annotations: object,
  more = 'sh -c "$counter"',
  hooks: object = HOOKS(),
): string => `${KEPT}
r=${runtime}
mkdir -p l i w
LAB_CONFIG='${JSON.stringify({ annotations, hooks })}' LAB_BIND=/tmp/l lab-runc-bundle /tmp/b ${more}
run() { $r run -d -b /tmp/b "$@" </dev/null >/dev/null 2>&1; }
`;

describe.each(["runc", "crun"])("%s, by config.json", (runtime) => {
  test("what is known is taken down at the start, with the mounts, and taken away at the end", () =>
    holds(`${bundle(runtime, LEVEL)}
      run c1; counting l; kept oci-c1
      [ "$(field oci-c1 id) $(field oci-c1 runtime) $(field oci-c1 place)" = "c1 oci /tmp/b" ]
      [ "$(field oci-c1 annotations)" = "{'io.cryoshim.log.level': 'warn'}" ]
      pid=$($r state c1 | sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p')
      [ "$(field oci-c1 process)" = "{'pid': $pid, 'startTime': '$(cut -d' ' -f22 /proc/$pid/stat)'}" ]
      grep -q ' /tmp/b/rootfs/lab ' /run/cryoshim/containers/oci-c1/mounts
      [ "$(stat -c %a /run/cryoshim /run/cryoshim/containers /run/cryoshim/containers/oci-c1 | sort -u)" = 700 ]
      $r kill c1 KILL; until_true $r delete c1; none_kept`));

  test("a checkpoint ends it as a kill does; its images restore it", () =>
    holds(`${bundle(runtime, LEVEL)}
      run c1; counting l; kept oci-c1
      $r checkpoint --image-path /tmp/i --work-path /tmp/w c1; standing l; none_kept
      $r restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/w c1 </dev/null >/dev/null 2>&1; counting l
      # runc calls its createRuntime hooks in a restore, crun calls none.
      kept ${runtime === "runc" ? "oci-c1" : ""}
      $r kill c1 KILL; until_true $r delete c1; none_kept`));

  test("after a start that failed nothing is left once another one is made or ends", () =>
    holds(`${bundle(runtime, LEVEL, "/nosuchprogram")}
      ! run c1 || no started
      sed -i 's|/nosuchprogram|/init|' b/config.json; printf '#!/bin/sh\nwhile :; do sleep 1; done\n' >b/rootfs/init; chmod 755 b/rootfs/init
      run c2; kept oci-c2
      $r kill c2 KILL; until_true $r delete c2; none_kept`));

  test("a container without annotations of ours costs no Node, and nothing is kept of it", () =>
    holds(`${bundle(runtime, { "org.example": "x" })}
      sed -i 's,^hook() {,hook() { touch /tmp/started;,' /cryoshim/hooks/run
      run c1; counting l; $r kill c1 KILL; until_true $r delete c1; [ ! -e started ]
      [ ! -e /run/cryoshim/containers ]
      sed -i s/org.example/io.cryoshim.x/ b/config.json; rm l/*
      run c1; counting l; [ -e started ]`));

  test("a wrong annotation is told, and keeps only a strict container from starting", async () => {
    const log = await holds(`${bundle(runtime, { "io.cryoshim.network.lock": "maybe" })}
      run c1; counting l; cat /run/cryoshim/hooks.log
      $r kill c1 KILL; until_true $r delete c1; rm l/*
      sed -i 's/"annotations": {/&"io.cryoshim.strict": "true",/' b/config.json
      ! run c2 || no started
      [ ! -e l/log ]; fails "" $r state c2; tail -n 1 /run/cryoshim/hooks.log`);
    expect(log).toMatch(/createRuntime: annotation io\.cryoshim\.network\.lock=maybe: it wants one of/);
    expect(log).toMatch(/ERR_ANNOTATION/);
  });

  test("without a Node that works, or with a program of ours that does not, a container starts; a strict one does not", () =>
    holds(`${bundle(runtime, LEVEL)}
      echo 'process.exit(7)' >/cryoshim/dist/hook.cjs
      run c1; counting l; $r kill c1 KILL; until_true $r delete c1; rm l/*
      echo 'while (true);' >/cryoshim/dist/hook.cjs; sed -i 's/timeout -k 1 10/timeout -k 1 1/' /cryoshim/hooks/run
      run c1; counting l; $r kill c1 KILL; until_true $r delete c1; rm l/*
      sed -i 's/"annotations": {/&"io.cryoshim.strict": "true",/' b/config.json
      ! run c2 || no started
      [ ! -e l/log ]`));
});

describe.each(["runc", "crun"])("podman and %s, by hooks.d", (runtime) => {
  const installed = `${KEPT}
    cryoshim install >/dev/null
    p="podman --runtime ${runtime}"; lab-podman-image >/dev/null; mkdir c1
    start() { $p run -d --name c1 --network none "$@" -v /tmp/c1:/lab localhost/busybox sh -c "$counter" >/dev/null; counting c1; }
    id() { $p inspect c1 --format '{{.Id}}'; }
    ended() { $p rm -f -t 0 c1 >/dev/null; }`;

  test("only what is annotated is taken down; kill, checkpoint and removal take it away", () =>
    holds(`${installed}
      start; [ ! -e /run/cryoshim/containers ]; ended; rm c1/*
      start --annotation io.cryoshim.log.level=warn; kept oci-$(id)
      $p kill c1 >/dev/null; none_kept; ended; rm c1/*
      start --annotation io.cryoshim.log.level=warn; kept oci-$(id)
      $p container checkpoint c1; none_kept
      $p container restore c1; counting c1; kept ${runtime === "runc" ? "oci-$(id)" : ""}
      ended; none_kept`));

  test("an imported container, of which podman tells no end, is forgotten at the next chance", () =>
    holds(`${installed}
      start --annotation io.cryoshim.log.level=warn
      $p container checkpoint -e /tmp/e.tar c1; ended; $p container restore -i /tmp/e.tar >/dev/null; counting c1; ended; rm c1/*
      start --annotation io.cryoshim.log.level=warn; kept oci-$(id); ended; none_kept`));

  test("hooks whose package has been removed keep no container from starting", () =>
    holds(`${installed}
      for link in $(find /usr/share/containers/oci/hooks.d /usr/local/libexec/cryoshim -type l); do
        ln -sfn "$(readlink $link | sed s,/cryoshim/,/gone/cryoshim/,)" $link
      done
      start --annotation io.cryoshim.log.level=warn; ended
      cryoshim install | grep -c '^replace'; rm c1/*
      start --annotation io.cryoshim.log.level=warn; kept oci-$(id); ended
      cryoshim uninstall >/dev/null; [ -z "$(ls /usr/share/containers/oci/hooks.d)" ]`));
});

describe("mounts with files on a server are taken down, by whatever runtime", () => {
  const env = { LAB_PACKAGES: "sshfs openssh-sftp-server" };
  const up = `. /cryoshim/test/support/remote.sh; up m\n`;
  const said = (where: string): string =>
    `{'destination': '${where}', 'type': 'fuse.sshfs', 'source': 'server:/tmp/served',`;

  test.each(["runc", "crun"])("%s", async (runtime) => {
    await holds(
      `${up}${bundle(runtime, LEVEL)}
      sed -i 's|"mounts": \\[|&{"destination": "/data", "type": "bind", "source": "/tmp/m", "options": ["rbind"]},|' b/config.json
      run c1; counting l; field oci-c1 remote | grep -F "[${said("/data")}"; $r kill c1 KILL; until_true $r delete c1`,
      env,
    );
  });

  test("SPFS that stood for one ends with the container, also where a process of somebody else's holds its mounts", () =>
    holds(
      `. /cryoshim/test/support/remote.sh
      mkdir l i; cp /cryoshim/build/workloads/remote l
      LAB_CONFIG='${JSON.stringify({ annotations: LEVEL, hooks: HOOKS() })}' LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/remote /mnt /lab/out /lab/go
      up b/rootfs/mnt; runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
      runc checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i c1; down b/rootfs/mnt
      runc restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; waits l
      nsenter -t $(runc state c1 | sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p') -m sleep 1000 & other=$!
      entered() { [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; }; until_true entered
      runc kill c1 KILL; until_true runc delete c1; nothing_left; kill -0 $other`,
      env,
    ));

  test("LXC", () =>
    holds(
      `${up}${KEPT}cryoshim install >/dev/null; lab-lxc-create c1
      printf 'lxc.include = /etc/lxc/cryoshim.conf\nio.cryoshim.log.level = warn\n' >>/var/lib/lxc/c1/config
      printf 'lxc.mount.entry = /tmp/m data none bind,create=dir 0 0\n' >>/var/lib/lxc/c1/config
      lxc-start -d -n c1
      there() { grep -q '"pid":'"$(lxc-info -n c1 -pH)," /run/cryoshim/containers/lxc-c1/container.json; }; until_true there
      field lxc-c1 remote | grep -F "[${said("/data")}"
      lxc-stop -k -n c1`,
      env,
    ));
});

describe("LXC, by include", () => {
  const made = (lines: string): string => `${KEPT}
    cryoshim install >/dev/null
    lab-lxc-create c1 sh /lab/counter
    l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; echo "$counter" >$l/counter
    printf 'lxc.include = /etc/lxc/cryoshim.conf\\n${lines}' >>/var/lib/lxc/c1/config
    stopped() { lxc-stop -k -n c1; until_true is STOPPED; }`;

  test("what is known is taken down at start and restore, and taken away at stop and checkpoint", () =>
    holds(`${made("io.cryoshim.log.level = warn\\n")}
      lxc-start -d -n c1; counting $l; kept lxc-c1
      [ "$(field lxc-c1 place) $(field lxc-c1 annotations)" = "/var/lib/lxc/c1/config {'io.cryoshim.log.level': 'warn'}" ]
      field lxc-c1 process | grep -q "'pid': $(lxc-info -n c1 -pH),"
      grep -q /proc /run/cryoshim/containers/lxc-c1/mounts; [ -s /run/cryoshim/containers/lxc-c1/mounts-before ]
      lxc-checkpoint -n c1 -D /tmp/d/one -s; standing $l; none_kept
      lxc-checkpoint -n c1 -D /tmp/d/one -r; counting $l; kept lxc-c1
      stopped; none_kept`));

  test("nothing is kept of a container that asks for nothing, nor of one that failed to start", () =>
    holds(`${made("")}
      lxc-start -d -n c1; counting $l; [ ! -e /run/cryoshim/containers ]; stopped
      printf 'io.cryoshim.log.level = warn\\nlxc.hook.start = /nosuch\\n' >>/var/lib/lxc/c1/config
      ! lxc-start -d -n c1 || no started; none_kept`));

  test("a strict container with a wrong line does not start; the same line alone is told", () =>
    holds(`${made("io.cryoshim.what = 1\\n")}
      lxc-start -d -n c1; counting $l; grep -q "io.cryoshim.what=1: there is no such annotation" /run/cryoshim/hooks.log; stopped
      rm -f $l/log $l/starts; echo 'io.cryoshim.strict = true' >>/var/lib/lxc/c1/config
      ! lxc-start -d -n c1 || no started
      [ ! -e $l/log ]; none_kept`));

  test("an include whose hooks are gone keeps no container from starting", () =>
    holds(`${made("io.cryoshim.log.level = warn\\n")}
      cryoshim uninstall | grep 'keep .*/etc/lxc/cryoshim.conf'
      [ ! -e /usr/local/libexec/cryoshim/lxc ]
      lxc-start -d -n c1; counting $l; [ ! -e /run/cryoshim/containers ]; stopped`));
});
