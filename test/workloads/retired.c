// SPDX-License-Identifier: Apache-2.0
/*
 * Uses a mounted directory in every way, and checks itself all the time, while another mount takes that one's place under
 * it. Writes "ready" to OUT, then "ok N" after each round, or "BAD what"; when GO exists, it looks at what can be looked at
 * only once, writes "done" and ends.
 *
 *	retired DIR OUT GO [strict|apart]
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define NAMES 300

static char dir[200];
static int out;

static void say(const char *format, ...)
{
	char line[200];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (write(out, line, (size_t)n) != n)
		abort();
}

static void check(const char *what, int ok)
{
	if (!ok)
		say("BAD %s: %s\n", what, strerror(errno));
}

static void must(const char *what, int ok)
{
	if (ok)
		return;
	fprintf(stderr, "retired: %s: %s\n", what, strerror(errno));
	exit(1);
}

static const char *at(const char *name)
{
	static _Thread_local char path[300];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static int open_at(const char *name, int flags)
{
	int fd = open(at(name), flags, 0640);

	must(name, fd >= 0);
	return fd;
}

/* The bytes of a file tell where they are. */
static char byte_at(long position)
{
	return (char)('a' + (position * 7 + position / 251) % 26);
}

static void fill(const char *name, long size)
{
	int fd = open_at(name, O_CREAT | O_TRUNC | O_WRONLY);
	char buf[PAGE];

	for (long p = 0; p < size; p += (long)sizeof(buf)) {
		for (int i = 0; i < (int)sizeof(buf); i++)
			buf[i] = byte_at(p + i);
		must(name, write(fd, buf, sizeof(buf)) == sizeof(buf));
	}
	close(fd);
}

static int is_at(const char *buf, long n, long position)
{
	for (long i = 0; i < n; i++)
		if (buf[i] != byte_at(position + i))
			return 0;
	return 1;
}

/* Reads on and on, without a lock of the others': a thread that a surgeon may choose as well. */
static void *reader(void *arg)
{
	int fd = open_at("pattern", O_RDONLY);
	char buf[1000];
	long position = 0;

	(void)arg;
	for (;;) {
		ssize_t n = read(fd, buf, sizeof(buf));

		check("a thread reads on", n >= 0 && is_at(buf, n, position));
		position += n;
		if (n == 0)
			position = lseek(fd, 0, SEEK_SET);
		check("a thread opens", access(at("pattern"), R_OK) == 0);
	}
	return NULL;
}

/* A thread with descriptors and a working directory of its own, which CRIU does not know of. */
static void *apart(void *arg)
{
	char buf[1000];
	long position = 0;
	struct stat st;
	int fd;

	(void)arg;
	must("unshare", unshare(CLONE_FILES | CLONE_FS) == 0 && chdir(at("many")) == 0);
	fd = open_at("pattern", O_RDONLY);
	for (;;) {
		struct timespec nap = { 0, 1000000 };
		ssize_t n = pread(fd, buf, sizeof(buf), position);

		check("a thread apart reads", n >= 0 && is_at(buf, n, position));
		position = n ? position + n : 0;
		check("a thread's own directory", stat("7", &st) == 0 && stat("file", &st) == -1);
		nanosleep(&nap, NULL);
	}
	return NULL;
}

static atomic_int woken;

/* Stands in a read of the FIFO from before to after. */
static void *waiter(void *arg)
{
	char byte = 0;

	check("a blocked read is answered", read(*(int *)arg, &byte, 1) == 1 && byte == 'w');
	woken = 1;
	return NULL;
}

/* Another process: shares an offset, and is refused the locks. */
static void other(int shared, int in, int answer)
{
	char byte, buf[64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(in, &byte, 1) == 1) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5 };
		long position = lseek(shared, 0, SEEK_CUR);
		int fd;

		check("the child reads on", read(shared, buf, 10) == 10 && is_at(buf, 10, position));
		fd = open_at("locked", O_RDWR);
		check("flock is held", flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
		close(fd);
		fd = open_at("ranges", O_RDWR);
		check("a POSIX lock is held", fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == getppid());
		lock = (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 5 };
		check("an OFD lock is held", fcntl(fd, F_OFD_SETLK, &lock) == -1 && errno == EAGAIN);
		lock.l_start = 30;
		check("no more is locked", fcntl(fd, F_OFD_SETLK, &lock) == 0);
		close(fd);
		if (write(answer, &byte, 1) != 1)
			break;
	}
	_exit(0);
}

