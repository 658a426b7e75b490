/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_PATIENT_H
#define CRYOSHIM_PATIENT_H

/* What is put in the place of what a stopped task has, through a parasite in it. No policy: the caller knows why. */
#include <stdbool.h>

#include "parasite.h"

/* A lock that goes from what is at a descriptor to what comes there: flock(2), fcntl(2)'s of a process, or of the open file. */
enum { LOCK_POSIX, LOCK_FLOCK, LOCK_OFD };
struct patient_lock {
	int64_t kind, type, start, len;	/* type: F_RDLCK or F_WRLCK */
};

/* What an epoll of the task's watches a descriptor for: taken out before the exchange, put in again after it. */
struct patient_watch {
	int32_t epfd;
	uint32_t events;
	uint64_t data;
	bool always;		/* also if it was not in it */
	int result;		/* 0; ENOENT: it was not in it; negative: taken out, and why it could not be put in again */
};

/* Puts ours at the task's number fd, which stays close-on-exec or not; the next `locks` and `watches` come along. */
struct patient_swap {
	int32_t fd, ours, locks, watches;
};

/* What is put into one task. */
struct patient_part {
	struct parasite *p;
	const struct patient_swap *swaps;
	unsigned int n;
	const struct patient_lock *locks;
	unsigned int n_locks;
	struct patient_watch *watches;
	unsigned int n_watches;
	unsigned int done;	/* how many are in place */
};

/* No part may be larger. */
#define PATIENT_MOST_SWAPS (PARASITE_FDS - 1)
#define PATIENT_MOST_LOCKS 60
#define PATIENT_MOST_WATCHES 60

/*
 * Puts in all parts, in all tasks at once: where they share an open file they go on sharing one, and no lock is lost, also if
 * we are killed. -1: nothing was done where `done` is 0; EMFILE: a task has not as many numbers free, nothing was done.
 */
int patient_swap_fds(struct patient_part *parts, unsigned int n, struct surgeon_error *err);

/* The working directory becomes ours; root >= 0: before it, the root directory becomes that. */
int patient_chdir(struct parasite *p, int root, int cwd, struct surgeon_error *err);

struct patient_mapping {
	uint64_t addr, len, offset;
	int prot, flags;	/* of mmap(2), without MAP_FIXED */
	int pkey;		/* 0: none */
	int locked;		/* mlock2(2) */
	const int *advice;	/* of madvise(2) */
	unsigned int advices;
};

/*
 * Maps our file in the place of a mapping. Pages of a private mapping that the task has written to are taken along. The
 * new mapping takes the old one's place in one system call.
 */
int patient_remap(struct parasite *p, const struct patient_mapping *map, int ours, struct surgeon_error *err);

/* /proc/PID/exe: no mapping may be of the old one any more. */
int patient_exe(struct parasite *p, int ours, struct surgeon_error *err);

#endif
