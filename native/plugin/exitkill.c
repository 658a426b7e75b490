// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "exitkill.h"

#include <dirent.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "imports.h"

/* PTRACE_SEIZE takes the options at once; PTRACE_SETOPTIONS sets all of them anew. ptrace(2) itself is variadic, in the C library alone. */
static long ptrace_exitkill(enum __ptrace_request request, pid_t pid, void *addr, void *data)
{
	if (request == PTRACE_SEIZE || request == PTRACE_SETOPTIONS)
		data = (void *)((uintptr_t)data | PTRACE_O_EXITKILL);
	return ptrace(request, pid, addr, data);
}

/* Threads that were killed while CRIU traced them. */
static pid_t *ending;
static size_t n_ending;

#define NAP_US 500

/* As CRIU waits for an init that it has killed (criu/cr-restore.c:restore_root_task, 4.2). */
static pid_t waitpid_ending(pid_t pid, int *status, int options)
{
	pid_t got;

	if (pid <= 0 || options || !n_ending)
		return waitpid(pid, status, options);
	for (;;) {
		for (size_t i = 0; i < n_ending; i++)
			if (ending[i] != pid)
				(void)waitpid(ending[i], NULL, __WALL | WNOHANG);
		got = waitpid(pid, status, WNOHANG);
		if (got)
			return got;
		usleep(NAP_US);
	}
}

static void remember_threads(pid_t pid)
{
	struct dirent *d;
	char path[32];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		pid_t tid = atoi(d->d_name), *more;

		more = tid > 0 ? realloc(ending, (n_ending + 1) * sizeof(*more)) : NULL;
		if (!more)
			continue;
		ending = more;
		ending[n_ending++] = tid;
	}
	if (dir)
		closedir(dir);
}

int end_restored(pid_t pid)
{
	remember_threads(pid);
	return kill(pid, SIGKILL);
}

bool end_with_engine(void)
{
	/* Where it waits otherwise, it may wait in vain: nothing else changes. */
	(void)redirect_import((const char *const[]){ "waitpid", NULL }, (void *)(uintptr_t)waitpid_ending);
	return redirect_import((const char *const[]){ "ptrace", NULL }, (void *)(uintptr_t)ptrace_exitkill);
}