/*
 * Calls that a surgeon makes here fail, as in a sandbox, and others end the program; strict: these do. What it does itself
 * is let through.
 */
static void forbid(int strict)
{
	static const int fail[] = { SYS_dup3, SYS_socketpair, SYS_recvmsg, SYS_sendto, SYS_fchdir, SYS_mremap };
	enum { N = sizeof(fail) / sizeof(fail[0]) };
	struct sock_filter filter[2 * N + 4] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	struct sock_fprog program = { .len = 2 * N + 4, .filter = filter };
	unsigned int action = strict ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM;

	for (int i = 0; i < N; i++) {
		filter[1 + 2 * i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)fail[i], 0, 1);
		filter[2 + 2 * i] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
	}
	filter[2 * N + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mount, 0, 1);
	filter[2 * N + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	filter[2 * N + 3] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	must("seccomp", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

int main(int argc, char **argv)
{
	int plain, shared, twin, append, directory, gone, ofd, locked, ranges, fifo, path, direct, epoll, to[2], from[2];
	long position = 0, appended = 0, rounds = 0;
	char *private, *public, buf[64], byte = 'g';
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 5 };
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0x123456789abc };
	static _Alignas(PAGE) char page[PAGE];
	pthread_t thread;
	struct stat st;
	DIR *stream;
	int seen = 0;

	if (argc < 4)
		return 2;
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	out = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
	must(argv[2], out >= 0);
	must("mkdir", mkdir(at("deep"), 0755) == 0 && mkdir(at("many"), 0755) == 0);
	fill("pattern", 64 * PAGE);
	fill("mapped", 4 * PAGE);
	fill("private", 4 * PAGE);
	fill("deep/file", PAGE);
	fill("locked", PAGE);
	fill("ranges", PAGE);
	for (int i = 0; i < NAMES; i++) {
		snprintf(buf, sizeof(buf), "many/%d", i);
		close(open_at(buf, O_CREAT | O_WRONLY));
	}

	plain = open_at("pattern", O_RDONLY | O_CLOEXEC);
	shared = open_at("pattern", O_RDWR);
	twin = dup(shared);
	append = open_at("log", O_CREAT | O_WRONLY | O_APPEND);
	directory = open_at("deep", O_RDONLY | O_DIRECTORY);
	path = open_at("deep/file", O_PATH);
	gone = open_at("gone", O_CREAT | O_RDWR);
	must("gone", write(gone, "without a name", 14) == 14 && unlink(at("gone")) == 0);
	must("mkfifo", mkfifo(at("fifo"), 0600) == 0);
	fifo = open_at("fifo", O_RDWR | O_NONBLOCK);
	must("fifo", write(fifo, "in the pipe", 11) == 11);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	must("epoll", epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fifo, &event) == 0);
	direct = open_at("pattern", O_RDONLY | O_DIRECT);
	must("mkfifo", mkfifo(at("blocking"), 0600) == 0);
	int blocking = open_at("blocking", O_RDWR);

	int fd = open_at("mapped", O_RDWR);

	public = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must("mmap", public != MAP_FAILED && mlock(public, PAGE) == 0);
	int private_fd = open_at("private", O_RDONLY);

	private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, private_fd, 0);
	must("mmap", private != MAP_FAILED);
	close(private_fd);
	memset(private + PAGE, 'P', 100);
	must("madvise", madvise(private, 4 * PAGE, MADV_RANDOM) == 0);

	locked = open_at("locked", O_RDWR);
	must("flock", flock(locked, LOCK_EX) == 0);
	ranges = open_at("ranges", O_RDWR);
	must("F_SETLK", fcntl(ranges, F_SETLK, &lock) == 0);
	ofd = open_at("ranges", O_RDWR);
	lock = (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 0 };
	must("F_OFD_SETLK", fcntl(ofd, F_OFD_SETLK, &lock) == 0);
	must("chdir", chdir(at("deep")) == 0);

	must("pipe", pipe(to) == 0 && pipe(from) == 0);
	pid_t child = fork();

	if (child == 0) {
		/* So that the end of this program ends it. */
		close(to[1]);
		other(shared, to[0], from[1]);
	}
	must("fork", child > 0);
	must("thread", pthread_create(&thread, NULL, reader, NULL) == 0 && pthread_create(&thread, NULL, reader, NULL) == 0 &&
	     (argc < 5 || strcmp(argv[4], "apart") || pthread_create(&thread, NULL, apart, NULL) == 0) &&
	     pthread_create(&thread, NULL, waiter, &blocking) == 0);
	stream = opendir(at("many"));
	must("opendir", stream != NULL && readdir(stream) != NULL);
	seen = 1;
	usleep(20000);
	forbid(argc == 5 && !strcmp(argv[4], "strict"));
	say("ready\n");

	while (access(argv[3], F_OK)) {
		struct timespec nap = { 0, 1000000 };

		check("read on", read(plain, buf, 13) == 13 && is_at(buf, 13, position));
		position = lseek(plain, 0, SEEK_CUR);
		if (position > 60 * PAGE)
			position = lseek(plain, 3, SEEK_SET);
		check("close-on-exec", fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(shared, F_GETFD) == 0);
		lseek(shared, rounds % 1000, SEEK_SET);
		check("shared by dup", read(twin, buf, 5) == 5 && is_at(buf, 5, rounds % 1000));
		errno = 0;
		check("the child answers", write(to[1], &byte, 1) == 1 && read(from[0], &byte, 1) == 1);
		check("shared by fork", lseek(shared, 0, SEEK_CUR) == rounds % 1000 + 15);
		check("append", write(append, "line\n", 5) == 5 && fstat(append, &st) == 0 && st.st_size == (appended += 5));
		check("append flag", fcntl(append, F_GETFL) & O_APPEND);
		fd = openat(directory, "file", O_RDONLY);
		check("from a directory", fd >= 0 && read(fd, buf, 8) == 8 && is_at(buf, 8, 0));
		close(fd);
		check("working directory", stat("file", &st) == 0 && st.st_size == PAGE);
		check("O_DIRECT", pread(direct, page, PAGE, 3 * PAGE) == PAGE && is_at(page, PAGE, 3 * PAGE) &&
				  fcntl(direct, F_GETFL) & O_DIRECT);
		event = (struct epoll_event){ 0 };
		check("epoll", epoll_wait(epoll, &event, 1, 0) == 1 && event.events == EPOLLIN && event.data.u64 == 0x123456789abc);
		check("O_PATH", fstat(path, &st) == 0 && st.st_size == PAGE);
		/* One file through a mapping and through a new descriptor. */
		memcpy(public + 2 * PAGE, &rounds, sizeof(rounds));
		fd = open_at("mapped", O_RDWR);
		long told = -1;

		check("a shared mapping is the file", pread(fd, &told, sizeof(told), 2 * PAGE) == sizeof(told) && told == rounds);
		told = ~rounds;
		check("write", pwrite(fd, &told, sizeof(told), 3 * PAGE) == sizeof(told));
		check("the file is its shared mapping", memcmp(public + 3 * PAGE, &told, sizeof(told)) == 0);
		close(fd);
		check("private pages", private[PAGE] == 'P' && private[PAGE + 99] == 'P' && is_at(private + PAGE + 100, 1000, PAGE + 100) &&
		      is_at(private, 1000, 0));
		errno = 0;
		check("read without a name", pread(gone, buf, 14, 0) == 14 && memcmp(buf, "without a name", 14) == 0);
		check("without a name", fstat(gone, &st) == 0 && st.st_nlink == 0);
		check("nap", nanosleep(&nap, NULL) == 0);
		if (++rounds % 10 == 0)
			say("ok %ld\n", rounds);
	}

	check("fifo", read(fifo, buf, 20) == 11 && memcmp(buf, "in the pipe", 11) == 0 && (fcntl(fifo, F_GETFL) & O_NONBLOCK));
	check("wake", write(blocking, "w", 1) == 1);
	for (int i = 0; i < 200 && !woken; i++)
		usleep(10000);
	check("woken", woken);
	while (readdir(stream))
		seen++;
	check("each name once", seen == NAMES + 2);
	check("the other private pages", is_at(private + 3 * PAGE, PAGE, 3 * PAGE) && is_at(private + 2 * PAGE, PAGE, 2 * PAGE));
	must("close", close(to[1]) == 0);
	say("done\n");
	return 0;
}
