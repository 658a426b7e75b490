// SPDX-License-Identifier: Apache-2.0
// Sockets that a ring of io_uring alone has open (test/workloads/direct.c checks itself) through checkpoint and restore.
import { describe, test } from "vitest";
import { holds } from "../support/lab.js";

const WORDS = `
ready() { until_true grep -q ready "$1/out"; }
checked() { touch "$1/go"; until_true grep -q done "$1/out"; ! grep BAD "$1/out" || no "it is not as it was"; grep -q ^ok "$1/out"; }
program="/cryoshim/build/workloads/direct /tmp/l/out /tmp/l/go"
begin() { mkdir -p l i; setsid "$@" </dev/null >/dev/null 2>&1 & pid=$!; ready l; }
start() { begin unshare -n sh -c "ip link set lo up; exec $*"; }
dump() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --tcp-established "$@"; }
restore() { criu restore -D /tmp/i -o r.log -v4 --shell-job -d --tcp-established; }
client() { python3 /cryoshim/test/support/echoed.py $1 7777 came & client=$!; until_true test -e came; more; }
more() { local before=$(cat came); until_true eval '[ "$(cat came)" -gt $((before + 20)) ]'; }
hang_up() { touch came.stop; wait $client; }
`;

test.each(["", "defer", "ipv6"])(
  "a ring's own listener and connections go on, with all that waits in them, and have no descriptor: %s",
  async (how) => {
    await holds(`${WORDS}
start $program ${how}; dump; restore; checked l`);
  },
);

test.each(["others", "defer others"])("so do its pipes, eventfds and sockets for datagrams: %s", async (how) => {
  await holds(`${WORDS}
start $program ${how}; dump -R; rm -r i; mkdir i; dump; restore; checked l`);
});

test("the same in a network that others use", () =>
  holds(`${WORDS}
ip link set lo up; begin $program; dump; restore; checked l`));

test("images say of a ring's own sockets what CRIU says of them when they have descriptors", () =>
  holds(`${WORDS}
start $program keeps; dump -R; mv i by-xray; mkdir i
touch l/go.install; until_true grep -q installed l/out; sleep 0.3
dump -R; python3 /cryoshim/test/support/direct-images.py by-xray i 7`));

test("--leave-running leaves them as they are, and again", () =>
  holds(`${WORDS}
start $program; dump -R; rm -r i; mkdir i; dump -R; checked l`));

test("a dump that fails leaves them as they are, and no image", () =>
  holds(`${WORDS}
start /cryoshim/build/workloads/locked /tmp/l/lock $program
fails "" dump; grep -q "Dumping FAILED" i/d.log; [ ! -e i/cryoshim.img ]; checked l`));

describe("what is not carried is refused, says why, and goes on", () => {
  test.each([
    ["dump_() { criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job; }", "the caller has not asked for those"],
    ["dump_() { dump --network-lock skip; }", "in a network that cryoshim does not lock"],
  ])("%s", async (how, why) => {
    await holds(`${WORDS}
${how}
start $program; fails "" dump_; grep -q "${why}" i/d.log i/cryoshim.log; [ ! -e i/cryoshim.img ]; checked l; kill -9 $pid`);
  });

  test("a pipe with bytes in it", () =>
    holds(`${WORDS}
start $program full; fails "" dump; grep -q "it is a pipe with bytes in it" i/d.log i/cryoshim.log; checked l; kill -9 $pid`));

  test("a connection whose peer, outside, would hear of the end", () =>
    holds(`${WORDS}
start $program any
ip link add out type veth peer name eth0 netns $pid; ip address add 10.9.0.1/24 dev out; ip link set out up
nsenter -t $pid -n sh -c "ip address add 10.9.0.2/24 dev eth0; ip link set eth0 up"
client 10.9.0.2; fails "" dump; grep -q "peer would hear" i/d.log i/cryoshim.log; more; hang_up; kill -9 $pid`));
});

test.each([
  ["the engine", "kill -9 $c"],
  ["the shim", "pkill -9 -f [d]ist/shim.cjs"],
  ["both", "kill -9 $c; pkill -9 -f [d]ist/shim.cjs"],
])("whoever dies in a dump, they go on: %s", async (_, kill) => {
  await holds(`${WORDS}
for delay in 0.1 0.25 0.4 0.6; do
  rm -rf l i
  start $program
  dump -R >/dev/null 2>&1 & c=$!
  sleep $delay; { ${kill}; } >/dev/null 2>&1 || true
  wait $c || true
  until_true grep -q "^State:.[SR]" /proc/$pid/status
  checked l; kill -9 $pid
done`);
});

// What arrives after podman has made a network again, and before it starts the restore, is refused (network-lock.md): there the client is silent.
test.each([
  ["its own network", ":", "", "kill -STOP $client; sleep 0.5"],
  ["one that stays", "wire n1", "--network ns:/run/netns/n1", ":"],
])("podman: a client outside goes on with a ring's own connections: %s", async (_, first, network, quiet) => {
  await holds(`${WORDS}
${first}; lab-podman-image >/dev/null; mkdir l; cp /cryoshim/build/workloads/direct l; p="podman --runtime runc"
$p run -d --name c1 ${network} --security-opt seccomp=unconfined -v /tmp/l:/lab localhost/busybox /lab/direct /lab/out /lab/go any defer >/dev/null
ready l; client ${network ? "10.9.0.2" : "$($p inspect --format '{{.NetworkSettings.IPAddress}}' c1)"}
$p container checkpoint --leave-running --tcp-established c1 >/dev/null; more
${quiet}; $p container checkpoint --tcp-established c1 >/dev/null; $p container restore --tcp-established c1 >/dev/null
kill -CONT $client; more; hang_up`);
});
