# SPDX-License-Identifier: Apache-2.0
# Words for scenarios in the lab. Sourced by bash; whatever fails ends the scenario and is named.

set -Eeuo pipefail
trap 'echo "scenario: line $LINENO: $BASH_COMMAND ($?)" >&2' ERR
cd /tmp

# What a container runs: a count in the shell's memory, written through a descriptor opened once, at its own offset.
# /lab/starts has one line for each time that it was really started.
counter='echo start >>/lab/starts; exec 3>/lab/log; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.02; done'

no() {
	echo "scenario: $*" >&2
	exit 1
}

# until_true COMMAND...: waits for it, ten seconds.
until_true() {
	local try
	for ((try = 0; try < 200; try++)); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.05
	done
	no "never became true: $*"
}

lines() { wc -l <"$1/log"; }
more_than() { [ "$(lines "$1")" -gt "$2" ]; }

# counting DIR: the counter seen at DIR counts now, has been started once, and has left out or repeated no number.
counting() {
	local now
	until_true test -s "$1/log"
	now=$(lines "$1")
	until_true more_than "$1" $((now + 2))
	[ "$(wc -l <"$1/starts")" = 1 ] || no "it was started again"
	head -n "$now" "$1/log" | awk '$0 != NR { print "line " NR " is " $0 > "/dev/stderr"; exit 1 }' ||
		no "the count or the offset was lost"
}

# standing DIR: nothing counts there.
standing() {
	local now
	now=$(lines "$1")
	sleep 0.3
	[ "$(lines "$1")" = "$now" ] || no "it still counts"
}

# fails WORDS COMMAND...: it ends with a code other than 0 and says WORDS (a pattern of grep -E).
fails() {
	local words=$1 said
	shift
	if said=$("$@" 2>&1 </dev/null); then no "succeeded: $*"; fi
	grep -qE "$words" <<<"$said" || no "$* said: $said"
}

# wire NETNS: a new network namespace, 10.9.0.2 and fd09::2, with a veth pair to here, 10.9.0.1 and fd09::1.
wire() {
	ip netns add "$1"
	ip link set lo up
	ip -n "$1" link set lo up
	ip link add "out-$1" type veth peer name eth0 netns "$1"
	ip address add 10.9.0.1/24 dev "out-$1"
	ip address add fd09::1/64 dev "out-$1" nodad
	ip link set "out-$1" up
	ip -n "$1" address add 10.9.0.2/24 dev eth0
	ip -n "$1" address add fd09::2/64 dev eth0 nodad
	ip -n "$1" link set eth0 up
}
