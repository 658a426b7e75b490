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
    if (!name.startsWith("stream")) expect(back, name).toBeGreaterThan(0);
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

describe("a pod of podman's", () => {
  test("one container is dumped and restored, the other goes on, in one network namespace", async () => {
    const stdout = await run(`p="podman --runtime runc"; lab-podman-image >/dev/null
      for c in one two; do mkdir $c $c/l; cp /cryoshim/build/workloads/echo $c/l; done
      $p pod create --name pod --infra-image localhost/busybox --infra-command "sleep 100000" --share ipc,uts,net >/dev/null
      $p run -d --pod pod --name one -v /tmp/one/l:/lab localhost/busybox /lab/echo 7000 /lab/status >/dev/null
      $p run -d --pod pod --name two -v /tmp/two/l:/lab localhost/busybox /lab/echo 7001 /lab/status >/dev/null
      until_true test -s one/l/status; until_true test -s two/l/status
      address=$($p inspect --format '{{.NetworkSettings.IPAddress}}' $($p pod inspect pod --format '{{.InfraContainerID}}'))
      mkdir other; (cd other; exec python3 /cryoshim/test/support/traffic.py any 7001 $address >two.json) & neighbour=$!
      peer any 7000 $address
      $p container checkpoint --tcp-established one >/dev/null; quiet_begins; at=$(served one)
      before=$(served two); sleep 2; serves_more two $((before + 100000)); [ "$(served one)" = "$at" ]
      quiet_ends
      $p container restore --tcp-established one >/dev/null; until_true serves_more one $((at + 100000)); ${NOTHING_KEPT}
      kill $neighbour; wait $neighbour; sed 's/seen/neighbour/' other/two.json; hang_up`);
    const traffic = trafficIn(stdout);
    expectUnharmed(traffic);
    expect(traffic.seen.leaked).toBe(0);
    const { flows } = JSON.parse(/^\{"neighbour".*$/m.exec(stdout)![0]);
    for (const flow of Object.values(flows as Record<string, Flow>)) {
      expect(flow.error).toBeNull();
      expect(flow.gap).toBeLessThan(2);
    }
  });
});

test("podman's bridge: a peer outlasts dump and restore, and no lock stays behind", { retry: 3 }, async () => {
  const stdout = await run(`p="podman --runtime runc"; lab-podman-image >/dev/null
    mkdir -p c/l; cp /cryoshim/build/workloads/echo c/l
    $p run -d --name c -v /tmp/c/l:/lab localhost/busybox /lab/echo 7000 /lab/status >/dev/null
    until_true test -s c/l/status; address=$($p inspect c --format '{{.NetworkSettings.IPAddress}}')
    peer any 7000 $address
    $p container checkpoint --tcp-established c >/dev/null; at=$(served c); sleep 2
    $p container restore --tcp-established c >/dev/null; until_true serves_more c $((at + 50000))
    ${NOTHING_KEPT}; hang_up`);
  // While its namespace does not exist the host itself says that the container's address cannot be reached, and podman
  // sets the new one up before it starts the restore, so that what arrives in between is refused, with and without us:
  // hence the retries.
  const { flows } = trafficIn(stdout);
  const stream = Object.entries(flows).find(([name]) => name.startsWith("stream"))![1];
  expect(stream.error).toBeNull();
});

test("with no iptables, ip6tables, nft or ip in reach, a container in its own namespace is dumped and restored", async () => {
  const stdout = await run(`r=runc
    bundle c /lab/echo 7000 /lab/status; wire ns
    LAB_NETNS=/run/netns/ns bundle d /lab/echo 7000 /lab/status
    $r run -d -b d/b d </dev/null >/dev/null 2>&1; until_true test -s d/l/status
    peer out-ns 7000 10.9.0.2
    for name in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore nft; do
      for dir in /usr/sbin /usr/bin /sbin /bin; do rm -f $dir/$name; done; ! command -v $name || no "$name is there"
    done
    dump d; quiet_begins; at=$(served d); sleep 1; quiet_ends; restore d
    until_true serves_more d $((at + 50000)); hang_up`);
  expectUnharmed(trafficIn(stdout));
});

describe("a restore that fails half way", () => {
  // CRIU issue 2828: its DROP rules stay in the namespace for whoever uses it next.
  const script = `r=runc; wire ns
    for c in c next; do LAB_NETNS=/run/netns/ns bundle $c /lab/echo 7000 /lab/status; done
    $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
    ping -c 1 -W 1 10.9.0.2 >/dev/null; dump c
    : >c/i/core-1.img
    if restore c 2>/dev/null; then no "it was restored from no core"; fi
    $r run -d -b next/b next </dev/null >/dev/null 2>&1; until_true test -s next/l/status
    python3 - <<'PY'
import socket
try:
    sk = socket.create_connection(("10.9.0.2", 7000), timeout=2); sk.sendall(b"hello")
    print("next container:", sk.recv(5).decode())
except OSError as error:
    print("next container:", error)
PY
    find /sys/fs/bpf /run/cryoshim -name 'link*' 2>/dev/null || true`;

  test("leaves a network that the next container can use at once", async () => {
    const stdout = await run(script);
    expect(stdout).toBe("next container: hello\n");
  });

  test("with CRIU alone, leaves it locked", async () => {
    expect(await run(script, "bare")).toContain("next container: timed out");
  });
});

test("waiting locks are listed and cleared, also by the hook when their namespace has gone", async () => {
  const stdout = await run(`r=runc; wire ns; export PATH=$PATH:/tmp/bin; mkdir bin
    ln -s /cryoshim/dist/cli.js bin/cryoshim
    for c in c d; do LAB_NETNS=/run/netns/ns bundle $c /lab/echo 7000 /lab/status
      $r run -d -b $c/b $c </dev/null >/dev/null 2>&1; until_true test -s $c/l/status; dump $c; $r delete -f $c 2>/dev/null || true; done
    cryoshim lock list --json
    first=$(ls /run/cryoshim/locks | head -1); cryoshim lock clear $first; fails "none of this id" cryoshim lock clear $first
    cryoshim lock clear --orphans --dry-run; /cryoshim/hooks/poststop; [ "$(${KEPT})" = 1 ]
    ip netns del ns; cryoshim lock list; /cryoshim/hooks/poststop; ${NOTHING_KEPT}; cryoshim lock list`);
  const listed = JSON.parse(stdout.slice(stdout.indexOf("["), stdout.indexOf("\n]") + 2));
  expect(listed).toHaveLength(2);
  expect(listed[0]).toMatchObject({ extent: "netns", images: "/tmp/c/i", dropped: { in: expect.any(Number) } });
  expect(stdout).toMatch(/\ncleared \S{21}\n/);
  expect(stdout).toContain("serves nobody: its network namespace is gone");
  expect(stdout.trimEnd()).toMatch(/no network is locked$/);
});

test("when the shim cannot start, the lock of the dump is lifted for a restore by CRIU alone", async () => {
  const stdout = await run(`r=runc; wire ns
    LAB_NETNS=/run/netns/ns bundle c /lab/echo 7000 /lab/status
    $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
    dump c; [ "$(${KEPT})" = 1 ]
    CRYOSHIM_NODE=/bin/false restore c; ${NOTHING_KEPT}
    python3 -c 'import socket; s = socket.create_connection(("10.9.0.2", 7000), 2); s.sendall(b"hi"); print(s.recv(2))'`);
  expect(stdout).toContain("b'hi'");
});

test("the configuration leaves the lock to CRIU, or to nobody", async () => {
  const stdout = await run(`r=runc; mkdir -p /etc/cryoshim
    bundle c sh -c "$counter"; $r run -d -b c/b c </dev/null >/dev/null 2>&1; counting c/l
    method() { node --input-type=module -e 'import { readFileSync } from "node:fs"; import { decodeImage } from "/cryoshim/dist/crit.js";
      console.log(decodeImage(readFileSync("c/i/inventory.img")).entries[0].message.network_lock_method)'; }
    for lock in caller iptables nftables none auto; do
      echo "network.lock = '$lock'" >/etc/cryoshim/config.toml; rm -f c/i/* c/w/*
      dump c --leave-running; echo "$lock: $(method) $(ls c/i | grep -c cryoshim.json || true)"
    done; counting c/l`);
  // NETWORK_LOCK_* of criu/include/cr_options.h: 0 iptables, 1 nftables, 2 skip.
  expect(stdout).toBe("caller: 0 0\niptables: 0 0\nnftables: 1 0\nnone: 2 0\nauto: 2 1\n");
});

test("where BPF cannot lock, CRIU does: with nftables if it can, and the log says so", async () => {
  const stdout = await run(`r=runc; rm /cryoshim/build/Release/lock.bpf.o; rm -rf /cryoshim/prebuilds
    bundle c sh -c "$counter"; $r run -d -b c/b c </dev/null >/dev/null 2>&1; counting c/l
    method() { node --input-type=module -e 'import { readFileSync } from "node:fs"; import { decodeImage } from "/cryoshim/dist/crit.js";
      console.log(decodeImage(readFileSync("c/i/inventory.img")).entries[0].message.network_lock_method)'; }
    dump c --leave-running; method; cat c/w/cryoshim.log; counting c/l
    node /cryoshim/dist/cli.js doctor | grep "network lock"; sed -i 's/"network_lock_nftables":true/"network_lock_nftables":false/' /run/cryoshim/probe
    dump c --leave-running; method; cat c/w/cryoshim.log; counting c/l
    mkdir -p /etc/cryoshim; echo "network.lock = 'bpf'" >/etc/cryoshim/config.toml
    fails "" dump c --leave-running; cat c/w/cryoshim.log; counting c/l`);
  // NETWORK_LOCK_* of criu/include/cr_options.h: 1 nftables, 0 iptables.
  expect(stdout).toMatch(/^1\n.*no BPF network lock here .*: CRIU locks with nftables\n/);
  expect(stdout).toMatch(/note +network lock +not by BPF/);
  expect(stdout).toMatch(/^0\n(.*\n)*.*: CRIU locks as it was asked to\n/m);
  expect(stdout).toContain("cannot lock the network by BPF");
});

describe("LXC with a veth", () => {
  test("a peer's connection outlasts dump and restore", async () => {
    const stdout = await run(`
      ip link add br0 type bridge; ip address add 10.9.0.1/24 dev br0; ip link set br0 up
      l=/var/lib/lxc/c/rootfs/lab; lab-lxc-create c /lab/echo 7000 /lab/status; mkdir -p $l
      cp /cryoshim/build/workloads/echo $l; mkdir c; ln -s $l c/l
      sed -i '/^lxc.net/d' /var/lib/lxc/c/config
      printf 'lxc.net.0.%s\\n' 'type = veth' 'link = br0' 'flags = up' 'ipv4.address = 10.9.0.2/24' 'hwaddr = 00:16:3e:01:02:03' \\
        >>/var/lib/lxc/c/config
      lxc-start -d -n c; until_true test -s c/l/status
      peer any 7000 10.9.0.2
      lxc-checkpoint -n c -D /tmp/d -s; at=$(served c); sleep 2; [ "$(served c)" = "$at" ]
      lxc-checkpoint -n c -D /tmp/d -r; until_true serves_more c $((at + 50000))
      cat d/cryoshim.json; ${NOTHING_KEPT}; hang_up; lxc-stop -k -n c`);
    const { flows } = trafficIn(stdout);
    const stream = Object.entries(flows).find(([name]) => name.startsWith("stream"))![1];
    expect(stream.error).toBeNull();
  });
});

test("in a locked namespace packets with CRIU's mark pass, others do not; another name may take the lock over", async () => {
  const stdout = await run(`r=runc; wire ns
    LAB_NETNS=/run/netns/ns bundle c /lab/echo 7000 /lab/status
    $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
    dump c; node /cryoshim/dist/cli.js show c/i
    python3 - <<'PY'
import os, socket
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); there.bind(("10.9.0.1", 9999)); there.settimeout(1)
home = os.open("/proc/self/ns/net", os.O_RDONLY); os.setns(os.open("/run/netns/ns", os.O_RDONLY))
for mark in (0, 0xC114):
    sk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sk.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    try:
        sk.sendto(hex(mark).encode(), ("10.9.0.1", 9999)); print("arrived", there.recv(16).decode())
    except OSError as error:
        print("refused", hex(mark), error.strerror)
PY
    $r delete -f c; runc restore -d --tcp-established -b /tmp/c/b --image-path /tmp/c/i --work-path /tmp/c/w other </dev/null
    ${NOTHING_KEPT}; ping -c 1 -W 1 10.9.0.2 >/dev/null && echo open`);
  expect(stdout).toContain("refused 0x0 Operation not permitted\narrived 0xc114\n");
  expect(stdout).toMatch(/^network +network namespace locked, \d+ packets dropped in, \d+ out, 0 forwarded$/m);
  expect(stdout).toMatch(/open\n$/);
});

test("a restore is locked before Node has started, by the program that a dump has left", async () => {
  const stdout = await run(`r=runc; wire ns
    LAB_NETNS=/run/netns/ns bundle c /lab/echo 7000 /lab/status
    $r run -d -b c/b c </dev/null >/dev/null 2>&1; until_true test -s c/l/status
    dump c; node /cryoshim/dist/cli.js lock clear --all >/dev/null; until_true test -e /sys/fs/bpf/cryoshim/kit1/lock_all
    ping -c 1 -W 1 10.9.0.2 >/dev/null && echo "open before"
    printf '#!/bin/sh\\nsleep 1.5\\nexec /usr/local/bin/node "$@"\\n' >slow; chmod 755 slow
    CRYOSHIM_NODE=/tmp/slow restore c & restoring=$!
    sleep 0.7; ping -c 1 -W 0.3 10.9.0.2 >/dev/null || echo "locked while Node starts"
    wait $restoring; ping -c 1 -W 1 10.9.0.2 >/dev/null && echo "open after"; ${NOTHING_KEPT}`);
  expect(stdout).toBe("open before\nlocked while Node starts\nopen after\n");
});
