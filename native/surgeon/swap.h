/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_SWAP_H
#define CRYOSHIM_SWAP_H

/*
 * A swap in a task, as its message orders it (native/control.h, SWAP_*): `now` is ours for what is there, `placeholder`
 * for what shall be there meanwhile. The engine plugin makes swaps and undoes them; the guard undoes those that
 * both engine and shim have left behind.
 */
#include <stdbool.h>
#include <stddef.h>

#include "../control.h"
#include "surgeon.h"

struct swap {
	struct control_msg order;
	int placeholder;	/* -1: an anonymous mapping */
	int now;		/* -1: the task's own descriptor */
	int task;		/* a pidfd: the pid may be another's by the time of the undo */
};

/* Makes a swap of a message and the descriptors that came with it, which become the swap's. */
int swap_read(struct swap *s, const struct control_msg *order, int *fds, int n_fds, struct surgeon_error *err);
void swap_close(struct swap *s);

/* Both on a task that the caller traces and has stopped. Undoing twice does no harm. */
int swap_make(const struct swap *s, struct surgeon_error *err);
int swap_undo(const struct swap *s, struct surgeon_error *err);

/* Whether the placeholder is there now. The task need not be stopped. */
bool swap_in_place(const struct swap *s);
/* Whether the task still is. */
bool swap_task_lives(const struct swap *s);

#endif
