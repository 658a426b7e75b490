#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# liburing's own test suite, of Debian's source package, with a checkpoint in the middle of each test.
#
#	liburing.sh [--table] [TEST...]	all tests unless some are named; --table: as Markdown, and how many had which outcome
#
# Sources and programs are kept beside the lab's file systems and are built at the first start (some minutes).

set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
cache=${CRYOSHIM_LAB_CACHE:-/var/cache/cryoshim/lab}/proof
suite=trixie

say() { echo "liburing: $*" >&2; }

# The Debian mirror that this machine uses.
mirror() {
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
		awk '{ print ($1 ~ /debian\/?$/ ? 0 : 1), $1 }' | sort -s -k1,1n | awk '{ print $2; exit }'
}

build() {
	local work options
	work=$(mktemp -d "$cache/.liburing.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	say "getting and building Debian $suite's liburing (some minutes)"
	mkdir -p "$work"/{lists/partial,cache/archives/partial}
	echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$work/sources.list"
	options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
		-o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
	(
		cd "$work"
		apt-get "${options[@]}" -qq update
		apt-get "${options[@]}" -qq source liburing
		cd liburing-*/
		./configure
		make -j2 -C src
		make -k -j2 -C examples || true
		# Some need headers that this machine does not have: those are left out.
		make -k -j2 -C test || true
	) >"$cache/liburing.log" 2>&1 || { tail -n 20 "$cache/liburing.log" >&2; exit 1; }
	mv "$work"/liburing-*/ "$cache/liburing"
	rm -rf "$work"
	trap - EXIT
}

table=
[ "${1-}" != --table ] || { table=1; shift; }
mkdir -p "$cache"
[ -d "$cache/liburing" ] || build
gcc -std=gnu17 -O2 -Wall -Wextra -Werror -o "$cache/liburing/pause-at" "$here/pause-at.c"
# Tests are the programs that have a source of the same name.
if [ $# -eq 0 ]; then
	mapfile -t tests < <(cd "$cache/liburing/test" && for program in *.t; do [ -x "$program" ] && echo "$program"; done)
else
	tests=("$@")
fi
run() { LAB_SCRATCH=$cache/liburing "$here/../lab/lab" bash /cryoshim/test/proof/liburing-run.sh "${tests[@]}"; }
[ -n "$table" ] || { run; exit; }
run | sort | awk -F'\t' '
	BEGIN { print "| test | outcome | |"; print "|---|---|---|" }
	{ gsub(/\|/, "\\|", $3); print "| " $1 " | " $2 " | " $3 " |"; n[$2]++ }
	END { print ""; for (o in n) print "- " o ": " n[o] }'
