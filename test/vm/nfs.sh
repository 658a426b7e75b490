# SPDX-License-Identifier: Apache-2.0
# Containers on NFS mounts, with a real server and a real client (nfs-server.sh).
. /cryoshim/test/support/scenario.sh
. /cryoshim/test/vm/nfs-server.sh

# The seconds since the machine was started, with what has just been done.
step() { echo "at $(cut -d' ' -f1 /proc/uptime) s: $*"; }

step "$(uname -r)"
server_place
server_up
step "the server answers"
mounted 3 /mnt/v3
mounted 4.2 /mnt/v4
grep ' /mnt/v' /proc/mounts
echo hello >/mnt/v3/a; grep -q hello /srv/nfs/a; grep -q hello /mnt/v4/a
flock -n /mnt/v3/a true; flock -n /mnt/v4/a true
step "mounted: version 3 and 4.2, with locks"
for v in v3 v4; do
	sh -c "exec 3>/mnt/$v/gone; rm /mnt/$v/gone; ls -A /mnt/$v; sleep 0.1" | grep -q '^.nfs'
done
step "an unlinked file that is open is renamed"
server_down
fails "" timeout 5 cat /mnt/v3/a
step "the server is down: its clients wait"
server_up
grep -q hello /mnt/v3/a; grep -q hello /mnt/v4/a
step "it is back"
time touch /mnt/v4/x
