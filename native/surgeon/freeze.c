// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Many threads stopped at once: all are told first, then each is waited for. */
#define _GNU_SOURCE
#include "freeze.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

#define PENDING (-1)
#define NAP_US 50

static int tell(pid_t tid)
{
	if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP) &&
	    ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD))
		return errno;
	/* A thread that ends now is reaped by its own process. */
	return ptrace(PTRACE_INTERRUPT, tid, 0, 0) ? ESRCH : PENDING;
}

/* Whether it stands. A signal that comes first is given to it, as if we were not there; the trap still comes. */
static int look(pid_t tid)
{
	int status;
	pid_t got = waitpid(tid, &status, __WALL | WNOHANG);

	if (got == 0)
		return PENDING;
	if (got < 0)
		return ESRCH;
	if (!WIFSTOPPED(status))
		return ESRCH;
	if (status >> 16 == PTRACE_EVENT_STOP)
		return 0;
	if (ptrace(PTRACE_CONT, tid, 0, WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status)))
		return ESRCH;
	return PENDING;
}

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* Until all stand or the time is over. Returns how many do not. */
static unsigned int await(const pid_t *tids, unsigned int n, long long until, int *status)
{
	unsigned int left;

	do {
		left = 0;
		for (unsigned int i = 0; i < n; i++) {
			if (status[i] == PENDING)
				status[i] = look(tids[i]);
			left += status[i] == PENDING;
		}
		if (left)
			usleep(NAP_US);
	} while (left && now_us() < until);
	return left;
}

void surgeon_thaw(const pid_t *tids, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		(void)ptrace(PTRACE_DETACH, tids[i], 0, 0);
}

/* Those that were told to stop, did not, and will once they leave the kernel: only then they can be let go. */
static pid_t *late;
static unsigned int n_late;

static void remember(pid_t tid)
{
	pid_t *more = realloc(late, (n_late + 1) * sizeof(*late));

	/* Without memory it stays under us until we end. */
	if (!more)
		return;
	late = more;
	late[n_late++] = tid;
}

unsigned int surgeon_thaw_late(void)
{
	unsigned int left = 0;

	for (unsigned int i = 0; i < n_late; i++) {
		siginfo_t info;

		/* Asked of the stop itself: who else waits for children here may have taken its notice. */
		if (ptrace(PTRACE_GETSIGINFO, late[i], 0, &info) == 0)
			(void)ptrace(PTRACE_DETACH, late[i], 0,
				     info.si_code >> 8 == PTRACE_EVENT_STOP ? 0 : info.si_signo);
		else if (kill(late[i], 0) == 0)
			late[left++] = late[i];
	}
	n_late = left;
	return left;
}

void surgeon_freeze(const pid_t *tids, unsigned int n, int patience_ms, int *status)
{
	long long until = now_us() + patience_ms * 1000LL;
	unsigned int i;

	for (i = 0; i < n; i++)
		status[i] = tell(tids[i]);
	if (!await(tids, n, until, status))
		return;
	for (i = 0; i < n; i++)
		if (status[i] == 0)
			surgeon_thaw(&tids[i], 1);
	for (i = 0; i < n; i++) {
		if (status[i] != PENDING)
			continue;
		status[i] = ETIMEDOUT;
		remember(tids[i]);
	}
}
