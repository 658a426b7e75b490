# SPDX-License-Identifier: Apache-2.0
# Checkpoints objects.py, in namespaces of its own, into /scratch/images.
mkdir -p /tmp/objects /scratch/images
setsid unshare --ipc --uts --net sh -c 'ip link set lo up; exec python3 /cryoshim/test/support/objects.py /tmp/objects/ready' </dev/null >/tmp/objects/log 2>&1 &
until_true test -s /tmp/objects/ready || { cat /tmp/objects/log; exit 1; }
pid=$(cat /tmp/objects/ready)
criu dump -t "$pid" -D /scratch/images -o dump.log -v2 --shell-job --tcp-established --file-locks --ext-unix-sk \
	--link-remap --ghost-limit 10M || { grep Error /scratch/images/dump.log; exit 1; }
rm /scratch/images/dump.log
