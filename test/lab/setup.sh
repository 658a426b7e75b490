#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what building cryoshim and running its lab need on Debian 12 or 13. Run as root; quick when all is there.

set -euo pipefail

# Lab: mmdebstrap, uidmap. Tests: fio. Addon and launcher: the compilers, make, python3 (node-gyp). BPF programs: clang, llvm.
packages="mmdebstrap debian-archive-keyring uidmap gcc g++ make python3 libc6-dev linux-libc-dev musl-tools clang llvm fio"

missing=()
for package in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "setup: ${missing[*]}: not installed, and installing needs root: run test/lab/setup.sh as root" >&2
	exit 1
fi
echo "setup: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
# The package index may be absent (a fresh image) or old (its files gone from the mirror): then fetch it and try again.
"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; } ||
	{ echo "setup: apt-get could not install ${missing[*]} (its messages are above): check /etc/apt and the network" >&2 && exit 1; }
