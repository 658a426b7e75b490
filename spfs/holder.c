// SPDX-License-Identifier: Apache-2.0
/*
 * The holder does nothing but start the worker again.
 *
 * Both share one table of descriptors (CLONE_FILES) and the state's memory, nothing else: when a worker is killed, /dev/fuse, the
 * backend and every open file of it stay as they are, under their numbers, and the next worker goes on where it was. Its
 * requests lie in the shared memory (server.c), so the kernel need not be asked to send them again, which only
 * Linux 6.9 can (FUSE_NOTIFY_RESEND).
 *
 * A holder that is killed is missed by the worker, which starts another. That one is a copy of a process with threads and
 * may do nothing but wait; when the worker dies it becomes a fresh program by exec, which keeps the descriptors. Only if
 * both die in one moment is /dev/fuse closed, and the mount is dead (ENOTCONN).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "holder.h"
#include "mount.h"
#include "state.h"

#define FAST_MS 100

static long twin(void)
{
	return syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
}

void holder_run(void)
{
	uint64_t born = 0;

	S->holder = (int32_t)getpid();
	while (!S->over) {
		int status;
		long pid;

		/* One that dies at once is not started without end at full speed. */
		if (now_ms() - born < FAST_MS)
			usleep(FAST_MS * 1000 / 2);
		born = now_ms();
		pid = twin();
		if (pid < 0) {
			say("no worker could be started: %s", strerror(errno));
			usleep(1000000);
			continue;
		}
		if (!pid)
			_exit(worker_run());
		S->worker = (int32_t)pid;
		while (waitpid((pid_t)pid, &status, 0) < 0 && errno == EINTR)
			;
		if (S->over)
			break;
		S->restarts++;
		if (WIFSIGNALED(status))
			say("worker %ld was killed by signal %d: another is started", pid, WTERMSIG(status));
		else
			say("worker %ld ended with %d: another is started", pid, WEXITSTATUS(status));
	}
	say("over");
	clear_away();
	_exit(0);
}

void holder_replace(void)
{
	char fd[16];
	char *argv[] = { "spfs", "resume", fd, NULL }, *envp[] = { NULL };
	struct pollfd worker;
	long pid;

	snprintf(fd, sizeof(fd), "%d", S->memory);
	worker.fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	worker.events = POLLIN;
	if (worker.fd < 0)
		return;
	/* pidfd_open sets close-on-exec, which is what is wanted: it is for this wait alone. */
	pid = twin();
	if (pid < 0) {
		close(worker.fd);
		return;
	}
	if (pid) {
		S->holder = (int32_t)pid;
		say("the holder was killed: another is started");
		return;
	}
	/* From here system calls alone: other threads' locks are copied in whatever state they were. */
	for (;;) {
		int n = poll(&worker, 1, -1);

		if (n == 1)
			break;
		if (n < 0 && errno != EINTR)
			_exit(1);
	}
	S->restarts++;
	execve("/proc/self/exe", argv, envp);
	_exit(1);
}
