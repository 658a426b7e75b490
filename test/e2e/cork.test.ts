// SPDX-License-Identifier: Apache-2.0
// Corked UDP sockets of every kind (test/workloads/corks.c checks itself) through checkpoint and restore.
import { describe, expect, test } from "vitest";
import { bare, holds } from "../support/lab.js";

/** Waits for the program, lets it send what waits, and shows what arrived. */
const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; [ "$(grep -c ^ok "$1/out")" = 17 ]; }
start() { ip link set lo up; mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
program="/cryoshim/build/workloads/corks /tmp/l/out /tmp/l/go"
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d; }
`;

test("CRIU alone refuses a process with a corked UDP socket", async () => {
  const { code, output } = await bare(`${WORDS}
start $program; code=0; dump || code=$?; grep -h Error i/d.log; exit $code`);
  expect(code).toBe(1);
  expect(output).toMatch(/Can't dump corked dgram socket/);
});

describe("criu's command line", () => {
  test("datagrams wait on, and arrive whole when the program completes them", () =>
    holds(`${WORDS}start $program; dump; restore; checked l`));

  test("IPv6 connected, with segments, with a source address; UDP-Lite over IPv6; from one byte to the largest", () =>
    holds(`${WORDS}
ip link set lo up; ip addr add fd00::9/128 dev lo nodad; start python3 /cryoshim/test/workloads/more-corks.py /tmp/l/out /tmp/l/go
dump; restore; touch l/go; until_true grep -q done l/out; ! grep BAD l/out || no "it is not as it was"; [ "$(grep -c ^ok l/out)" = 13 ]`));

  test("--leave-running leaves every socket as it is", () => holds(`${WORDS}start $program; dump -R; checked l`));

  test("nothing is sent until the program says so: not by a dump that leaves it running, nor by a restore", () =>
    holds(`${WORDS}
sent() { awk '/^Udp(Lite)?: [0-9]/ { n += $5 } /^Udp(Lite)?6OutDatagrams/ { n += $2 } END { print n }' /proc/net/snmp /proc/net/snmp6; }
start $program; before=$(sent); dump -R; dump -R; [ "$(sent)" = "$before" ] || no "the first two have sent: $before, $(sent)"
dump; restore; [ "$(sent)" = "$before" ] || no "the restore has sent: $before, $(sent)"
checked l; [ "$(sent)" -gt "$before" ] || no "nothing is counted"`));

  test("a capture shows no datagram from a dump that leaves the program running, and those that it sends itself", () =>
    holds(`${WORDS}
start $program
cat >capture.py <<'END'
import socket
packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
packets.bind(("lo", 0))
open("/tmp/captured", "w").close()
while True:
    packet = packets.recv(65536)
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    if protocol in (17, 136, 44):
        with open("/tmp/captured", "a") as file:
            file.write(f"{protocol}\\n")
END
python3 capture.py & until_true test -e captured
dump -R || { cat i/cryoshim.log; tail -5 i/d.log; exit 1; }; dump -R; sleep 0.3; [ ! -s captured ] || no "$(wc -l <captured) datagrams were sent"
checked l; until_true test -s captured`));

  test("a dump that fails leaves every socket as it is, and no image", () =>
    holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program
fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l`));

  test.each(["engine", "shim"])("a dump whose %s is killed leaves every socket as it is", async (who) => {
    await holds(`${WORDS}
start $program
cat >script <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
victim=$PPID
[ ${who} = engine ] || victim=$(pgrep -f "dist/shim[.]cjs" | head -1)
touch /tmp/killed; kill -9 $victim; sleep 1
END
chmod 755 script; dump -R --action-script /tmp/script || true
# With the guard the network lock goes as well.
[ -e killed ]; until_true bash -c '! pgrep -x cryoshim-guard'; until_true grep -q "^State:.S" /proc/$pid/status; checked l`);
  });

  test("one that is nowhere but in a message on its way is refused, by name, and the process goes on", () =>
    holds(`${WORDS}
ip link set lo up; mkdir -p l i; setsid /cryoshim/build/workloads/refused udp-cork-sent /tmp/l/out </dev/null >/dev/null 2>&1 & pid=$!; until_true test -s l/out
fails "" dump; grep -q "a message on its way" i/cryoshim.log; [ ! -e i/cryoshim.img ]
until_true grep -q "^State:.S" /proc/$pid/status`));

  test("images cut short are refused, and say which", () =>
    holds(`${WORDS}
start $program; dump; truncate -s 300 i/cryoshim-udp.img
fails "" restore; grep -q "cryoshim-udp.img" i/r.log i/cryoshim.log`));
});

test.each(["runc", "crun"])("%s restores a container's corked sockets", async (runtime) => {
  // In a network namespace that somebody has made for it, as podman and CRI-O do: one of runc's own has no loopback device
  // that is up after a restore, with CRIU alone as well.
  await holds(`${WORDS}
mkdir l i; cp /cryoshim/build/workloads/corks l
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b /lab/corks /lab/out /lab/go
ip netns add n1; ip -n n1 link set lo up
sed -i -E 's|("type": ?"network")|\\1, "path": "/run/netns/n1"|' /tmp/b/config.json; grep -q netns/n1 /tmp/b/config.json
${runtime} run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1; ready l
${runtime} checkpoint --image-path /tmp/i --work-path /tmp/i c1
${runtime} restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1
checked l`);
});

test("podman exports a container with corked sockets, and imports it", async () => {
  await holds(`${WORDS}
lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/corks l
podman run -d --name c1 -v /tmp/l:/lab localhost/busybox /lab/corks /lab/out /lab/go >/dev/null; ready l
podman container checkpoint --export /tmp/c1.tar.gz c1; podman rm c1 >/dev/null
podman container restore --import /tmp/c1.tar.gz --name c2; checked l`);
});

test("LXC restores a container's corked sockets", () =>
  holds(`${WORDS}
lab-lxc-create c1 sh /lab/start
l=/var/lib/lxc/c1/rootfs/lab; mkdir -p $l d; cp /cryoshim/build/workloads/corks $l
echo "ip link set lo up; exec /lab/corks /lab/out /lab/go" >$l/start
lxc-start -d -n c1; ready $l
lxc-checkpoint -n c1 -D /tmp/d -s; lxc-checkpoint -n c1 -D /tmp/d -r; checked $l
lxc-stop -k -n c1`));
