# SPDX-License-Identifier: Apache-2.0
# The container's first process: a database, and its clients, which leave behind what they know.
set -e
cd /lab
# What its installer takes that is not in its packages.
PATH=$PATH:/lab/tools
mariadb-install-db --no-defaults --user=root --datadir=/lab/data --auth-root-authentication-method=normal --skip-test-db >install.log 2>&1
mariadbd --no-defaults --user=root --datadir=/lab/data --socket=/lab/data/s --skip-name-resolve --innodb-use-native-aio=1 --innodb-buffer-pool-size=8M \
	--innodb-flush-log-at-trx-commit=1 --pid-file=/lab/mariadbd.pid >server.log 2>&1 &
sql() { mariadb --no-defaults --socket=/lab/data/s -u root -N -B "$@"; }
until sql -e 'select 1' >/dev/null 2>&1; do sleep 0.1; done
sql -e 'create database d; create table d.numbers (client int, n int, primary key (client, n)) engine=innodb;
	create table d.filler (id int primary key, t varchar(200)) engine=innodb; insert into d.filler select seq, repeat(md5(seq), 6) from d.seq_1_to_100000'
sql -e "create user c@'10.9.0.1'; create user c@'127.0.0.1'; grant all on d.* to c@'10.9.0.1'; grant all on d.* to c@'127.0.0.1'"
answering() { sql --unbuffered d; }
. ./client.sh
for k in 1 2; do client wrote.$k "insert into numbers values ($k, \$n) returning n;" & done
# One over TCP; another one is outside.
(
	answering() { mariadb --no-defaults --skip-ssl --host=127.0.0.1 -u c -N -B --unbuffered d; }
	client wrote.3 'insert into numbers values (3, $n) returning n;'
) &
client read 'select count(*), sum(crc32(t)) from filler;' &
wait
