// SPDX-License-Identifier: Apache-2.0
/*
 * Files on a mount whose server may come and go, for a checkpoint in the middle. Makes them below DIR and opens, maps, locks
 * and enters them, writes "ready" to OUT, waits until GO exists, then checks that everything is as it was, goes on with
 * it, and writes "ok" or "BAD what" for each thing.
 *
 *	remote DIR OUT GO [all]
 *
 * all: what not every server has, as well: a FIFO, bound sockets; and a process whose root is there (CAP_SYS_CHROOT).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define BIG (64 * 1024)
#define NAMES 80

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

/* How often each name of the directory has been read, through a buffer that holds but a few of them. */
static unsigned int seen[NAMES];

/* Reads `n` names more, or up to the end; false: something is wrong with the stream. */
static bool reads_names(int fd, int n)
{
	_Alignas(8) char buf[256];
	long got, len;

	for (int count = 0; count < n;) {
		got = syscall(SYS_getdents64, fd, buf, sizeof(buf));
		if (got <= 0)
			return got == 0;
		for (long i = 0; i < got; i += len) {
			const char *name = buf + i + 19;
			char *end;
			unsigned long number = strtoul(name, &end, 10);
			uint16_t reclen;

			memcpy(&reclen, buf + i + 16, sizeof(reclen));
			len = reclen;
			if (name[0] == '.')
				continue;
			if (*end || number >= NAMES)
				return false;
			seen[number]++;
			count++;
		}
	}
	return true;
}

static bool each_once(void)
{
	for (int i = 0; i < NAMES; i++)
		if (seen[i] != 1) {
			fprintf(out, "name %d: %u times\n", i, seen[i]);
			return false;
		}
	return true;
}

static bool ofd_locked(const char *name)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 40, .l_len = 10 };
	int fd = open(at(name), O_RDWR);
	bool held = fd >= 0 && fcntl(fd, F_OFD_SETLK, &l) < 0 && errno == EAGAIN;

	return fd >= 0 && close(fd) == 0 && held;
}

/* Of what not every server has. */
static int fifo, stream, datagrams, root_go, root_said;

static int bound(const char *name, int type)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, type, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%.60s/%s", dir, name);
	unlink(address.sun_path);
	must(name, fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	return fd;
}

static bool reaches(const char *name, int type, int server)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, type | SOCK_NONBLOCK, 0), peer = server;
	char byte = 0;
	bool ok;

	snprintf(address.sun_path, sizeof(address.sun_path), "%.60s/%s", dir, name);
	ok = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
	if (ok && type == SOCK_STREAM)
		ok = (peer = accept(server, NULL, NULL)) >= 0;
	return ok && send(fd, "x", 1, 0) == 1 && recv(peer, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'x' && close(fd) == 0;
}

/* A process whose root is a directory there; asked by a pipe, it says whether it still is. */
static void rooted(void)
{
	int go[2], said[2];
	pid_t pid;

	must("pipe", pipe(go) == 0 && pipe(said) == 0);
	pid = fork();
	must("fork", pid >= 0);
	if (pid == 0) {
		char byte = chroot(at("sub")) == 0 && chdir("/") == 0 ? 'r' : 'n';
		int fd;

		close(go[1]);
		if (write(said[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
			_exit(1);
		fd = open("/inner", O_RDONLY);
		byte = fd >= 0 && reads(fd, "sub/inner", 1000) && access("/sub", F_OK) ? 'y' : 'n';
		_exit(write(said[1], &byte, 1) != 1);
	}
	root_go = go[1];
	root_said = said[0];
	must("chroot", read(root_said, &(char){ 0 }, 1) == 1);
}

static void make_special(void)
{
	unlink(at("fifo"));
	must("mkfifo", mkfifo(at("fifo"), 0600) == 0);
	fifo = open_at("fifo", O_RDWR | O_NONBLOCK);
	must("fifo", write(fifo, "in the pipe", 11) == 11);
	stream = bound("stream", SOCK_STREAM);
	must("listen", listen(stream, 1) == 0);
	datagrams = bound("datagrams", SOCK_DGRAM);
	rooted();
}

static void check_special(void)
{
	char text[20], byte = 0;
	int fd = open(at("fifo"), O_WRONLY | O_NONBLOCK);

	check("FIFO", read(fifo, text, sizeof(text)) == 11 && !memcmp(text, "in the pipe", 11));
	check("FIFO, by its name", fd >= 0 && write(fd, "more", 4) == 4 && read(fifo, text, sizeof(text)) == 4);
	check("socket, by its name", reaches("stream", SOCK_STREAM, stream));
	check("socket of datagrams, by its name", reaches("datagrams", SOCK_DGRAM, datagrams));
	check("root directory", write(root_go, "g", 1) == 1 && read(root_said, &byte, 1) == 1 && byte == 'y');
}

int main(int argc, char **argv)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10 };
	int rw, rw2, ro, app, sub, lk, fl, gone, link, fd, ofd, direct, many;
	bool all = argc == 5 && !strcmp(argv[4], "all");
	static _Alignas(PAGE) char page[PAGE];
	char *shared, *private;
	struct stat st;

	must("remote DIR OUT GO [all]", argc == 4 || all);
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
	fill("direct", 2 * PAGE);
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
	must("lock", fcntl(lk, F_SETLK, &lock) == 0);
	must("flock", flock(fl, LOCK_EX) == 0);
	ofd = open_at("locked by a description", O_CREAT | O_RDWR);
	lock.l_start = 40;
	must("OFD lock", fcntl(ofd, F_OFD_SETLK, &lock) == 0);
	direct = open_at("direct", O_RDWR | O_DIRECT);
	must("mkdir", mkdir(at("many"), 0755) == 0 || errno == EEXIST);
	for (int i = 0; i < NAMES; i++) {
		char name[20];

		snprintf(name, sizeof(name), "many/%d", i);
		fd = open_at(name, O_CREAT | O_WRONLY);
		must(name, close(fd) == 0);
	}
	many = open_at("many", O_RDONLY | O_DIRECTORY);
	must("names", reads_names(many, 30));
	if (all)
		make_special();
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
	check("lock", locked("locked"));
	fd = open(at("flocked"), O_RDWR);
	check("flock", fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
	check("OFD lock", ofd_locked("locked by a description"));
	check("O_DIRECT", fcntl(direct, F_GETFL) & O_DIRECT && pread(direct, page, PAGE, PAGE) == PAGE &&
				  same(page, "direct", PAGE, PAGE));
	page[1] = 'D';
	fd = open(at("direct"), O_RDONLY);
	check("O_DIRECT, written", pwrite(direct, page, PAGE, 0) == PAGE && fd >= 0 && pread(fd, dir + 190, 2, 0) == 2 &&
					   dir[191] == 'D');
	check("a directory's stream", reads_names(many, NAMES) && each_once());
	if (all)
		check_special();
	fprintf(out, "done\n");
	fclose(out);
	return 0;
}
