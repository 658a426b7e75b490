// SPDX-License-Identifier: GPL-2.0-only
/*
 * A pipe counts for whoever made it, which in a restore is the root of the container's user namespace, host-wide one and the same user
 * where ids are mapped to themselves. With more pages in pipes than fs.pipe-user-pages-soft a user gets pipes of two pages, and may
 * enlarge none, without capabilities outside of the namespace (fs/pipe.c:pipe_set_size, Linux 6.18). CRIU's tasks have none, and
 * give up: "Can't restore pipe size". For other things of that kind CRIU has a process outside (criu/namespaces.c:usernsd, 4.2), which
 * does this as well.
 */
#define _GNU_SOURCE
#include "pipes.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "imports.h"

/* criu/include/namespaces.h: calls a function in that process, or here where there is none. */
typedef int (*outside_fn)(void *arg, int fd, pid_t pid);
static int (*outside)(const char *name, outside_fn call, int flags, void *arg, size_t size, int fd);

static int set_size(void *arg, int fd, pid_t pid)
{
	int size;

	(void)pid;
	memcpy(&size, arg, sizeof(size));
	return fcntl(fd, F_SETPIPE_SZ, size) < 0 ? -1 : 0;
}

/* fcntl(2) takes one argument more at most. */
static int fcntl_growing(int fd, int command, void *arg)
{
	int size = (int)(intptr_t)arg, ret = fcntl(fd, command, arg);

	if (ret >= 0 || command != F_SETPIPE_SZ || errno != EPERM)
		return ret;
	if (outside("set_size", set_size, 0, &size, sizeof(size), fd)) {
		errno = EPERM;
		return -1;
	}
	return fcntl(fd, F_GETPIPE_SZ);
}

void let_pipes_grow(void)
{
	outside = (int (*)(const char *, outside_fn, int, void *, size_t, int))(uintptr_t)dlsym(RTLD_DEFAULT, "__userns_call");
	if (outside)
		(void)redirect_import((const char *const[]){ "fcntl", "fcntl64", NULL }, (void *)(uintptr_t)fcntl_growing);
}
