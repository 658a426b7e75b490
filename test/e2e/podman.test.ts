// SPDX-License-Identifier: Apache-2.0
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

/** A container c1 that counts, seen at /tmp/c1; $p is podman with the runtime. */
const started = (runtime: string): string => `
p="podman --runtime ${runtime}"
lab-podman-image >/dev/null
mkdir -p c1
$p run -d --name c1 --network none -v /tmp/c1:/lab localhost/busybox sh -c "$counter" >/dev/null
counting c1
`;

describe.each(["runc", "crun"])("podman and %s", (runtime) => {
  test("a container that was checkpointed is gone, and restored it goes on where it was", () =>
    holds(`${started(runtime)}
      $p container checkpoint c1; standing c1
      [ "$($p inspect c1 --format '{{.State.Checkpointed}} {{.State.Running}}')" = "true false" ]
      $p container restore c1; counting c1
      [ "$($p inspect c1 --format '{{.State.Running}}')" = true ]`));

  test("with --leave-running it goes on at once, and can be checkpointed again", () =>
    holds(`${started(runtime)}
      $p container checkpoint --leave-running c1; counting c1
      $p container checkpoint c1; standing c1
      $p container restore c1; counting c1`));

  test("an exported checkpoint becomes a container of another name, with the same state", () =>
    holds(`${started(runtime)}
      $p container checkpoint --export /tmp/c1.tar.zst c1; standing c1
      $p rm c1 >/dev/null
      $p container restore --import /tmp/c1.tar.zst --name c2; counting c1
      [ "$($p ps --format '{{.Names}}')" = c2 ]`));

  test("--keep leaves images and logs where podman says they are", () =>
    holds(`${started(runtime)}
      $p container checkpoint --keep c1
      dir=$($p inspect c1 --format '{{.StaticDir}}')
      ls $dir/checkpoint/inventory.img; grep -q "Dumping finished successfully" $dir/dump.log
      $p container restore --keep c1; counting c1
      ls $dir/checkpoint/inventory.img; grep -q "Restore finished successfully" $dir/restore.log`));

  test("--file-locks brings a held lock back", () =>
    holds(`p="podman --runtime ${runtime}"; lab-podman-image >/dev/null
      mkdir c1; cp /cryoshim/build/workloads/locked c1/program
      $p run -d --name c1 --network none -v /tmp/c1:/lab localhost/busybox \\
        /lab/program /lab/lock sh -c "$counter" >/dev/null
      counting c1; fails "" flock -n c1/lock true
      fails "" $p container checkpoint c1; counting c1
      $p container checkpoint --file-locks c1; flock -n c1/lock true
      $p container restore --file-locks c1; counting c1
      fails "" flock -n c1/lock true`));

  // Again if refused: what the peer sends while podman sets up the network, before it starts the restore, ends its
  // connection, with CRIU alone as well.
  test("--tcp-established keeps the connection between two containers", { retry: 3 }, () =>
    holds(`
      p="podman --runtime ${runtime}"; lab-podman-image >/dev/null
      mkdir s c; cp /cryoshim/build/workloads/workload s; cp /cryoshim/build/workloads/workload c
      $p run -d --name s -v /tmp/s:/lab localhost/busybox /lab/workload serve 7000 /lab >/dev/null
      address=$($p inspect s --format '{{.NetworkSettings.IPAddress}}')
      $p run -d --name c -v /tmp/c:/lab localhost/busybox /lab/workload count $address 7000 /lab >/dev/null
      size() { stat -c %s c/numbers; }
      grown() { [ "$(size)" -gt "$1" ]; }
      until_true grown 1600
      $p container checkpoint --tcp-established c
      # The peer's kernel sends again 0.2, 0.6 and 1.4 s after the freeze: podman's moment is to fall between.
      at=$(size); sleep 0.8; [ "$(size)" = "$at" ] || no "it still counts"
      $p container restore --tcp-established c
      settled() { [ -e c/failure ] || [ -e s/failure ] || grown $((at + 1600)); }
      until_true settled
      [ ! -e c/failure ] || no "$(cat c/failure)"
      [ ! -e s/failure ] || no "$(cat s/failure)"`),
  );

  test("--pre-checkpoint works, or says clearly that the kernel cannot track memory", () =>
    holds(`${started(runtime)}
      if said=$($p container checkpoint --pre-checkpoint --export /tmp/pre.tar.gz c1 2>&1); then
        counting c1
        $p container checkpoint --with-previous --export /tmp/full.tar.gz c1; standing c1
        $p rm c1 >/dev/null
        $p container restore --import-previous /tmp/pre.tar.gz --import /tmp/full.tar.gz; counting c1
      else
        grep -qiE "memory.?track|mem_dirty_track|pre-dump" <<<"$said" || no "said only: $said"
        counting c1
      fi`));

  test("a container's stdin and its terminal go on", () =>
    holds(`${started(runtime)}
      $p rm -f -t 0 c1 >/dev/null; rm -f c1/*
      $p run -d -t -i --name c1 --network none -v /tmp/c1:/lab localhost/busybox \\
        sh -c "test -t 0 && test -t 1 || exit 9; $counter" >/dev/null
      counting c1
      $p container checkpoint c1; standing c1
      $p container restore c1; counting c1
      $p rm -f -t 0 c1 >/dev/null; rm -f c1/*
      $p run -d -i --name c1 --network none -v /tmp/c1:/lab localhost/busybox sh -c "$counter" >/dev/null
      counting c1
      $p container checkpoint c1; standing c1
      $p container restore c1; counting c1`));

  test("a container of a pod, sharing its namespaces, is exported and restored into another pod", () =>
    holds(`p="podman --runtime ${runtime}"; lab-podman-image >/dev/null; mkdir c1
      pod() { $p pod create --name $1 --infra-image localhost/busybox --infra-command "sleep 100000" --share ipc,uts,net --network none >/dev/null; }
      pod p1
      $p run -d --pod p1 --name c1 -v /tmp/c1:/lab localhost/busybox sh -c "$counter" >/dev/null
      counting c1
      $p container checkpoint --export /tmp/c1.tar.gz c1; standing c1
      $p pod rm -f -t 0 p1 >/dev/null
      pod p2; $p pod start p2 >/dev/null
      $p container restore --import /tmp/c1.tar.gz --pod p2 --name c2; counting c1
      [ "$($p inspect c2 --format '{{.Pod}}')" = "$($p pod inspect p2 --format '{{.Id}}')" ]`));
});

test("pipes of a container in a user namespace come back in their size, where root of the host has many", () =>
  holds(`lab-podman-image >/dev/null; mkdir c1
    podman run -d --name c1 --network none --uidmap 0:0:65536 -v /tmp/c1:/lab localhost/busybox \\
      sh -c "(echo start >>/lab/starts; i=0; while :; do i=\\$((i+1)); echo \\$i; sleep 0.02; done) | cat >/lab/log" >/dev/null
    counting c1
    ulimit -n 8192
    # 16 pages each, and a user has 16384 (fs.pipe-user-pages-soft).
    python3 -c 'import os, time; pipes = [os.pipe() for n in range(1100)]; open("many", "w"); time.sleep(1000)' &
    until_true test -e many
    sizes() { python3 -c 'import fcntl, os, sys; print(*sorted({fcntl.fcntl(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK), 1032)
      for pid in sys.argv[1:] for fd in (0, 1) if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("pipe:") and os.access(f"/proc/{pid}/fd/{fd}", os.R_OK)}))' $(pgrep -x cat); }
    [ "$(sizes)" = 65536 ]
    podman container checkpoint c1; standing c1
    podman container restore c1; counting c1
    [ "$(sizes)" = 65536 ] || no "$(sizes)"`));
