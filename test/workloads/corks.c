// SPDX-License-Identifier: Apache-2.0
/*
 * Corked UDP sockets of every kind, for a checkpoint in the middle. Sets all up on the loopback device, writes "ready" to
 * OUT, waits until GO exists, then adds the rest to each datagram, sends it, and writes "ok" or "BAD what" for each.
 *
 *	corks OUT GO
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef IPPROTO_UDPLITE
#define IPPROTO_UDPLITE 136
#endif
#define LARGEST 65507

static FILE *out;
static uint8_t payload[LARGEST + 100], got[LARGEST + 100];

static void check(const char *what, bool ok)
{
	fprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
	fflush(out);
}

static void die(const char *what)
{
	fprintf(stderr, "corks: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void on(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

struct end {
	int fd;
	struct sockaddr_storage addr;
	socklen_t len;
};

static int make(int family, int proto)
{
	int fd = socket(family, SOCK_DGRAM, proto);

	if (fd < 0)
		die("socket");
	return fd;
}

static struct end receiver(int family, int proto)
{
	struct end e = { .fd = make(family, proto), .len = sizeof(e.addr) };
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	bool six = family == AF_INET6;

	if (bind(e.fd, six ? (void *)&v6 : (void *)&v4, six ? sizeof(v6) : sizeof(v4)) ||
	    getsockname(e.fd, (void *)&e.addr, &e.len))
		die("bind");
	return e;
}

/* CRIU does not restore these. */
static void want_all(int fd, bool six)
{
	if (six) {
		on(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
		on(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
	} else {
		on(fd, IPPROTO_IP, IP_RECVTTL, 1);
		on(fd, IPPROTO_IP, IP_RECVTOS, 1);
		on(fd, IPPROTO_IP, IP_RECVOPTS, 1);
	}
}

/* One control message; level 0 and type 0: none. */
struct extra {
	int level, type;
	const void *data;
	size_t len;
};

static void give(int fd, const struct end *to, size_t from, size_t len, int flags, const struct extra *extra, int extras)
{
	char control[256] = { 0 };
	struct iovec iov = { payload + from, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;
	int i;

	if (to) {
		msg.msg_name = (void *)&to->addr;
		msg.msg_namelen = to->len;
	}
	if (extras) {
		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		for (i = 0; i < extras; i++) {
			c->cmsg_level = extra[i].level;
			c->cmsg_type = extra[i].type;
			c->cmsg_len = CMSG_LEN(extra[i].len);
			memcpy(CMSG_DATA(c), extra[i].data, extra[i].len);
			c = (struct cmsghdr *)((char *)c + CMSG_SPACE(extra[i].len));
		}
		msg.msg_controllen = (size_t)((char *)c - control);
	}
	if (sendmsg(fd, &msg, flags) != (ssize_t)len)
		die("sendmsg");
}

/* What came: its size, -1 for nothing; a value of a control message, the source. */
struct arrival {
	ssize_t size;
	int value;
	uint8_t options[40];
	size_t options_len;
	struct sockaddr_in source;
};

static struct arrival take(int fd, int level, int type)
{
	struct arrival a = { .value = -1 };
	char control[256];
	struct iovec iov = { got, sizeof(got) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
			      .msg_name = &a.source, .msg_namelen = sizeof(a.source) };
	struct cmsghdr *c;

	a.size = recvmsg(fd, &msg, MSG_DONTWAIT);
	if (a.size < 0)
		return a;
	for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level == level && c->cmsg_type == type)
			a.value = type == IP_TOS && level == IPPROTO_IP ? *CMSG_DATA(c) : *(int *)CMSG_DATA(c);
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVOPTS) {
			a.options_len = c->cmsg_len - CMSG_LEN(0);
			memcpy(a.options, CMSG_DATA(c), a.options_len < 40 ? a.options_len : 40);
		}
	}
	return a;
}

static bool is_whole(struct arrival a, size_t size)
{
	return a.size == (ssize_t)size && !memcmp(got, payload, size);
}

enum {
	PLAIN, CONNECTED, MORE, SIX, MAPPED, TTL, TOS, HOPS, LITE, SOURCE, SEGMENTS, OPTIONS, SHARED, EMPTY, LONE, MORE_TTL, MORE_SIX, ALL
};

