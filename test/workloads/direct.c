// SPDX-License-Identifier: Apache-2.0
/*
 * A server of TCP whose sockets its ring alone has open: the listener in a slot, connections accepted into others (multishot), with
 * bytes that wait in both directions and requests in flight. Its clients are in the same process, with descriptors, or outside.
 *
 *	direct OUT GO [defer] [ipv6] [keeps]
 *	direct OUT GO any [defer]
 *	direct OUT GO [defer] others|full
 *
 * Writes "ready" to OUT, waits until GO exists (and, when GO.install does, gives listener and connections descriptors), checks itself, and
 * writes "ok" or "BAD what" for each thing. With `keeps` nothing waits to be submitted. With `any` it listens on all addresses, at port 7777,
 * and sends back what it gets, for ever. With `others` there are pipes, an eventfd and
 * sockets of UDP; with `full` one pipe has something in it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What Debian 12's headers do not have. */
enum { SINGLE_ISSUER = 1 << 12, DEFER_TASKRUN = 1 << 13, ACCEPT_MULTISHOT = 1, OP_FIXED_FD_INSTALL = 54 };
#define INDEX_ALLOC (~0U)
#define ENTRIES 8
#define SLOTS 16
#define MANY (4u << 20)

static FILE *out;
static const char *go;
static struct io_uring_params p;
static int ring;
static char *rings, *sqes;
static unsigned sent, seen;

static void check(bool ok, const char *what, long number)
{
	fprintf(out, "%s %s (%ld)\n", ok ? "ok" : "BAD", what, number);
	fflush(out);
}

static void die(const char *what)
{
	fprintf(out, "BAD cannot set up: %s: %s\n", what, strerror(errno));
	fflush(out);
	exit(1);
}

static _Atomic unsigned *word(unsigned offset)
{
	return (_Atomic unsigned *)(void *)(rings + offset);
}

