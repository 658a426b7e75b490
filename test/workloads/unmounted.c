// SPDX-License-Identifier: Apache-2.0
/*
 * Everything but plain files on a mount that has been unmounted lazily, for a checkpoint in the middle. DIR/sub is made
 * and bound to DIR/at; all is opened there, it is unmounted with MNT_DETACH, "ready" is written to OUT. When GO exists
 * all is compared with what it was: "ok what" or "BAD what" for each thing, then "done".
 *
 *	unmounted DIR OUT GO
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unmounted.h"

static int open_at(const char *name, int flags)
{
	int fd = open(at(name), flags, 0640);

	must(name, fd >= 0);
	return fd;
}

static int put(const char *name, const char *text)
{
	int fd = open_at(name, O_CREAT | O_RDWR);

	must(name, write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	return fd;
}

#define LARGE (40 << 20)

int main(int argc, char **argv)
{
	enum { ZERO, FULL, BOTH, READER, WRITER, OTHER, GONE_FIFO, LINKED, GONE_DIR, LARGE_GONE, SYMLINK, ALL };
	static const char *const names[ALL] = { "zero", "full", "fifo", "fifo, reading", "fifo, writing", "another fifo",
						"a fifo without a name", "another link", "a directory without a name",
						"a large file without a name", "a symbolic link" };
	/* A tmpfs that CRIU has restored has other inodes than before: what counts is that it is the file of this name. */
	static const char *const paths[ALL] = { "sub/zero", "sub/full", "sub/fifo", "sub/fifo", "sub/fifo", "sub/deep/other", NULL,
						"sub/deep/second", NULL, NULL, "sub/link" };
	struct stat before[ALL], st, named;
	struct sockaddr_un addr = { .sun_family = AF_UNIX }, name;
	int fd[ALL], i, inherited, one, listener, client, server, on = 0;
	socklen_t len = sizeof(name);
	char buf[8192] = "";

	if (argc != 4)
		return 2;
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	out = fopen(argv[2], "w");
	must(argv[2], out != NULL);
	umask(0);
	must("mkdir", mkdir(at("sub"), 0755) == 0 && mkdir(at("sub/deep"), 0755) == 0 && mkdir(at("at"), 0755) == 0);
	must("mount", mount(at("sub"), at("at"), NULL, MS_BIND, NULL) == 0);
	must("mknod", mknod(at("at/zero"), S_IFCHR | 0666, makedev(1, 5)) == 0 &&
		      mknod(at("at/full"), S_IFCHR | 0600, makedev(1, 7)) == 0);
	fd[ZERO] = open_at("at/zero", O_RDWR);
	fd[FULL] = open_at("at/full", O_WRONLY);
	must("mkfifo", mkfifo(at("at/fifo"), 0610) == 0 && mkfifo(at("at/deep/other"), 0666) == 0 && mkfifo(at("at/gone"), 0604) == 0);
	fd[BOTH] = open_at("at/fifo", O_RDWR);
	fd[READER] = open_at("at/fifo", O_RDONLY);
	fd[WRITER] = open_at("at/fifo", O_WRONLY | O_NONBLOCK);
	must("write", write(fd[WRITER], "fifo content", 12) == 12);
	/* Only its reading end is left: what is in it, then its end. */
	fd[OTHER] = open_at("at/deep/other", O_RDONLY | O_NONBLOCK);
	one = open_at("at/deep/other", O_WRONLY);
	must("write", write(one, "last words", 10) == 10);
	close(one);
	fd[GONE_FIFO] = open_at("at/gone", O_RDWR);
	must("write", write(fd[GONE_FIFO], "unlinked", 8) == 8 && unlink(at("at/gone")) == 0);
	fd[LINKED] = put("at/first", "hard link");
	must("link", link(at("at/first"), at("at/deep/second")) == 0 && unlink(at("at/first")) == 0);
	must("mkdir", mkdir(at("at/empty"), 0705) == 0);
	fd[GONE_DIR] = open_at("at/empty", O_RDONLY | O_DIRECTORY);
	must("rmdir", rmdir(at("at/empty")) == 0);
	fd[LARGE_GONE] = put("at/large", "begin");
	must("pwrite", pwrite(fd[LARGE_GONE], "end", 3, LARGE) == 3);
	for (i = 8; i < 28; i++) {
		memset(buf, i, sizeof(buf));
		must("pwrite", pwrite(fd[LARGE_GONE], buf, sizeof(buf), i << 20) == (ssize_t)sizeof(buf));
	}
	must("unlink", unlink(at("at/large")) == 0);
	must("symlink", symlink("nowhere", at("at/link")) == 0);
	fd[SYMLINK] = open_at("at/link", O_PATH | O_NOFOLLOW);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", at("at/socket"));
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	must("bind", bind(listener, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(listener, 5) == 0);
	must("connect", connect(client, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	server = accept(listener, NULL, NULL);
	must("accept", server >= 0 && write(server, "queued", 6) == 6);
	must("umount", umount2(at("at"), MNT_DETACH) == 0);
	inherited = dup(fd[BOTH]);
	for (i = 0; i < ALL; i++)
		must("fstat", fstat(fd[i], &before[i]) == 0);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[3], F_OK))
		usleep(20000);

	for (i = 0; i < ALL; i++) {
		must("fstat", fstat(fd[i], &st) == 0);
		check(names[i], !is_listed(fd[i]) && st.st_mode == before[i].st_mode && st.st_rdev == before[i].st_rdev &&
					st.st_uid == before[i].st_uid && st.st_nlink == before[i].st_nlink &&
					(!paths[i] || (lstat(at(paths[i]), &named) == 0 && st.st_ino == named.st_ino)));
	}
	check("a device works", read(fd[ZERO], buf, 16) == 16 && !memcmp(buf, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	check("another device works", write(fd[FULL], "x", 1) < 0 && errno == ENOSPC);
	check("a fifo has what was in it", read(fd[READER], buf, 100) == 12 && !memcmp(buf, "fifo content", 12));
	check("and no more", fcntl(fd[BOTH], F_SETFL, O_NONBLOCK) == 0 && read(inherited, buf, 100) < 0 && errno == EAGAIN);
	check("its ends are one pipe", write(fd[WRITER], "on", 2) == 2 && read(fd[READER], buf, 100) == 2);
	check("flags of its ends", (fcntl(fd[READER], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDONLY &&
				   (fcntl(fd[WRITER], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_WRONLY | O_NONBLOCK));
	check("a fifo without writers", read(fd[OTHER], buf, 100) == 10 && !memcmp(buf, "last words", 10));
	check("ends", read(fd[OTHER], buf, 100) == 0);
	check("a fifo without a name has what was in it", read(fd[GONE_FIFO], buf, 100) == 8 && !memcmp(buf, "unlinked", 8));
	check("the other link has the same content", pread(fd[LINKED], buf, 100, 0) == 9 && !memcmp(buf, "hard link", 9) &&
						      pwrite(fd[LINKED], "HARD", 4, 0) == 4);
	one = open_at("sub/deep/second", O_RDONLY);
	check("and is the same file", read(one, buf, 100) == 9 && !memcmp(buf, "HARD link", 9));
	check("a directory without a name is empty", openat(fd[GONE_DIR], "x", O_CREAT | O_RDWR, 0600) < 0 && errno == ENOENT);
	check("a large file: its size", fstat(fd[LARGE_GONE], &st) == 0 && st.st_size == LARGE + 3);
	check("its holes", st.st_blocks < 2048);
	check("its beginning and end", pread(fd[LARGE_GONE], buf, 5, 0) == 5 && !memcmp(buf, "begin", 5) &&
				       pread(fd[LARGE_GONE], buf, 10, LARGE) == 3 && !memcmp(buf, "end", 3));
	for (i = 8; i < 28; i++)
		if (pread(fd[LARGE_GONE], buf, sizeof(buf), i << 20) != (ssize_t)sizeof(buf) || buf[0] != i || buf[8191] != i)
			break;
	check("and what is between", i == 28);
	check("its time", st.st_mtim.tv_sec == before[LARGE_GONE].st_mtim.tv_sec &&
			  st.st_mtim.tv_nsec == before[LARGE_GONE].st_mtim.tv_nsec);
	check("a symbolic link", readlinkat(fd[SYMLINK], "", buf, 100) == 7 && !memcmp(buf, "nowhere", 7));
	check("a socket's name", getsockname(listener, (struct sockaddr *)&name, &len) == 0 && !strcmp(name.sun_path, addr.sun_path));
	len = sizeof(on);
	check("it listens", getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) == 0 && on);
	check("its connection", read(client, buf, 100) == 6 && !memcmp(buf, "queued", 6) && write(client, "on", 2) == 2 &&
				read(server, buf, 100) == 2);
	check("nothing is left where it would be now", access(at("at/socket"), F_OK) < 0);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
