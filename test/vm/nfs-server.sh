# SPDX-License-Identifier: Apache-2.0
# The kernel's NFS server in a network namespace of its own, and words to take it away. Sourced; needs scenario.sh.
#
# What is exported is a tmpfs, /srv/nfs, seen by both sides: what the server has can be compared and changed behind the
# client's back. The server is at 10.9.0.2, the client, this script, at 10.9.0.1.

# The machine is emulated, and may be slow: two minutes.
until_true() {
	local try
	for ((try = 0; try < 600; try++)); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.2
	done
	no "never became true: $*"
}
held() { echo "held: $* ($(cut -d' ' -f1 /proc/uptime) s)"; }

# A daemon's own directories, so that the server's rpcbind and ours do not share sockets.
server_place() {
	mkdir -p /srv/nfs
	mount -t tmpfs tmpfs /srv/nfs
	echo '/srv/nfs 10.9.0.0/24(rw,no_root_squash,no_subtree_check,fsid=0)' >/etc/exports
	# Version 3's locks are not given out before this has passed since the server's start (seconds).
	modprobe lockd nlm_timeout=3 nlm_grace_period=3
	for module in nfsd nfs nfsv3 nfsv4; do modprobe $module; done
	ip netns add server
	ip link add client0 type veth peer name server0 netns server
	ip addr add 10.9.0.1/24 dev client0
	ip link set client0 up
	ip -n server addr add 10.9.0.2/24 dev server0
	ip -n server link set server0 up
	ip -n server link set lo up
	ip netns exec server unshare --mount --propagation private sh -c '
		mount -t tmpfs tmpfs /run; mkdir -p /run/rpcbind
		mount -t tmpfs tmpfs /var/lib/nfs; mkdir -p /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/nfsdcld
		mkdir /run/rpc_pipefs
		mount -t rpc_pipefs sunrpc /run/rpc_pipefs
		touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/state
		mount -t nfsd nfsd /proc/fs/nfsd
		echo $$ >/tmp/server.pid
		exec sleep 1000000' &
	until_true test -s /tmp/server.pid
	server=$(cat /tmp/server.pid)
	on_server rpcbind -w
	# It keeps the list of clients that may reclaim; without it a server in a namespace lets everybody wait (10 s).
	on_server nfsdcld -p /run/rpc_pipefs
	# The client's side of version 3's locks.
	mkdir -p /run/rpcbind
	rpcbind -w
	rpc.statd
}

on_server() { nsenter -t "$server" -m -n "$@"; }

# It answers. It gives out locks and opens at once where nobody has any to reclaim, else after version 4's grace period, 10 s.
server_up() {
	ip -n server link set server0 up
	on_server exportfs -ra
	on_server rpc.statd 2>/dev/null || true
	# Not by rpc.nfsd -G, which would set version 3's time, too.
	on_server sh -c 'echo 10 >/proc/fs/nfsd/nfsv4leasetime; echo 10 >/proc/fs/nfsd/nfsv4gracetime'
	on_server rpc.nfsd -V 3 -V 4 -V 4.2 4
	on_server rpc.mountd -t 2
}

# It has stopped, as by a shutdown: whoever calls it is refused, and calls again.
server_down() {
	on_server rpc.nfsd 0
	pkill -x rpc.mountd || true
}

# It is unreachable: whoever calls it hears nothing.
server_hangs() { ip -n server link set server0 down; }
server_answers() { ip -n server link set server0 up; }

# mounted VERSION DIRECTORY: the export, at a directory, as version 3 or 4.2; a hard mount, as containers have it.
mounted() {
	mkdir -p "$2"
	case $1 in
	3) mount -t nfs -o "vers=3,tcp,hard,timeo=20,retrans=2" 10.9.0.2:/srv/nfs "$2" ;;
	*) mount -t nfs4 -o "vers=$1,hard,timeo=20,retrans=2" 10.9.0.2:/ "$2" ;;
	esac
}
