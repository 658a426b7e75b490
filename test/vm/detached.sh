# SPDX-License-Identifier: Apache-2.0
# Unmounted mounts of file systems that the lab does not have, on another kernel: test/workloads check themselves.
. /cryoshim/test/vm/carried.sh
uname -r

# all DIRECTORY: everything that can be on an unmounted mount, on the file system of a directory.
all() {
	for each in "detached 26" "unmounted 33" "bound 51"; do
		set -- "$1" $each
		rm -rf "$1"
		mkdir -p "$1"
		carried "$2" "$3" "$1" /tmp/l/out /tmp/l/go
	done
}
used() {
	for each in "10" "11 chroot"; do
		set -- "$1" $each
		rm -rf "$1"
		mkdir -p "$1"
		carried inside "$2" "$1" /tmp/l/out /tmp/l/go ${3-}
	done
}

echo "on ext4"
all /var/d
used /var/d

# renamed DIRECTORY: handles hold with nothing in memory, and where an inode's number is used again.
renamed() {
	rm -rf "$1" i go said up
	mkdir -p i "$1/sub" "$1/at" "$1/elsewhere"
	mount --bind "$1/sub" "$1/at"
	for name in a b c d; do echo "$name" >"$1/at/$name"; done
	echo 'while [ ! -e /tmp/go ]; do sleep 0.1; done; cat <&3 >/tmp/said; cat <&4 >>/tmp/said; cat <&5 >>/tmp/said; sleep 1000' >loop
	setsid sh -c "exec 3<$1/at/a 4<$1/at/b 5<$1/at/c ${more-}; touch /tmp/up; . /tmp/loop" </dev/null >/dev/null 2>&1 &
	pid=$!
	for try in $(seq 600); do [ ! -e up ] || break; sleep 0.1; done
	umount -l "$1/at"
	criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job
	mv "$1/sub/a" "$1/elsewhere/a"
	mv "$1/sub/b" "$1/sub/e"
	mv "$1/sub/c" "$1/sub/f"
	echo wrong >"$1/sub/c"
	rm "$1/sub/d"
	for name in d g h i; do echo wrong >"$1/sub/$name"; done
	sync
	echo 2 >/proc/sys/vm/drop_caches
}
echo "on ext4, renamed"
renamed /var/d
criu restore -D /tmp/i -o r.log -v4 --shell-job -d
touch go
for try in $(seq 600); do [ ! -e said ] || [ "$(wc -l <said)" -lt 3 ] || break; sleep 0.1; done
[ "$(tr '\n' ' ' <said)" = "a b c " ]
echo "carried: renamed"
pkill -f /tmp/loop
more="6</var/d/at/d" renamed /var/d
fails "" criu restore -D /tmp/i -o r.log -v4 --shell-job -d
cat i/r.log i/cryoshim.log | grep -o "deleted since the checkpoint" | head -n 1

echo "on tmpfs"
all /tmp/d
used /tmp/d
for what in "22 directory" "10 files"; do
	set -- $what
	carried alone "$1" /tmp/d /tmp/l/out /tmp/l/go "$2"
done

# Before Linux 6.3 overlay makes no files without a name (O_TMPFILE), which these programs have.
if [ "$(printf '%s\n' 6.3 "$(uname -r)" | sort -V | head -n 1)" = 6.3 ]; then
	echo "on overlay"
	mkdir -p /var/lower /var/upper /var/work /mnt/overlay
	mount -t overlay -o lowerdir=/var/lower,upperdir=/var/upper,workdir=/var/work overlay /mnt/overlay
	all /mnt/overlay/d
	used /mnt/overlay/d
fi

echo "on btrfs"
truncate -s 300M /var/btrfs.img
mkfs.btrfs -q /var/btrfs.img
mkdir -p /mnt/btrfs
modprobe loop
losetup /dev/loop0 /var/btrfs.img
mount -t btrfs /dev/loop0 /mnt/btrfs
all /mnt/btrfs/d
used /mnt/btrfs/d
# In a subvolume, whose device number is its own.
btrfs subvolume create /mnt/btrfs/sub >/dev/null
all /mnt/btrfs/sub/d
used /mnt/btrfs/sub/d
