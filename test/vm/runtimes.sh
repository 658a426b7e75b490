# SPDX-License-Identifier: Apache-2.0
# Containers of each runtime on another kernel, with cgroups of version 2 alone: they count on where they were.
. /cryoshim/test/support/scenario.sh
uname -r
for runtime in runc crun; do
	rm -rf l i b
	mkdir l i
	LAB_BIND=/tmp/l lab-runc-bundle /tmp/b sh -c "$counter"
	$runtime run -d -b /tmp/b c1 </dev/null >/dev/null 2>&1
	counting l
	$runtime checkpoint --image-path /tmp/i --work-path /tmp/i c1 || { grep -h Error i/*.log; no "$runtime: checkpoint"; }
	standing l
	$runtime restore -d -b /tmp/b --image-path /tmp/i --work-path /tmp/i c1 </dev/null >/dev/null 2>&1 || {
		grep -h Error i/*.log
		no "$runtime: restore"
	}
	counting l
	$runtime delete -f c1
	grep -hs '(guard)\|alone' i/cryoshim.log || true
	echo "went on: $runtime"
done
mkdir l2
lab-podman-image >/dev/null
podman run -d --name c1 -v /tmp/l2:/lab localhost/busybox sh -c "$counter" >/dev/null
counting l2
podman container checkpoint --export /tmp/c1.tar.zst c1 >/dev/null
podman rm c1 >/dev/null
standing l2
podman container restore --import /tmp/c1.tar.zst >/dev/null
counting l2
cryoshim show /tmp/c1.tar.zst >/dev/null
echo "went on: podman"
lab-lxc-create c2 sh /lab/counter
l=/var/lib/lxc/c2/rootfs/lab
mkdir -p $l d
echo "$counter" >$l/counter
lxc-start -d -n c2
counting $l
lxc-checkpoint -n c2 -D /tmp/d -s || { grep -h Error d/*.log; no "LXC: checkpoint"; }
standing $l
lxc-checkpoint -n c2 -D /tmp/d -r || { grep -h Error d/*.log; no "LXC: restore"; }
counting $l
echo "went on: LXC"
