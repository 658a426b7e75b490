// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The surgeon under AddressSanitizer and UndefinedBehaviorSanitizer, on a child of this program. */
#define _GNU_SOURCE
#include "hold.h"
#include "swap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int passed, failed;
static struct swap_visit visit;

static void check(int ok, const char *behaviour)
{
	printf("%s - %s\n", ok ? "ok" : "not ok", behaviour);
	if (ok)
		passed++;
	else
		failed++;
}

static int open_temp(const char *content)
{
	int fd = memfd_create("surgeon-test", MFD_CLOEXEC);

	if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content) || ftruncate(fd, 4096)) {
		perror("memfd");
		exit(1);
	}
	return fd;
}

/* A process has all that it maps from here on locked, as one that has no right to lock more than its limit says. */
static void lock_memory(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];

	if (syscall(SYS_capget, &head, caps))
		_exit(1);
	caps[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &head, caps) || mlockall(MCL_FUTURE))
		_exit(1);
}

/* A child that stands in pause(), with `real` at descriptor 50 and mapped at `map`. */
static pid_t start_child(int real, void **map, bool locks)
{
	pid_t pid;

	*map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, real, 0);
	if (*map == MAP_FAILED || (pid = fork()) < 0) {
		perror("start_child");
		exit(1);
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (dup2(real, 50) != 50)
			_exit(1);
		if (locks)
			lock_memory();
		for (;;)
			pause();
	}
	return pid;
}

static int swaps_and_undoes(pid_t pid, int type, int fd, int placeholder, int now)
{
	const struct control_msg order = { .type = (uint16_t)type, .pid = pid, .fd = fd };
	int fds[2] = { dup(placeholder), dup(now) }, ok;
	struct surgeon_error err = { "", 0 };
	struct swap s;

	if (swap_read(&s, &order, fds, 2, &err))
		return 0;
	ok = !swap_make(&visit, &s, &err) && swap_in_place(&s) && !swap_undo(&visit, &s, &err) && !swap_in_place(&s) &&
	     !swap_undo(&visit, &s, &err) && swap_task_lives(&s) && !swap_leave(&visit, &err);
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
	swap_close(&s);
	return ok;
}

static char *read_maps(pid_t pid)
{
	char path[64], *text = calloc(1, 1 << 20);
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!text || !maps || fread(text, 1, (1 << 20) - 1, maps) == 0) {
		perror(path);
		exit(1);
	}
	fclose(maps);
	return text;
}

/* Little more memory than it has, and little of it locked. */
static bool limit_memory(pid_t pid, bool locks)
{
	const struct rlimit locked = { 1 << 20, 1 << 20 };
	struct rlimit all = { 0, RLIM_INFINITY };
	unsigned long pages = 0;
	char path[64];
	FILE *statm;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	statm = fopen(path, "re");
	if (!statm || fscanf(statm, "%lu", &pages) != 1) {
		perror(path);
		exit(1);
	}
	fclose(statm);
	all.rlim_cur = (pages << 12) + (1 << 20);
	return prlimit(pid, RLIMIT_AS, &all, NULL) == 0 && (!locks || prlimit(pid, RLIMIT_MEMLOCK, &locked, NULL) == 0);
}

