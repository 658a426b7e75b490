// SPDX-License-Identifier: Apache-2.0
/*
 * pidfds of every kind, for a checkpoint in the middle. Sets all up, writes "ready" to OUT, waits until GO exists, then
 * checks that everything is as it was and writes "ok" or "BAD what" for each thing.
 *
 *	pidfds OUT GO [LIVES DIES]
 *
 * LIVES is a process outside that lives on, and that is killed once "kill it" is in OUT; DIES one that dies before the restore.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sent.h"

#define PIDFD_THREAD O_EXCL
#define PIDFD_SELF (-20000)
#define MARK 0x1122334455667788ull

static FILE *out;
static volatile sig_atomic_t signalled;
static volatile int worker_tid, end_worker;

static void check(const char *what, bool ok)
{
	fprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
	fflush(out);
}

static int must(int fd, const char *what)
{
	if (fd < 0) {
		perror(what);
		exit(1);
	}
	return fd;
}

static int open_(int pid, int flags)
{
	return must((int)syscall(SYS_pidfd_open, pid, flags), "pidfd_open");
}

static int send_(int fd, int sig)
{
	return (int)syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0);
}

static bool is_over(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* The number that the kernel tells of a pidfd, -1: it has ended. */
static int of(int fd)
{
	char path[64], line[256];
	int pid = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	if (info)
		fclose(info);
	return pid;
}

static void on_signal(int signo)
{
	(void)signo;
	signalled = (int)syscall(SYS_gettid);
}

static void *worker(void *arg)
{
	(void)arg;
	worker_tid = (int)syscall(SYS_gettid);
	while (!end_worker)
		usleep(10000);
	return NULL;
}

static void *ends_at_once(void *arg)
{
	*(int *)arg = open_((int)syscall(SYS_gettid), PIDFD_THREAD);
	return NULL;
}

/* A child with a thread of its own, whose number it writes. */
static pid_t child_with_thread(int *thread, int shared)
{
	int numbers[2];
	pthread_t t;
	pid_t pid;

	must(pipe2(numbers, O_CLOEXEC), "pipe");
	pid = must(fork(), "fork");
	if (pid == 0) {
		end_worker = worker_tid = 0;
		pthread_create(&t, NULL, worker, NULL);
		while (!worker_tid)
			usleep(1000);
		if (write(numbers[1], (int *)&worker_tid, sizeof(int)) != sizeof(int))
			_exit(1);
		/* Told by a signal of number 0 that the parent has changed the shared one's flags. */
		for (;;) {
			if (fcntl(shared, F_GETFL) & O_NONBLOCK)
				_exit(of(shared) > 0 ? 42 : 43);
			usleep(10000);
		}
	}
	if (read(numbers[0], thread, sizeof(*thread)) != sizeof(*thread))
		exit(1);
	close(numbers[0]);
	close(numbers[1]);
	return pid;
}

static bool set_attribute(int fd)
{
	return syscall(SYS_fsetxattr, fd, "trusted.cryoshim", "kept", 4, 0) == 0;
}

static bool has_attribute(int fd)
{
	char value[8];

	return syscall(SYS_fgetxattr, fd, "trusted.cryoshim", value, sizeof(value)) == 4 && !memcmp(value, "kept", 4);
}

static void wait_for(const char *path)
{
	while (access(path, F_OK))
		usleep(10000);
}

