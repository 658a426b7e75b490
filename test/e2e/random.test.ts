// SPDX-License-Identifier: Apache-2.0
// Whatever waits in queues and corked sockets comes back equal (test/workloads/random.c checks itself). FUZZ_RUNS: how many seeds.
import fc from "fast-check";
import { test } from "vitest";
import { holds } from "../support/lab.js";

const seeds = fc.sample(fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }), Number(process.env.FUZZ_RUNS ?? 4));

test("queues and corked datagrams with contents of chance make the round trip", () =>
  holds(`
ip link set lo up
for seed in ${seeds.join(" ")}; do
	rm -rf l i; mkdir l i
	setsid /cryoshim/build/workloads/random /tmp/l/out /tmp/l/go $seed </dev/null >/dev/null 2>l/err & pid=$!
	until_true grep -q ready l/out || no "seed $seed: $(cat l/err)"
	criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job; criu restore -D /tmp/i -o r.log -v4 --shell-job -d
	touch l/go; until_true grep -q done l/out
	! grep BAD l/out || no "seed $seed: it is not as it was"
	[ "$(grep -c ^ok l/out)" = 32 ]
done`));
