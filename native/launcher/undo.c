// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "undo.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "../surgeon/hold.h"
#include "../surgeon/swap.h"

static struct swap *swaps;
static size_t n_swaps;

/* What the engine has begun in a task; NULL: it keeps no record. */
static const struct surgeon_record *record;
static int channel = -1, parasite = -1;

/* Processes that were to be stopped while something is swapped in them. */
static struct stopped {
	pid_t pid;
	int task;
} *stopped;
static size_t n_stopped;

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

bool undo_hold(pid_t pid)
{
	struct stopped *more = realloc(stopped, (n_stopped + 1) * sizeof(*more));
	int task;

	if (!more)
		return false;
	stopped = more;
	task = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	if (task < 0)
		return false;
	stopped[n_stopped++] = (struct stopped){ pid, task };
	return true;
}

void undo_listen(int *fd)
{
	if (channel >= 0)
		close(channel);
	channel = *fd;
	*fd = -1;
}

int undo_channel(void)
{
	return channel;
}

static void take(char what, int fd)
{
	void *at;

	if (what == 'r') {
		at = mmap(NULL, sizeof(*record), PROT_READ, MAP_SHARED, fd, 0);
		record = at == MAP_FAILED ? NULL : at;
		close(fd);
		return;
	}
	if (parasite >= 0)
		close(parasite);
	parasite = fd;
}

void undo_hear(void)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char what;
	struct iovec iov = { &what, 1 };

	while (channel >= 0) {
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(channel, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		struct cmsghdr *c = n == 1 ? CMSG_FIRSTHDR(&m) : NULL;
		int fd;

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			/* The engine's end. */
			close(channel);
			channel = -1;
		} else if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
			take(what, fd);
		}
	}
}

bool undo_knows_any(void)
{
	return n_swaps > 0 || n_stopped > 0;
}

void undo_forget(void)
{
	while (n_swaps > 0)
		swap_close(&swaps[--n_swaps]);
	while (n_stopped > 0)
		close(stopped[--n_stopped].task);
	/* Now its parasite may see the engine's end. */
	if (parasite >= 0)
		close(parasite);
	parasite = -1;
}

static bool lives(const struct stopped *s)
{
	struct pollfd p = { .fd = s->task, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
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
	struct swap_visit visit = { 0 };
	struct surgeon_error err;
	size_t undone = 0;
	bool left = n_stopped > 0;
	char text[160];
	pid_t masked;

	undo_hear();
	masked = record ? record->masked : 0;
	/* A task in which everything was undone, but that was not left yet. */
	left = left || (record && (record->open || record->masked));
	for (size_t i = 0; i < n_swaps; i++)
		left = left || is_left(&swaps[i]);
	if (!left) {
		undo_forget();
		return;
	}
	for (size_t i = 0; i < n_swaps; i++)
		if (swap_task_lives(&swaps[i]))
			hold_threads(swaps[i].order.pid);
	for (size_t i = 0; i < n_stopped; i++)
		if (lives(&stopped[i]))
			hold_threads(stopped[i].pid);
	/* The parent of one of them may be in nobody's list. */
	if (masked && !is_held(masked))
		(void)hold(masked);
	thaw();
	for (size_t i = 0; i < held.n; i++)
		(void)surgeon_wait_stopped(held.tids[i], &err);
	if (masked && is_held(masked) && surgeon_unmask(record, &err)) {
		snprintf(text, sizeof(text), "the engine died and the signal mask of thread %d is not as it was: %s: %s", masked, err.step,
			 strerror(err.err));
		note(text);
	}
	/* An injected call in which the engine died: before anything else is done in that thread. */
	for (size_t i = 0; record && i < held.n; i++)
		if (surgeon_close(record, held.tids[i], &err) && err.err) {
			snprintf(text, sizeof(text), "the engine died in a call of task %d, which cannot be put right: %s: %s", held.tids[i],
				 err.step, strerror(err.err));
			note(text);
		}
	for (size_t i = n_swaps; i-- > 0;) {
		if (!is_left(&swaps[i]))
			continue;
		if (swap_undo(&visit, &swaps[i], &err)) {
			snprintf(text, sizeof(text), "the engine died and what it had swapped in task %d stays: %s: %s",
				 swaps[i].order.pid, err.step, strerror(err.err));
			note(text);
		} else {
			undone++;
		}
	}
	if (swap_leave(&visit, &err)) {
		snprintf(text, sizeof(text), "the engine died and a task is not as it was: %s: %s", err.step, strerror(err.err));
		note(text);
	}
	for (size_t i = 0; i < n_stopped; i++) {
		/* The last thing that is done with it: what waits for SIGCONT runs from here on, when it is released. */
		if (!lives(&stopped[i]) || !surgeon_is_held(stopped[i].pid) || !surgeon_unhold(stopped[i].pid, &err))
			continue;
		snprintf(text, sizeof(text), "the engine died and task %d is still stopped (SIGCONT lets it go on): %s: %s",
			 stopped[i].pid, err.step, strerror(err.err));
		note(text);
	}
	if (undone > 0) {
		snprintf(text, sizeof(text), "the engine died: put back %zu objects that were swapped in its tasks", undone);
		note(text);
	}
	while (held.n > 0)
		(void)surgeon_release(held.tids[--held.n], &err);
	undo_forget();
}