/* An io_uring refuses MAP_FIXED: its mappings come back to holes among others, and nothing else is mapped then. */
static void ring_is_put_back(bool limited)
{
	/* The last is the beginning of one of which the rest was unmapped. */
	static const uint64_t offsets[3] = { IORING_OFF_SQ_RING, IORING_OFF_SQES, IORING_OFF_SQES };
	static const uint64_t lens[3] = { 4096, 8192, 4096 };
	struct io_uring_params params = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 128, &params);
	char *at[7], *before, *after, bytes[3][64], now[64];
	struct rlimit limits[4];
	/* Who cannot raise a hard limit cannot help a task that has all its memory locked. */
	bool raises = setrlimit(RLIMIT_MEMLOCK, &(const struct rlimit){ RLIM_INFINITY, RLIM_INFINITY }) == 0;
	struct surgeon_error err = { "", 0 };
	struct swap s[3];
	pid_t pid;
	int ok;

	if (ring < 0) {
		printf("# no io_uring here: %s\n", strerror(errno));
		return;
	}
	/* Holes above and below, larger and smaller ones. */
	for (int i = 0; i < 7; i++)
		at[i] = mmap(NULL, i >= 5 ? 8192 : 4096, PROT_READ | PROT_WRITE, MAP_SHARED, i == 3 || i >= 5 ? ring : open_temp("x"),
			     i >= 5 ? (off_t)IORING_OFF_SQES : 0);
	munmap(at[1], 4096);
	munmap(at[4], 4096);
	munmap(at[6] + 4096, 4096);
	pid = start_child(open_temp("real"), (void **)&at[0], limited && raises);
	usleep(100000);
	before = read_maps(pid);
	ok = !surgeon_seize(pid, &err) && (!limited || limit_memory(pid, raises)) && !prlimit(pid, RLIMIT_AS, NULL, &limits[0]) &&
	     !prlimit(pid, RLIMIT_MEMLOCK, NULL, &limits[1]);
	for (int i = 0; ok && i < 3; i++) {
		const struct control_msg order = {
			.type = CONTROL_SWAP_MAPPING, .flags = CONTROL_ANONYMOUS | CONTROL_OWN_FD, .fd = ring, .pid = pid,
			.addr = (uintptr_t)at[i ? 4 + i : 3], .len = lens[i], .a6 = i == 2 ? 4096 : 0, .a0 = PROT_READ | PROT_WRITE,
			.a1 = MAP_PRIVATE | MAP_ANONYMOUS, .a3 = offsets[i], .a4 = MAP_SHARED,
		};

		ok = !surgeon_read(pid, order.addr, bytes[i], sizeof(bytes[i]), &err) && !swap_read(&s[i], &order, NULL, 0, &err) &&
		     !swap_make(&visit, &s[i], &err) && swap_in_place(&s[i]) && !surgeon_write(pid, order.addr, "placeholder", 12, &err);
	}
	for (int i = 3; ok && i-- > 0;)
		ok = !swap_undo(&visit, &s[i], &err) && !swap_in_place(&s[i]) &&
		     !surgeon_read(pid, s[i].order.addr, now, sizeof(now), &err) && !memcmp(bytes[i], now, sizeof(now));
	ok = !swap_leave(&visit, &err) && ok;
	after = read_maps(pid);
	ok = ok && !prlimit(pid, RLIMIT_AS, NULL, &limits[2]) && !prlimit(pid, RLIMIT_MEMLOCK, NULL, &limits[3]) &&
	     !memcmp(&limits[0], &limits[2], 2 * sizeof(limits[0]));
	check(ok && !strcmp(before, after),
	      limited ? "also where the task may have and lock little memory" :
			"mappings whose file takes no address are put back at their own, and all memory is as it was");
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
	free(before);
	free(after);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* What a child with two threads has done, in memory that all see. */
struct work {
	volatile unsigned long turns[2];
	volatile int conts, tid;
	unsigned long seen[2];	/* by the tracer, at its end */
	struct surgeon_record record;
};
static struct work *work;

static void on_cont(int sig)
{
	(void)sig;
	work->conts++;
}

static void *turn(void *arg)
{
	if (arg)
		work->tid = (int)syscall(SYS_gettid);
	for (;;)
		work->turns[arg != NULL]++;
	return NULL;
}

static pid_t start_busy_child(void)
{
	pid_t pid;

	work = mmap(NULL, sizeof(*work), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (work == MAP_FAILED || (pid = fork()) < 0) {
		perror("start_busy_child");
		exit(1);
	}
	if (pid == 0) {
		pthread_t thread;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGCONT, on_cont);
		if (pthread_create(&thread, NULL, turn, work))
			_exit(1);
		turn(NULL);
	}
	while (!work->tid || !work->turns[0] || !work->turns[1])
		usleep(1000);
	return pid;
}

static void remember_turns(void)
{
	work->seen[0] = work->turns[0];
	work->seen[1] = work->turns[1];
}

static int went_on(void)
{
	return work->turns[0] != work->seen[0] || work->turns[1] != work->seen[1];
}

enum die { FREE, HELD, HELD_IN_A_CALL };

/* A tracer that ends all of a sudden; returns whether it did what it was to do before. */
static int trace_and_die(pid_t pid, enum die how)
{
	pid_t tracer = fork();
	int status = 0;

	if (tracer == 0) {
		const uint64_t call[7] = { SYS_getpid };
		struct surgeon_error err = { "", 0 };
		struct surgeon s;
		int64_t ret = 0;

		if (surgeon_seize(pid, &err) || surgeon_seize(work->tid, &err) || (how != FREE && (!surgeon_may_hold(pid) || surgeon_hold(pid, &err))))
			_exit(1);
		surgeon_keep(&work->record);
		/* Who is held still does what it is told to. */
		if (surgeon_begin(&s, work->tid, &err) || surgeon_syscall(&s, call, &ret, &err) || ret != pid ||
		    (how != HELD_IN_A_CALL && surgeon_end(&s, &err)))
			_exit(1);
		remember_turns();
		_exit(0);
	}
	return waitpid(tracer, &status, 0) == tracer && status == 0;
}

