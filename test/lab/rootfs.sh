#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the lab's file system, Debian 13 with CRIU 4.2, and prints where it lies.
#
#	rootfs.sh            the base
#	rootfs.sh PACKAGE... the base, then a layer above it that holds these Debian packages, one path a line
#
# Everything is kept in the cache under a hash of what it was made from, so this file is its own version number.
# A tree is made under a temporary name and renamed when it is whole: what has its final name can be used.

set -euo pipefail

cache=${CRYOSHIM_LAB_CACHE:-/var/cache/cryoshim/lab}
suite=trixie
# Debian 13 has CRIU 4.1.1, which cannot dump an internet socket on a recent kernel: CRIU alone comes from the next release.
criu_suite=forky
criu_packages="criu libcriu2 libcompel1 python3-pycriu"
criu_libraries="libnl-3-200 libnl-route-3-200 libnl-genl-3-200 libnl-nf-3-200"

# One subject a line.
packages="
	$criu_packages
	podman runc crun lxc conmon netavark aardvark-dns uidmap checkpointctl
	iptables nftables iproute2 iputils-ping socat
	python3 busybox-static redis-server
	procps psmisc util-linux kmod strace tar zstd xz-utils file less
	fuse3 libfuse3-4 libstdc++6 libatomic1 ca-certificates
"

say() { echo "lab: $*" >&2; }

die() {
	say "$*"
	exit 125
}

# The mirror is the one that this machine uses itself.
mirror() {
	local uri codename
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
	# Other vendors' repositories may use the same suite names: what is called debian comes first.
	uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
		awk -v suite="$codename" '$2 == suite { print ($1 ~ /debian\/?$/ ? 0 : 1), $1 }' | sort -s -k1,1n | awk '{ print $2; exit }')
	[ -n "$uri" ] || die "cannot tell which Debian mirror to use: apt on this machine knows none; add a Debian source to /etc/apt"
	echo "$uri"
}

# How this machine's apt reaches its mirror, and whether it minds old indexes, holds in the lab too.
apt_options() {
	apt-config dump | grep -E '^Acquire::(https?|Retries|Check-Valid-Until|Check-Date)\b.* "[^"]+";' || true
	echo 'Acquire::Check-Valid-Until "false";'
	echo 'Acquire::Languages "none";'
}

preferences() {
	printf 'Package: *\nPin: release n=%s\nPin-Priority: 100\n\n' "$criu_suite"
	printf 'Package: %s\nPin: release n=%s\nPin-Priority: 990\n' "$criu_packages $criu_libraries" "$criu_suite"
}

# Runs inside the new tree: no daemon starts by itself, and the smallest container root there can be.
finish() {
	printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
	chmod 755 "$1/usr/sbin/policy-rc.d"

	local image=$1/opt/cryoshim-lab/rootfs
	mkdir -p "$image"/{bin,dev,etc,lab,proc,root,run,sys,tmp,var/run}
	chmod 1777 "$image/tmp"
	cp "$1/usr/bin/busybox" "$image/bin/busybox"
	chroot "$1" /usr/bin/busybox --list | while read -r applet; do
		[ "$applet" = busybox ] || ln -s busybox "$image/bin/$applet"
	done
	echo root:x:0:0:root:/root:/bin/sh >"$image/etc/passwd"
	echo root:x:0: >"$image/etc/group"
	tar --sort=name --numeric-owner -C "$image" -cf "$1/opt/cryoshim-lab/rootfs.tar" .
}