int main(int argc, char **argv)
{
	int dead_thread = -1, dead, thread, twin, leader, childs_thread, child_thread_tid, child_fd, nonblocking, shared, poller;
	int flight[2], lives = -1, dies = -1, status = 0, got;
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = MARK };
	bool attributes = false, self = send_(PIDFD_SELF, 0) == 0;
	pthread_t t, ending;
	siginfo_t info;
	pid_t child, gone, sleeper;

	if (argc != 3 && argc != 5)
		return 2;
	out = fopen(argv[1], "we");
	if (!out)
		return 1;
	signal(SIGUSR1, on_signal);
	pthread_create(&t, NULL, worker, NULL);
	while (!worker_tid)
		usleep(1000);
	thread = open_(worker_tid, PIDFD_THREAD);
	must(fcntl(thread, F_SETFD, 0), "F_SETFD");
	twin = must(dup(thread), "dup");
	leader = open_(getpid(), PIDFD_THREAD | O_NONBLOCK);
	pthread_create(&ending, NULL, ends_at_once, &dead_thread);
	pthread_join(ending, NULL);
	shared = open_(worker_tid, PIDFD_THREAD);
	child = child_with_thread(&child_thread_tid, shared);
	childs_thread = open_(child_thread_tid, PIDFD_THREAD);
	child_fd = open_(child, 0);
	sleeper = must(fork(), "fork");
	if (sleeper == 0)
		for (;;)
			pause();
	nonblocking = open_(sleeper, O_NONBLOCK);
	gone = must(fork(), "fork");
	if (gone == 0)
		_exit(7);
	dead = open_(gone, 0);
	waitpid(gone, NULL, 0);
	poller = must(epoll_create1(0), "epoll_create1");
	must(epoll_ctl(poller, EPOLL_CTL_ADD, thread, &event), "epoll_ctl");
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, flight), "socketpair");
	must(put_in_flight(flight[0], child_fd), "sendmsg");
	must(put_in_flight(flight[0], leader), "sendmsg");
	if (argc == 5) {
		lives = open_(atoi(argv[3]), 0);
		dies = open_(atoi(argv[4]), O_NONBLOCK);
		must(put_in_flight(flight[0], lives), "sendmsg");
		attributes = set_attribute(lives) && set_attribute(child_fd);
	}
	fprintf(out, "ready\n");
	fflush(out);
	wait_for(argv[2]);

	check("a thread's pidfd is of that thread", of(thread) == worker_tid && !is_over(thread));
	check("it has its flags", (fcntl(thread, F_GETFL) & PIDFD_THREAD) && fcntl(thread, F_GETFD) == 0);
	send_(thread, SIGUSR1);
	for (int i = 0; i < 200 && !signalled; i++)
		usleep(10000);
	check("a signal through it reaches that thread", signalled == worker_tid);
	fcntl(thread, F_SETFL, O_NONBLOCK);
	check("its duplicate shares it", fcntl(twin, F_GETFL) & O_NONBLOCK);
	check("the leader's is of the leader", of(leader) == getpid() && (fcntl(leader, F_GETFL) & PIDFD_THREAD) &&
	      (fcntl(leader, F_GETFL) & O_NONBLOCK));
	check("one of a dead thread is over", of(dead_thread) == -1 && is_over(dead_thread) && send_(dead_thread, 0) == -1 &&
	      errno == ESRCH && (fcntl(dead_thread, F_GETFL) & PIDFD_THREAD));
	check("one of another process's thread is of that", of(childs_thread) == child_thread_tid && !is_over(childs_thread));
	check("one of a dead process is over", of(dead) == -1 && is_over(dead) && send_(dead, 0) == -1 && errno == ESRCH);
	check("PIDFD_NONBLOCK is kept", waitid(P_PIDFD, (id_t)nonblocking, &info, WEXITED) == -1 && errno == EAGAIN);
	check("one on its way is of the child", (got = receive_sent(flight[1])) >= 0 && of(got) == child);
	check("one of the leader, too", (got = receive_sent(flight[1])) >= 0 && of(got) == getpid() &&
	      (fcntl(got, F_GETFL) & PIDFD_THREAD));
	check("PIDFD_SELF is as it was", (send_(PIDFD_SELF, 0) == 0) == self);
	memset(&event, 0, sizeof(event));
	check("epoll does not see an end yet", epoll_wait(poller, &event, 1, 0) == 0);
	fcntl(shared, F_SETFL, O_NONBLOCK);
	waitpid(child, &status, 0);
	check("one that is shared with a child is the same there", WIFEXITED(status) && WEXITSTATUS(status) == 42);
	check("a child's end is seen", is_over(child_fd) && is_over(childs_thread));
	end_worker = 1;
	pthread_join(t, NULL);
	check("epoll sees the thread's end", epoll_wait(poller, &event, 1, 2000) == 1 && event.data.u64 == MARK);
	check("so does the pidfd", is_over(thread) && is_over(twin));
	if (argc == 5) {
		check("one of a process outside is of that", of(lives) == atoi(argv[3]) && !is_over(lives));
		check("one of it on its way, too", (got = receive_sent(flight[1])) >= 0 && of(got) == atoi(argv[3]));
		/* Linux 6.17 */
		check("its attributes are as they were", has_attribute(lives) == attributes);
		fprintf(out, "attributes %d %d\n", attributes, has_attribute(child_fd));
		check("one that has died meanwhile is over", of(dies) == -1 && is_over(dies) && send_(dies, 0) == -1 &&
		      errno == ESRCH && (fcntl(dies, F_GETFL) & O_NONBLOCK));
		fprintf(out, "kill it\n");
		fflush(out);
		for (int i = 0; i < 500 && !is_over(lives); i++)
			usleep(10000);
		check("its end is seen", is_over(lives) && is_over(got));
	}
	fprintf(out, "done\n");
	fclose(out);
	kill(sleeper, SIGKILL);
	return 0;
}
