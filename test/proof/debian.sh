#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Unpacks Debian packages with all that they depend on into a file system for containers, and prints where it lies:
#
#	debian.sh SUITE PACKAGE...
#
# Nothing in it is configured: no daemon starts, no user is made but root and one called `lab` (999). It is kept beside the lab's file
# systems under a hash of what it was made from.

set -euo pipefail

cache=${CRYOSHIM_LAB_CACHE:-/var/cache/cryoshim/lab}/proof
suite=$1
shift
root=$cache/debian-$suite-$({ cat "$0" && printf '%s\n' "$@"; } | sha256sum | cut -c1-16)
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$root" ]; then
	echo "proof: unpacking $* of Debian $suite (a minute or two)" >&2
	work=$(mktemp -d "$cache/.debian.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	# The mirror that this machine uses, and how its apt reaches it.
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
		awk '{ print ($1 ~ /debian\/?$/ ? 0 : 1), $1 }' | sort -s -k1,1n | awk '{ print $2; exit }')
	options=(--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"')
	while read -r line; do options+=(--aptopt="$line"); done < <(apt-config dump |
		grep -E '^Acquire::(https?|Retries|Check-Date)\b.* "[^"]+";' || true)
	for what in man doc locale; do options+=(--dpkgopt="path-exclude=/usr/share/$what/*"); done
	if ! mmdebstrap --mode=root --variant=extract --format=directory "${options[@]}" \
		--include="$(printf '%s,' base-files dash coreutils "$@" | sed 's/,$//')" \
		"$suite" "$work/root" "deb $mirror $suite main" </dev/null >"$work/log" 2>&1; then
		tail -n 20 "$work/log" >&2
		exit 1
	fi
	mkdir -p "$work"/root/{dev,lab,proc,run,sys,tmp}
	printf 'root:x:0:0::/root:/bin/sh\nlab:x:999:999::/tmp:/bin/sh\n' >"$work/root/etc/passwd"
	printf 'root:x:0:\nlab:x:999:\n' >"$work/root/etc/group"
	touch "$work"/root/etc/{hosts,hostname,resolv.conf}
	chmod 755 "$work/root"
	mv "$work/root" "$root"
	rm -rf "$work"
	trap - EXIT
fi
echo "$root"
