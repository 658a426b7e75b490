// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The surgeon under AddressSanitizer and UndefinedBehaviorSanitizer, on a child of this program. */
#define _GNU_SOURCE
#include "hold.h"
#include "swap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int passed, failed;

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

/* A child that stands in pause(), with `real` at descriptor 50 and mapped at `map`. */
static pid_t start_child(int real, void **map)
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
	ok = !swap_make(&s, &err) && swap_in_place(&s) && !swap_undo(&s, &err) && !swap_in_place(&s) &&
	     !swap_undo(&s, &err) && swap_task_lives(&s);
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
	swap_close(&s);
	return ok;
}

/* An io_uring refuses MAP_FIXED: its mapping comes back to a hole among others. */
static void ring_is_put_back(void)
{
	struct io_uring_params params = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 8, &params);
	struct control_msg order = { .type = CONTROL_SWAP_MAPPING, .flags = CONTROL_ANONYMOUS | CONTROL_OWN_FD, .fd = ring, .len = 4096,
				     .a0 = PROT_READ | PROT_WRITE, .a1 = MAP_PRIVATE | MAP_ANONYMOUS, .a4 = MAP_SHARED };
	struct surgeon_error err = { "", 0 };
	char *at[6], before[64], after[64];
	struct swap s;
	pid_t pid;
	int ok;

	if (ring < 0) {
		printf("# no io_uring here: %s\n", strerror(errno));
		return;
	}
	/* Holes above and below, larger and smaller ones. */
	for (int i = 0; i < 6; i++)
		at[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, i == 3 ? ring : open_temp("x"), 0);
	munmap(at[1], 4096);
	munmap(at[4], 4096);
	pid = start_child(open_temp("real"), (void **)&at[0]);
	usleep(100000);
	order.pid = pid;
	order.addr = (uintptr_t)at[3];
	ok = !surgeon_seize(pid, &err) && !surgeon_read(pid, order.addr, before, sizeof(before), &err) &&
	     !swap_read(&s, &order, NULL, 0, &err) && !swap_make(&s, &err) && swap_in_place(&s) &&
	     !surgeon_write(pid, order.addr, "placeholder", 12, &err) && !swap_undo(&s, &err) && !swap_in_place(&s) &&
	     !surgeon_read(pid, order.addr, after, sizeof(after), &err) && !memcmp(before, after, sizeof(before));
	check(ok, "a mapping whose file takes no address is put back at its own");
	if (err.err)
		printf("# %s: %s\n", err.step, strerror(err.err));
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

int main(void)
{
	int real = open_temp("real"), fake = open_temp("fake"), old = -1;
	struct surgeon_error err = { "", 0 };
	char buf[8] = "";
	struct surgeon s;
	int64_t ret = 0;
	void *map;
	pid_t pid = start_child(real, &map);

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
	ring_is_put_back();
	held_process_outlives_its_tracer();
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