/* Begun with MSG_MORE, without UDP_CORK. */
static bool is_more(int i)
{
	return i == MORE || i == MAPPED || i == MORE_TTL || i == MORE_SIX;
}

int main(int argc, char **argv)
{
	static const char *const names[ALL] = { "pieces", "connected, 60000 bytes", "MSG_MORE", "IPv6, 65000 bytes", "v4-mapped",
		"TTL", "TOS", "hop limit and traffic class", "UDP-Lite", "source address", "segments", "IP options",
		"shared by fork", "corked and empty", "the largest, one byte short",
		"MSG_MORE with TTL and source address", "MSG_MORE with hop limit and traffic class" };
	struct end to[ALL], *v4 = &to[PLAIN];
	int fd[ALL], i, seven = 7, sixteen = 16, nine = 9, tclass = 32;
	uint16_t segment = 1000;
	uint8_t alert[4] = { 148, 4, 0, 0 };
	struct in_pktinfo source = { .ipi_spec_dst = { htonl(0x7f000009) } };
	struct sockaddr_in6 mapped = { .sin6_family = AF_INET6 };
	struct arrival a, b, c;
	size_t at;
	pid_t child;

	if (argc != 3)
		return 2;
	out = fopen(argv[1], "w");
	if (!out)
		die(argv[1]);
	for (i = 0; i < (int)sizeof(payload); i++)
		payload[i] = (uint8_t)(i * 131 + i / 251);
	for (i = 0; i < ALL; i++) {
		int family = i == SIX || i == HOPS || i == MORE_SIX ? AF_INET6 : AF_INET, proto = i == LITE ? IPPROTO_UDPLITE : 0;

		to[i] = receiver(family, proto);
		on(to[i].fd, SOL_SOCKET, SO_RCVBUF, 1 << 20);
		fd[i] = make(i == MAPPED ? AF_INET6 : family, proto);
		on(fd[i], SOL_SOCKET, SO_SNDBUF, 1 << 18);
		if (!is_more(i))
			on(fd[i], SOL_UDP, UDP_CORK, 1);
	}
	give(fd[PLAIN], v4, 0, 3, 0, NULL, 0);
	give(fd[PLAIN], v4, 3, 2000, 0, NULL, 0);
	if (connect(fd[CONNECTED], (void *)&to[CONNECTED].addr, to[CONNECTED].len))
		die("connect");
	give(fd[CONNECTED], NULL, 0, 60000, 0, NULL, 0);
	give(fd[MORE], &to[MORE], 0, 100, MSG_MORE, NULL, 0);
	for (at = 0; at < 65000; at += 13000)
		give(fd[SIX], &to[SIX], at, 13000, 0, NULL, 0);
	mapped.sin6_port = ((struct sockaddr_in *)&to[MAPPED].addr)->sin_port;
	inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
	memcpy(&to[MAPPED].addr, &mapped, sizeof(mapped));
	to[MAPPED].len = sizeof(mapped);
	give(fd[MAPPED], &to[MAPPED], 0, 50, MSG_MORE, NULL, 0);
	give(fd[TTL], &to[TTL], 0, 10, 0, &(struct extra){ IPPROTO_IP, IP_TTL, &seven, 4 }, 1);
	give(fd[TOS], &to[TOS], 0, 10, 0, &(struct extra){ IPPROTO_IP, IP_TOS, &sixteen, 4 }, 1);
	give(fd[HOPS], &to[HOPS], 0, 10, 0,
	     (struct extra[]){ { IPPROTO_IPV6, IPV6_HOPLIMIT, &nine, 4 }, { IPPROTO_IPV6, IPV6_TCLASS, &tclass, 4 } }, 2);
	give(fd[LITE], &to[LITE], 0, 3000, 0, NULL, 0);
	give(fd[SOURCE], &to[SOURCE], 0, 10, 0, &(struct extra){ IPPROTO_IP, IP_PKTINFO, &source, sizeof(source) }, 1);
	give(fd[SEGMENTS], &to[SEGMENTS], 0, 2000, 0, &(struct extra){ SOL_UDP, UDP_SEGMENT, &segment, 2 }, 1);
	give(fd[OPTIONS], &to[OPTIONS], 0, 10, 0, &(struct extra){ IPPROTO_IP, IP_RETOPTS, alert, 4 }, 1);
	give(fd[SHARED], &to[SHARED], 0, 10, 0, NULL, 0);
	give(fd[LONE], &to[LONE], 0, LARGEST - 1, 0, NULL, 0);
	give(fd[MORE_TTL], &to[MORE_TTL], 0, 10, MSG_MORE,
	     (struct extra[]){ { IPPROTO_IP, IP_TTL, &seven, 4 }, { IPPROTO_IP, IP_PKTINFO, &source, sizeof(source) } }, 2);
	give(fd[MORE_SIX], &to[MORE_SIX], 0, 10, MSG_MORE,
	     (struct extra[]){ { IPPROTO_IPV6, IPV6_HOPLIMIT, &nine, 4 }, { IPPROTO_IPV6, IPV6_TCLASS, &tclass, 4 } }, 2);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		for (;;)
			pause();
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[2], F_OK))
		usleep(20000);

	for (i = 0; i < ALL; i++) {
		want_all(to[i].fd, i == SIX || i == HOPS || i == MORE_SIX);
		a = take(to[i].fd, 0, 0);
		if (a.size >= 0)
			check(names[i], false);
	}
	/* The last byte or bytes, and off with it. */
	for (i = 0; i < ALL; i++) {
		static const size_t have[ALL] = { 2003, 60000, 100, 65000, 50, 10, 10, 10, 3000, 10, 2000, 10, 10, 0, LARGEST - 1, 10, 10 };
		const struct end *again = i == CONNECTED ? NULL : &to[i];
		size_t rest = i == LONE ? 1 : i == SEGMENTS ? 500 : 7;

		give(fd[i], again, have[i], rest, 0, NULL, 0);
		if (i == EMPTY)
			give(fd[i], again, rest, 5, 0, NULL, 0);
		if (!is_more(i))
			on(fd[i], SOL_UDP, UDP_CORK, 0);
	}
	usleep(100000);
	check(names[PLAIN], is_whole(take(to[PLAIN].fd, 0, 0), 2010));
	check(names[CONNECTED], is_whole(take(to[CONNECTED].fd, 0, 0), 60007));
	check(names[MORE], is_whole(take(to[MORE].fd, 0, 0), 107));
	check(names[SIX], is_whole(take(to[SIX].fd, 0, 0), 65007));
	check(names[MAPPED], is_whole(take(to[MAPPED].fd, 0, 0), 57));
	a = take(to[TTL].fd, IPPROTO_IP, IP_TTL);
	check(names[TTL], is_whole(a, 17) && a.value == 7);
	a = take(to[TOS].fd, IPPROTO_IP, IP_TOS);
	check(names[TOS], is_whole(a, 17) && a.value == 16);
	a = take(to[HOPS].fd, IPPROTO_IPV6, IPV6_HOPLIMIT);
	check(names[HOPS], is_whole(a, 17) && a.value == 9);
	check(names[LITE], is_whole(take(to[LITE].fd, 0, 0), 3007));
	a = take(to[SOURCE].fd, 0, 0);
	check(names[SOURCE], is_whole(a, 17) && a.source.sin_addr.s_addr == htonl(0x7f000009));
	a = take(to[SEGMENTS].fd, 0, 0);
	b = take(to[SEGMENTS].fd, 0, 0);
	c = take(to[SEGMENTS].fd, 0, 0);
	check(names[SEGMENTS], a.size == 1000 && b.size == 1000 && c.size == 500 && !memcmp(got, payload + 2000, 500));
	a = take(to[OPTIONS].fd, 0, 0);
	check(names[OPTIONS], is_whole(a, 17) && a.options_len >= 4 && a.options[0] == 148);
	check(names[SHARED], is_whole(take(to[SHARED].fd, 0, 0), 17));
	check(names[EMPTY], is_whole(take(to[EMPTY].fd, 0, 0), 12));
	check(names[LONE], is_whole(take(to[LONE].fd, 0, 0), LARGEST));
	a = take(to[MORE_TTL].fd, IPPROTO_IP, IP_TTL);
	check(names[MORE_TTL], is_whole(a, 17) && a.value == 7 && a.source.sin_addr.s_addr == htonl(0x7f000009));
	a = take(to[MORE_SIX].fd, IPPROTO_IPV6, IPV6_HOPLIMIT);
	check(names[MORE_SIX], is_whole(a, 17) && a.value == 9);
	for (i = 0; i < ALL; i++)
		if (take(to[i].fd, 0, 0).size >= 0)
			check("and nothing else", false);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
