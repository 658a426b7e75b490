// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "undo.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "../surgeon/swap.h"

static struct swap *swaps;
static size_t n_swaps;

static struct {
	pid_t *tids;
	size_t n, cap;
} held;

bool undo_know(const struct control_msg *order, int *fds, int n_fds)
{
	struct surgeon_error err;
	struct swap *more = realloc(swaps, (n_swaps + 1) * sizeof(*more));

	if (!more)
		return false;
	swaps = more;
	if (swap_read(&swaps[n_swaps], order, fds, n_fds, &err))
		return false;
	n_swaps++;
	return true;
}

bool undo_knows_any(void)
{
	return n_swaps > 0;
}

void undo_forget(void)
{
	while (n_swaps > 0)
		swap_close(&swaps[--n_swaps]);
}

static bool is_left(const struct swap *s)
{
	return swap_task_lives(s) && swap_in_place(s);
}

static bool is_held(pid_t tid)
{
	for (size_t i = 0; i < held.n; i++)
		if (held.tids[i] == tid)
			return true;
	return false;
}

static bool hold(pid_t tid)
{
	struct surgeon_error err;

	if (held.n == held.cap) {
		size_t cap = held.cap ? held.cap * 2 : 64;
		pid_t *more = realloc(held.tids, cap * sizeof(*more));

		if (!more)
			return false;
		held.tids = more;
		held.cap = cap;
	}
	/* Kernel threads of io_uring among them cannot be held, and run no code of the task's. */
	if (surgeon_ask_to_stop(tid, &err))
		return false;
	held.tids[held.n++] = tid;
	return true;
}

/* Every thread of a process; those that it makes meanwhile are found in another turn. */
static void hold_threads(pid_t pid)
{
	char path[64];
	bool more;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	do {
		struct dirent *d;
		DIR *dir = opendir(path);

		more = false;
		if (!dir)
			return;
		while ((d = readdir(dir))) {
			pid_t tid = atoi(d->d_name);

			if (tid > 0 && !is_held(tid) && hold(tid))
				more = true;
		}
		closedir(dir);
	} while (more);
}

void undo_all(void (*thaw)(void), void (*note)(const char *text))
{
	struct surgeon_error err;
	size_t undone = 0;
	bool left = false;
	char text[160];

	for (size_t i = 0; i < n_swaps; i++)
		left = left || is_left(&swaps[i]);
	if (!left) {
		undo_forget();
		return;
	}
	for (size_t i = 0; i < n_swaps; i++)
		if (swap_task_lives(&swaps[i]))
			hold_threads(swaps[i].order.pid);
	thaw();
	for (size_t i = 0; i < held.n; i++)
		(void)surgeon_wait_stopped(held.tids[i], &err);
	for (size_t i = n_swaps; i-- > 0;) {
		if (!is_left(&swaps[i]))
			continue;
		if (swap_undo(&swaps[i], &err)) {
			snprintf(text, sizeof(text), "the engine died and what it had swapped in task %d stays: %s: %s",
				 swaps[i].order.pid, err.step, strerror(err.err));
			note(text);
		} else {
			undone++;
		}
	}
	snprintf(text, sizeof(text), "the engine died: put back %zu objects that were swapped in its tasks", undone);
	note(text);
	while (held.n > 0)
		(void)surgeon_release(held.tids[--held.n], &err);
	undo_forget();
}
