# SPDX-License-Identifier: Apache-2.0
# Programs of the lab in containers of busybox: sourced by scenarios.

# pack PROGRAM...: they and the libraries that they need go to /tmp/l, which containers see at /lab.
pack() {
	local program
	mkdir -p /tmp/l/lib
	for program; do
		cp -L "$program" /tmp/l/
		ldd "$program" | grep -o '/[^ ]*' | sort -u | while read -r library; do
			[ -e "/tmp/l/lib/${library##*/}" ] || cp -L "$library" /tmp/l/lib/
		done
	done
}

# in_pack NAME: how a container starts one.
in_pack() { echo "/lab/lib/ld-linux-x86-64.so.2 --library-path /lab/lib /lab/$1"; }

# checkpointed NAME: podman checkpoints a container, and restores it.
checkpointed() {
	podman container checkpoint "$1" >/dev/null || { grep -hs Error /var/lib/containers/storage/overlay-containers/*/userdata/*.log; return 1; }
	podman container restore "$1" >/dev/null || { grep -hs Error /var/lib/containers/storage/overlay-containers/*/userdata/*.log; return 1; }
}
