# SPDX-License-Identifier: Apache-2.0
# In the lab, for mariadb.sh, whose file system is at /scratch. Why there is a user namespace: postgres-run.sh.

. /cryoshim/test/support/scenario.sh
. /cryoshim/test/proof/database.sh
cp /cryoshim/test/proof/mariadb-inside.sh l
cp -a /opt/cryoshim-lab/rootfs/bin l/tools && chown -Rh 999:999 l

sql() { podman exec c1 mariadb --no-defaults --socket=/lab/data/s -u root -N -B d -e "$1"; }

podman run -d --name c1 --network none --uidmap 0:0:65536 --user 999:999 --security-opt seccomp=unconfined --read-only -v /tmp/l:/lab \
	--rootfs /scratch /bin/sh /lab/mariadb-inside.sh >/dev/null
patiently test -s l/read
go_on
grep -q 'InnoDB: Using io_uring' l/server.log
[ "$(rings "$(pgrep -x mariadbd)")" = 1 ] || no "it has no ring"

podman container checkpoint --leave-running --file-locks c1 >/dev/null || { said; no "checkpoint, to go on"; }
go_on
podman container checkpoint --file-locks c1 >/dev/null || { said; no "checkpoint"; }
podman container restore --file-locks c1 >/dev/null || { said; no "restore"; }
go_on
[ "$(rings "$(pgrep -x mariadbd)")" = 1 ] || no "it has no ring any more"

touch l/stop
patiently eval '! pgrep -x mariadb'
no_errors
committed 1 2 3
[ "$(sql 'check table numbers, filler extended' | grep -c 'OK$')" = 2 ] || no "a table is damaged"
echo "$(cat l/wrote.? | wc -l) rows, $(wc -l <l/read) reads"
