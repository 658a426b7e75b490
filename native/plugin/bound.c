// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unix sockets that were bound on a mount which is in no namespace any more. CRIU binds by names alone, and none leads there: in the images
 * they have names of the shim's, abstract ones, of which CRIU touches no file (criu/sk-unix.c:bind_unix_sk, 4.1.1, 4.2), and what it
 * does by them is done here.
 */
#define _GNU_SOURCE
#include "bound.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/un.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "imports.h"

#define NAME "cryoshim bound "	/* shim/carriers/detached-image.ts, after a NUL */

static bound_ask asked;
/* criu/include/util.h: below /proc/PID, also where none is mounted. */
static int (*open_proc)(pid_t pid, int flags, const char *format, ...);

/* The shim's name in an address, and its length; NULL: it is none. */
static const char *name_in(const struct sockaddr *addr, socklen_t len, size_t *name_len)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)(const void *)addr;
	size_t head = offsetof(struct sockaddr_un, sun_path) + 1;

	if (addr->sa_family != AF_UNIX || len < head + strlen(NAME) || un->sun_path[0] || memcmp(un->sun_path + 1, NAME, strlen(NAME)))
		return NULL;
	*name_len = len - head;
	return un->sun_path + 1;
}

static int bind_there(int sk, const struct sockaddr *addr, socklen_t len)
{
	size_t name_len;
	const char *name = name_in(addr, len, &name_len);
	int none = -1;

	if (!name)
		return bind(sk, addr, len);
	if (!asked(sk, name, name_len, &none))
		return 0;
	errno = EADDRNOTAVAIL;
	return -1;
}

/* By the number of a descriptor: the file may have no name, or one that is too long. */
static int connect_by(int sk, int file)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC), fds = -1, err, ret = -1;

	if (here >= 0)
		fds = open_proc(getpid(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, "fd");
	if (fds >= 0 && !fchdir(fds)) {
		snprintf(addr.sun_path, sizeof(addr.sun_path), "%d", file);
		ret = connect(sk, (const struct sockaddr *)&addr, sizeof(addr));
		err = errno;
		if (fchdir(here))
			ret = -1;
		else
			errno = err;
	}
	err = errno;
	if (fds >= 0)
		close(fds);
	if (here >= 0)
		close(here);
	errno = err;
	return ret;
}

static int connect_there(int sk, const struct sockaddr *addr, socklen_t len)
{
	size_t name_len;
	const char *name = name_in(addr, len, &name_len);
	int file = -1, err, ret;

	if (!name)
		return connect(sk, addr, len);
	if (asked(-1, name, name_len, &file) || file < 0) {
		errno = EADDRNOTAVAIL;
		return -1;
	}
	ret = connect_by(sk, file);
	err = errno;
	close(file);
	errno = err;
	return ret;
}

static uint64_t *known;
static size_t n_known;

static bool is_known(int sk)
{
	struct stat st;

	if (fstat(sk, &st))
		return false;
	for (size_t i = 0; i < n_known; i++)
		if (known[i] == st.st_ino)
			return true;
	return false;
}

/* Takes a path's end for a relative name, and refuses one that does not end so (criu/sk-unix.c:unix_resolve_name): it gets one that does. */
static int ioctl_there(int fd, unsigned long request, void *arg)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr);
	char name[sizeof(addr.sun_path) + 4];
	int file = ioctl(fd, request, arg), other;

	if (request != SIOCUNIXFILE || file < 0 || !is_known(fd) || getsockname(fd, (struct sockaddr *)&addr, &len))
		return file;
	snprintf(name, sizeof(name), "of/%.*s", (int)sizeof(addr.sun_path), addr.sun_path + (strncmp(addr.sun_path, "./", 2) ? 0 : 2));
	other = memfd_create(name, MFD_CLOEXEC);
	close(file);
	return other;
}

int let_names_be_any(const uint64_t *inodes, size_t n, struct surgeon_error *err)
{
	uint64_t *more = realloc(known, (n_known + n) * sizeof(*more));

	if (!more) {
		*err = (struct surgeon_error){ "keep sockets' names", ENOMEM };
		return -1;
	}
	known = more;
	memcpy(known + n_known, inodes, n * sizeof(*inodes));
	n_known += n;
	if (redirect_import((const char *const[]){ "ioctl", NULL }, (void *)(uintptr_t)ioctl_there))
		return 0;
	*err = (struct surgeon_error){ "this CRIU does not ask for a socket's file as it is known to", ENOSYS };
	return -1;
}

int let_names_be_ours(bound_ask ask, struct surgeon_error *err)
{
	open_proc = (int (*)(pid_t, int, const char *, ...))(uintptr_t)dlsym(RTLD_DEFAULT, "do_open_proc");
	asked = ask;
	if (open_proc && redirect_import((const char *const[]){ "bind", NULL }, (void *)(uintptr_t)bind_there) &&
	    redirect_import((const char *const[]){ "connect", NULL }, (void *)(uintptr_t)connect_there))
		return 0;
	*err = (struct surgeon_error){ "this CRIU does not bind as it is known to", ENOSYS };
	return -1;
}
