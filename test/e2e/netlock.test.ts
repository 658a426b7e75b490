// SPDX-License-Identifier: Apache-2.0
// The network lock with real traffic. A peer talks to the container throughout lock, dump, pause, restore and unlock.
import { describe, expect, test } from "vitest";
import { inLab } from "../support/lab.js";

interface Flow {
  sent: number;
  back: number;
  gap: number;
  error: string | null;
}
interface Traffic {
  seen: { rst: number; icmp: number; packets: number; leaked?: number; fromContainer: number };
  flows: Record<string, Flow>;
}

/** Words for the scenarios: an echo server in a container, a peer, and the pause between dump and restore. */
const WORDS = `
. /cryoshim/test/support/scenario.sh
bundle() { # bundle NAME COMMAND...: seen at /tmp/NAME/l
  local name=$1; shift; mkdir -p $name/l $name/i $name/w; cp /cryoshim/build/workloads/echo $name/l
  LAB_BIND=/tmp/$name/l lab-runc-bundle /tmp/$name/b "$@"
}
wire() { # wire NETNS [FROM]: a veth pair between here and a network namespace
  ip netns add $1; ip link set lo up; ip -n $1 link set lo up
  ip link add out-$1 type veth peer name eth0 netns $1
  ip address add 10.9.0.1/24 dev out-$1; ip address add fd09::1/64 dev out-$1 nodad; ip link set out-$1 up
  ip -n $1 address add 10.9.0.2/24 dev eth0; ip -n $1 address add fd09::2/64 dev eth0 nodad; ip -n $1 link set eth0 up
}
peer() { # peer DEVICE PORT ADDRESS...
  python3 /cryoshim/test/support/traffic.py "$@" >traffic.json & peer=$!
  until_true test -e traffic-started; sleep 1
}
hang_up() { kill $peer; wait $peer; cat traffic.json; }
served() { awk '{ print $2 }' $1/l/status; }
serves_more() { [ "$(served $1)" -gt "$2" ]; }
dump() { $r checkpoint --tcp-established --image-path /tmp/$1/i --work-path /tmp/$1/w "\${@:2}" $1; }
restore() { $r restore -d --tcp-established -b /tmp/$1/b --image-path /tmp/$1/i --work-path /tmp/$1/w $1 </dev/null; }
quiet_begins() { touch quiet-begin; }
quiet_ends() { touch quiet-end; }
`;

const run = async (script: string, kind: "cryoshim" | "bare" = "cryoshim", env = {}): Promise<string> => {
  const { code, output, stdout } = await inLab(["bash", "-c", WORDS + script], kind, env);
  expect(code, output).toBe(0);
  return stdout;
};

const trafficIn = (stdout: string): Traffic => JSON.parse(/^\{"seen".*$/m.exec(stdout)![0]) as Traffic;

/** Nothing that a peer may not see was seen, and every flow went on. */
const expectUnharmed = ({ seen, flows }: Traffic): void => {
  expect(seen).toMatchObject({ rst: 0, icmp: 0 });
  expect(seen.fromContainer).toBeGreaterThan(100);
  for (const [name, { sent, back, error }] of Object.entries(flows)) {
    expect(error, name).toBeNull();
    if (name.startsWith("connects") && sent === 0) continue;
    expect(sent, name).toBeGreaterThan(10);
    if (!name.startsWith("stream")) expect(back, name).toBeGreaterThan(5);
  }
};

const KEPT = "ls /run/cryoshim/locks | wc -l";
const NOTHING_KEPT = `[ "$(find /sys/fs/bpf /run/cryoshim/bpf -name 'link*' 2>/dev/null | wc -l)" = 0 ]; [ "$(${KEPT})" = 0 ]`;

describe.each(["runc", "crun"])("%s with a network namespace from outside", (runtime) => {
  test("a peer's connections, datagrams and attempts outlast dump, pause and restore, and nothing leaks", async () => {
    const stdout = await run(`r=${runtime}; wire ns
      LAB_NETNS=/run/netns/ns bundle c /lab/echo 7000 /lab/status
      $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
      peer out-ns 7000 10.9.0.2 fd09::2
      dump c; quiet_begins; at=$(served c); ${KEPT}
      sleep 5; quiet_ends; [ "$(served c)" = "$at" ]
      restore c; until_true serves_more c $((at + 100000)); ${NOTHING_KEPT}
      cat c/i/cryoshim.json; hang_up`);
    expect(stdout.split("\n")[0]).toBe("1");
    const record = JSON.parse(/^\{"version".*$/m.exec(stdout)![0]);
    expect(record.networkLock).toMatchObject({ extent: "netns", kept: expect.any(String) });
    const traffic = trafficIn(stdout);
    expectUnharmed(traffic);
    expect(traffic.seen.leaked).toBe(0);
  });
});

test("a dump that leaves the container running unlocks, and no peer notices more than a pause", async () => {
  const stdout = await run(`r=runc; wire ns
    LAB_NETNS=/run/netns/ns bundle c /lab/echo 7000 /lab/status
    $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
    peer out-ns 7000 10.9.0.2 fd09::2
    for i in 1 2 3; do dump c --leave-running; until_true serves_more c $(($(served c) + 50000)); done
    ls /run/cryoshim; hang_up`);
  expect(stdout).not.toContain("locks");
  expectUnharmed(trafficIn(stdout));
});

test("in the host's namespace the container's sockets are locked, and its neighbours go on", async () => {
  const stdout = await run(`r=runc; ip link set lo up
    LAB_NETNS=host bundle c /lab/echo 7000 /lab/status
    LAB_NETNS=host bundle n /lab/echo 7001 /lab/status
    for c in c n; do $r run -d -b $c/b $c </dev/null >/dev/null 2>&1; until_true test -s $c/l/status; done
    mkdir other; (cd other; exec python3 /cryoshim/test/support/traffic.py lo 7001 127.0.0.1 >neighbour.json) & neighbour=$!
    peer lo 7000 127.0.0.1 ::1
    dump c; quiet_begins; at=$(served c); ${KEPT}
    before=$(served n); sleep 2; serves_more n $((before + 100000))
    [ "$(served c)" = "$at" ]
    restore c; until_true serves_more c $((at + 100000)); ${NOTHING_KEPT}
    kill $neighbour; wait $neighbour; cat c/i/cryoshim.json
    sed 's/seen/neighbour/' other/neighbour.json; hang_up`);
  expect(stdout.split("\n")[0]).toBe("1");
  expect(stdout).toContain('"extent":"sockets"');
  expectUnharmed(trafficIn(stdout));
  const { flows } = JSON.parse(/^\{"neighbour".*$/m.exec(stdout)![0]);
  for (const flow of Object.values(flows as Record<string, Flow>)) {
    expect(flow.error).toBeNull();
    expect(flow.gap).toBeLessThan(2);
  }
});