static void held_process_outlives_its_tracer(void)
{
	struct surgeon_error err = { "", 0 };
	pid_t pid = start_busy_child();
	int ok = trace_and_die(pid, FREE);

	usleep(100000);
	check(ok && went_on(), "the tasks of a dead tracer run on");
	ok = trace_and_die(pid, HELD);
	usleep(100000);
	check(ok && !went_on(), "held ones do not run one instruction");
	ok = !surgeon_seize(pid, &err) && !surgeon_seize(work->tid, &err) && surgeon_is_held(pid) && !surgeon_may_hold(pid);
	check(ok && !went_on(), "the next tracer finds them held");
	ok = !surgeon_unhold(pid, &err) && !surgeon_is_held(pid) && !went_on() && !surgeon_release(work->tid, &err) && !surgeon_release(pid, &err);
	usleep(100000);
	check(ok && went_on() && work->conts == 0, "let go on, they do, and see no signal");
	ok = trace_and_die(pid, HELD_IN_A_CALL) && !surgeon_seize(pid, &err) && !surgeon_seize(work->tid, &err) &&
	     !surgeon_close(&work->record, pid, &err) && surgeon_close(&work->record, work->tid, &err) && !err.err && !went_on() &&
	     !surgeon_unhold(pid, &err) && !surgeon_release(work->tid, &err) && !surgeon_release(pid, &err);
	usleep(100000);
	check(ok && work->turns[1] != work->seen[1] && work->conts == 0,
	      "one whose tracer has died in an injected call goes on where it was");
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
	kill(pid, SIGSTOP);
	usleep(50000);
	check(!surgeon_seize(pid, &err) && !surgeon_may_hold(pid), "who is stopped already is not held");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Where each descriptor of a process leads. */
static char *read_fds(pid_t pid)
{
	char *text = calloc(1, 1 << 16), path[64];
	struct dirent *d;
	size_t len = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!text || !dir) {
		perror(path);
		exit(1);
	}
	while ((d = readdir(dir)) && len < 1 << 15) {
		char to[256];
		ssize_t n = readlinkat(dirfd(dir), d->d_name, to, sizeof(to));

		if (n > 0)
			len += (size_t)sprintf(text + len, "%s %.*s\n", d->d_name, (int)n, to);
	}
	closedir(dir);
	return text;
}

/* Swaps a ring, its mapping and descriptor 50 of a task, undoes that, and ends without leaving the task. */
static bool swap_and_die(pid_t pid, int ring, void *memory, int real, int fake, struct surgeon_record *record)
{
	const struct control_msg orders[3] = {
		{ .type = CONTROL_SWAP_MAPPING, .flags = CONTROL_ANONYMOUS | CONTROL_OWN_FD, .fd = ring, .pid = pid, .addr = (uintptr_t)memory,
		  .len = 4096, .a0 = PROT_READ | PROT_WRITE, .a1 = MAP_PRIVATE | MAP_ANONYMOUS, .a4 = MAP_SHARED },
		{ .type = CONTROL_SWAP_FD, .flags = CONTROL_TAKE, .fd = ring, .pid = pid },
		{ .type = CONTROL_SWAP_FD, .fd = 50, .pid = pid },
	};
	struct surgeon_error err = { "", 0 };
	struct swap s[3];
	pid_t tracer = fork();
	int status = 0;

	if (tracer == 0) {
		bool ok = !surgeon_seize(pid, &err) && surgeon_may_hold(pid) && !surgeon_hold(pid, &err);

		surgeon_keep(record);
		for (int i = 0; ok && i < 3; i++) {
			int fds[2] = { dup(fake), dup(real) };

			ok = !swap_read(&s[i], &orders[i], fds, i, &err) && !swap_make(&visit, &s[i], &err);
		}
		ok = ok && !swap_leave(&visit, &err) && !record->open;
		for (int i = 3; ok && i-- > 0;)
			ok = !swap_undo(&visit, &s[i], &err);
		if (err.err)
			printf("# %s: %s\n", err.step, strerror(err.err));
		fflush(stdout);
		_exit(!ok);
	}
	return waitpid(tracer, &status, 0) == tracer && status == 0;
}

