#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# In the lab: runs tests of liburing's suite, seen at /scratch/test, each with a checkpoint in its middle. One line each:
#
#	TEST <tab> OUTCOME <tab> what was said
#
# ok        it went on after the restore and ended as it does undisturbed
# refused   the checkpoint was refused, and the test went on and ended as it does undisturbed
# LEFT      the checkpoint was refused, and after it the test did not end well
# RESTORE   the restore failed
# AFTER     it went on after the restore and did not end well
# halt      it does not bear being halted and continued either, without any checkpoint
# quick     it makes no call of io_uring that it could be stopped at
# skipped, fails: it says so by itself, without being disturbed

set -u
mkdir -p /tmp/tried && cd /tmp/tried || exit 1

limit=${PROOF_SECONDS:-30}

# command TEST: how it is started; examples are given a file, and those that copy must do so.
command() {
	local program=/scratch/$1 to=/tmp/tried/copied
	case $1 in
	examples/io_uring-cp | examples/link-cp | examples/ucontext-cp) echo "sh -c 'rm -f $to; $program /tmp/tried/file $to && cmp /tmp/tried/file $to'" ;;
	examples/io_uring-test | examples/io_uring-close-test) echo "$program /tmp/tried/file" ;;
	examples/*) echo "$program" ;;
	*) echo "/scratch/test/$1" ;;
	esac
}

# begin N TEST: halted at its Nth call, its process id in $root; 1 if it ended before.
begin() {
	rm -rf status /tmp/images && mkdir /tmp/images
	root= thread=
	read -r root thread < <(timeout "$limit" /scratch/pause-at "$1" count registers sh -c \
		"$(command "$2") </dev/null >output 2>&1; echo \$? >status" 2>/dev/null)
	[ -n "$thread" ]
}

# ended TEST: it ends well within the time.
ended() {
	local try
	/scratch/pause-at --resume "$thread" registers
	for ((try = 0; try < limit * 20; try++)); do
		if [ -s status ]; then
			[ "$(cat status)" = 0 ]
			return
		fi
		kill -0 "$root" 2>/dev/null || [ -s status ] || { sleep 0.1; [ -s status ] || return 1; }
		sleep 0.05
	done
	return 1
}

clear_up() {
	kill -KILL -- "-$root" 2>/dev/null
	pkill -KILL -s "$root" 2>/dev/null
	local try
	for ((try = 0; try < 100; try++)); do pgrep -s "$root" >/dev/null || break; sleep 0.02; done
}

why() { grep -hE 'Error|Why|cannot' /tmp/images/cryoshim.log /tmp/images/"$1".log 2>/dev/null | grep -vE 'RLIMIT_NOFILE|Hugetlb' | head -n 1 | sed 's/^([0-9.]*) *//' | tr '\t' ' ' | cut -c1-220; }

one() {
	local test=$1 calls code
	timeout "$limit" sh -c "$(command "$test")" </dev/null >output 2>&1
	code=$?
	[ $code != 77 ] || { echo "skipped	$(head -n 1 output | tr -d '\t' | cut -c1-80)"; return; }
	[ $code = 0 ] || { echo "fails	$code"; return; }
	begin 0 "$test"
	calls=$(cut -d' ' -f1 count 2>/dev/null)
	[ "${calls:-0}" -ge 2 ] || { echo "quick	"; return; }
	begin $(((calls + 1) / 2)) "$test" || { echo "quick	"; return; }
	if ! timeout 60 criu dump -t "$root" -D /tmp/images -o dump.log -v4 --shell-job --tcp-established --ext-unix-sk \
		--ghost-limit 256M >/dev/null 2>&1; then
		if ended; then echo "refused	$(why dump)"; else echo "LEFT	$(why dump)"; fi
		clear_up
		return
	fi
	if ! timeout 60 criu restore -D /tmp/images -o restore.log -v4 --shell-job --tcp-established -d >/dev/null 2>&1; then
		clear_up
		echo "RESTORE	$(why restore)"
		return
	fi
	if ended; then
		echo "ok	"
		clear_up
		return
	fi
	local said="$(cat status 2>/dev/null) $(tail -n 1 output | tr '\t' ' ' | cut -c1-160)"
	clear_up
	# Does it bear being stopped and continued, without any checkpoint?
	begin $(((calls + 1) / 2)) "$test" || { echo "AFTER	$said"; return; }
	if ended; then echo "AFTER	$said"; else echo "halt	$said"; fi
	clear_up
}

ip link set lo up 2>/dev/null
head -c 16777216 /dev/urandom >file
for test in "$@"; do
	printf '%s\t%s\n' "$test" "$(one "$test")"
done
