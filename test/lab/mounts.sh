#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Mounts the lab's file system at $CRYOSHIM_LAB_CACHE/mnt/root. Run by init, as root, in the lab's new namespaces
# but still below the machine's root: nothing done here is seen by, or outlives the lab into, the machine.

set -euo pipefail
trap 'echo "lab: cannot mount the file system (mounts.sh, line $LINENO)" >&2' ERR

here=$(dirname "$0")
top=$CRYOSHIM_LAB_CACHE/mnt
root=$top/root

# The first two arguments are the type and the place.
put() {
	local type=$1 place=$2
	shift 2
	mkdir -p "$place"
	mount -t "$type" "$type" "$place" "$@"
}

mount --make-rprivate /

# Writes go to memory. xino: one device number for all files of the overlay, as on a disk.
put tmpfs "$top" -o mode=755
mkdir -p "$top"/{upper,work,tree-upper,tree-work,root}
mount -t overlay overlay -o "lowerdir=$LAB_LAYERS,upperdir=$top/upper,workdir=$top/work,xino=on" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# Each where the kernel has it; none is needed by all.
for extra in bpf:fs/bpf securityfs:kernel/security debugfs:kernel/debug tracefs:kernel/tracing fusectl:fs/fuse/connections; do
	[ ! -d "$root/sys/${extra#*:}" ] || mount -t "${extra%:*}" "${extra%:*}" "$root/sys/${extra#*:}" 2>/dev/null || true
done

put tmpfs "$root/dev" -o mode=755,nosuid
put devpts "$root/dev/pts" -o newinstance,ptmxmode=666,mode=620,gid=5
put tmpfs "$root/dev/shm" -o mode=1777,nosuid,nodev
put mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$root/dev/${n#*:}"; done
for node in null:1:3:666 zero:1:5:666 full:1:7:666 random:1:8:666 urandom:1:9:666 tty:5:0:666 kmsg:1:11:644 \
	console:5:1:600 fuse:10:229:666 loop-control:10:237:600 net/tun:10:200:666; do
	IFS=: read -r name major minor mode <<<"$node"
	mkdir -p "$(dirname "$root/dev/$name")"
	mknod -m "$mode" "$root/dev/$name" c "$major" "$minor"
done
for node in kvm userfaultfd; do
	[ ! -c /dev/$node ] || cp -a /dev/$node "$root/dev/$node"
done
# The caller's terminal is on a devpts that is not here: so that ttyname(3) finds it.
[ ! -t 0 ] || mount --bind "$(readlink /proc/self/fd/0)" "$root/dev/console"

# As on the machine, or version 2 alone. We are in the lab's cgroup namespace: its cgroups are the roots seen here.
cgroup_root=$root/sys/fs/cgroup
if [ "$LAB_CGROUP" = unified ] || [ "$(wc -l <<<"$LAB_HIERARCHIES")" = 2 ]; then
	mount -t cgroup2 cgroup2 "$cgroup_root"
	# Processes in the root would keep the runtimes from handing controllers down (init.scope: a name that LXC knows).
	if [ -s "$cgroup_root/cgroup.controllers" ]; then
		mkdir "$cgroup_root/init.scope"
		echo 1 >"$cgroup_root/init.scope/cgroup.procs"
		echo $$ >"$cgroup_root/init.scope/cgroup.procs"
	fi
else
	mount -t tmpfs tmpfs "$cgroup_root" -o mode=755
	while read -r version name controllers; do
		case $version in
		v1) put cgroup "$cgroup_root/$name" -o "$(sed 's/^name=/none,name=/' <<<"$controllers")" ;;
		v2) put cgroup2 "$cgroup_root/$name" ;;
		esac
	done <<<"$LAB_HIERARCHIES"
	if [ -e "$cgroup_root/unified/cgroup.procs" ] && [ ! -s "$cgroup_root/unified/cgroup.controllers" ]; then
		ln -s /cryoshim/test/lab/bin/lab-lxc "$root/usr/local/bin/lxc-start"
		ln -s /cryoshim/test/lab/bin/lab-lxc "$root/usr/local/bin/lxc-checkpoint"
	fi
fi

put tmpfs "$root/run" -o mode=755,nosuid,nodev
put tmpfs "$root/tmp" -o mode=1777
put tmpfs "$root/var/lib/containers"
put tmpfs "$root/var/lib/lxc"
mkdir -p "$root/run/lock" "$root/scratch" "$root/cryoshim"
cp -r "$here/etc/." "$root/etc/"
echo lab >"$root/etc/hostname"
printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"

case $LAB_TREE in
overlay) mount -t overlay overlay -o "lowerdir=$LAB_SOURCE,upperdir=$top/tree-upper,workdir=$top/tree-work" "$root/cryoshim" ;;
ro) mount --bind "$LAB_SOURCE" "$root/cryoshim" && mount -o remount,bind,ro "$root/cryoshim" ;;
rw) mount --bind "$LAB_SOURCE" "$root/cryoshim" ;;
esac
[ -z "$LAB_SCRATCH" ] || mount --bind "$LAB_SCRATCH" "$root/scratch"
if [ -n "$LAB_NODE_PROGRAM" ]; then
	touch "$root/usr/local/bin/node"
	mount --bind "$LAB_NODE_PROGRAM" "$root/usr/local/bin/node"
fi

# Installed as a user would: the slot that podman, runc, crun and LXC look into first.
if [ -n "$LAB_CRIU" ]; then
	ln -s "$LAB_CRIU" "$root/usr/local/sbin/criu"
	ln -s /cryoshim/dist/cli.js "$root/usr/local/bin/cryoshim"
fi
