# SPDX-License-Identifier: Apache-2.0
# In the lab, for mariadb.sh, whose file system is at /scratch. Its network is the lab's: a dump leaves it locked, so that nobody answers for
# the container before it is restored.

. /cryoshim/test/support/scenario.sh
. /cryoshim/test/proof/database.sh
cp /cryoshim/test/proof/mariadb-inside.sh l
cp -a /opt/cryoshim-lab/rootfs/bin l/tools
options=(--tcp-established --file-locks)

sql() { podman exec c1 mariadb --no-defaults --socket=/lab/data/s -u root -N -B d -e "$1"; }

wire n1
podman run -d --name c1 --network ns:/run/netns/n1 --security-opt seccomp=unconfined --read-only -v /tmp/l:/lab \
	--rootfs /scratch /bin/sh /lab/mariadb-inside.sh >/dev/null
patiently test -s l/read
answering() { chroot /scratch mariadb --no-defaults --skip-ssl --host=10.9.0.2 -u c -N -B --unbuffered d; }
. /cryoshim/test/proof/client.sh
(cd l && client wrote.4 'insert into numbers values (4, $n) returning n;') &
patiently test -s l/wrote.4
go_on
grep -q 'InnoDB: Using io_uring' l/server.log
[ "$(rings "$(pgrep -x mariadbd)")" = 1 ] || no "it has no ring"

podman container checkpoint --leave-running "${options[@]}" c1 >/dev/null || { said; no "checkpoint, to go on"; }
go_on
podman container checkpoint "${options[@]}" c1 >/dev/null || { said; no "checkpoint"; }
podman container restore "${options[@]}" c1 >/dev/null || { said; no "restore"; }
go_on
[ "$(rings "$(pgrep -x mariadbd)")" = 1 ] || no "it has no ring any more"

touch l/stop
patiently eval '! pgrep -x mariadb'
no_errors
committed 1 2 3 4
[ "$(sql 'check table numbers, filler extended' | grep -c 'OK$')" = 2 ] || no "a table is damaged"
echo "$(cat l/wrote.? | wc -l) rows, $(wc -l <l/read) reads"