static void open_visit_is_closed(void)
{
	struct surgeon_record *record = mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int real = open_temp("real"), fake = open_temp("fake");
	struct io_uring_params params = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 8, &params);
	struct surgeon_error err = { "", 0 };
	char *maps[3], *fds[3];
	void *memory, *map;
	pid_t pid;
	int ok;

	if (ring < 0) {
		printf("# no io_uring here: %s\n", strerror(errno));
		return;
	}
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	if (record == MAP_FAILED || memory == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	pid = start_child(real, &map, false);
	usleep(100000);
	maps[0] = read_maps(pid);
	fds[0] = read_fds(pid);
	ok = swap_and_die(pid, ring, memory, real, fake, record) && !surgeon_seize(pid, &err);
	maps[1] = read_maps(pid);
	fds[1] = read_fds(pid);
	check(ok && record->open && record->n_filled > 0 && strcmp(maps[0], maps[1]) != 0 && strcmp(fds[0], fds[1]) != 0,
	      "a tracer that dies between two swaps leaves what they share in the task");
	ok = surgeon_close(record, pid, &err) && !err.err;
	maps[2] = read_maps(pid);
	fds[2] = read_fds(pid);
	check(ok && !strcmp(maps[0], maps[2]) && !strcmp(fds[0], fds[2]), "the next one takes it away");
	ok = !surgeon_unhold(pid, &err) && !surgeon_release(pid, &err);
	usleep(100000);
	check(ok && kill(pid, 0) == 0 && waitpid(pid, NULL, WNOHANG) == 0, "and the task goes on");
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
	for (int i = 0; i < 3; i++) {
		free(maps[i]);
		free(fds[i]);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	int real = open_temp("real"), fake = open_temp("fake"), old = -1;
	struct surgeon_error err = { "", 0 };
	char buf[8] = "";
	struct surgeon s;
	int64_t ret = 0;
	void *map;
	pid_t pid = start_child(real, &map, false);

	usleep(100000);
	check(surgeon_seize(pid, &err) == 0, "a child is seized");
	for (int i = 0; i < 100; i++) {
		const uint64_t call[7] = { SYS_getpid };

		if (surgeon_begin(&s, pid, &err) || surgeon_syscall(&s, call, &ret, &err) || surgeon_end(&s, &err))
			break;
	}
	check(ret == pid && !err.err, "a hundred injected calls return what they must");
	{
		const uint64_t call[7] = { SYS_close, 4000 };

		check(!surgeon_begin(&s, pid, &err) && !surgeon_syscall(&s, call, &ret, &err) && !surgeon_end(&s, &err) &&
		      ret == -EBADF, "a failing call is told by its errno");
	}
	check(surgeon_take_fd(pid, 50, &old, &err) == 0 && pread(old, buf, 4, 0) == 4 && !memcmp(buf, "real", 4),
	      "a descriptor is taken");
	check(surgeon_swap_fd(pid, 50, fake, 0, &err) == 0, "a descriptor is swapped");
	check(surgeon_take_fd(pid, 49, &old, &err) == -1 && err.err == EBADF, "one that is not there cannot be taken");
	check(swaps_and_undoes(pid, CONTROL_SWAP_FD, 50, fake, real), "a swap knows whether it is in place, and is undone twice");
	check(swaps_and_undoes(pid, CONTROL_SWAP_CWD, 0, open("/proc", O_PATH), open("/proc/self/cwd", O_PATH)),
	      "so does one of the working directory");
	check(swaps_and_undoes(pid, CONTROL_SWAP_ROOT, 0, open("/proc", O_PATH), open("/", O_PATH)), "and of the root");
	ring_is_put_back(false);
	ring_is_put_back(true);
	held_process_outlives_its_tracer();
	open_visit_is_closed();
	check(surgeon_swap_mapping(pid, (uintptr_t)map, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fake, -1, 0, (struct surgeon_cut){ 0 }, &err) == 0,
	      "a mapping is swapped");
	check(surgeon_read(pid, (uintptr_t)map, buf, 4, &err) == 0 && !memcmp(buf, "fake", 4), "the new one is read there");
	check(surgeon_write(pid, (uintptr_t)map, "made", 4, &err) == 0 && pread(fake, buf, 4, 0) == 4 &&
	      !memcmp(buf, "made", 4), "what is written there reaches its file");
	check(surgeon_read(pid, 8, buf, 4, &err) == -1, "memory that is not mapped is an error");
	check(surgeon_release(pid, &err) == 0 && waitpid(pid, NULL, WNOHANG) == 0, "the child lives on");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	check(surgeon_seize(pid, &err) == -1 && err.err == ESRCH, "a dead task cannot be seized");
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
