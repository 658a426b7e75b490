/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_UNDO_H
#define CRYOSHIM_UNDO_H

#include <stdbool.h>
#include <sys/types.h>

#include "../control.h"

/*
 * The guard's undo: what has been swapped in tasks that stand still, in the engine's hand, is put back after the engine's
 * death whoever else is dead by then (native/surgeon/swap.h).
 */

/* Before it is made. The descriptors become the record's. Returns false when it cannot be kept: then it must not be made. */
bool undo_know(const struct control_msg *order, int *fds, int n_fds);
/* Before a process is stopped for its swaps. Returns false when it cannot be known: then it must not be. */
bool undo_hold(pid_t pid);
/* The socket of GUARD_RECORD, which becomes ours (*fd: -1), and what comes over it. undo_channel: its descriptor, or -1. */
void undo_listen(int *fd);
int undo_channel(void);
void undo_hear(void);
bool undo_knows_any(void);
void undo_forget(void);

/*
 * Puts back what is still swapped, newest first, and lets go on what was stopped for it; no thread of those tasks runs meanwhile. thaw() is called when all of
 * them are held: what is frozen cannot be operated on. note() is told what was done.
 */
void undo_all(void (*thaw)(void), void (*note)(const char *text));

#endif
