// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads of the kernel's own that stand in /proc/PID/task beside a task's (iou-sqp-*, iou-wrk-*: io_uring's). They run no
 * code of the task's; ptrace takes them, and CRIU then waits for ever for its parasite in them. CRIU reads directories
 * by readdir(3) of the C library: its reference to that is made ours, and leaves them out.
 *
 * Where CRIU freezes a cgroup it seizes what is on the cgroup's list of threads as well (criu/seize.c:seize_cgroup_tree, 4.2), and
 * io_uring's would stand still with the requests that they are to end. It passes over what it has seized already, which it finds
 * out by PTRACE_INTERRUPT: for these the answer is yes.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <unistd.h>

#include "imports.h"

#define PF_IO_WORKER 0x10

/* Whether the directory is /proc/PID/task. */
static bool is_task_dir(int fd)
{
	char link[64], path[256];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 5)
		return false;
	path[n] = '\0';
	return !strcmp(path + n - 5, "/task");
}

static ssize_t read_file(int dir, const char *tid, const char *name, char *text, size_t size)
{
	char path[288];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", tid, name);
	fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, size - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return n;
}

/* Whether it is io_uring's (include/linux/sched.h, PF_IO_WORKER): a task's own thread may call itself anything. */
static bool is_kernel_thread(int dir, const char *tid)
{
	char text[512], *end;
	unsigned int flags;

	if (read_file(dir, tid, "comm", text, sizeof(text)) <= 0 || strncmp(text, "iou-", 4))
		return false;
	if (read_file(dir, tid, "stat", text, sizeof(text)) <= 0)
		return false;
	end = strrchr(text, ')');
	return end && sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & PF_IO_WORKER);
}

static struct dirent *readdir_without(DIR *dir)
{
	struct dirent *d;

	do
		d = readdir(dir);
	while (d && isdigit((unsigned char)d->d_name[0]) && is_task_dir(dirfd(dir)) && is_kernel_thread(dirfd(dir), d->d_name));
	return d;
}

/* ptrace(2) takes as many arguments as its request has; four at most. */
static long ptrace_without(long request, pid_t pid, void *addr, void *data)
{
	char tid[16];

	if (request == PTRACE_INTERRUPT) {
		int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), saved = errno;
		bool is = false;

		if (proc >= 0) {
			snprintf(tid, sizeof(tid), "%d", pid);
			is = is_kernel_thread(proc, tid);
			close(proc);
		}
		errno = saved;
		if (is)
			return 0;
	}
	return ptrace((enum __ptrace_request)request, pid, addr, data);
}

bool hide_kernel_threads(void)
{
	/* Each on its own: what is there is redirected also where the other is not. */
	bool listed = redirect_import((const char *const[]){ "readdir", "readdir64", NULL }, (void *)(uintptr_t)readdir_without);
	bool traced = redirect_import((const char *const[]){ "ptrace", NULL }, (void *)(uintptr_t)ptrace_without);

	return listed && traced;
}
