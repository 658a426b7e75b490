// SPDX-License-Identifier: Apache-2.0
/*
 * Files on mounts that have been unmounted lazily, for a checkpoint in the middle. Binds DIR/sub to DIR/at, opens all there,
 * unmounts it with MNT_DETACH, writes "ready" to OUT, waits until GO exists, then checks that everything is as it was and
 * writes "ok" or "BAD what" for each thing.
 *
 *	detached DIR OUT GO
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unmounted.h"

static int open_at(const char *name, int flags)
{
	int fd = open(at(name), flags, 0640);

	must(name, fd >= 0);
	return fd;
}

/* A tmpfs that CRIU has restored has other inodes than before: what counts is that it is the file of this name. */
static bool is_file(int fd, const char *name)
{
	struct stat one = { 0 }, other = { 0 };

	return fstat(fd, &one) == 0 && stat(at(name), &other) == 0 && one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

int main(int argc, char **argv)
{
	enum { READ, APPEND, DIRECTORY, GONE, PATH, SECOND, READ_ONLY, ALL };
	static const char *const names[ALL] = { "sub/file", "sub/deep/other", "sub/deep", NULL, "sub/file", "sub/file", "sub" };
	int fd[ALL], shared, one, i;
	struct stat st;
	char buf[64] = "";

	if (argc != 4)
		return 2;
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	out = fopen(argv[2], "w");
	must(argv[2], out != NULL);
	must("mkdir", mkdir(at("sub"), 0755) == 0 && mkdir(at("sub/deep"), 0755) == 0 && mkdir(at("at"), 0755) == 0);
	must("mount", mount(at("sub"), strdupa(at("at")), NULL, MS_BIND, NULL) == 0);
	one = open_at("at/file", O_CREAT | O_WRONLY);
	must("write", write(one, "0123456789", 10) == 10);
	close(one);
	one = open_at("at/deep/other", O_CREAT | O_WRONLY);
	must("write", write(one, "other", 5) == 5);
	close(one);
	fd[READ] = open_at("at/file", O_RDWR);
	must("read", read(fd[READ], buf, 4) == 4);
	fd[SECOND] = open_at("at/file", O_RDONLY);
	shared = dup(fd[READ]);
	fd[APPEND] = open_at("at/deep/other", O_WRONLY | O_APPEND);
	fd[DIRECTORY] = open_at("at/deep", O_RDONLY | O_DIRECTORY);
	fd[PATH] = open_at("at/file", O_PATH);
	fd[GONE] = open_at("at/gone", O_CREAT | O_RDWR);
	must("write", write(fd[GONE], "gone", 4) == 4);
	must("fchmod", fchmod(fd[GONE], 0604) == 0);
	must("unlink", unlink(at("at/gone")) == 0);
	must("remount", mount(NULL, at("at"), NULL, MS_REMOUNT | MS_BIND | MS_NOSUID, NULL) == 0);
	fd[READ_ONLY] = open_at("at", O_RDONLY | O_DIRECTORY);
	must("umount", umount2(at("at"), MNT_DETACH) == 0);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[3], F_OK))
		usleep(20000);

	for (i = 0; i < ALL; i++) {
		check("no mount that mountinfo has", !is_listed(fd[i]));
		if (names[i])
			check("the same inode", is_file(fd[i], names[i]));
	}
	check("one mount for all", mount_of(fd[READ]) == mount_of(fd[DIRECTORY]));
	check("position", lseek(fd[READ], 0, SEEK_CUR) == 4);
	check("read on", read(fd[READ], buf, 3) == 3 && !memcmp(buf, "456", 3));
	check("shared by dup", lseek(shared, 0, SEEK_CUR) == 7);
	check("another position", lseek(fd[SECOND], 0, SEEK_CUR) == 0);
	check("append", write(fd[APPEND], "more", 4) == 4 && fstat(fd[APPEND], &st) == 0 && st.st_size == 9);
	check("what was written is in the file system", stat(at("sub/deep/other"), &st) == 0 && st.st_size == 9);
	one = openat(fd[DIRECTORY], "other", O_RDONLY);
	check("opened from the directory", one >= 0 && read(one, buf, 9) == 9 && !memcmp(buf, "othermore", 9));
	check("inside the detached mount", !is_listed(one));
	one = openat(fd[DIRECTORY], "../../at", O_RDONLY);
	check("nothing above its root", one < 0);
	check("created from the directory", openat(fd[DIRECTORY], "new", O_CREAT | O_WRONLY, 0600) >= 0 &&
	      access(at("sub/deep/new"), F_OK) == 0);
	check("a deleted file", pread(fd[GONE], buf, 10, 0) == 4 && !memcmp(buf, "gone", 4) && fstat(fd[GONE], &st) == 0 &&
	      st.st_nlink == 0 && (st.st_mode & 07777) == 0604);
	check("O_PATH", fcntl(fd[PATH], F_GETFL) & O_PATH);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
