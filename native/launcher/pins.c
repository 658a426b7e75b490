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

void lift_lock(const char *id)
{
	static const char *const roots[] = { "/sys/fs/bpf/cryoshim", "/run/cryoshim/bpf" };
	char path[PATH_MAX];
	struct dirent *d;

	if (!is_lock_id(id))
		return;
	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		DIR *dir;

		snprintf(path, sizeof(path), "%s/%s", roots[i], id);
		dir = opendir(path);
		if (!dir)
			continue;
		while ((d = readdir(dir)))
			if (d->d_name[0] != '.')
				unlinkat(dirfd(dir), d->d_name, 0);
		closedir(dir);
		rmdir(path);
	}
	snprintf(path, sizeof(path), "/run/cryoshim/locks/%s", id);
	unlink(path);
}
