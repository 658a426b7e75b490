/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_EXITKILL_H
#define CRYOSHIM_EXITKILL_H

#include <stdbool.h>

/*
 * From now on what CRIU traces is killed by the kernel when CRIU dies (PTRACE_O_EXITKILL): for a restore, whose tasks would otherwise
 * run as far as they are. Returns false where this CRIU is built otherwise.
 */
bool end_with_engine(void);

#endif
