// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#define _GNU_SOURCE
#include "hold.h"
#include "internal.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#define BIT(sig) (1ULL << ((sig) - 1))
/* No mask has these two. */
#define ALL (~(BIT(SIGKILL) | BIT(SIGSTOP)))
#define STOPS (BIT(SIGSTOP) | BIT(SIGTSTP) | BIT(SIGTTIN) | BIT(SIGTTOU))
/* Stops on the way that are not the one waited for: signals that come first, traps that were pending. */
#define TRIES 64

/* A thread's next stop. */
static int next_stop(pid_t tid, int *status, struct surgeon_error *err)
{
	pid_t got;

	do
		got = waitpid(tid, status, __WALL);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return fail(err, "waitpid", errno);
	return WIFSTOPPED(*status) ? 0 : fail(err, "the task ended", ESRCH);
}

static int go_on(pid_t tid, int sig, struct surgeon_error *err)
{
	return ptrace(PTRACE_CONT, tid, 0, sig) ? fail(err, "PTRACE_CONT", errno) : 0;
}

/* The signal of the trap in which a thread stands under us: SIGTRAP, or what its process was stopped by. 0: it does not. */
static int trap_of(pid_t tid)
{
	siginfo_t info;

	return ptrace(PTRACE_GETSIGINFO, tid, 0, &info) == 0 && info.si_code >> 8 == PTRACE_EVENT_STOP ? info.si_signo : 0;
}

struct status {
	unsigned long long private, shared;	/* signals that wait */
	long tracer;
};

static bool read_status(pid_t pid, struct status *s)
{
	char path[64], line[256];
	int found = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "re");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file))
		found += sscanf(line, "TracerPid: %ld", &s->tracer) == 1 || sscanf(line, "SigPnd: %llx", &s->private) == 1 ||
			 sscanf(line, "ShdPnd: %llx", &s->shared) == 1;
	fclose(file);
	return found == 3;
}

struct stat_line {
	int parent, session, tty;
};

static bool read_stat(pid_t pid, struct stat_line *s)
{
	char path[64], text[1024], *end;
	bool ok = false;
	size_t n;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return false;
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = '\0';
	end = strrchr(text, ')');
	if (end)
		ok = sscanf(end + 1, " %*c %d %*d %d %d", &s->parent, &s->session, &s->tty) == 3;
	return ok;
}

static bool is_ours(pid_t pid)
{
	struct status s;

	return pid > 0 && read_status(pid, &s) && s.tracer == getpid();
}

bool surgeon_may_hold(pid_t pid)
{
	struct stat_line self, parent;
	struct status s;

	if (trap_of(pid) != SIGTRAP || !read_status(pid, &s) || !read_stat(pid, &self))
		return false;
	if ((s.private | s.shared) & (STOPS | BIT(SIGCONT)))
		return false;
	if (self.tty && self.parent > 0 && !is_ours(self.parent))
		return read_stat(self.parent, &parent) && parent.session != self.session;
	return true;
}

static int set_mask(pid_t tid, uint64_t mask, struct surgeon_error *err)
{
	return ptrace(PTRACE_SETSIGMASK, tid, sizeof(mask), &mask) ? fail(err, "PTRACE_SETSIGMASK", errno) : 0;
}

/* Another mask for a while; who finds us dead meanwhile knows of it. */
static int mask(pid_t tid, uint64_t meanwhile, uint64_t *before, struct surgeon_error *err)
{
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof(*before), before))
		return fail(err, "PTRACE_GETSIGMASK", errno);
	surgeon_note_mask(tid, *before, meanwhile);
	if (!set_mask(tid, meanwhile, err))
		return 0;
	surgeon_note_mask(0, 0, 0);
	return -1;
}

/* A failure counts only where nothing failed before (ret). */
static int unmask(pid_t tid, uint64_t before, int ret, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int failed = set_mask(tid, before, ret ? &unused : err);

	surgeon_note_mask(0, 0, 0);
	return ret ? ret : failed;
}

int surgeon_unmask(const struct surgeon_record *record, struct surgeon_error *err)
{
	uint64_t now;

	if (ptrace(PTRACE_GETSIGMASK, record->masked, sizeof(now), &now))
		return fail(err, "PTRACE_GETSIGMASK", errno);
	return now == record->meanwhile ? set_mask(record->masked, record->mask, err) : 0;
}

/*
 * Takes a signal that waits for a thread, or for its process, away from it: it comes to the tracer, who keeps it. The interrupt makes
 * the thread stand again before it runs on.
 */
static int swallow(pid_t tid, int sig, struct surgeon_error *err)
{
	int ret = -1, status;
	uint64_t before;

	if (mask(tid, ALL & ~BIT(sig), &before, err))
		return -1;
	/* Asked for only when the signal is here: else the trap would come before it. */
	for (int tries = 0; tries < TRIES; tries++) {
		if (go_on(tid, 0, err) || next_stop(tid, &status, err))
			goto out;
		if (status >> 16 == 0 && WSTOPSIG(status) == sig)
			break;
	}
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0)) {
		fail(err, "PTRACE_INTERRUPT", errno);
		goto out;
	}
	do {
		if (go_on(tid, 0, err) || next_stop(tid, &status, err))
			goto out;
	} while (status >> 16 != PTRACE_EVENT_STOP);
	ret = 0;
