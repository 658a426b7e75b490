# SPDX-License-Identifier: Apache-2.0
# A container whose own network alone reaches the NFS server: the lock of that network must not cut CRIU off from the files, and
# after the restore the mount is made again from within that network. Each line "held: ..." says what held.
. /cryoshim/test/support/scenario.sh
. /cryoshim/test/support/remote.sh
. /cryoshim/test/vm/nfs-server.sh

server_place
sed -i 's|10.9.0.0/24|*|' /etc/exports
server_up
ip netns add own
ip link add own0 netns own type veth peer name server1 netns server
ip -n own addr add 10.10.0.1/24 dev own0
ip -n own link set own0 up
ip -n own link set lo up
ip -n server addr add 10.10.0.2/24 dev server1
ip -n server link set server1 up

mkdir -p l i
cp /cryoshim/build/workloads/remote l
LAB_NETNS=/run/netns/own LAB_BIND=/tmp/l lab-runc-bundle b /lab/remote /mnt /lab/out /lab/go
mkdir -p b/rootfs/mnt
nsenter --net=/run/netns/own mount -t nfs4 -o vers=4.2,hard,timeo=20,retrans=2 10.10.0.2:/ /tmp/b/rootfs/mnt
runc run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
ready l
umount b/rootfs/mnt
runc checkpoint --file-locks --image-path /tmp/i --work-path /tmp/i c1 || no "$(grep -h Error i/dump.log)"
grep -q '"extent":"sockets"' i/cryoshim.json
held "the dump is not cut off from its files"

runc restore -d --file-locks -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1 ||
	no "$(grep -h Error i/restore.log)"
# It holds a lock: once its server is back it is retired. Until then the host sees what is mounted for that.
until_true no_spfs
! grep -q "10.10.0.2" /proc/self/mountinfo || no "the host sees it"
checked l
held "the mount is made again by the container's network, and the files are as they were"
