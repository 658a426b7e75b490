# SPDX-License-Identifier: Apache-2.0
# The carriers on another kernel: each program checks itself (test/workloads).
. /cryoshim/test/vm/carried.sh
uname -r
cryoshim doctor || true

carried queues 18 /tmp/l/out /tmp/l/go
carried corks 15 /tmp/l/out /tmp/l/go
carried detached 26 /tmp/d /tmp/l/out /tmp/l/go
