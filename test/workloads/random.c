// SPDX-License-Identifier: Apache-2.0
/*
 * Queues and corked datagrams with contents of chance, for a checkpoint in the middle. The same SEED makes the same again, which is
 * how they are checked once GO exists: "ok" or "BAD what" for each object, then "done".
 *
 *	random OUT GO SEED
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define QUEUES 16
#define CORKS 16
#define LONGEST 4096

struct message {
	unsigned priority;
	size_t len;
	int at;
	unsigned char data[LONGEST];
};

static uint64_t state;

/* splitmix64 */
static uint64_t chance(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* 0 to n - 1, small numbers and the largest more often than others. */
static size_t below(size_t n)
{
	switch (chance() % 4) {
	case 0:
		return chance() % (n < 4 ? n : 4);
	case 1:
		return n - 1;
	default:
		return chance() % n;
	}
}

static void fill(unsigned char *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		data[i] = (unsigned char)chance();
}

static int by_order(const void *a, const void *b)
{
	const struct message *x = a, *y = b;

	return x->priority != y->priority ? (x->priority < y->priority ? 1 : -1) : x->at - y->at;
}

/* The messages of a queue in the order of their sending; returns how many. */
static int make_messages(struct message *all, long *maxmsg, long *msgsize)
{
	int n;

	*maxmsg = 1 + (long)below(6);
	*msgsize = 1 + (long)below(LONGEST);
	n = (int)below((size_t)*maxmsg + 1);
	for (int i = 0; i < n; i++) {
		all[i].priority = (unsigned)(chance() % 2 ? below(4) : below(32768));
		all[i].len = below((size_t)*msgsize + 1);
		all[i].at = i;
		fill(all[i].data, all[i].len);
	}
	return n;
}

static void queues(mqd_t *mq, bool check, FILE *out)
{
	static struct message all[8];
	static char got[LONGEST];

	for (int q = 0; q < QUEUES; q++) {
		struct mq_attr attr = { 0 };
		char name[32];
		bool ok = true;
		int n = make_messages(all, &attr.mq_maxmsg, &attr.mq_msgsize);

		snprintf(name, sizeof(name), "/random%d", q);
		if (!check) {
			mq[q] = mq_open(name, O_CREAT | O_EXCL | O_RDWR | O_NONBLOCK, 0600, &attr);
			for (int i = 0; i < n && mq[q] >= 0; i++)
				ok = ok && mq_send(mq[q], (char *)all[i].data, all[i].len, all[i].priority) == 0;
			if (mq[q] < 0 || !ok) {
				perror(name);
				exit(1);
			}
			if (q % 2)
				mq_unlink(name);
			continue;
		}
		qsort(all, (size_t)n, sizeof(all[0]), by_order);
		for (int i = 0; i < n; i++) {
			unsigned priority;
			ssize_t len = mq_receive(mq[q], got, (size_t)attr.mq_msgsize, &priority);

			ok = ok && len == (ssize_t)all[i].len && priority == all[i].priority &&
			     !memcmp(got, all[i].data, all[i].len);
		}
		ok = ok && mq_receive(mq[q], got, (size_t)attr.mq_msgsize, NULL) < 0 && errno == EAGAIN;
		/* Those of an odd number have no name. */
		ok = ok && (mq_unlink(name) == 0) == (q % 2 == 0);
		fprintf(out, "%s queue %d of %d messages\n", ok ? "ok" : "BAD", q, n);
	}
}

static void corks(int *sk, int *receiver, bool check, FILE *out)
{
	static unsigned char data[65507], got[65536];
	const int on = 1, off = 0;

	for (int c = 0; c < CORKS; c++) {
		bool six = chance() % 2, by_option = chance() % 2;
		size_t len = 1 + below(65000), done = 0;
		ssize_t n;

		fill(data, len);
		if (!check)
			sk[c] = socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
		if (!check && by_option && setsockopt(sk[c], SOL_UDP, UDP_CORK, &on, sizeof(on)))
			exit(1);
		while (done < len) {
			size_t piece = 1 + below(len - done);

			if (!check) {
				struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
				struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
				socklen_t size = six ? sizeof(a6) : sizeof(a4);

				a6.sin6_port = htons(4001);
				a4.sin_port = htons(4000);
				if (sendto(sk[c], data + done, piece, by_option ? 0 : MSG_MORE,
					   six ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4, size) != (ssize_t)piece) {
					perror("sendto");
					exit(1);
				}
			}
			done += piece;
		}
		if (!check)
			continue;
		if (by_option)
			setsockopt(sk[c], SOL_UDP, UDP_CORK, &off, sizeof(off));
		else if (send(sk[c], "", 0, 0) < 0) {
			struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback, .sin6_port = htons(4001) };
			struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(4000) };

			a4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			(void)!sendto(sk[c], "", 0, 0, six ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4,
				      six ? sizeof(a6) : sizeof(a4));
		}
		n = recv(receiver[six], got, sizeof(got), 0);
		fprintf(out, "%s datagram %d of %zu bytes\n", n == (ssize_t)len && !memcmp(got, data, len) ? "ok" : "BAD", c, len);
	}
}

static int receive_at(int family)
{
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback, .sin6_port = htons(4001) };
	struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(4000) };
	const struct timeval limit = { .tv_sec = 5 };
	int sk = socket(family, SOCK_DGRAM, 0);

	a4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (sk < 0 || setsockopt(sk, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    bind(sk, family == AF_INET6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4,
		 family == AF_INET6 ? sizeof(a6) : sizeof(a4)))
		exit(1);
	return sk;
}

int main(int argc, char **argv)
{
	int sk[CORKS], receiver[2];
	mqd_t mq[QUEUES];
	FILE *out;

	if (argc != 4 || !(out = fopen(argv[1], "we")))
		return 2;
	receiver[0] = receive_at(AF_INET);
	receiver[1] = receive_at(AF_INET6);
	state = strtoull(argv[3], NULL, 10);
	queues(mq, false, out);
	corks(sk, receiver, false, out);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[2], F_OK))
		usleep(10000);
	state = strtoull(argv[3], NULL, 10);
	queues(mq, true, out);
	corks(sk, receiver, true, out);
	fprintf(out, "done\n");
	fclose(out);
	return 0;
}
