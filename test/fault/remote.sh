# SPDX-License-Identifier: Apache-2.0
# remote.sh VICTIM ROUNDS SEED, in the lab: a container with files on a server is restored without it, and SIGKILL comes at a
# random moment. Prints "outcome: ..." for each round, and ends at the first that harms. Victims of the restore: shim, engine,
# both, all (the guard as well); it then runs on or is gone. Of what comes after it: worker and holder of SPFS, keeper, server; it
# must run on.
. /cryoshim/test/support/scenario.sh
. /cryoshim/test/support/remote.sh
victim=$1 rounds=$2
RANDOM=$3

# Writes through a descriptor opened once, and opens and reads another file each time.
count='echo start >>/lab/starts; exec 3>>/mnt/log; i=0; while :; do i=$((i+1)); echo $i >&3 || exit 1; [ "$(cat /mnt/data)" = whole ] || exit 1; sleep 0.02; done'
LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "$count"
# A server's death must lose nothing that a write has promised: no write behind, and all data through SPFS for ever.
configure '[remote]
passthrough = "off"
retire = "never"'
sed -i 's/allow_other/allow_other,sshfs_sync/' /cryoshim/test/support/remote.sh && . /cryoshim/test/support/remote.sh

moment() { sleep "$(awk "BEGIN { print $RANDOM / 32768 * $1 }")"; }
# strike PIDS...: kills what there is of them.
strike() { [ $# -eq 0 ] || kill -9 "$@" 2>/dev/null || true; }
spfs_pid() { cryoshim spfs list --json | sed -n "s/^ *\"$1\": \([0-9]*\),\?$/\1/p" | head -1; }
# The guard and the shim have the engine's words in their command lines, and are not it.
engine_pid() {
	local pid
	for pid in $(pgrep -f '[c]riu swrk' || true); do
		[ "$(readlink /proc/$pid/exe)" != /usr/sbin/criu ] || echo $pid
	done
}
guard_pid() {
	local pid
	for pid in $(pgrep -f '[c]riu swrk' || true); do
		[ "$(readlink /proc/$pid/exe)" != /cryoshim/build/Release/criu ] || echo $pid
	done
}
shim_pid() { pgrep -f 'dist/[s]him.cjs' || true; }
on_spfs() { grep -l fuse.spfs /proc/[0-9]*/mountinfo 2>/dev/null | sed -n "s|/proc/\([0-9]*\)/.*|\1|p" | others || true; }
# others: of pids those with mounts of their own.
others() {
	local pid
	while read -r pid; do [ "$(readlink /proc/$pid/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ] || echo "$pid"; done
}
keeper_pid() { pgrep -f "[s]pfs keep" || true; }
running() { [ "$(runc state c1 2>/dev/null | sed -n 's/.*"status": "\(.*\)".*/\1/p')" = running ]; }
# grows: the container counts, at the server. whole: it was started once and left out no number.
grows() {
	local now
	now=$(wc -l <served/log)
	until_true more_lines $((now + 2))
}
more_lines() { [ "$(wc -l <served/log)" -gt "$1" ]; }
whole() {
	[ "$(wc -l <l/starts)" = 1 ] || no "it was started again"
	awk '$0 != NR { print "line " NR " is " $0; exit 1 }' served/log || no "a number is missing, or twice"
}
restore() { runc restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; }

for ((round = 0; round < rounds; round++)); do
	rm -rf l i served/*
	mkdir -p l i
	echo whole >served/data
	up b/rootfs/mnt
	runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
	until_true test -s served/log
	runc checkpoint --image-path /tmp/i --work-path /tmp/i c1 || { grep Error i/dump.log; exit 1; }
	down b/rootfs/mnt
	outcome="runs on"
	case $victim in
	shim | engine | both | all)
		restore & restoring=$!
		moment 0.7
		case $victim in
		shim) strike $(shim_pid) ;;
		engine) strike $(engine_pid) ;;
		both) strike $(shim_pid) $(engine_pid) ;;
		all) strike $(guard_pid) $(shim_pid) $(engine_pid) ;;
		esac
		wait $restoring || outcome="gone"
		;;
	*)
		restore
		moment 0.6
		case $victim in
		worker) strike $(spfs_pid pid) ;;
		holder) strike $(spfs_pid holder) ;;
		keeper) strike $(keeper_pid) ;;
		esac
		;;
	esac
	if [ "$outcome" = gone ]; then
		# Nobody is left to end tasks that the engine had made, and runc knows nothing of them: with them SPFS ends.
		if [ $victim = all ]; then strike $(on_spfs); else
			! running || no "the restore failed, and it runs"
		fi
		nothing_left
	else
		up back
		grows
		case $victim in
		keeper) moment 0.5; strike $(keeper_pid) ;;
		worker) moment 0.5; strike $(spfs_pid pid) ;;
		holder) moment 0.5; strike $(spfs_pid holder) ;;
		server)
			moment 0.5
			strike $(pidof sshfs)
			moment 1
			umount -l back
			running || no "it has ended with its server"
			up back
			;;
		esac
		grows
		running || no "it has ended"
		whole
		runc kill c1 KILL
		nothing_left
		down back
	fi
	runc delete -f c1 2>/dev/null || true
	until_true no_server
	echo "outcome: $outcome"
done
