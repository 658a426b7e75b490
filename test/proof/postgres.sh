#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# PostgreSQL 18 with io_method=io_uring in a container of podman's, with clients that write and read, is checkpointed in the middle of it,
# twice to go on (ROUNDS) and once to be restored: postgres-run.sh says what must hold.
#
#	postgres.sh		with few connections: as many rings as processes could be
#	MAX_CONNECTIONS=100 postgres.sh
#	ROUNDS=50 PROOF_SECONDS=1200 postgres.sh
#
# Its file system (debian.sh) is kept beside the lab's.

set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
LAB_SCRATCH=$("$here/debian.sh" forky postgresql-18)
export LAB_SCRATCH MAX_CONNECTIONS=${MAX_CONNECTIONS:-20} ROUNDS=${ROUNDS:-2}
exec timeout "${PROOF_SECONDS:-540}" "$here/../lab/lab" bash /cryoshim/test/proof/postgres-run.sh
