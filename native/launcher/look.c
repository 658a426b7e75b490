// SPDX-License-Identifier: Apache-2.0
/*
 * Looks at files for the shim, in a process of its own: what it looks at may be on a server that does not answer, and
 * then this process hangs in the kernel and the shim does not. It changes nothing.
 *
 * Commands on standard input, each with a NUL; for each, in order, one struct looked on standard output:
 *	P path	open what the following are relative to (any path, links are followed)
 *	R path	open the top, in P as its root directory, without following links; "." is P itself
 *	S path	look at a file below the top: no link is followed, nothing outside is reached; "." is the top
 * What the kernel remembers of a file says nothing of its server: that is asked each time (AT_STATX_FORCE_SYNC).
 * statx(2) (Linux 5.8 for the mount's number), openat2(2) (Linux 5.6).
 */
#define _GNU_SOURCE
#include "look.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_INPUT (64u << 20)
#define MAX_TARGET 4096

static int write_all(const void *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(1, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		data = (const char *)data + n;
		len -= (size_t)n;
	}
	return 0;
}

/* All of standard input, with a NUL behind it; NULL: it cannot be had. */
static char *read_all(size_t *len)
{
	size_t cap = 64u << 10;
	char *data = malloc(cap + 1);

	*len = 0;
	while (data) {
		ssize_t n = read(0, data + *len, cap - *len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		if (n == 0) {
			data[*len] = '\0';
			return data;
		}
		*len += (size_t)n;
		if (*len == cap) {
			char *more = cap < MAX_INPUT ? realloc(data, cap * 2 + 1) : NULL;

			if (!more)
				break;
			data = more;
			cap *= 2;
		}
	}
	free(data);
	return NULL;
}

static int open_below(int dir, const char *path, uint64_t resolve)
{
	struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = resolve };

	return (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

/* One answer; `fd` is closed unless it is wanted. */
static int tell(int fd, int err, int *keep)
{
	char target[MAX_TARGET];
	struct looked l = { .err = (uint32_t)err };
	struct statx st;
	ssize_t n = 0;

	if (!err && syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC,
			    STATX_BASIC_STATS | STATX_MNT_ID, &st) < 0)
		l.err = (uint32_t)errno;
	if (!l.err) {
		l.mode = st.stx_mode;
		l.nlink = st.stx_nlink;
		l.uid = st.stx_uid;
		l.gid = st.stx_gid;
		l.dev_major = st.stx_dev_major;
		l.dev_minor = st.stx_dev_minor;
		l.rdev_major = st.stx_rdev_major;
		l.rdev_minor = st.stx_rdev_minor;
		l.ino = st.stx_ino;
		l.size = st.stx_size;
		l.mnt_id = st.stx_mnt_id;
		l.atime = st.stx_atime.tv_sec * INT64_C(1000000000) + st.stx_atime.tv_nsec;
		l.mtime = st.stx_mtime.tv_sec * INT64_C(1000000000) + st.stx_mtime.tv_nsec;
		l.ctime = st.stx_ctime.tv_sec * INT64_C(1000000000) + st.stx_ctime.tv_nsec;
		if ((l.mode & S_IFMT) == S_IFLNK) {
			n = readlinkat(fd, "", target, sizeof(target));
			if (n < 0)
				l.err = (uint32_t)errno;
		}
	}
	if (keep && !l.err)
		*keep = fd;
	else if (fd >= 0)
		close(fd);
	l.target_len = n > 0 ? (uint32_t)n : 0;
	return write_all(&l, sizeof(l)) || write_all(target, l.target_len) ? -1 : 0;
}

int look(void)
{
	int base = -1, top = -1, failed = 0;
	size_t len, at;
	char *input = read_all(&len);

	if (!input)
		return 1;
	for (at = 0; !failed && at < len; at += strlen(input + at) + 1) {
		const char *path = input + at + 1;
		int *keep = NULL, fd;

		if (input[at] == '\0')
			continue;
		if (input[at] == 'P') {
			keep = &base;
			fd = open(path, O_PATH | O_CLOEXEC);
		} else if (input[at] == 'R') {
			keep = &top;
			fd = open_below(base, path, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
		} else {
			fd = open_below(top, path, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
		}
		if (keep && *keep >= 0) {
			close(*keep);
			*keep = -1;
		}
		failed = tell(fd, fd < 0 ? errno : 0, keep);
	}
	free(input);
	return failed ? 1 : 0;
}