out:
	return unmask(tid, before, ret, err);
}

struct threads {
	pid_t *tids;
	size_t n;
};

/* Those that stand under us, but for one. io_uring's, which no one can trace, stop and go on by themselves. */
static int find_threads(pid_t pid, struct threads *all, struct surgeon_error *err)
{
	struct dirent *d;
	char path[64];
	DIR *dir;

	*all = (struct threads){ 0 };
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return fail(err, "read /proc/PID/task", errno);
	while ((d = readdir(dir))) {
		pid_t tid = atoi(d->d_name), *more;

		if (tid <= 0 || tid == pid || !trap_of(tid))
			continue;
		more = realloc(all->tids, (all->n + 1) * sizeof(*more));
		if (!more) {
			closedir(dir);
			free(all->tids);
			return fail(err, "realloc", ENOMEM);
		}
		all->tids = more;
		all->tids[all->n++] = tid;
	}
	closedir(dir);
	return 0;
}

/* Each has a trap pending, which comes before anything else: all are sent into it at once. */
static int lead_into_trap(const struct threads *all, struct surgeon_error *err)
{
	struct surgeon_error unused;
	size_t i, sent;
	int ret = 0;

	for (sent = 0; !ret && sent < all->n; sent++)
		ret = go_on(all->tids[sent], 0, err);
	for (i = 0; i < sent; i++) {
		int status = 0;

		do {
			if (next_stop(all->tids[i], &status, ret ? &unused : err)) {
				ret = -1;
				break;
			}
		} while (status >> 16 != PTRACE_EVENT_STOP && !go_on(all->tids[i], 0, &unused));
	}
	return ret;
}

/* What a parent under us had waiting before its child stopped or went on. */
struct parent {
	pid_t pid;
	bool had;
};

static bool waits_for(pid_t pid, int sig)
{
	struct status s;

	return read_status(pid, &s) && (s.private | s.shared) & BIT(sig);
}

static struct parent parent_of(pid_t pid)
{
	struct stat_line self;

	if (!read_stat(pid, &self) || !is_ours(self.parent) || !trap_of(self.parent))
		return (struct parent){ 0, true };
	return (struct parent){ self.parent, waits_for(self.parent, SIGCHLD) };
}

static void calm(struct parent parent)
{
	struct surgeon_error unused;

	if (!parent.had && waits_for(parent.pid, SIGCHLD))
		(void)swallow(parent.pid, SIGCHLD, &unused);
}

bool surgeon_is_held(pid_t pid)
{
	return trap_of(pid) == SIGSTOP || waits_for(pid, SIGSTOP);
}

static int send_to(pid_t pid, int sig, struct surgeon_error *err)
{
	return syscall(SYS_tgkill, pid, pid, sig) ? fail(err, "tgkill", errno) : 0;
}

int surgeon_hold(pid_t pid, struct surgeon_error *err)
{
	struct parent parent = parent_of(pid);
	int ret = -1, status = 0;
	struct threads others;
	bool stopped = false;
	uint64_t before;

	if (find_threads(pid, &others, err))
		return -1;
	/* No other signal shall come instead. */
	if (mask(pid, ALL, &before, err))
		goto out;
	if (send_to(pid, SIGSTOP, err))
		goto unblock;
	for (int tries = 0; status >> 16 || WSTOPSIG(status) != SIGSTOP; tries++)
		if (tries == TRIES || go_on(pid, 0, err) || next_stop(pid, &status, err)) {
			if (tries == TRIES)
				fail(err, "stop the process", EAGAIN);
			goto unblock;
		}
	/* From here on all of its threads are to stop. */
	if (go_on(pid, SIGSTOP, err) || next_stop(pid, &status, err))
		goto unblock;
	stopped = true;
	ret = lead_into_trap(&others, err);
unblock:
	ret = unmask(pid, before, ret, err);
	if (stopped)
		calm(parent);
	if (!ret && trap_of(pid) != SIGSTOP)
		ret = fail(err, "stop the process", EINTR);
out:
	free(others.tids);
	return ret;
}

int surgeon_unhold(pid_t pid, struct surgeon_error *err)
{
	struct parent parent = parent_of(pid);
	struct threads others;
	int ret;

	if (find_threads(pid, &others, err))
		return -1;
	/* Sending it is what ends the stop; the program need not see it. */
	ret = send_to(pid, SIGCONT, err) || swallow(pid, SIGCONT, err) || lead_into_trap(&others, err) ? -1 : 0;
	calm(parent);
	free(others.tids);
	return ret;
}
