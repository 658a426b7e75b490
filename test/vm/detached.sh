# SPDX-License-Identifier: Apache-2.0
# Unmounted mounts of file systems that the lab does not have, on another kernel: test/workloads check themselves.
. /cryoshim/test/vm/carried.sh
uname -r

# all DIRECTORY: everything that can be on an unmounted mount, on the file system of a directory.
all() {
	for each in "detached 26" "unmounted 33"; do
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
# In a subvolume, whose device number is its own.
btrfs subvolume create /mnt/btrfs/sub >/dev/null
all /mnt/btrfs/sub/d

echo "btrfs: mapped"
rm -rf l d i
mkdir -p l i /mnt/btrfs/e
setsid /cryoshim/build/workloads/inside /mnt/btrfs/e /tmp/l/out /tmp/l/go </dev/null >log 2>&1 &
pid=$!
for try in $(seq 600); do grep -q ready l/out 2>/dev/null && break; sleep 0.1; done
fails "" criu dump -t $pid -D /tmp/i -o d.log -v4 --shell-job
grep -o "gives files other device numbers" i/d.log | head -n 1
! grep -q "Seized task" i/d.log
kill -9 $pid
