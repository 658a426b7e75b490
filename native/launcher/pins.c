// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "pins.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ID_LENGTH 21

bool is_lock_id(const char *id)
{
	return strlen(id) == ID_LENGTH &&
	       strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ID_LENGTH;
}

static void remove_dir(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *d;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	while ((d = readdir(dir)))
		if (d->d_name[0] != '.')
			unlinkat(fd, d->d_name, 0);
	closedir(dir);
	unlinkat(at, name, AT_REMOVEDIR);
}

void lift_lock(const char *id)
{
	static const char *const roots[] = { "/sys/fs/bpf/cryoshim", "/run/cryoshim/bpf" };
	char path[PATH_MAX];
	struct dirent *d;

	if (!is_lock_id(id))
		return;
	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		DIR *root = opendir(roots[i]);

		if (!root)
			continue;
		/* "ID", or "ID-PID" while a restore takes it over. */
		while ((d = readdir(root)))
			if (!strncmp(d->d_name, id, ID_LENGTH) && (!d->d_name[ID_LENGTH] || d->d_name[ID_LENGTH] == '-'))
				remove_dir(dirfd(root), d->d_name);
		closedir(root);
	}
	snprintf(path, sizeof(path), "/run/cryoshim/locks/%s", id);
	unlink(path);
}
