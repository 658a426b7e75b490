# SPDX-License-Identifier: Apache-2.0
# A directory of the host's NFS mount that LXC, and podman with crun, bind into their containers: it waits for its server. With the
# hooks of configs/, as `cryoshim install` puts them in place. Each line "held: ..." says what held.
. /cryoshim/test/support/scenario.sh
. /cryoshim/test/support/remote.sh
. /cryoshim/test/vm/nfs-server.sh

server_place
server_up
cryoshim install >/dev/null
# recorded NAME: they know of the container, and that it has files on the server. forgotten: they know of none any more.
recorded() { grep -q '"destination":"/data","type":"nfs.*"source":"10.9.0.2:' "/run/cryoshim/containers/$1/container.json"; }
forgotten() { [ -z "$(ls /run/cryoshim/containers)" ]; }

for version in 3 4.2; do
	mounted $version /mnt/nas
	lab-lxc-create c1 /lab/remote /data /lab/out /lab/go all
	r=/var/lib/lxc/c1/rootfs/lab
	mkdir -p $r d
	cp /cryoshim/build/workloads/remote $r
	printf '%s\n' "lxc.mount.entry = /mnt/nas data none bind,create=dir 0 0" "lxc.include = /etc/lxc/cryoshim.conf" \
		"io.cryoshim.log.level = info" >>/var/lib/lxc/c1/config
	lxc-start -d -n c1
	ready $r
	until_true recorded lxc-c1
	lxc-checkpoint -n c1 -D /tmp/d -s || no "$(grep -hs Error d/*.log)"
	until_true forgotten
	umount /mnt/nas
	server_down
	lxc-checkpoint -n c1 -D /tmp/d -r || no "$(grep -hs Error d/*.log)"
	waits $r
	until_true test -d /run/cryoshim/containers/lxc-c1
	server_up
	checked $r 29
	nothing_left
	until_true forgotten
	lxc-destroy -n c1
	rm -rf d /srv/nfs/*
	held "LXC on NFS $version"
done

mounted 4.2 /mnt/nas
mkdir l
cp /cryoshim/build/workloads/remote l
lab-podman-image >/dev/null
podman --runtime crun run -d --name c1 --network none --annotation io.cryoshim.log.level=info -v /tmp/l:/lab -v /mnt/nas:/data localhost/busybox \
	/lab/remote /data /lab/out /lab/go all >/dev/null
ready l
recorded "oci-$(podman inspect --format '{{.Id}}' c1)"
podman container checkpoint --keep --file-locks c1 >/dev/null || no "$(cat /var/lib/containers/storage/overlay-containers/*/userdata/dump.log | grep Error)"
until_true forgotten
umount /mnt/nas
server_down
podman container restore --keep --file-locks c1 >/dev/null || no "$(cat /var/lib/containers/storage/overlay-containers/*/userdata/restore.log | grep Error)"
waits l
server_up
checked l 29
nothing_left
podman rm -f c1 >/dev/null
rm -rf /srv/nfs/*
held "podman and crun on NFS 4.2"
