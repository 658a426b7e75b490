#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# npm run fuzz -- [SECONDS]: coverage-guided fuzzing of the image codec, seeded with a checkpoint of nearly every kind of
# object. Not part of the tests: the fuzzer is installed on its own, and its library needs the lab's glibc.

set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/../.."
seconds=${1:-60}
place=build/fuzz
mkdir -p "$place/corpus"
[ -e "$place/node_modules/@jazzer.js" ] ||
	npm install --prefix "$place" --no-save --no-audit --no-fund --loglevel=error @jazzer.js/core@4.0.0
node_modules/.bin/esbuild test/fuzz/target.ts --bundle --platform=node --format=cjs --outfile="$place/target.cjs" --log-level=warning
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
LAB_SCRATCH=$scratch test/lab/lab --bare bash -c ". /cryoshim/test/support/scenario.sh; . /cryoshim/test/support/objects.sh"
find "$scratch/images" -name '*.img' -size -64k -exec cp {} "$place/corpus" \;
LAB_TREE=rw test/lab/lab --bare "$place/node_modules/.bin/jazzer" "$place/target.cjs" --includes target --sync "$place/corpus" -- \
	-max_total_time="$seconds" -max_len=65536 -print_final_stats=1
