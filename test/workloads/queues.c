// SPDX-License-Identifier: Apache-2.0
/*
 * POSIX message queues of every kind, for a checkpoint in the middle. Sets all up, writes "ready" to OUT, waits until GO
 * exists, then checks that everything is as it was and writes "ok" or "BAD what" for each thing.
 *
 *	queues OUT GO
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sent.h"

#define SMALL 64
#define LARGE 8192

static FILE *out;
static volatile sig_atomic_t signalled, threaded;

static void check(const char *what, bool ok)
{
	fprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
	fflush(out);
}

static mqd_t make(const char *name, int flags, long maxmsg, long msgsize)
{
	struct mq_attr attr = { .mq_maxmsg = maxmsg, .mq_msgsize = msgsize };
	mqd_t q = mq_open(name, O_CREAT | O_EXCL | flags, 0640, &attr);

	if (q < 0) {
		fprintf(stderr, "mq_open %s: %s\n", name, strerror(errno));
		exit(1);
	}
	return q;
}

static void send_(mqd_t q, const void *data, size_t len, unsigned priority)
{
	if (mq_send(q, data, len, priority)) {
		perror("mq_send");
		exit(1);
	}
}

static void on_signal(int signo, siginfo_t *info, void *context)
{
	(void)signo, (void)context;
	signalled = info->si_value.sival_int;
}

static void on_thread(union sigval value)
{
	threaded = value.sival_int;
}

static struct timespec in(long seconds)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += seconds;
	return t;
}

/* Waits in mq_timedreceive for a message that comes after the restore. */
static void *receiver(void *arg)
{
	static char got[SMALL];
	struct timespec until = in(1200);
	ssize_t n = mq_timedreceive(*(mqd_t *)arg, got, sizeof(got), NULL, &until);

	return n == 5 && !memcmp(got, "later", 5) ? (void *)1 : NULL;
}

/* Waits in mq_timedsend on a full queue. */
static void *sender(void *arg)
{
	struct timespec until = in(1200);

	return mq_timedsend(*(mqd_t *)arg, "third", 5, 0, &until) ? NULL : (void *)1;
}

static bool wait_for(volatile sig_atomic_t *what, int value)
{
	for (int i = 0; i < 500 && *what != value; i++)
		usleep(10000);
	return *what == value;
}

