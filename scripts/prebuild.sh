#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes prebuilds/linux-x64: the addon (cryoshim.node), the launcher (criu) and the engine plugin, so that installing the
# package compiles nothing. The C library of the machine that runs this is the oldest that the result works with (see
# Containerfile); the launcher is static.

set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/common.sh

say() { echo "prebuild: $*" >&2; }

rm -rf prebuilds
# -t names the version whose headers are used: without it prebuildify asks the network for the newest. Node-API makes the
# result the same for all later versions.
quietly prebuildify node_modules/.bin/prebuildify --napi --strip -t "$(node -p process.versions.node)"

target=prebuilds/linux-x64
for program in criu spfs engine-plugin.so lock.bpf.o xray.bpf.o cork.bpf.o pages.bpf.o mount.bpf.o uring.bpf.o uring-inflight.bpf.o direct.bpf.o; do
	install -m 0755 "build/Release/$program" "$target/$program"
done
strip "$target/criu" "$target/spfs"
strip --strip-unneeded "$target/engine-plugin.so"
chmod 0755 "$target"/*
chmod 0644 "$target"/*.bpf.o

# prebuildify names the addon after the package; node-gyp-build takes any name, people look for this one.
for program in cryoshim.node criu spfs engine-plugin.so lock.bpf.o xray.bpf.o cork.bpf.o pages.bpf.o mount.bpf.o uring.bpf.o uring-inflight.bpf.o direct.bpf.o; do
	[ -s "$target/$program" ] || { say "$target/$program was not made" && exit 1; }
done
scripts/third-party.mjs >dist/THIRD-PARTY.md
say "$(cd "$target" && stat -c '%n %s' -- * | paste -sd ' ') in $target"
