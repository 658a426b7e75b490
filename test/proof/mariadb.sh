#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# MariaDB with InnoDB's native AIO, which is io_uring in Debian, in a container of podman's, with clients that write and read, is checkpointed in the
# middle of it, once to go on and once to be restored: mariadb-run.sh says what must hold. Its file system (debian.sh) is kept beside the lab's.

set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
LAB_SCRATCH=$("$here/debian.sh" trixie mariadb-server)
export LAB_SCRATCH
exec timeout "${PROOF_SECONDS:-300}" "$here/../lab/lab" bash /cryoshim/test/proof/mariadb-run.sh