static void setup(unsigned flags)
{
	size_t len;

	p.flags = flags;
	ring = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	if (ring < 0)
		die("io_uring_setup");
	len = p.cq_off.cqes + p.cq_entries * 16;
	rings = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	sqes = mmap(NULL, p.sq_entries * 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (rings == MAP_FAILED || sqes == MAP_FAILED)
		die("mmap");
}

/* An entry for what is in a slot. */
static struct io_uring_sqe *next(unsigned opcode, int slot, uint64_t user_data)
{
	unsigned at = sent++ & (p.sq_entries - 1);
	struct io_uring_sqe *sqe = (struct io_uring_sqe *)(void *)(sqes + at * 64);

	memset(sqe, 0, sizeof(*sqe));
	atomic_store(word(p.sq_off.array + 4 * at), at);
	sqe->opcode = (uint8_t)opcode;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = slot;
	sqe->user_data = user_data;
	return sqe;
}

static int enter(unsigned submit, unsigned wait)
{
	return (int)syscall(SYS_io_uring_enter, ring, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

static bool submit(void)
{
	unsigned n = sent - atomic_load(word(p.sq_off.head));

	atomic_store(word(p.sq_off.tail), sent);
	return enter(n, 0) == (int)n;
}

/* The result of a request, which need not be the next that completes; -1000000: none came. */
static int result(uint64_t user_data)
{
	for (int tries = 0; tries < 1000; tries++) {
		while (atomic_load(word(p.cq_off.tail)) == seen)
			if (enter(0, 1) < 0 && errno != EINTR)
				return -1000000;
		const struct io_uring_cqe *cqe = (const void *)(rings + p.cq_off.cqes + (seen & (p.cq_entries - 1)) * 16);
		bool mine = cqe->user_data == user_data;
		int res = cqe->res;

		atomic_store(word(p.cq_off.head), ++seen);
		if (mine)
			return res;
		check(false, "a completion that was not asked for", (long)cqe->user_data);
	}
	return -1000000;
}

static int transfer(unsigned opcode, int slot, void *bytes, unsigned len, int flags)
{
	struct io_uring_sqe *sqe = next(opcode, slot, 0x10);

	sqe->addr = (uintptr_t)bytes;
	sqe->len = len;
	sqe->msg_flags = (unsigned)flags;
	return submit() ? result(0x10) : -1000000;
}

static int connect_to(const struct sockaddr_in6 *to, socklen_t len)
{
	int fd = socket(to->sin6_family, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)to, len))
		die("connect");
	return fd;
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (dir && readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static char pattern(unsigned at)
{
	return (char)(at * 7 + (at >> 8) * 13 + (at >> 16));
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, name, &value, &len) ? -errno : value;
}

/* A descriptor of what is in a slot, where the kernel can (Linux 6.8). */
static int install(int slot)
{
	next(OP_FIXED_FD_INSTALL, slot, 0x20);
	return submit() ? result(0x20) : -1000000;
}

/* Sends back what comes over its connections, as many as slots. */
static void serve(void)
{
	static char bytes[SLOTS][4096];
	unsigned long echoed = 0;

	fprintf(out, "ready\n");
	fflush(out);
	for (;;) {
		while (atomic_load(word(p.cq_off.tail)) == seen)
			if (enter(0, 1) < 0 && errno != EINTR)
				die("io_uring_enter");
		const struct io_uring_cqe *cqe = (const void *)(rings + p.cq_off.cqes + (seen & (p.cq_entries - 1)) * 16);
		uint64_t what = cqe->user_data;
		int res = cqe->res, slot = (int)(what & 0xff);
		struct io_uring_sqe *sqe;

		atomic_store(word(p.cq_off.head), ++seen);
		if (res < 0)
			die(what == 0xacce ? "accept" : "an echo");
		if (what == 0xacce)
			slot = res;
		else if (what & 0x100 && res == 0)
			continue;
		sqe = next(what & 0x100 && what != 0xacce ? IORING_OP_SEND : IORING_OP_RECV, slot, (uint64_t)slot);
		sqe->user_data |= sqe->opcode == IORING_OP_RECV ? 0x100 : 0x200;
		sqe->addr = (uintptr_t)bytes[slot];
		sqe->len = sqe->opcode == IORING_OP_RECV ? sizeof(bytes[slot]) : (unsigned)res;
		if (sqe->opcode == IORING_OP_SEND)
			sqe->msg_flags = MSG_WAITALL;
		if (!submit())
			die("echo");
		if (++echoed % 100 == 0) {
			fprintf(out, "echoed %lu\n", echoed);
			fflush(out);
		}
	}
}

enum { EVENTFD, BOTH_READ, BOTH_WRITE, WRITE_END, READ_END, DATAGRAMS, TO_PEER, NEW_SOCKET, N_OTHERS };

static int datagrams(struct sockaddr_in *at)
{
	socklen_t len = sizeof(*at);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	*at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (fd < 0 || bind(fd, (struct sockaddr *)at, len) || getsockname(fd, (struct sockaddr *)at, &len))
		die("a socket for datagrams");
	return fd;
}

/* What else a ring may have alone: an eventfd, pipes, or one end of them, sockets of UDP. */
static void others(bool full)
{
	int table[N_OTHERS], both[2], in[2], from[2], peer, fd, n;
	struct sockaddr_in at, peers;
	uint64_t count = 0;
	char bytes[16], waits[16];
	struct io_uring_sqe *sqe;

	if (pipe(both) || pipe(in) || pipe(from) || fcntl(both[0], F_SETPIPE_SZ, 1 << 18) < 0 || write(in[1], "abc", 3) != 3)
		die("pipe");
	if (full && write(both[1], "x", 1) != 1)
		die("write");
	peer = datagrams(&peers);
	table[EVENTFD] = eventfd(5, EFD_NONBLOCK);
	table[BOTH_READ] = both[0];
	table[BOTH_WRITE] = both[1];
	table[WRITE_END] = in[1];
	table[READ_END] = from[0];
	table[DATAGRAMS] = datagrams(&at);
	table[TO_PEER] = socket(AF_INET, SOCK_DGRAM, 0);
	table[NEW_SOCKET] = socket(AF_INET6, SOCK_STREAM, 0);
	if (connect(table[TO_PEER], (struct sockaddr *)&peers, sizeof(peers)))
		die("connect");
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, table, N_OTHERS))
		die("register files");
	for (int i = 0; i < N_OTHERS; i++)
		close(table[i]);
	sqe = next(IORING_OP_READ, READ_END, 0x44);
	sqe->addr = (uintptr_t)waits;
	sqe->len = sizeof(waits);
	if (!submit())
		die("read that waits");
	n = count_fds();
	fprintf(out, "ready\n");
	fflush(out);
	while (access(go, F_OK))
		usleep(10000);

	check(count_fds() == n, "no descriptor more or less", count_fds() - n);
	n = transfer(IORING_OP_READ, EVENTFD, &count, 8, 0);
	check(n == 8 && count == 5, "the count of an eventfd", (long)count);
	if (!full) {
		n = transfer(IORING_OP_WRITE, BOTH_WRITE, (char[]){ "through" }, 7, 0);
		check(n == 7 && transfer(IORING_OP_READ, BOTH_READ, bytes, 16, 0) == 7 && !memcmp(bytes, "through", 7), "a pipe", n);
	}
	n = transfer(IORING_OP_WRITE, WRITE_END, (char[]){ "def" }, 3, 0);
	check(n == 3 && read(in[0], bytes, 16) == 6 && !memcmp(bytes, "abcdef", 6), "the end that is written to", n);
	n = write(from[1], "here", 4) == 4 ? result(0x44) : -1;
	check(n == 4 && !memcmp(waits, "here", 4), "the end that is read, by a request that waited", n);
	n = (int)sendto(peer, "datagram", 8, 0, (struct sockaddr *)&at, sizeof(at));
	check(n == 8 && transfer(IORING_OP_RECV, DATAGRAMS, bytes, 16, 0) == 8 && !memcmp(bytes, "datagram", 8), "datagrams", n);
	n = transfer(IORING_OP_SEND, TO_PEER, (char[]){ "peer" }, 4, 0);
	check(n == 4 && recv(peer, bytes, 16, 0) == 4 && !memcmp(bytes, "peer", 4), "datagrams to a peer", n);
	fd = install(BOTH_READ);
	if (fd != -EINVAL) {
		check(fcntl(fd, F_GETPIPE_SZ) == 1 << 18, "a pipe's size", fcntl(fd, F_GETPIPE_SZ));
		close(fd);
		fd = install(EVENTFD);
		check(fcntl(fd, F_GETFL) & O_NONBLOCK, "flags", fcntl(fd, F_GETFL));
		close(fd);
		fd = install(NEW_SOCKET);
		check(option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6 && option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP, "a new socket",
		      option(fd, SOL_SOCKET, SO_PROTOCOL));
		close(fd);
	}
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	bool ipv6 = false, any = false, keeps = false, installed = false;
	char install_at[256];
	static char all[MANY], back[MANY + 16], waits[16];
	struct sockaddr_in6 at = { 0 };
	struct sockaddr_in *v4 = (void *)&at;
	socklen_t len, size = sizeof(at);
	int table[SLOTS], listener, one = 1, idle = 77, clients[4], slots[4], before, fd, n;
	unsigned flags = 0, written = 0, got = 0;
	struct io_uring_sqe *sqe;

	if (argc < 3 || !(out = fopen(argv[1], "w")))
		return 2;
	snprintf(install_at, sizeof(install_at), "%s.install", argv[2]);
	for (int i = 3; i < argc; i++) {
		if (!strcmp(argv[i], "defer"))
			flags = SINGLE_ISSUER | DEFER_TASKRUN;
		ipv6 = ipv6 || !strcmp(argv[i], "ipv6");
		any = any || !strcmp(argv[i], "any");
		keeps = keeps || !strcmp(argv[i], "keeps");
	}
	go = argv[2];
	setup(flags);
	if (!strcmp(argv[argc - 1], "others") || !strcmp(argv[argc - 1], "full"))
		others(!strcmp(argv[argc - 1], "full"));
	for (int i = 0; i < SLOTS; i++)
		table[i] = -1;
	at.sin6_family = ipv6 ? AF_INET6 : AF_INET;
	at.sin6_port = any ? htons(7777) : 0;
	len = ipv6 ? sizeof(at) : sizeof(*v4);
	if (ipv6)
		at.sin6_addr = in6addr_loopback;
	else
		v4->sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
	listener = socket(at.sin6_family, SOCK_STREAM, 0);
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) ||
	    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    setsockopt(listener, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)) ||
	    bind(listener, (struct sockaddr *)&at, len) || listen(listener, 7) || getsockname(listener, (struct sockaddr *)&at, &size))
		die("listen");
	table[0] = listener;
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, table, SLOTS))
		die("register files");
	close(listener);
	sqe = next(IORING_OP_ACCEPT, 0, 0xacce);
	sqe->ioprio = ACCEPT_MULTISHOT;
	sqe->file_index = INDEX_ALLOC;
	if (!submit())
		die("accept");
	if (any)
		serve();
	for (int i = 0; i < 3; i++) {
		clients[i] = connect_to(&at, len);
		slots[i] = result(0xacce);
		if (slots[i] <= 0)
			die("accept into a slot");
	}
	/* One has been read in part. */
	if (write(clients[0], "hello world", 11) != 11 || transfer(IORING_OP_RECV, slots[0], back, 6, 0) != 6)
		die("recv");
	/* One has been written to until it took no more, and the other end has something for it. */
	for (unsigned i = 0; i < MANY; i++)
		all[i] = pattern(i);
	while (written < MANY && (n = transfer(IORING_OP_SEND, slots[1], all + written, MANY - written, MSG_DONTWAIT)) > 0)
		written += (unsigned)n;
	if (write(clients[1], "unread", 6) != 6)
		die("write");
	/* One waits. */
	sqe = next(IORING_OP_RECV, slots[2], 0x3333);
	sqe->addr = (uintptr_t)waits;
	sqe->len = sizeof(waits);
	if (!submit())
		die("recv that waits");
	/* And something is not submitted. */
	if (!keeps) {
		next(IORING_OP_NOP, 0, 0x99)->flags = 0;
		atomic_store(word(p.sq_off.tail), sent);
	}
	before = count_fds();
	fprintf(out, "ready, %u bytes wait\n", written);
	fflush(out);
	while (access(go, F_OK)) {
		usleep(10000);
		if (installed || access(install_at, F_OK))
			continue;
		for (int i = 0; i < 4; i++)
			if (install(i ? slots[i - 1] : 0) < 0)
				die("install");
		installed = true;
		fprintf(out, "installed\n");
		fflush(out);
	}

	if (installed)
		before += 4;
	check(count_fds() == before, "no descriptor more or less", count_fds() - before);
	if (!keeps)
		check(submit() && result(0x99) == 0, "what was not submitted", 0);
	n = transfer(IORING_OP_RECV, slots[0], back, 100, MSG_DONTWAIT);
	check(n == 5 && !memcmp(back, "world", 5), "what was received, and not read", n);
	n = transfer(IORING_OP_RECV, slots[1], back, 100, MSG_DONTWAIT);
	check(n == 6 && !memcmp(back, "unread", 6), "the same in the other", n);
	while (got < written && (n = (int)read(clients[1], back + got, written - got)) > 0)
		got += (unsigned)n;
	check(written > 100000 && got == written && !memcmp(all, back, written), "what was written, and not read", (long)got);
	n = transfer(IORING_OP_SEND, slots[1], (char[]){ "after" }, 5, 0);
	check(n == 5 && recv(clients[1], back, 5, MSG_WAITALL) == 5 && !memcmp(back, "after", 5), "it goes on", n);
	n = write(clients[2], "ping", 4) == 4 ? result(0x3333) : -1;
	check(n == 4 && !memcmp(waits, "ping", 4), "what waited", n);
	n = transfer(IORING_OP_SEND, slots[2], (char[]){ "pong" }, 4, 0);
	check(n == 4 && read(clients[2], back, 4) == 4 && !memcmp(back, "pong", 4), "it answers", n);
	clients[3] = connect_to(&at, len);
	slots[3] = result(0xacce);
	check(slots[3] > 0, "it accepts", slots[3]);
	n = transfer(IORING_OP_SEND, slots[3], (char[]){ "new" }, 3, 0);
	check(n == 3 && read(clients[3], back, 3) == 3 && !memcmp(back, "new", 3), "a new connection", n);
	fd = install(slots[0]);
	if (fd != -EINVAL) {
		check(option(fd, IPPROTO_TCP, TCP_NODELAY) > 0, "TCP_NODELAY", option(fd, IPPROTO_TCP, TCP_NODELAY));
		check(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 77, "TCP_KEEPIDLE", option(fd, IPPROTO_TCP, TCP_KEEPIDLE));
		check(option(fd, SOL_SOCKET, SO_KEEPALIVE) == 1, "SO_KEEPALIVE", option(fd, SOL_SOCKET, SO_KEEPALIVE));
		close(fd);
		fd = install(0);
		check(option(fd, SOL_SOCKET, SO_REUSEADDR) == 1, "SO_REUSEADDR", option(fd, SOL_SOCKET, SO_REUSEADDR));
		close(fd);
	}
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
