# SPDX-License-Identifier: Apache-2.0
# In the lab, for postgres.sh, whose file system is at /scratch.
#
# Tasks that have changed their uid are CRIU's to dump only with CAP_SYS_RESOURCE over them. Where root lacks that, a user namespace of
# root's gives it, and one that maps each id to itself leaves all files whose they are.

. /cryoshim/test/support/scenario.sh
. /cryoshim/test/proof/database.sh
cp /cryoshim/test/proof/postgres-inside.sh l && chown -R 999:999 l && chmod 700 l/data
options=(--tcp-established --file-locks)

# psql in the container, as a client of its own.
sql() { podman exec c1 /usr/lib/postgresql/18/bin/psql -h /lab/data -U lab -qAt -v ON_ERROR_STOP=1 -c "$1" postgres; }
all_go_on() { go_on l/bench.[0-9]*; }

podman run -d --name c1 --network none --uidmap 0:0:65536 --user 999:999 --security-opt seccomp=unconfined --read-only \
	-e MAX_CONNECTIONS="$MAX_CONNECTIONS" -v /tmp/l:/lab --rootfs /scratch /bin/sh /lab/postgres-inside.sh >/dev/null
(patiently test -s l/read && patiently eval 'cat l/bench.[0-9]* | grep -q .') || { cat l/*.log l/*.err; exit 1; }
all_go_on
server=$(pgrep -x postgres | head -n 1 || true)
had=$(rings "$server")
[ "$had" -ge "$MAX_CONNECTIONS" ] || no "it has only $had rings"
[ "$(sql 'show io_method')" = io_uring ] || no "it does not use io_uring"

for round in $(seq "$ROUNDS"); do
	podman container checkpoint --leave-running "${options[@]}" c1 >/dev/null || { said; no "checkpoint $round, to go on"; }
	all_go_on
done
podman container checkpoint "${options[@]}" c1 >/dev/null || { said; no "checkpoint"; }
podman container restore "${options[@]}" c1 >/dev/null || { said; no "restore"; }
all_go_on
server=$(pgrep -x postgres | head -n 1 || true)
[ "$(rings "$server")" = "$had" ] || no "it has $(rings "$server") rings instead of $had"

# All end, and nobody has seen an error. (SIGALRM is how pgbench ends its time.)
touch l/stop
podman exec c1 /bin/sh -c 'kill -ALRM $(cat /lab/bench.pid)'
patiently test -s l/bench.out
no_errors
! grep -E 'PANIC|FATAL|ERROR|WARNING|LOG:.*crash|terminated' l/server.log | grep -v 'starting up' || no "the server has seen errors"
patiently eval '! pgrep -x psql'

committed 1 2 3
[ "$(sql 'select count(*), sum(hashtext(aid || filler)::bigint) from pgbench_accounts')" = "$(head -n 1 l/read)" ]
sums=$(sql 'select sum(delta) from pgbench_history')
for table in accounts tellers branches; do
	[ "$(sql "select sum(${table:0:1}balance) from pgbench_$table")" = "$sums" ] || no "pgbench_$table has another sum"
done
[ "$(sql 'select count(*) from pgbench_history')" = "$(cat l/bench.[0-9]* | wc -l)" ] || no "transactions were lost or done twice"
# Structure and checksums of every table and index.
podman exec c1 /usr/lib/postgresql/18/bin/pg_amcheck -h /lab/data -U lab --heapallindexed postgres
podman exec c1 /bin/sh -c 'kill -INT $(head -n 1 /lab/data/postmaster.pid)'
patiently eval '[ ! -e l/data/postmaster.pid ]'
podman run --rm --network none --user 999:999 -v /tmp/l:/lab --read-only --rootfs /scratch /usr/lib/postgresql/18/bin/pg_checksums \
	--check -D /lab/data >l/checksums || { cat l/checksums; no "checksums"; }
echo "$had rings, $(cat l/wrote.? | wc -l) rows, $(cat l/bench.[0-9]* | wc -l) transactions, $(wc -l <l/read) reads"
