# SPDX-License-Identifier: Apache-2.0
# Words for scenarios with remote mounts: a server that comes and goes. Sourced after scenario.sh.

mkdir -p /tmp/served
printf '#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n' >/tmp/transport
chmod 755 /tmp/transport

# up DIR [MOVED]: mounts the server's files there, by sshfs without a network; MOVED: as those of another server, at /tmp/MOVED.
up() {
	local from=server:/tmp/served
	[ $# = 1 ] || from=other:/tmp/$2
	mkdir -p "$1"
	sshfs -o ssh_command=/tmp/transport,allow_other,idmap=none,cache=no,attr_timeout=0,entry_timeout=0 "$from" "$1"
}

# served_locally DIR: the same by bindfs, which has what sshfs has not: FIFOs, sockets, a FUSE type without a name of its own.
served_locally() {
	mkdir -p "$1"
	bindfs -o allow_other /tmp/served "$1"
}

# down DIR: its server ends, and the mount goes with it.
down() { umount -l "$1"; }

# no_server: none runs any more.
no_server() { ! pidof sshfs; }

# Of the program of test/workloads/remote.c, in LAB's l: it is ready; it has checked that everything is as it was.
# With "all" it checks 29 things and not 24.
ready() { until_true grep -q ready "$1/out"; }
checked() {
	touch "$1/go"
	until_true grep -q done "$1/out"
	! grep BAD "$1/out" >&2 || no "it is not as it was"
	[ "$(grep -c ^ok "$1/out")" = "${2:-24}" ] || no "$(grep -c ^ok "$1/out") things were checked"
}

# waits DIR: the program has begun to check, and waits for its server.
waits() {
	touch "$1/go"
	sleep 0.7
	! grep -q done "$1/out" || no "it did not wait for its server"
}

# nothing_left: no SPFS, no keeper, none of their mounts and none of their state, once the container has ended.
no_spfs() {
	! pidof spfs && ! pgrep -f "[s]pfs keep" && ! grep fuse.spfs /proc/self/mountinfo &&
		[ -z "$(ls /run/cryoshim/spfs /run/cryoshim/mounts 2>/dev/null | grep -v :)" ]
}
nothing_left() {
	local try
	for ((try = 0; try < 200; try++)); do
		if no_spfs >/dev/null; then return 0; fi
		sleep 0.05
	done
	no "left: $(ls -R /run/cryoshim/spfs /run/cryoshim/mounts; pgrep -af "[s]pfs" | cut -c1-120; grep fuse.spfs /proc/[0-9]*/mountinfo; cat /run/cryoshim/spfs/*/log /tmp/i/cryoshim.log)"
}

# configure TEXT: the configuration of cryoshim.
configure() {
	mkdir -p /etc/cryoshim
	printf '%s\n' "$1" >/etc/cryoshim/config.toml
}
