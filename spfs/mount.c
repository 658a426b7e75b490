// SPDX-License-Identifier: Apache-2.0
/* Where the server is seen (its mount) and where it is not (the caller's cgroup). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mount.h"
#include "state.h"

#define SOURCE "cryoshim-spfs:"

static int set(int fs, unsigned int command, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, fs, command, key, value, 0);
}

int mount_at(int fuse, const char *id, const char *mountpoint, bool read_only)
{
	char number[16], source[96];
	int fs, mount = -1, ret = -1, error;

	fs = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC);
	if (fs < 0)
		return -1;
	snprintf(number, sizeof(number), "%d", fuse);
	snprintf(source, sizeof(source), SOURCE "%s", id);
	if (set(fs, FSCONFIG_SET_STRING, "source", source) || set(fs, FSCONFIG_SET_STRING, "subtype", "spfs") ||
	    set(fs, FSCONFIG_SET_STRING, "fd", number) || set(fs, FSCONFIG_SET_STRING, "rootmode", "40755") ||
	    set(fs, FSCONFIG_SET_STRING, "user_id", "0") || set(fs, FSCONFIG_SET_STRING, "group_id", "0") ||
	    set(fs, FSCONFIG_SET_FLAG, "default_permissions", NULL) || set(fs, FSCONFIG_SET_FLAG, "allow_other", NULL) ||
	    set(fs, FSCONFIG_CMD_CREATE, NULL, NULL))
		goto out;
	mount = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, read_only ? MOUNT_ATTR_RDONLY : 0);
	if (mount < 0)
		goto out;
	ret = (int)syscall(SYS_move_mount, mount, "", AT_FDCWD, mountpoint, MOVE_MOUNT_F_EMPTY_PATH);
out:
	error = errno;
	if (mount >= 0)
		close(mount);
	close(fs);
	errno = error;
	return ret;
}

/* The hierarchy's root below the mount of one of its controllers, if it is mounted whole. */
static void leave(const char *mountpoint)
{
	char path[4200];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", mountpoint);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "0", 1) != 1)
		say("stays in its cgroup of %s: %s", mountpoint, strerror(errno));
	close(fd);
}

void leave_cgroups(void)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	char line[8192], root[4096], mountpoint[4096], *rest;

	if (!mounts)
		return;
	while (fgets(line, sizeof(line), mounts)) {
		rest = strstr(line, " - cgroup");
		if (rest && sscanf(line, "%*d %*d %*s %4095s %4095s", root, mountpoint) == 2 && !strcmp(root, "/"))
			leave(mountpoint);
	}
	fclose(mounts);
}

/* A path as mountinfo writes it (fs/proc_namespace.c, mangle()). */
static bool escaped_is(const char *escaped, const char *path)
{
	for (; *path; path++) {
		if (strchr(" \t\n\\", *path)) {
			char code[8];

			snprintf(code, sizeof(code), "\\%03o", (uint8_t)*path);
			if (strncmp(escaped, code, 4))
				return false;
			escaped += 4;
		} else if (*escaped++ != *path) {
			return false;
		}
	}
	return !*escaped;
}

/* Whether the uppermost mount at the mountpoint is ours. */
static bool mounted(void)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	char line[8192], at[4096], source[128], *rest;
	bool ours = false;

	while (mounts && fgets(line, sizeof(line), mounts)) {
		rest = strstr(line, " - ");
		if (rest && sscanf(line, "%*d %*d %*s %*s %4095s", at) == 1 && escaped_is(at, S->mountpoint))
			ours = sscanf(rest, " - %*s %127s", source) == 1 && !strncmp(source, SOURCE, strlen(SOURCE)) &&
			       !strcmp(source + strlen(SOURCE), S->id);
	}
	if (mounts)
		fclose(mounts);
	return ours;
}

void unsee(bool directory)
{
	if (mounted() && syscall(SYS_umount2, S->mountpoint, 2 /* MNT_DETACH */))
		say("stays mounted at %s: %s", S->mountpoint, strerror(errno));
	if (directory)
		(void)rmdir(S->mountpoint);
}

/*
 * The state directory, with what others have put there: the shim may be writing down what has become of this file system, at any
 * moment until there is no directory.
 */
static void remove_directory(void)
{
	struct dirent *d;
	DIR *dir;

	for (int tries = 0; rmdir(S->directory) && (errno == ENOTEMPTY || errno == EEXIST) && tries < 1000; tries++) {
		dir = opendir(S->directory);
		while (dir && (d = readdir(dir)))
			if (strcmp(d->d_name, ".") && strcmp(d->d_name, ".."))
				(void)unlinkat(dirfd(dir), d->d_name, 0);
		if (dir)
			closedir(dir);
	}
}

void clear_away(void)
{
	if (atomic_exchange(&S->cleared, 1))
		return;
	if (mounted())
		(void)syscall(SYS_umount2, S->mountpoint, 1 /* MNT_FORCE */ | 2 /* MNT_DETACH */);
	if (S->owner_flags & SPFS_OWN_DIRECTORY)
		(void)rmdir(S->mountpoint);
	remove_directory();
}
