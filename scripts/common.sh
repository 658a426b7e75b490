# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by the scripts beside it, which have gone to the top of the tree.

# node-gyp and prebuildify would download Node's headers; Debian's libnode-dev (and other packagings) have them in /usr.
if [ -z "${npm_config_nodedir-}" ] && [ -e /usr/include/node/node_api.h ]; then
	export npm_config_nodedir=/usr
fi

# outdated RESULT SOURCE...: is RESULT missing, or older than a source (a file, or anything in a directory)?
outdated() {
	local result=$1
	shift
	[ -e "$result" ] || return 0
	[ -n "$(find "$@" -type f -newer "$result" -print -quit 2>/dev/null)" ]
}

# quietly NAME COMMAND...: builds are talkative; their words matter only when they fail.
quietly() {
	local name=$1 log
	shift
	log=$(mktemp)
	if ! "$@" </dev/null >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		echo "$name failed (above: what it said)" >&2
		return 1
	fi
	rm -f "$log"
}
