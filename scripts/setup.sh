#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a fresh clone ready to build, test and demonstrate, on Debian 12 or 13 with Node and npm, as root.
# Every step looks first whether it is needed, so that a second run costs a fraction of a second.

set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/common.sh

say() { echo "setup: $*" >&2; }

die() {
	say "$*"
	exit 1
}

command -v node >/dev/null || die "node is missing: install Node 20.19 or later (apt-get install nodejs npm)"
command -v npm >/dev/null || die "npm is missing: install it beside Node (apt-get install npm)"
node -e '
	const [major, minor] = process.versions.node.split(".").map(Number);
	process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1);
' || die "Node $(node -p process.versions.node) is too old: cryoshim needs 20.19 or later"

# Debian packages: compilers for the native parts, mmdebstrap for the lab. It says what it installs.
test/lab/setup.sh </dev/null

# --ignore-scripts: our own install script would build the native module, which is the next step's work.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	say "installing npm packages (npm ci)"
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >&2 ||
		die "npm ci failed (its messages are above): is the npm registry reachable?"
	touch node_modules/.package-lock.json
fi

if outdated build/Release/.built binding.gyp native spfs scripts/build-native.sh; then
	say "building the native parts (addon, launcher, engine plugin)"
	quietly build-native scripts/build-native.sh
fi

if outdated dist/shim.cjs package.json scripts/build.mjs shim crit spfs native/index.ts; then
	say "bundling TypeScript into dist/"
	quietly bundle npm run --silent bundle
fi

# musl has no kernel headers of its own: the system's come last, so that musl's libc headers win.
kernel_headers=(-idirafter /usr/include -idirafter "/usr/include/$(uname -m)-linux-gnu")
mkdir -p build/workloads
for source in test/demo/*.c test/workloads/*.c; do
	program=build/workloads/$(basename "$source" .c)
	if outdated "$program" "$source" test/workloads/*.h; then
		say "compiling ${source##*/} for the containers"
		musl-gcc -static -std=gnu17 -O2 -Wall -Wextra -Werror "${kernel_headers[@]}" -pthread -o "$program" "$source"
	fi
done
