// SPDX-License-Identifier: Apache-2.0
/*
 * A tmpfs that is mounted nowhere any more but has files open, for a checkpoint in the middle. Mounts a tmpfs at DIR/at, fills
 * it, opens files (and with "directory" a directory) there, unmounts it with MNT_DETACH, writes "ready" to OUT, waits for GO,
 * and writes "ok what" or "BAD what" for each thing, then "done".
 *
 *	alone DIR OUT GO directory|files
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "unmounted.h"

static int put(const char *name, const char *text, mode_t mode)
{
	int fd = open(at(name), O_CREAT | O_RDWR, 0600);

	must(name, fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fchmod(fd, mode) == 0);
	return fd;
}

static bool holds(int fd, const char *text)
{
	char buf[100];

	return pread(fd, buf, sizeof(buf), 0) == (ssize_t)strlen(text) && !memcmp(buf, text, strlen(text));
}

static const struct timespec then[2] = { { 1000000000, 123456789 }, { 1100000000, 987654321 } };

static int inside(int top, const char *name)
{
	return openat(top, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
}

int main(int argc, char **argv)
{
	int top = -1, file, deep, gone, fifo, go, one;
	struct stat st, other;
	struct statfs fs;
	char buf[300], *map;
	bool whole;

	if (argc != 5)
		return 2;
	whole = !strcmp(argv[4], "directory");
	snprintf(dir, sizeof(dir), "%s/at", argv[1]);
	out = fopen(argv[2], "w");
	must(argv[2], out != NULL);
	umask(0);
	must("mkdir", mkdir(at(""), 0755) == 0);
	must("mount", mount("none", at(""), "tmpfs", MS_NOSUID, "size=48m,nr_inodes=500,mode=0751") == 0);
	must("mkdir", mkdir(at("a"), 0700) == 0 && mkdir(at("a/b"), 0775) == 0 && mkdir(at("a/b/empty"), 01777) == 0);
	must("chown", chown(at("a/b"), 12, 34) == 0 && chmod(at("a/b"), 02775) == 0);
	file = put("file", "contents", 0640);
	deep = put("a/b/deep", "deeper", 04755);
	must("chown", fchown(file, 1000, 1001) == 0);
	close(put("a/other", "not open", 0444));
	must("link", link(at("a/other"), at("a/b/second")) == 0);
	must("symlink", symlink("a/b/deep", at("link")) == 0 && lchown(at("link"), 5, 6) == 0);
	must("mknod", mknod(at("null"), S_IFCHR | 0606, makedev(1, 3)) == 0 && mkfifo(at("fifo"), 0666) == 0);
	must("setxattr", setxattr(at("file"), "trusted.one", "value", 5, 0) == 0);
	one = put("sparse", "begin", 0600);
	must("pwrite", pwrite(one, "end", 3, 20 << 20) == 3);
	close(one);
	gone = put("gone", "without a name", 0604);
	must("unlink", unlink(at("gone")) == 0);
	fifo = open(at("fifo"), O_RDWR);
	must("fifo", fifo >= 0 && write(fifo, "in the fifo", 11) == 11);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, deep, 0);
	must("mmap", map != MAP_FAILED);
	must("utimensat", futimens(file, then) == 0 && utimensat(AT_FDCWD, at("a/b/empty"), then, 0) == 0 &&
				  utimensat(AT_FDCWD, at("a"), then, 0) == 0 &&
				  utimensat(AT_FDCWD, at("link"), then, AT_SYMLINK_NOFOLLOW) == 0);
	if (whole)
		top = open(at("a/b"), O_RDONLY | O_DIRECTORY);
	go = open("/", O_PATH);
	must("umount", umount2(at(""), MNT_DETACH) == 0);
	fprintf(out, "ready\n");
	fflush(out);
	while (faccessat(go, argv[3] + 1, F_OK, 0))
		usleep(20000);

	check("on no mount that is listed", !is_listed(file) && !is_listed(deep) && !is_listed(gone) && !is_listed(fifo));
	check("a file", holds(file, "contents"));
	check("its attributes", fstat(file, &st) == 0 && st.st_mode == (S_IFREG | 0640) && st.st_uid == 1000 && st.st_gid == 1001 &&
				st.st_mtim.tv_sec == then[1].tv_sec && st.st_mtim.tv_nsec == then[1].tv_nsec);
	check("its extended attributes", fgetxattr(file, "trusted.one", buf, sizeof(buf)) == 5 && !memcmp(buf, "value", 5));
	check("another file", holds(deep, "deeper") && fstat(deep, &st) == 0 && st.st_mode == (S_IFREG | 04755));
	map[0] = 'D';
	check("a mapping is the file", holds(deep, "Deeper"));
	check("all in one file system", fstat(file, &other) == 0 && st.st_dev == other.st_dev);
	check("a file without a name", holds(gone, "without a name") && fstat(gone, &st) == 0 && st.st_nlink == 0 &&
					st.st_dev == other.st_dev);
	check("a fifo", read(fifo, buf, sizeof(buf)) == 11 && !memcmp(buf, "in the fifo", 11));
	check("its size", fstatfs(file, &fs) == 0 && fs.f_blocks * fs.f_bsize == 48 << 20 && fs.f_files == 500);
	if (whole) {
		check("a directory", fstat(top, &st) == 0 && st.st_mode == (S_IFDIR | 02775) && st.st_uid == 12 && st.st_gid == 34);
		check("the root", fstatat(top, "../..", &st, 0) == 0 && st.st_mode == (S_IFDIR | 0751));
		check("nothing above it", fstatat(top, "../../..", &other, 0) == 0 && st.st_ino == other.st_ino);
		check("times of directories", fstatat(top, "empty", &st, 0) == 0 && st.st_mode == (S_IFDIR | 01777) &&
					      st.st_mtim.tv_nsec == then[1].tv_nsec && fstatat(top, "..", &st, 0) == 0 &&
					      st.st_mtim.tv_nsec == then[1].tv_nsec);
		check("a file that was not open", holds(inside(top, "second"), "not open"));
		check("its other name", fstatat(top, "second", &st, 0) == 0 && fstatat(top, "../other", &other, 0) == 0 &&
					st.st_ino == other.st_ino && st.st_nlink == 2);
		check("what is open is what has the name", fstat(deep, &st) == 0 && fstatat(top, "deep", &other, 0) == 0 &&
							   st.st_ino == other.st_ino);
		check("a symbolic link", readlinkat(top, "../../link", buf, sizeof(buf)) == 8 && !memcmp(buf, "a/b/deep", 8) &&
					 fstatat(top, "../../link", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid == 5 &&
					 st.st_mtim.tv_nsec == then[1].tv_nsec);
		check("a device", fstatat(top, "../../null", &st, 0) == 0 && st.st_mode == (S_IFCHR | 0606) &&
				  st.st_rdev == makedev(1, 3));
		one = inside(top, "../../sparse");
		check("a sparse file", fstat(one, &st) == 0 && st.st_size == (20 << 20) + 3 && st.st_blocks < 100 &&
				       pread(one, buf, 3, 20 << 20) == 3 && !memcmp(buf, "end", 3) &&
				       pread(one, buf, 5, 0) == 5 && !memcmp(buf, "begin", 5));
		check("what is made there stays there", (one = openat(top, "new", O_CREAT | O_RDWR, 0600)) >= 0 && !is_listed(one));
		check("set-user-ID is off there", fstatfs(top, &fs) == 0 && (fs.f_flags & 2));
	}
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
