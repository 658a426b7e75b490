// SPDX-License-Identifier: Apache-2.0
/*
 * A task on which the surgeon operates: it checks itself all the time and writes what it sees to a file, one line a
 * time: "ok N" after each round, "BAD what" when anything was other than it must be.
 *
 *	patient OUT threads|seccomp|restart|files|family
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int out;

static void say(const char *what, long n)
{
	char line[128];
	int len = snprintf(line, sizeof(line), "%s %ld\n", what, n);

	if (write(out, line, (size_t)len) != len)
		abort();
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Arithmetic that any lost or changed register would spoil. */
static void *compute(void *arg)
{
	long id = (long)arg;

	for (long round = 0;; round++) {
		uint64_t a = 1, b = 0x9e3779b97f4a7c15u, c = (uint64_t)id, d = 7, e = 11, f = 13, sum = 0;

		for (long i = 0; i < 300000; i++) {
			a = a * 6364136223846793005u + 1442695040888963407u;
			b ^= b << 13, b ^= b >> 7, b ^= b << 17;
			c += 3, d += 5, e ^= c, f += e ^ d;
			sum += a ^ b ^ f;
		}
		static __thread uint64_t first;

		if (round == 0)
			first = sum;
		else if (sum != first)
			say("BAD sum in thread", id);
		if (c != (uint64_t)id + 900000 || d != 1500007)
			say("BAD counters in thread", id);
		say("ok", round);
	}
	return NULL;
}

/* Interrupted calls must go on with the time that is left, and no program may see EINTR without a signal of its own. */
static void *sleeper(void *arg)
{
	long kind = (long)arg;

	for (long round = 0;; round++) {
		struct timespec t = { .tv_sec = 1, .tv_nsec = 500000000 };
		uint32_t word = 0;
		double start = now(), took;
		long r;

		errno = 0;
		if (kind == 0)
			r = syscall(SYS_nanosleep, &t, NULL);
		else if (kind == 1)
			r = poll(NULL, 0, 1500);
		else
			r = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0);
		took = now() - start;
		if (kind == 2 ? r != -1 || errno != ETIMEDOUT : r != 0)
			say("BAD result of a restarted call", errno);
		if (took < 1.49)
			say("BAD early return of a restarted call, ms", (long)(took * 1000));
		say("ok", round);
	}
	return NULL;
}

static void spawn(void *(*work)(void *), long arg)
{
	pthread_t t;

	if (pthread_create(&t, NULL, work, (void *)arg))
		abort();
}

/* Kills at getpid and at anything that is not on its short list. */
static void strict_seccomp(void)
{
	static const int allowed[] = { SYS_write, SYS_nanosleep, SYS_clock_nanosleep, SYS_clock_gettime, SYS_rt_sigreturn,
				       SYS_restart_syscall, SYS_exit_group, SYS_futex };
	struct sock_filter code[4 + 2 * sizeof(allowed) / sizeof(allowed[0])];
	size_t n = 0;
	struct sock_fprog prog;

	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++) {
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)allowed[i], 0, 1);
		code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	prog = (struct sock_fprog){ .len = (unsigned short)n, .filter = code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		abort();
}

/* Descriptor 50 and a shared mapping of a file: "real" must be read in both whenever the program runs. */
static void files(const char *path)
{
	char name[256], *map;
	int fd;

	snprintf(name, sizeof(name), "%s.real", path);
	fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, "real", 4) != 4 || ftruncate(fd, 4096) || dup2(fd, 50) != 50)
		abort();
	map = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (map == MAP_FAILED)
		abort();
	close(fd);
	for (long round = 0;; round++) {
		char buf[5] = "";

		for (int i = 0; i < 2000; i++) {
			if (pread(50, buf, 4, 0) != 4 || memcmp(buf, "real", 4))
				say("BAD descriptor", errno);
			if (memcmp(map, "real", 4))
				say("BAD mapping", 0);
		}
		say("ok", round);
		usleep(500);
	}
}

static void on_signal(int sig)
{
	say("BAD signal that nobody has sent", sig);
}

/* Parent and child, each with its `files`; both would be told if the child were stopped and went on. */
static void family(const char *path)
{
	struct sigaction act = { .sa_handler = on_signal };
	char name[256];
	pid_t child;

	if (sigaction(SIGCHLD, &act, NULL) || sigaction(SIGCONT, &act, NULL))
		abort();
	child = fork();
	if (child < 0)
		abort();
	snprintf(name, sizeof(name), "%s.child", path);
	if (child == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	files(child == 0 ? name : path);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	out = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (out < 0)
		return 1;
	if (!strcmp(argv[2], "threads")) {
		for (long i = 1; i < 4; i++)
			spawn(compute, i);
		compute(NULL);
	} else if (!strcmp(argv[2], "restart")) {
		spawn(sleeper, 1);
		spawn(sleeper, 2);
		sleeper(NULL);
	} else if (!strcmp(argv[2], "seccomp")) {
		strict_seccomp();
		for (long round = 0;; round++) {
			struct timespec t = { .tv_nsec = 20000000 };

			syscall(SYS_nanosleep, &t, NULL);
			say("ok", round);
		}
	} else if (!strcmp(argv[2], "files")) {
		files(argv[1]);
	} else if (!strcmp(argv[2], "family")) {
		family(argv[1]);
	}
	return 2;
}
