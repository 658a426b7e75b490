# SPDX-License-Identifier: Apache-2.0
# Rings of io_uring on another kernel.
. /cryoshim/test/vm/carried.sh
uname -r

# rings KIND...: through a checkpoint and a restore, and one that leaves them running.
rings() {
	rm -rf l i && mkdir l i
	setsid /cryoshim/build/workloads/rings /tmp/l/out /tmp/l/go "$@" </dev/null >/dev/null 2>&1 &
	pid=$!
	until_true grep -q ready l/out
	criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job -R || { cat i/cryoshim.log; return 1; }
	rm -r i && mkdir i
	criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || { cat i/cryoshim.log; return 1; }
	criu restore -D /tmp/i -o r.log -v4 --shell-job -d || { cat i/cryoshim.log; return 1; }
	touch l/go
	until_true grep -q done l/out
	! grep BAD l/out || no "not as it was: $*"
	grep -q ^ok l/out && echo "carried: rings $*"
	kill -9 $pid
}

rings plain coop cqsize defer sqpoll attach iopoll sqe128 cqe32
rings shared dup registered epoll
# Nobody else maps something in between.
rings mapped
rings files buffers
rings pbuf-ring pbuf-mmap pbuf-inc pbuf-low
rings provided

# Sockets that a ring alone has open: where a network can be locked by BPF (Linux 6.4).
rm -rf l i && mkdir l i
setsid unshare -n sh -c 'ip link set lo up; exec /cryoshim/build/workloads/direct /tmp/l/out /tmp/l/go' </dev/null >/dev/null 2>&1 &
pid=$!
until_true grep -q ready l/out
what=refused
if criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --tcp-established; then
	criu restore -D /tmp/i -o r.log -v4 --shell-job -d --tcp-established || { cat i/cryoshim.log i/r.log; exit 1; }
	what=carried
else
	cat i/*.log | grep "in a network that cryoshim does not lock"
fi
touch l/go
until_true grep -q done l/out
! grep BAD l/out || no "not as it was: sockets"
grep -q ^ok l/out && echo "$what: rings of-sockets"
kill -9 $pid
