// SPDX-License-Identifier: Apache-2.0
/*
 * Files on a mount whose server may come and go, for a checkpoint in the middle. Makes them below DIR and opens, maps, locks
 * and enters them, writes "ready" to OUT, waits until GO exists, then checks that everything is as it was, goes on with
 * it, and writes "ok" or "BAD what" for each thing.
 *
 *	remote DIR OUT GO [nolocks]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define BIG (64 * 1024)

static FILE *out;
static char dir[200];

static void check(const char *what, bool ok)
{
	if (ok)
		fprintf(out, "ok %s\n", what);
	else
		fprintf(out, "BAD %s (%s)\n", what, strerror(errno));
	fflush(out);
	errno = 0;
}

static void must(const char *what, bool ok)
{
	if (ok)
		return;
	fprintf(stderr, "remote: %s: %s\n", what, strerror(errno));
	exit(1);
}

static const char *at(const char *name)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static int open_at(const char *name, int flags)
{
	int fd = open(at(name), flags, 0640);

	must(name, fd >= 0);
	return fd;
}

/* A byte for each place in each file. */
static char byte_at(const char *name, size_t i)
{
	return (char)((unsigned char)name[0] * 31 + i * 7 + i / 251);
}

static void fill(const char *name, size_t size)
{
	static char data[BIG];
	int fd = open_at(name, O_CREAT | O_TRUNC | O_WRONLY);

	for (size_t i = 0; i < size; i++)
		data[i] = byte_at(name, i);
	must(name, write(fd, data, size) == (ssize_t)size);
	must(name, close(fd) == 0);
}

static bool same(const char *data, const char *name, size_t from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (data[i] != byte_at(name, from + i))
			return false;
	return true;
}

static bool reads(int fd, const char *name, size_t n)
{
	static char data[BIG];
	off_t from = lseek(fd, 0, SEEK_CUR);

	return from >= 0 && read(fd, data, n) == (ssize_t)n && same(data, name, (size_t)from, n);
}

static bool has(int fd, const char *text)
{
	char data[200];
	ssize_t n = pread(fd, data, sizeof(data), 0);

	return n == (ssize_t)strlen(text) && !memcmp(data, text, n);
}

/* In another process: whether the range is locked by this one. */
static bool locked(const char *name)
{
	pid_t pid, parent = getpid();
	int status;

	pid = fork();
	if (pid == 0) {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10 };
		int fd = open(at(name), O_RDWR);

		_exit(fd >= 0 && fcntl(fd, F_GETLK, &l) == 0 && l.l_type == F_WRLCK && l.l_pid == parent ? 0 : 1);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10 };
	int rw, rw2, ro, app, sub, lk, fl, gone, link, fd;
	bool locks = argc == 4;
	char *shared, *private;
	struct stat st;

	must("remote DIR OUT GO [nolocks]", argc >= 4);
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	out = fopen(argv[2], "w");
	must(argv[2], out);
	must("mkdir", mkdir(at("sub"), 0755) == 0 || errno == EEXIST);
	fill("rw", BIG);
	fill("only-read", BIG);
	fill("shared", 3 * PAGE);
	fill("private", 3 * PAGE);
	fill("sub/inner", 1000);
	fill("locked", 100);
	fill("flocked", 100);
	unlink(at("link"));
	must("symlink", symlink("sub/inner", at("link")) == 0);

	rw = open_at("rw", O_RDWR);
	must("rw", pwrite(rw, "mark", 4, 12341) == 4 && lseek(rw, 12345, SEEK_SET) == 12345);
	rw2 = dup(rw);
	ro = open_at("only-read", O_RDONLY);
	must("only-read", lseek(ro, 100, SEEK_SET) == 100);
	app = open_at("append", O_CREAT | O_TRUNC | O_RDWR | O_APPEND);
	must("append", write(app, "before\n", 7) == 7);
	sub = open_at("sub", O_RDONLY | O_DIRECTORY);
	link = open_at("link", O_RDONLY);
	must("link", lseek(link, 10, SEEK_SET) == 10);
	gone = open_at("gone", O_CREAT | O_TRUNC | O_RDWR);
	must("gone", write(gone, "still here", 10) == 10 && unlink(at("gone")) == 0);
	lk = open_at("locked", O_RDWR);
	fl = open_at("flocked", O_RDWR);
	if (locks) {
		must("lock", fcntl(lk, F_SETLK, &lock) == 0);
		must("flock", flock(fl, LOCK_EX) == 0);
	}
	fd = open_at("shared", O_RDWR);
	shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must("shared", shared != MAP_FAILED && close(fd) == 0);
	shared[5] = 'S';
	must("msync", msync(shared, 3 * PAGE, MS_SYNC) == 0);
	fd = open_at("private", O_RDWR);
	private = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	must("private", private != MAP_FAILED && close(fd) == 0);
	private[5] = 'P';
	must("private", *(volatile char *)(private + PAGE) == byte_at("private", PAGE));
	must("chdir", chdir(at("sub")) == 0);

	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[3], F_OK))
		usleep(20000);

	check("offset", lseek(rw2, 0, SEEK_CUR) == 12345 && lseek(ro, 0, SEEK_CUR) == 100);
	check("read", reads(ro, "only-read", BIG - 100));
	check("read-write", reads(rw, "rw", BIG - 12345) && lseek(rw2, 0, SEEK_CUR) == BIG);
	check("what was written before", pread(rw, dir + 190, 4, 12341) == 4 && !memcmp(dir + 190, "mark", 4));
	check("writing", pwrite(rw, "more", 4, 20000) == 4 && pread(rw, dir + 190, 4, 20000) == 4 &&
				 !memcmp(dir + 190, "more", 4));
	check("size", fstat(rw, &st) == 0 && st.st_size == BIG);
	check("append", write(app, "after\n", 6) == 6 && has(app, "before\nafter\n"));
	check("directory", (fd = openat(sub, "inner", O_RDONLY)) >= 0 && reads(fd, "sub/inner", 1000) && close(fd) == 0);
	check("working directory", (fd = open("inner", O_RDONLY)) >= 0 && reads(fd, "sub/inner", 1000) && close(fd) == 0);
	check("opened by a link", lseek(link, 0, SEEK_CUR) == 10 && reads(link, "sub/inner", 900));
	check("file without a name", has(gone, "still here") && pwrite(gone, "ever", 4, 6) == 4 && has(gone, "still ever"));
	check("its name is gone", access(at("gone"), F_OK) < 0 && errno == ENOENT);
	check("shared mapping, written", shared[5] == 'S' && same(shared + 6, "shared", 6, PAGE - 6));
	check("shared mapping, untouched", same(shared + PAGE, "shared", PAGE, 2 * PAGE));
	shared[PAGE + 1] = 'T';
	fd = open(at("shared"), O_RDONLY);
	check("shared mapping, to the file", msync(shared, 3 * PAGE, MS_SYNC) == 0 && fd >= 0 &&
						     pread(fd, dir + 190, 1, PAGE + 1) == 1 && dir[190] == 'T');
	check("private mapping, copied", private[5] == 'P' && same(private + 6, "private", 6, PAGE - 6));
	check("private mapping, touched", same(private + PAGE, "private", PAGE, PAGE));
	check("private mapping, untouched", same(private + 2 * PAGE, "private", 2 * PAGE, PAGE));
	if (locks) {
		check("lock", locked("locked"));
		fd = open(at("flocked"), O_RDWR);
		check("flock", fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	}
	fprintf(out, "done\n");
	fclose(out);
	return 0;
}
