# SPDX-License-Identifier: Apache-2.0
# The carriers on another kernel: each program checks itself (test/workloads).
. /cryoshim/test/vm/carried.sh
uname -r
cryoshim doctor || true

carried queues 21 /tmp/l/out /tmp/l/go
carried corks 17 /tmp/l/out /tmp/l/go
carried detached 26 /tmp/d /tmp/l/out /tmp/l/go

# More than a user may have without CAP_SYS_RESOURCE: 64 MiB in one queue.
rm -rf l i
mkdir l i
setsid python3 /cryoshim/test/workloads/large-queue.py /tmp/l/out /tmp/l/go </dev/null >log 2>&1 &
pid=$!
for try in $(seq 600); do grep -q ready l/out 2>/dev/null && break; sleep 0.1; done
grep -q ready l/out || { cat log; no "the large queue was not filled"; }
criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job || { grep Error i/d.log; cat i/cryoshim.log; no "large queue: dump"; }
wait $pid || true
ulimit -q unlimited
criu restore -D /tmp/i -o r.log -v4 --shell-job -d || { grep Error i/r.log; cat i/cryoshim.log; no "large queue: restore"; }
touch l/go
for try in $(seq 600); do grep -q done l/out && break; sleep 0.1; done
grep -q "^ok every message" l/out || { cat l/out; no "large queue is not as it was"; }
echo "carried: large queue"
