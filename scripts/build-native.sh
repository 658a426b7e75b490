#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the addon (node-gyp), the launcher and the engine plugin (native/Makefile, which binding.gyp calls) into build/Release.

set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/common.sh

node_modules/.bin/node-gyp configure --silent
node_modules/.bin/node-gyp build --silent
for program in cryoshim.node criu spfs engine-plugin.so lock.bpf.o xray.bpf.o cork.bpf.o pages.bpf.o mount.bpf.o uring.bpf.o uring-inflight.bpf.o direct.bpf.o; do
	[ -s "build/Release/$program" ] || { echo "build-native: build/Release/$program was not made" >&2 && exit 1; }
done
touch build/Release/.built
