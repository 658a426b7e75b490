# SPDX-License-Identifier: Apache-2.0
# Words for scripts of the machine.
. /cryoshim/test/support/scenario.sh

# carried NAME COUNT PROGRAM ARGUMENT...: dump, restore, and as many things are as they were.
carried() {
	local name=$1 count=$2
	shift 2
	rm -rf l i d
	mkdir l i d
	setsid "/cryoshim/build/workloads/$name" "$@" </dev/null >log 2>&1 &
	pid=$!
	for try in $(seq 600); do grep -q ready l/out 2>/dev/null && break; sleep 0.1; done
	grep -q ready l/out || { cat log; no "$name did not start"; }
	criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || { grep Error i/d.log; cat i/cryoshim.log; no "$name: dump"; }
	wait $pid || true
	criu restore -D /tmp/i -o r.log -v4 --shell-job -d || { grep Error i/r.log; cat i/cryoshim.log; no "$name: restore"; }
	touch l/go
	for try in $(seq 600); do grep -q done l/out && break; sleep 0.1; done
	! grep BAD l/out || no "$name is not as it was"
	[ "$(grep -c ^ok l/out)" = "$count" ] || { cat l/out; no "$name: not all was looked at"; }
	pkill -9 -x "$name"
	echo "carried: $name"
}
