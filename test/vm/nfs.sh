# SPDX-License-Identifier: Apache-2.0
# Containers with files on NFS, with a real server and a real client (nfs-server.sh): test/workloads/remote.c checks itself,
# and each line "held: ..." says what held.
. /cryoshim/test/support/scenario.sh
. /cryoshim/test/support/remote.sh
. /cryoshim/test/vm/nfs-server.sh

# bundle: one whose program is in /lab, and with the mounts that $mounts adds.
bundle() {
	rm -rf l b i
	mkdir l i
	cp /cryoshim/build/workloads/remote l
	# The host's network: what the container has mounted itself is mounted anew from there.
	LAB_NETNS=host LAB_BIND=/tmp/l lab-runc-bundle b "$@"
	sed -i 's|"CAP_KILL"|&, "CAP_SYS_CHROOT"|' b/config.json
}
run() {
	runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
	ready l
}
dump() { runc --log /tmp/runc.log checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i "$@" c1; }
restore() { runc --log /tmp/runc.log restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1; }
errors() { cat runc.log; grep -hs Error i/*.log i/cryoshim.log || true; }
# over: the container has ended, and no name is left of files that had none.
over() {
	until_true stopped
	runc delete -f c1
	[ -z "$(find /srv/nfs -name '.nfs*' -o -name 'link_remap*')" ] || no "left: $(ls -A /srv/nfs)"
	rm -rf /srv/nfs/*
}
# another: what another client finds out about the lock of "locked", for the server keeps it for all.
another() {
	python3 -c 'import fcntl, sys; fcntl.lockf(open("/srv/nfs/locked", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)' 2>/dev/null
}
stopped() { runc state c1 | grep -q '"status": "stopped"'; }

# within VERSION [all]: a container that has the export mounted itself.
within() {
	bundle /lab/remote /mnt /lab/out /lab/go ${2-}
	mounted "$1" b/rootfs/mnt
	run
}
# bound VERSION [all]: one that a directory of the host's mount is bound into.
bound() {
	mounted "$1" /mnt/nas
	bundle /lab/remote /data /lab/out /lab/go ${2-}
	sed -i 's|"mounts": \[|&{"destination": "/data", "type": "bind", "source": "/mnt/nas", "options": ["rbind"]},|' b/config.json
	run
}

server_place
server_up
held "server and client, Linux $(uname -r)"

# CRIU alone, of which the rest is told.
PATH=${PATH/\/usr\/local\/sbin:/}
within 4.2
fails "" dump
errors | grep -q "FS mnt ./mnt dev .* unsupported id" || no "$(errors)"
touch l/go
over
umount b/rootfs/mnt
bound 4.2
fails "" dump
errors | grep -q "Can't create link remap for /data/.nfs.*Use link-remap option" || no "$(errors)"
touch l/go
over
umount /mnt/nas
held "CRIU alone refuses both"
PATH=/usr/local/sbin:$PATH

# Once it is back: SPFS passes everything on.
proxied() { until_true grep -q '"proxied"' /run/cryoshim/spfs/*/session; }

for version in 3 4.2; do
	within $version all
	server_hangs
	fails "" dump
	errors | grep -q "has not answered within 2000 ms" || no "$(errors)"
	! grep -q "Seizing" i/dump.log || no "it was stopped"
	server_answers
	held "$version: a server that hangs: the dump is refused, nothing is stopped"

	rm -rf i/*
	dump || no "$(errors)"
	umount b/rootfs/mnt
	cp -p /srv/nfs/only-read /srv/nfs/other
	mv /srv/nfs/other /srv/nfs/only-read
	mounted $version /mnt/elsewhere
	restore || no "$(errors)"
	! pidof spfs || no "SPFS stands for what is there"
	grep -q "only-read. has been replaced by another file" i/cryoshim.log || no "$(cat i/cryoshim.log)"
	checked l 29
	over
	umount -l /mnt/elsewhere
	held "$version: a mount within the container, mounted anew elsewhere; a file that has been replaced is told"

	within $version
	! another || no "the server does not keep locks"
	dump || no "$(errors)"
	another || no "a lock has stayed at the server"
	umount b/rootfs/mnt
	server_down
	restore || no "$(errors)"
	server_up
	until_true no_spfs
	runc exec c1 cat /proc/mounts | grep -q "^10.9.0.2:.* /mnt nfs" || no "$(runc exec c1 cat /proc/mounts)"
	! another || no "the server does not have the lock again"
	checked l
	over
	nothing_left
	held "$version: its server down at the restore: once it is up the real mount takes SPFS's place, and the locks are the server's again"

	configure '[remote]
retire = "never"'
	bound $version all
	dump || no "$(errors)"
	server_down
	cryoshim spfs prepare i --bundle b | grep -q /mnt/nas
	restore || no "$(errors)"
	echo more >>/srv/nfs/only-read
	cp -p /srv/nfs/rw /srv/nfs/other
	mv /srv/nfs/other /srv/nfs/rw
	server_up
	proxied
	cryoshim spfs list >said
	grep -q "not as it was: only-read: grown" said && grep -q "not as it was: rw: replaced" said || no "$(cat said)"
	checked l 29
	over
	nothing_left
	umount /mnt/nas
	held "$version: a mount bound from the host that hangs, prepared; files that have grown and been replaced are told"

	bound $version all
	dump || no "$(errors)"
	umount /mnt/nas
	server_down
	restore || no "$(errors)"
	server_up
	proxied
	rm -rf i/*
	dump || no "the second dump: $(errors)"
	nothing_left
	mounted $version /mnt/nas
	restore || no "the second restore: $(errors)"
	checked l 29
	over
	umount /mnt/nas
	rm /etc/cryoshim/config.toml
	held "$version: a second checkpoint, on SPFS, restored on the real mount"
done

# The server goes on at another address. Its old mount hangs and is not quite gone: as long as it is there a client of version 4.1 and
# later takes both for one server, and asks at the address that is gone; another minor version does not.
ip netns exec server sh -c 'echo 1 >/proc/sys/net/ipv4/conf/server0/promote_secondaries'
ip -n server addr add 10.9.0.3/24 dev server0
printf 'vers=4.1\nacregmin=1\n' >/etc/nas.options
chmod 600 /etc/nas.options
configure '[[remote.mount]]
source = "10.9.0.2:*"
from = "10.9.0.3:/"
credentials = "/etc/nas.options"'
within 4.2
dump || no "$(errors)"
ip -n server addr del 10.9.0.2/24 dev server0
umount -l b/rootfs/mnt &
restore || no "$(errors)"
until_true no_spfs
runc exec c1 cat /proc/mounts | grep -q "^10.9.0.3:/ /mnt nfs4 .*vers=4.1,.*acregmin=1" || no "$(runc exec c1 cat /proc/mounts)"
checked l
over
nothing_left
held "4.2: at another address, which the configuration names, with options of a file that root alone reads"
