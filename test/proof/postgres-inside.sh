# SPDX-License-Identifier: Apache-2.0
# The container's first process: a database, and its clients, which leave behind what they know.
set -e
PATH=/usr/lib/postgresql/18/bin:$PATH
export LC_ALL=C PGHOST=/lab/data PGUSER=lab PGDATABASE=postgres
cd /lab
initdb -D data -U lab -A trust --no-sync --no-instructions >initdb.log 2>&1
# The table is many times larger than the buffers: whoever reads it reads by io_uring.
postgres -D data -c io_method=io_uring -c unix_socket_directories=/lab/data -c listen_addresses=127.0.0.1 -c shared_buffers=2MB \
	-c effective_io_concurrency=64 -c max_connections="$MAX_CONNECTIONS" -c max_wal_senders=0 -c max_worker_processes=2 -c autovacuum_worker_slots=1 \
	-c autovacuum_max_workers=1 >server.log 2>&1 &
echo $! >postgres.pid
until pg_isready -q; do sleep 0.1; done
pgbench -q -i -s 2 postgres >init.log 2>&1
psql -qc 'create table numbers (client int, n int, primary key (client, n)); create extension amcheck'
answering() { psql -qAt -v ON_ERROR_STOP=1; }
. ./client.sh
# A number is written down when the server has said that it is committed.
for k in 1 2; do client wrote.$k "insert into numbers values ($k, \$n) returning n;" & done
(export PGHOST=127.0.0.1 && client wrote.3 'insert into numbers values (3, $n) returning n;') &
# What is read is the same each time. (Nobody changes pgbench_accounts' filler, but it is read with the rest.)
client read 'select count(*), sum(hashtext(aid || filler)::bigint) from pgbench_accounts;' &
pgbench -c 3 -j 1 -T 1000 -n -l --log-prefix=/lab/bench postgres >bench.out 2>bench.err &
echo $! >bench.pid
wait
