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

/*
 * The task in which something is being swapped: what the next swap in it can use as well is kept until it is left. Begins as
 * { 0 }; whoever made or undid swaps leaves.
 */
struct swap_visit {
	struct surgeon patient;
	bool open;
};
int swap_leave(struct swap_visit *v, struct surgeon_error *err);

/* Both on a task that the caller traces and has stopped. Undoing twice does no harm. */
int swap_make(struct swap_visit *v, const struct swap *s, struct surgeon_error *err);
int swap_undo(struct swap_visit *v, const struct swap *s, struct surgeon_error *err);
/* surgeon_swap_mapping() on a visit. */
int swap_map(struct swap_visit *v, pid_t pid, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
	     uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err);

/* Whether the placeholder is there now. The task need not be stopped. */
bool swap_in_place(const struct swap *s);
/* Whether the task still is. */
bool swap_task_lives(const struct swap *s);

#endif
