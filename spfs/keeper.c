// SPDX-License-Identifier: Apache-2.0
/*
 * The keeper is a program that brings the backend back. It is wanted from the end of the restore, or a loss, until it says that all is
 * done: one that ends before, killed or by a fault of its own, is started again, more and more slowly if it ends at once.
 *
 * The owner is the process that restores. Its death in RESTORE ends the file system: no restore goes on without it, and a task
 * must never see RESTORE's zeros. After that tasks may run: then what the owner would have done is done here, and the file
 * system ends with its last mount if they do not.
 *
 * Both are watched by pidfds, which the table of descriptors keeps when a worker dies.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "keeper.h"
#include "mount.h"
#include "server.h"

#define LIVED_MS 5000	/* one that lived as long is started again at once */
#define FIRST_MS 250
#define LONGEST_MS 30000

static void inherit(int fd)
{
	if (fcntl(fd, F_SETFD, 0))
		say("descriptor %d: %s", fd, strerror(errno));
}

void keeper_want(void)
{
	if (!S->keeper_len)
		return;
	S->keeper_wait = 0;
	S->keeper_next = 0;
	atomic_store(&S->keep, 1);
	wake_control();
}

void keeper_done(void)
{
	pthread_rwlock_rdlock(&phase_lock);
	if (S->phase == SPFS_PHASE_PROXY)
		atomic_store(&S->keep, 0);
	pthread_rwlock_unlock(&phase_lock);
}

/* After fork in a process with threads: system calls alone. What it says on stderr goes to the log. */
static void become_keeper(char **argv, char **envp)
{
	static const char cannot[] = "the keeper cannot be executed\n";
	struct sigaction ignored = { .sa_handler = SIG_DFL };

	(void)sigaction(SIGCHLD, &ignored, NULL);
	(void)setsid();
	(void)umask(022);
	(void)dup2(S->log, 2);
	(void)syscall(SYS_close_range, 3, ~0u, 0);
	execve(argv[0], argv, envp);
	if (write(2, cannot, sizeof(cannot) - 1) < 0)
		_exit(126);
	_exit(127);
}

static void start(void)
{
	char id[96] = "SPFS_ID=", *argv[256];
	char *envp[] = { id, (char *)"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	size_t n = 0;
	long pid;

	for (uint32_t at = 0; at < S->keeper_len && n < 255; at += (uint32_t)strlen(S->keeper_command + at) + 1)
		argv[n++] = S->keeper_command + at;
	argv[n] = NULL;
	strcat(id, S->id);
	S->keeper_born = now_ms();
	/* The kernel writes the descriptor where the next worker finds it. */
	pid = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &S->keeper, 0, 0);
	if (!pid)
		become_keeper(argv, envp);
	if (pid < 0) {
		say("the keeper cannot be started: %s", strerror(errno));
		S->keeper = -1;
		S->keeper_next = now_ms() + LONGEST_MS;
		return;
	}
	inherit(S->keeper);
}

int keeper_tick(void)
{
	uint64_t now = now_ms();

	if (!S->keep || S->keeper >= 0)
		return -1;
	if (now < S->keeper_next)
		return (int)(S->keeper_next - now);
	start();
	return S->keeper < 0 ? LONGEST_MS : -1;
}

void keeper_ended(void)
{
	uint64_t now = now_ms();

	close(S->keeper);
	S->keeper = -1;
	if (!S->keep)
		return;
	if (now - S->keeper_born >= LIVED_MS)
		S->keeper_wait = 0;
	else
		S->keeper_wait = !S->keeper_wait ? FIRST_MS : S->keeper_wait < LONGEST_MS / 2 ? S->keeper_wait * 2 : LONGEST_MS;
	S->keeper_next = now + S->keeper_wait;
	say("the keeper has ended before its work was done: another is started in %u ms", S->keeper_wait);
}

int owner_watch(pid_t pid, uint32_t flags)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0)
		return errno;
	inherit(fd);
	owner_release();
	S->owner_flags = flags;
	S->owner = fd;
	return 0;
}

void owner_release(void)
{
	if (S->owner >= 0)
		close(S->owner);
	S->owner = -1;
}

static void *adopt(void *unused)
{
	(void)unused;
	unsee(S->owner_flags & SPFS_OWN_DIRECTORY);
	keeper_want();
	return NULL;
}

void owner_died(void)
{
	owner_release();
	if (S->phase == SPFS_PHASE_RESTORE) {
		/* What was prepared was there before the restore: another may find it as it is. */
		if (S->owner_flags & SPFS_OWN_PREPARED)
			return;
		say("the restore has died: over");
		atomic_store(&S->over, 1);
		clear_away();
		return;
	}
	say("the restore has died after its tasks may have begun: going on without it");
	/* Unmounting may write back, and wait for other threads. */
	if (S->owner_flags & SPFS_OWN_MOUNT)
		start_thread(adopt, NULL);
	else
		keeper_want();
}
