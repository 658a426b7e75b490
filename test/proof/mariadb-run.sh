# SPDX-License-Identifier: Apache-2.0
# In the lab, for mariadb.sh, whose file system is at /scratch. Why there is a user namespace: postgres-run.sh.

. /cryoshim/test/support/scenario.sh
mkdir -p l/data && cp /cryoshim/test/proof/mariadb-inside.sh l
cp -a /opt/cryoshim-lab/rootfs/bin l/tools && chown -Rh 999:999 l

# until_true of a minute: a database on a busy machine.
patiently() {
	local try
	for ((try = 0; try < 600; try++)); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.1
	done
	tail -n 20 l/*.log >&2
	no "never became true: $*"
}
lines_of() { [ "$(wc -l <"$1")" -gt "$2" ]; }
# go_on: each client does more of its own.
go_on() {
	local file
	for file in l/wrote.? l/read; do patiently lines_of "$file" $(($(wc -l <"$file") + 2)); done
}
said() { grep -hs Error /var/lib/containers/storage/overlay-containers/*/userdata/*.log >&2 || true; }
sql() { podman exec c1 mariadb --no-defaults --socket=/lab/data/s -u root -N -B d -e "$1"; }

podman run -d --name c1 --network none --uidmap 0:0:65536 --user 999:999 --security-opt seccomp=unconfined --read-only -v /tmp/l:/lab \
	--rootfs /scratch /bin/sh /lab/mariadb-inside.sh >/dev/null
patiently test -s l/read
go_on
grep -q 'InnoDB: Using io_uring' l/server.log
[ "$(find "/proc/$(pgrep -x mariadbd)/fd" -lname 'anon_inode:\[io_uring\]' | wc -l)" = 1 ] || no "it has no ring"

podman container checkpoint --leave-running --file-locks c1 >/dev/null || { said; no "checkpoint, to go on"; }
go_on
podman container checkpoint --file-locks c1 >/dev/null || { said; no "checkpoint"; }
podman container restore --file-locks c1 >/dev/null || { said; no "restore"; }
go_on
[ "$(find "/proc/$(pgrep -x mariadbd)/fd" -lname 'anon_inode:\[io_uring\]' | wc -l)" = 1 ] || no "it has no ring any more"

touch l/stop
patiently eval '! pgrep -x mariadb'
for file in l/*.err; do [ ! -s "$file" ] || { cat "$file"; no "a client has seen an error: $file"; }; done
# Row for row: what the clients know to be committed, in order and without a gap, and not one row more.
for k in 1 2 3; do
	sql "select n from numbers where client = $k order by n" >l/rows
	cmp l/rows l/wrote.$k
	seq "$(wc -l <l/rows)" | cmp - l/rows
done
[ "$(sort -u l/read | wc -l)" = 1 ] || no "it has read different things"
[ "$(sql 'check table numbers, filler extended' | grep -c 'OK$')" = 2 ] || no "a table is damaged"
echo "$(cat l/wrote.? | wc -l) rows, $(wc -l <l/read) reads"
