#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# In a virtual machine: runs what spfs.ts was bundled to (kernels.test.ts). It finds the addon from one below the top.

set -euo pipefail

uname -r
modprobe fuse
cp /cryoshim/build/workloads/spfs-vm.mjs /cryoshim/dist/spfs-vm.mjs
exec node /cryoshim/dist/spfs-vm.mjs
