// SPDX-License-Identifier: Apache-2.0
/* Work in another namespace, for the time of one call. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "addon.h"

long in_namespace(int ns, int type, long (*work)(void *), void *arg)
{
	const char *path = type == CLONE_NEWNET ? "/proc/thread-self/ns/net" : "/proc/thread-self/ns/ipc";
	int home = open(path, O_RDONLY | O_CLOEXEC), err;
	long ret = -1;

	if (home < 0)
		return -1;
	if (setns(ns, type)) {
		err = errno;
		goto out;
	}
	ret = work(arg);
	err = errno;
	/* To go on in a foreign namespace would be worse than to end: the launcher or the guard takes over. */
	if (setns(home, type))
		abort();
out:
	close(home);
	errno = err;
	return ret;
}