make_base() {
	command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: run test/lab/setup.sh as root"
	local uri work
	uri=$(mirror)
	work=$(mktemp -d "$cache/.base.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	say "making Debian $suite with CRIU from $criu_suite in $1 (about a minute)"

	local options=()
	while read -r line; do options+=(--aptopt="$line"); done < <(apt_options)
	preferences >"$work/preferences"
	mkdir "$work/root"
	# mmdebstrap unshares nothing that outlives it; its own messages are kept for when it fails.
	if ! mmdebstrap --mode=root --variant=minbase --format=directory \
		"${options[@]}" \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
		--setup-hook="copy-in $work/preferences /etc/apt/preferences.d" \
		--customize-hook="$0 --finish \"\$1\"" \
		--include="$(echo $packages | tr ' ' ,)" \
		"$suite" "$work/root" "deb $uri $suite main" "deb $uri $criu_suite main" </dev/null >"$work/log" 2>&1; then
		tail -n 30 "$work/log" >&2
		die "cannot make the lab's file system: mmdebstrap failed (above: the end of its messages)"
	fi
	chmod 755 "$work/root"
	mv "$work/root" "$1"
	rm -rf "$work"
	trap - EXIT
}

# What older recipes made goes, unless a lab still runs in it: labs hold a shared lock on their recipe.
prune() {
	local lock
	for lock in "$cache"/lock-*; do
		[ -e "$lock" ] && [ "$lock" != "$cache/lock-$recipe" ] || continue
		flock --exclusive --nonblock "$lock" sh -c 'rm -rf "$1/base-$2" "$1/layer-$2"-* "$1/node-ok-base-$2"-* "$1/lock-$2"' \
			- "$cache" "${lock##*/lock-}" || true
	done
}

# A layer is the upper directory of an overlay in which apt-get ran; its mounts live in a mount namespace of their own.
make_layer() {
	local base=$1 layer=$2 work
	shift 2
	work=$(mktemp -d "$cache/.layer.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir "$work"/{upper,work,root}
	apt_options >"$work/apt.conf"
	say "installing $* into a layer of the lab"
	if ! unshare --mount --pid --fork --kill-child sh -e -s "$base" "$work" "$@" >"$work/log" 2>&1 <<'LAYER'
		base=$1 work=$2 root=$2/root
		shift 2
		mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" "$root"
		mount -t proc proc "$root/proc"
		mount -t tmpfs tmpfs "$root/tmp"
		mount -t tmpfs tmpfs "$root/var/lib/apt/lists"
		mount -t tmpfs tmpfs "$root/var/cache/apt"
		mount --rbind /dev "$root/dev"
		touch "$root/tmp/resolv.conf"
		mount --bind /etc/resolv.conf "$root/tmp/resolv.conf"
		[ -e "$root/etc/resolv.conf" ] || touch "$root/etc/resolv.conf"
		mount --bind "$root/tmp/resolv.conf" "$root/etc/resolv.conf"
		cp "$work/apt.conf" "$root/tmp/apt.conf"
		export APT_CONFIG=/tmp/apt.conf DEBIAN_FRONTEND=noninteractive
		chroot "$root" apt-get update
		chroot "$root" apt-get install -y --no-install-recommends "$@"
LAYER
	then
		tail -n 30 "$work/log" >&2
		die "cannot install $* into the lab: apt-get failed (above: the end of its messages)"
	fi
	mv "$work/upper" "$layer"
	rm -rf "$work"
	trap - EXIT
}

if [ "${1-}" = --finish ]; then
	finish "$2"
	exit
fi

mkdir -p "$cache"
recipe=$(sha256sum <"$0" | cut -c1-16)
base=$cache/base-$recipe
# Two labs that start at once wait for each other here; what is there needs no lock.
exec 9>"$cache/lock"
[ -d "$base" ] || { flock 9 && { [ -d "$base" ] || { make_base "$base" && prune; }; }; }
echo "$base"

if [ $# -gt 0 ]; then
	wanted=$(printf '%s\n' "$@" | sort -u)
	layer=$cache/layer-$recipe-$(sha256sum <<<"$wanted" | cut -c1-16)
	[ -d "$layer" ] || { flock 9 && { [ -d "$layer" ] || make_layer "$base" "$layer" $wanted; }; }
	echo "$layer"
fi