static void fill_large(unsigned char *data, int seed)
{
	for (int i = 0; i < LARGE; i++)
		data[i] = (unsigned char)(i * 7 + seed + (i >> 8));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	struct sigevent by_signal = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 4711 };
	struct sigevent by_thread = { .sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread, .sigev_value.sival_int = 815 };
	mqd_t plain, unlinked, reader, writer, large, empty, full, signal_q, thread_q, polled, dup_q;
	unsigned char data[LARGE], want[LARGE];
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 42 };
	pthread_t receiving, sending;
	struct mq_attr attr, before;
	struct stat st;
	char small[SMALL];
	unsigned priority;
	int epoll, child, status, flight[2];
	void *result;
	ssize_t n;

	if (argc != 3 || !(out = fopen(argv[1], "w")))
		return 2;
	umask(0);
	sigaction(SIGUSR1, &action, NULL);
	plain = make("/plain", O_RDWR | O_NONBLOCK, 10, SMALL);
	for (int i = 0; i < 8; i++) {
		snprintf(small, sizeof(small), "message %d", i);
		send_(plain, small, strlen(small), (unsigned)(i * 37 % 5));
	}
	send_(plain, "", 0, 31);
	send_(plain, "top", 3, 32767);
	if (fchmod(plain, 0604))
		perror("fchmod");
	unlinked = make("/unlinked", O_RDWR, 3, SMALL);
	send_(unlinked, "nameless", 8, 3);
	mq_unlink("/unlinked");
	dup_q = dup(unlinked);
	large = make("/large", O_RDWR | O_NONBLOCK, 8, LARGE);
	for (int i = 0; i < 8; i++) {
		fill_large(data, i);
		send_(large, data, (size_t)(LARGE - i), 1);
	}
	writer = make("/ways", O_WRONLY, 4, SMALL);
	reader = mq_open("/ways", O_RDONLY | O_NONBLOCK);
	empty = make("/empty", O_RDWR, 2, SMALL);
	full = make("/full", O_RDWR, 2, SMALL);
	send_(full, "first", 5, 0);
	send_(full, "second", 6, 0);
	signal_q = make("/signal", O_RDWR, 2, SMALL);
	thread_q = make("/thread", O_RDWR, 2, SMALL);
	polled = make("/polled", O_RDWR, 2, SMALL);
	mq_close(make("/closed", O_RDWR, 2, SMALL)); /* nobody has it open */
	if (mq_notify(signal_q, &by_signal) || mq_notify(thread_q, &by_thread))
		return 3;
	epoll = epoll_create1(0);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, polled, &event))
		return 4;
	/* In nobody's hands but on their way: one without a name, one with, and one that is open as well. */
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, flight))
		return 5;
	for (int named = 0; named < 2; named++) {
		mqd_t q = make("/sent", O_RDWR | (named ? 0 : O_NONBLOCK), 3, SMALL);

		send_(q, named ? "named" : "nameless", named ? 5 : 8, 7);
		if (!named)
			mq_unlink("/sent");
		if (put_in_flight(flight[0], q))
			return 5;
		mq_close(q);
	}
	if (put_in_flight(flight[0], plain))
		return 5;
	child = fork();
	if (child == 0) {
		/* Shares the open files. */
		while (access(argv[2], F_OK))
			usleep(10000);
		usleep(200000);
		_exit(mq_send(unlinked, "from child", 10, 9) ? 1 : 0);
	}
	pthread_create(&receiving, NULL, receiver, &empty);
	pthread_create(&sending, NULL, sender, &full);
	usleep(200000);
	mq_getattr(plain, &before);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[2], F_OK))
		usleep(10000);

	mq_getattr(plain, &attr);
	check("attributes", attr.mq_maxmsg == 10 && attr.mq_msgsize == SMALL && attr.mq_curmsgs == 10 && attr.mq_flags == O_NONBLOCK);
	fstat(plain, &st);
	check("mode and owner", (st.st_mode & 07777) == 0604 && st.st_uid == getuid());
	n = mq_receive(plain, small, sizeof(small), &priority);
	check("highest priority first", n == 3 && priority == 32767 && !memcmp(small, "top", 3));
	n = mq_receive(plain, small, sizeof(small), &priority);
	check("empty message", n == 0 && priority == 31);
	{
		int sorted[8], k = 0;
		bool ok = true;

		for (int p = 4; p >= 0; p--)
			for (int i = 0; i < 8; i++)
				if (i * 37 % 5 == p)
					sorted[k++] = i;
		for (k = 0; k < 8; k++) {
			char expected[SMALL];

			n = mq_receive(plain, small, sizeof(small), &priority);
			snprintf(expected, sizeof(expected), "message %d", sorted[k]);
			ok = ok && n == (ssize_t)strlen(expected) && !memcmp(small, expected, (size_t)n) &&
			     priority == (unsigned)(sorted[k] * 37 % 5);
		}
		check("order within a priority", ok);
	}
	check("O_NONBLOCK", mq_receive(plain, small, sizeof(small), NULL) < 0 && errno == EAGAIN);
	{
		bool ok = true;

		for (int i = 0; i < 8; i++) {
			fill_large(want, i);
			n = mq_receive(large, (char *)data, sizeof(data), &priority);
			ok = ok && n == LARGE - i && !memcmp(data, want, (size_t)n);
		}
		check("messages of several pages", ok);
	}
	check("access modes", mq_send(reader, "x", 1, 0) < 0 && errno == EBADF && mq_send(writer, "x", 1, 0) == 0 &&
				      mq_receive(reader, small, sizeof(small), NULL) == 1);
	n = mq_receive(dup_q, small, sizeof(small), &priority);
	check("unlinked queue", n == 8 && !memcmp(small, "nameless", 8));
	check("unlinked stays so", mq_open("/unlinked", O_RDONLY) < 0 && errno == ENOENT);
	n = mq_receive(dup_q, small, sizeof(small), &priority);
	check("shared with a child", n == 10 && !memcmp(small, "from child", 10));
	waitpid(child, &status, 0);
	check("by name again", mq_open("/plain", O_RDONLY) >= 0 && mq_open("/closed", O_RDONLY) >= 0);
	send_(empty, "later", 5, 0);
	pthread_join(receiving, &result);
	check("blocked receiver", result == (void *)1);
	mq_receive(full, small, sizeof(small), NULL);
	pthread_join(sending, &result);
	check("blocked sender", result == (void *)1);
	send_(signal_q, "x", 1, 0);
	check("notification by signal", wait_for(&signalled, 4711));
	send_(thread_q, "x", 1, 0);
	check("notification by thread", wait_for(&threaded, 815));
	check("epoll, nothing there", epoll_wait(epoll, &event, 1, 0) == 0);
	send_(polled, "x", 1, 0);
	check("epoll, something there", epoll_wait(epoll, &event, 1, 1000) == 1 && event.data.u64 == 42);
	{
		mqd_t nameless = receive_sent(flight[1]), named = receive_sent(flight[1]), again = receive_sent(flight[1]);

		n = mq_receive(nameless, small, sizeof(small), &priority);
		check("unlinked, on its way", n == 8 && priority == 7 && !memcmp(small, "nameless", 8) &&
		      (fcntl(nameless, F_GETFL) & O_NONBLOCK));
		n = mq_receive(named, small, sizeof(small), &priority);
		check("by name, on its way", n == 5 && priority == 7 && !memcmp(small, "named", 5) && mq_open("/sent", O_RDONLY) >= 0);
		fcntl(again, F_SETFL, 0);
		check("open and on its way", !(fcntl(plain, F_GETFL) & O_NONBLOCK));
	}
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
