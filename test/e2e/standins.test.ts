// SPDX-License-Identifier: Apache-2.0
// What the launcher does as CRIU's `ip` in a dump, beside the real one.
import { expect, test } from "vitest";
import { inLab } from "../support/lab.js";

/** A namespace with addresses, routes in several tables, and rules; the images of both, without sequence and port numbers. */
const NETWORK = `set -e; cd /tmp; ln -s /cryoshim/build/Release/criu ip
ip netns add n; n="ip -n n"
$n link set lo up; $n link add v0 type veth peer name v1; $n link set v1 up; $n link set v0 up
$n address add 10.1.2.3/24 dev v0; $n address add 10.9.9.9/32 dev v0 label v0:x; $n address add fd01::5/64 dev v0 nodad
$n route add 10.8.0.0/16 via 10.1.2.1 metric 7; $n route add default via 10.1.2.1; $n route add blackhole 10.7.0.0/16
$n route add 10.6.0.0/16 dev v0 table 77; $n route add fd02::/48 via fd01::1; $n -6 route add fd03::/48 dev v0 table 77
$n route add 10.5.0.0/16 nexthop via 10.1.2.1 nexthop via 10.1.2.2 weight 3
$n rule add from 10.1.0.0/16 lookup 77 priority 100; $n rule add fwmark 0x10 lookup 77
cat >plain.py <<'PY'
import struct, sys
data = sys.stdin.buffer.read(); out = data[:4]; at = 4
while at < len(data):
    size = struct.unpack_from("<I", data, at)[0]
    out += data[at : at + 8] + bytes(8) + data[at + 16 : at + size]; at += size
sys.stdout.buffer.write(out)
PY
for args in "addr save" "route save" "-6 route save" "rule save"; do
  nsenter --net=/run/netns/n sh -c "PATH=/tmp:$PATH exec ip $args" >ours; nsenter --net=/run/netns/n /usr/sbin/ip $args >theirs
  python3 plain.py <ours >ours.plain; python3 plain.py <theirs >theirs.plain
  cmp ours.plain theirs.plain && echo "$args: $(wc -c <ours)"
done
ip netns add m; ip -n m link add v0 type veth peer name v1; ip -n m link set v1 up; ip -n m link set v0 up; ip -n m link set lo up
for what in addr route; do
  nsenter --net=/run/netns/n sh -c "PATH=/tmp:$PATH exec ip $what save" >saved; ip -n m $what restore <saved 2>/dev/null || [ $what = addr ]
done
ip -n m route | sort >m.routes; $n route | sort >n.routes; diff m.routes n.routes && echo restored
PATH=/tmp:$PATH ip -V; nsenter --net=/run/netns/n sh -c "PATH=/tmp:$PATH exec ip -br addr show dev v0"`;

test("addresses, routes and rules are saved byte for byte as ip saves them, and ip restores them", async () => {
  const { code, output, stdout } = await inLab(["bash", "-c", NETWORK], "cryoshim");
  expect(code, output).toBe(0);
  for (const args of ["addr save", "route save", "-6 route save", "rule save"])
    expect(Number(new RegExp(`^${args}: (\\d+)$`, "m").exec(stdout)?.[1])).toBeGreaterThan(100);
  expect(stdout).toContain("restored");
  // Everything else is the real one's.
  expect(stdout).toMatch(/^ip utility, iproute2/m);
  expect(stdout).toMatch(/^v0@v1 +UP +10\.1\.2\.3\/24/m);
});
