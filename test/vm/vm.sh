#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a script as root in a virtual machine with a kernel of Debian's: the lab's file system, this tree at /cryoshim,
# cgroups of version 2, all capabilities. Emulated (no KVM is needed), so a boot takes some ten seconds.
#
#	vm.sh SUITE SCRIPT	SUITE: bookworm (Linux 6.1), trixie (6.12); SCRIPT: a file of this tree
#
#	VM_PACKAGES="a b"	these Debian packages are installed, too (a cached layer of the lab's)
#	VM_MODULES="fs/nfs ..."	and these directories of modules, below kernel/
#
# Prints what the script prints, and ends with its exit code; 125: no machine came up. Needs the packages
# qemu-system-x86, cpio, e2fsprogs and xz-utils, and installs them. Kernels and images are kept beside the lab's file system.

set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
tree=$(readlink -f "$here/../..")
cache=${CRYOSHIM_LAB_CACHE:-/var/cache/cryoshim/lab}/vm

say() { echo "vm: $*" >&2; }
die() {
	say "$*"
	exit 125
}

[ $# = 2 ] || die "usage: vm.sh SUITE SCRIPT"
suite=$1
script=$(realpath --relative-to="$tree" "$2")
[ -f "$tree/$script" ] || die "no file $2 in $tree"
[ "$(id -u)" = 0 ] || die "it needs root"
[ -f "$tree/dist/shim.cjs" ] || die "cryoshim is not built: run npm run setup first"
mkdir -p "$cache/$suite"
exec 9>"$cache/lock"
flock 9

missing=()
command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
command -v cpio >/dev/null || missing+=(cpio)
command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
command -v xz >/dev/null || missing+=(xz-utils)
if [ ${#missing[@]} -gt 0 ]; then
	say "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	install=(apt-get install -y --no-install-recommends "${missing[@]}")
	# The package index may be absent (a fresh image) or old: then it is fetched first.
	"${install[@]}" >"$cache/apt.log" 2>&1 || { apt-get update && "${install[@]}"; } >"$cache/apt.log" 2>&1 ||
		{ tail -n 5 "$cache/apt.log" >&2 && die "apt-get cannot install ${missing[*]}"; }
fi

mapfile -t layers < <("$here/../lab/rootfs.sh" ${VM_PACKAGES-})
root=${layers[0]-}
[ "${#layers[@]}" = "$([ -n "${VM_PACKAGES-}" ] && echo 2 || echo 1)" ] || exit 125
# The topmost comes first.
lower=${layers[1]:+${layers[1]}:}$root

# The suite's newest cloud kernel, from the mirror that this machine's apt uses.
kernel=$cache/$suite/kernel
if [ ! -d "$kernel" ]; then
	say "fetching the kernel of Debian $suite"
	work=$(mktemp -d "$cache/.kernel.XXXXXX")
	mkdir -p "$work"/{lists,archives}/partial
	mirror=$(awk '$1 == "deb" { print $2; exit }' "$root/etc/apt/sources.list")
	echo "deb $mirror $suite main" >"$work/sources.list"
	apt=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
		-o "Dir::Cache::archives=$work/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
		-o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
	apt-get "${apt[@]}" update >&2 || die "cannot read the index of Debian $suite"
	name=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
	[ -n "$name" ] || die "Debian $suite has no cloud kernel for this machine"
	(cd "$work" && apt-get "${apt[@]}" download "$name" >&2 && dpkg -x ./*.deb image) || die "cannot fetch $name"
	mv "$work/image" "$kernel"
	rm -rf "$work"
fi
version=$(basename "$kernel"/boot/vmlinuz-* | cut -d- -f2-)
modules=
for directory in "$kernel"/lib/modules/*/kernel "$kernel"/usr/lib/modules/*/kernel; do
	[ ! -d "$directory" ] || modules=$directory
done

# What is kept is there: from here on others may start machines, too.
exec 9>&-
work=$(mktemp -d "$cache/.run.XXXXXX")
trap 'rm -rf "$work"' EXIT

# module PATH: a module, unpacked, into the initial file system; those that are built in are not there.
mkdir -p "$work/initrd/modules"
count=10
module() {
	local file
	for file in "$modules/$1.ko" "$modules/$1.ko.xz"; do
		[ -f "$file" ] || continue
		count=$((count + 1))
		case $file in
		*.xz) xz -dc "$file" ;;
		*) cat "$file" ;;
		esac >"$work/initrd/modules/$count-$(basename "$1").ko"
	done
}
for name in drivers/virtio/virtio drivers/virtio/virtio_ring drivers/virtio/virtio_pci_legacy_dev \
	drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk; do
	module "$name"
done

cp "$root/usr/bin/busybox" "$work/initrd/busybox"
cat >"$work/initrd/init" <<'INIT'
#!/busybox sh
/busybox mkdir -p /proc /dev /root
/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /busybox insmod $module || echo "vm: no $module"; done
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; /busybox sleep 0.2; done
/busybox mount -t ext4 /dev/vda /root && exec /busybox switch_root /root /cryoshim/test/vm/init
echo "vm: cannot mount the root"; /busybox poweroff -f
INIT
chmod 755 "$work/initrd/init"
(cd "$work/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd.gz"

# The image: the lab's file system with what is built here, as little of it as it takes.
mkdir "$work"/{up,wk,root}
mkdir -p "$work/up/cryoshim/build" "$work/up/usr/lib/modules/$version/kernel" "$work/up/usr/local"/{bin,sbin}
cp -r "$tree"/{package.json,dist,configs,hooks,test} "$work/up/cryoshim/"
cp -r "$tree/build/Release" "$tree/build/workloads" "$work/up/cryoshim/build/"
mkdir "$work/up/cryoshim/node_modules"
cp -r "$tree/node_modules/node-gyp-build" "$work/up/cryoshim/node_modules/"
cp "$(readlink -f "$(command -v node)")" "$work/up/usr/local/bin/node"
ln -s /cryoshim/dist/cli.js "$work/up/usr/local/bin/cryoshim"
ln -s /cryoshim/build/Release/criu "$work/up/usr/local/sbin/criu"
for directory in fs/overlayfs fs/fuse net/netfilter net/ipv4 net/ipv6 net/unix net/netlink net/packet net/bridge net/802 net/llc lib crypto drivers/net/veth.ko \
	drivers/net/veth.ko.xz drivers/net/tun.ko drivers/net/tun.ko.xz drivers/net/dummy.ko ${VM_MODULES-}; do
	[ ! -e "$modules/$directory" ] || (cd "$modules" && cp -r --parents "$directory" "$work/up/usr/lib/modules/$version/kernel/")
done
cp "$(dirname "$modules")"/modules.{builtin,order}* "$work/up/usr/lib/modules/$version/" 2>/dev/null || true
printf '/cryoshim/%s\n' "$script" >"$work/up/cryoshim/run"
unshare --mount sh -e -c '
	mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/up,workdir=$2/wk" "$2/root"
	chroot "$2/root" depmod "$3"
	truncate -s 1500M "$2/image"
	mkfs.ext4 -q -F -O ^has_journal -E lazy_itable_init=1 -d "$2/root" "$2/image"
' - "$lower" "$work" "$version" >&2

# no_timer_check: on a busy machine an emulated timer may be too late for the kernel, which then does not start.
# apparmor=0: the kernels have AppArmor, the lab has no profiles; LXC starts nothing between the two.
# One processor: the emulation of two is at times wrong where the kernel changes its own code (an int3 that nobody set).
# oops=panic: so that a kernel whose emulation has gone wrong ends, most often while it starts; before init it is started again.
for try in 1 2 3; do
	timeout "${VM_TIMEOUT:-600}" qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m 2048 -nographic -no-reboot -nodefaults \
		-serial stdio -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd.gz" \
		-append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off apparmor=0 no_timer_check" \
		-drive "file=$work/image,if=virtio,format=raw,cache=unsafe" </dev/null 2>"$work/qemu.log" | stdbuf -oL tr -d '\r' | tee "$work/out" |
		grep --line-buffered -vE '^vm: (begins|ended with .*)$' || true
	! grep -q '^vm: begins$' "$work/out" || break
	say "try $try: the machine with Linux $version has not started"
done
code=$(sed -n 's/^vm: ended with \([0-9]*\)$/\1/p' "$work/out")
[ -n "$code" ] || { cat "$work/qemu.log" >&2 && die "the machine with Linux $version did not come to its end"; }
exit "$code"
