/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_EXITKILL_H
#define CRYOSHIM_EXITKILL_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * From now on what CRIU traces is killed by the kernel when CRIU dies (PTRACE_O_EXITKILL): for a restore, whose tasks would otherwise
 * run as far as they are. Returns false where this CRIU is built otherwise.
 */
bool end_with_engine(void);

/*
 * Kills a task that CRIU has restored and still traces. CRIU, which then fails, waits for the container's init alone; that waits for
 * its children, and the ends of these, and of threads, come first to whoever traces them: so they are taken while it waits.
 * Returns -1 with errno set when it cannot be killed.
 */
int end_restored(pid_t pid);

#endif
