#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs in the lab for pack.test.ts: installs /scratch/cryoshim.tgz, uses it, and leaves what it saw in /scratch/result,
# NAME=TEXT, each ended by a zero byte.

set -euo pipefail

told() { printf '%s=%s\0' "$1" "$2" >>/scratch/result; }

umount -l /cryoshim # what is installed must not find the working tree
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /scratch

told compilers "$(for name in cc gcc g++ clang make ld python3-config musl-gcc; do command -v "$name" || true; done)"
told headers "$(ls -d /usr/include/stdio.h /usr/include/node /usr/local/include/node 2>/dev/null || true)"
told tree "$(ls /cryoshim 2>/dev/null || true)"
told version-bare "$(criu --version)"

node npm/bin/npm-cli.js install --global --offline --no-audit --no-fund --prefix /usr/local ./cryoshim.tgz >&2
package=/usr/local/lib/node_modules/cryoshim
told packages "$(ls /usr/local/lib/node_modules)"
told files "$(cd $package && find . -type f -printf '%P\n')"
told programs "$(cd $package/prebuilds/linux-x64 && stat -c '%a %n' -- * | LC_ALL=C sort -k 2)"

cryoshim install >&2
hash -r
told criu-installed "$(command -v criu)"
told version "$(criu --version)"
told hooks "$(cd / && ls usr/share/containers/oci/hooks.d/* etc/lxc/cryoshim.conf usr/local/libexec/cryoshim/*)"
told doctor "$(cryoshim doctor --json || true)"

podman import --quiet /opt/cryoshim-lab/rootfs.tar localhost/busybox >&2
mkdir /tmp/counter
podman run -d --name counter --network none --annotation io.cryoshim.log.level=warn -v /tmp/counter:/lab localhost/busybox \
	sh -c 'n=0; while :; do n=$((n + 1)); echo $n >/lab/next; mv /lab/next /lab/count; sleep 0.05; done' >&2
sleep 0.5
told taken-down "$(cat /run/cryoshim/containers/*/container.json)"
told before "$(cat /tmp/counter/count)"
podman container checkpoint --keep counter >&2
told checkpointed "$(podman inspect counter --format '{{.State.Status}}')"
told plugin "$(grep -hs 'Plugin "cryoshim"' /var/lib/containers/storage/overlay-containers/*/userdata/dump.log)"
told record "$(cat /var/lib/containers/storage/overlay-containers/*/userdata/checkpoint/cryoshim.json)"
# As a library, and under the name of CRIU's crit.
mkdir -p /tmp/user/node_modules && ln -s "$package" /tmp/user/node_modules/cryoshim
cat >/tmp/user/tasks.mjs <<'END'
import { decodeImage, encodeImage, openCheckpoint, overview } from "cryoshim/crit";
import { readFileSync } from "node:fs";
const [dir] = process.argv.slice(2);
const bytes = readFileSync(`${dir}/pstree.img`);
const same = Buffer.from(encodeImage(decodeImage(bytes, "pstree.img"))).equals(bytes);
console.log(overview(await openCheckpoint(dir)).tasks[0].comm, same);
END
images=$(echo /var/lib/containers/storage/overlay-containers/*/userdata/checkpoint)
told library "$(node /tmp/user/tasks.mjs "$images")"
ln -s "$(command -v cryoshim)" /tmp/user/crit
told crit "$(/tmp/user/crit info "$images/pstree.img" | tr -d ' \n')"
podman container restore --keep counter >&2
sleep 0.5
told restored "$(podman inspect counter --format '{{.State.Status}}')"
told after "$(cat /tmp/counter/count)"
podman rm -f -t 0 counter >&2

cryoshim uninstall >&2
hash -r
told hooks-left "$(ls /usr/share/containers/oci/hooks.d /usr/local/libexec/cryoshim /etc/lxc/cryoshim.conf /run/cryoshim/containers 2>/dev/null | grep -v : || true)"
told criu-uninstalled "$(command -v criu)"
