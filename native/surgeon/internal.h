/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_SURGEON_INTERNAL_H
#define CRYOSHIM_SURGEON_INTERNAL_H

/* What the surgeon's parts have in common: surgeon.c stops and calls, handover.c brings descriptors, memory.c maps. */
#include "surgeon.h"

#include <sys/syscall.h>

#define PAGE 4096u

/* Linux 5.6 */
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* Linux 4.17 */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static inline int fail(struct surgeon_error *err, const char *step, int e)
{
	err->step = step;
	err->err = e;
	return -1;
}

/* A call whose failure ends the operation. */
static inline int run(struct surgeon *s, const char *step, int64_t *ret, struct surgeon_error *err, uint64_t nr, uint64_t a,
	       uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	uint64_t call[7] = { nr, a, b, c, d, e, f };

	if (surgeon_syscall(s, call, ret, err))
		return -1;
	if (*ret < 0 && *ret >= -4095)
		return fail(err, step, (int)-*ret);
	return 0;
}

/* Ends an operation whose result so far is ret; the first failure is the one that is told. */
static inline int finish(struct surgeon *s, int ret, struct surgeon_error *err)
{
	struct surgeon_error unused;

	return surgeon_end(s, ret ? &unused : err) ? -1 : ret;
}

/* A page of the task's until the end. */
int surgeon_scratch(struct surgeon *s, struct surgeon_error *err);
/*
 * Into the record (surgeon_keep), if there is one: a descriptor that is the task's for the moment, in place of -1, or -1 in its place; the
 * i-th of the holes that are filled, and how many they are; limits that are lifted; a thread that is about to get another signal mask, or 0.
 */
void surgeon_note_fd(int from, int to);
void surgeon_note_filled(const struct surgeon *s, size_t i);
void surgeon_note_limits(const struct surgeon *s);
void surgeon_note_mask(pid_t tid, uint64_t before, uint64_t meanwhile);
/* Brings a descriptor of ours into the task, at a number of the kernel's choice. */
int surgeon_give_fd(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err);
/* Closes a descriptor of the task's. A failure counts only where nothing failed before (ret). */
int surgeon_drop_fd(struct surgeon *s, int theirs, int ret, struct surgeon_error *err);
/* What an open patient has kept for the next swap: descriptors, and holes that are filled, with the limits that were lifted for them. */
int surgeon_take_back(struct surgeon *s, struct surgeon_error *err);
int surgeon_empty_holes(struct surgeon *s, struct surgeon_error *err);

#endif
