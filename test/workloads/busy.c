// SPDX-License-Identifier: Apache-2.0
/*
 * A program that never stops using what a dump swaps or takes along, for deaths at any moment: rings (a thread has one of its own),
 * a request in flight, a root and a mapped file on an unmounted mount, a queue. Counts into /lab/log as the shell's counter does;
 * what is not as it should be goes to /lab/wrong at once. When /lab/check exists, what has only waited so far is looked at, once: unread completions, a
 * poll in flight, a message, a corked datagram: "ok" or "BAD what" for each in /lab/checked, then "done".
 *
 *	busy DIR
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ENTRIES 8
#define UNREAD 3
#define TURNS 50
enum { READING = 1000, POLLING, WAITING };

struct ring {
	int fd;
	unsigned *sq_head, *sq_tail, *sq_array, mask, *cq_head, *cq_tail, cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static int host, wrong;	/* the container's root, and a file there */

__attribute__((format(printf, 1, 2))) static void bad(const char *what, ...)
{
	char text[200];
	va_list args;
	int n;

	va_start(args, what);
	n = vsnprintf(text, sizeof(text) - 1, what, args);
	va_end(args);
	text[n++] = '\n';
	if (write(wrong, text, (size_t)n) != n)
		exit(3);
	/* One is enough, of what goes wrong again and again. */
	usleep(100000);
}

static void must(const char *what, bool ok)
{
	if (ok)
		return;
	fprintf(stderr, "busy: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void open_ring(struct ring *r)
{
	struct io_uring_params p = { 0 };
	size_t size;
	char *at;

	r->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	must("io_uring_setup", r->fd >= 0);
	size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	if (size < p.sq_off.array + p.sq_entries * 4)
		size = p.sq_off.array + p.sq_entries * 4;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
		       IORING_OFF_SQES);
	must("mmap", at != MAP_FAILED && r->sqes != MAP_FAILED);
	r->sq_head = (unsigned *)(at + p.sq_off.head);
	r->sq_tail = (unsigned *)(at + p.sq_off.tail);
	r->sq_array = (unsigned *)(at + p.sq_off.array);
	r->mask = *(unsigned *)(at + p.sq_off.ring_mask);
	r->cq_head = (unsigned *)(at + p.cq_off.head);
	r->cq_tail = (unsigned *)(at + p.cq_off.tail);
	r->cq_mask = *(unsigned *)(at + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(at + p.cq_off.cqes);
}

static void submit(struct ring *r, int opcode, int fd, void *addr, unsigned len, uint64_t data)
{
	unsigned tail = *r->sq_tail;
	struct io_uring_sqe *sqe = &r->sqes[tail & r->mask];
	long ret;

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = (uint8_t)opcode;
	sqe->fd = fd;
	sqe->addr = (uint64_t)(uintptr_t)addr;
	sqe->len = len;
	sqe->off = opcode == IORING_OP_READ ? (uint64_t)-1 : 0;
	if (opcode == IORING_OP_POLL_ADD)
		sqe->poll32_events = POLLIN;
	sqe->user_data = data;
	r->sq_array[tail & r->mask] = tail & r->mask;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	do
		ret = syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0);
	while (ret < 0 && errno == EINTR);
	if (ret != 1)
		bad("io_uring_enter gave %ld, errno %d", ret, errno);
}

/* The next completion, of this request and with this result; waited for ten seconds. */
static bool completed(struct ring *r, uint64_t data, int res)
{
	struct io_uring_cqe cqe;

	for (int tries = 0; *r->cq_head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE); tries++) {
		if (tries == 100000)
			return false;
		(void)syscall(SYS_io_uring_enter, r->fd, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0);
		usleep(100);
	}
	cqe = r->cqes[*r->cq_head & r->cq_mask];
	__atomic_store_n(r->cq_head, *r->cq_head + 1, __ATOMIC_RELEASE);
	return cqe.user_data == data && cqe.res == res;
}

static bool is_empty(const struct ring *r)
{
	return *r->cq_head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE);
}

static volatile bool aside_ready;

/* A thread with nothing but a ring: it uses it in each moment in which it runs. */
static void *aside(void *arg)
{
	struct ring r;

	(void)arg;
	open_ring(&r);
	aside_ready = true;
	for (uint64_t turn = 1;; turn++) {
		submit(&r, IORING_OP_NOP, -1, NULL, 0, turn);
		if (!completed(&r, turn, 0) || !is_empty(&r))
			bad("the thread's ring at turn %llu", (unsigned long long)turn);
		if (turn % TURNS == 0)
			usleep(1000);
	}
	return NULL;
}

static void check(int out, const char *what, bool ok)
{
	dprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
}

int main(int argc, char **argv)
{
	struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = 16 };
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct ring often = { 0 }, waits = { 0 };
	socklen_t len = sizeof(addr);
	int log, file, pipes[2], event, to, from, out, on = 1, off = 0;
	char data[16], message[16], path[300], sub[300];
	mqd_t turning, still;
	unsigned *mapped, seen, priority;
	struct stat root, now;
	pthread_t thread;

	if (argc != 2)
		return 2;
	host = open("/", O_PATH | O_DIRECTORY);
	wrong = open("/lab/wrong", O_CREAT | O_WRONLY | O_APPEND, 0644);
	log = open("/lab/starts", O_CREAT | O_WRONLY | O_APPEND, 0644);
	must("/lab/starts", write(log, "start\n", 6) == 6);
	close(log);
	log = open("/lab/log", O_CREAT | O_WRONLY | O_TRUNC, 0644);
	snprintf(path, sizeof(path), "%s/at", argv[1]);
	snprintf(sub, sizeof(sub), "%s/sub", argv[1]);
	must("mkdir", (mkdir(argv[1], 0755) == 0 || errno == EEXIST) && mkdir(sub, 0755) == 0 && mkdir(path, 0755) == 0);
	must("mount", mount(sub, path, NULL, MS_BIND, NULL) == 0);
	must("chroot", chdir(path) == 0 && chroot(".") == 0);
	file = open("/file", O_CREAT | O_RDWR, 0644);
	must("/file", file >= 0 && ftruncate(file, 4096) == 0);
	mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	must("mmap", mapped != MAP_FAILED && stat("/", &root) == 0);
	must("umount", fchdir(host) == 0 && umount2(path + 1, MNT_DETACH) == 0 && chdir("/") == 0);

	turning = mq_open("/turning", O_CREAT | O_RDWR, 0600, &attr);
	still = mq_open("/still", O_CREAT | O_RDWR, 0600, &attr);
	must("mq_open", turning >= 0 && still >= 0 && mq_send(still, "still", 6, 3) == 0);
	to = socket(AF_INET, SOCK_DGRAM, 0);
	from = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	must("bind", bind(from, (struct sockaddr *)&addr, sizeof(addr)) == 0 && getsockname(from, (struct sockaddr *)&addr, &len) == 0);
	must("cork", connect(to, (struct sockaddr *)&addr, len) == 0 && setsockopt(to, IPPROTO_UDP, UDP_CORK, &on, sizeof(on)) == 0 &&
			     send(to, "first ", 6, 0) == 6);
	must("pipe", pipe(pipes) == 0);
	event = eventfd(0, 0);
	open_ring(&often);
	open_ring(&waits);
	for (int i = 0; i < UNREAD; i++)
		submit(&waits, IORING_OP_NOP, -1, NULL, 0, WAITING + (uint64_t)i);
	submit(&waits, IORING_OP_POLL_ADD, event, NULL, 0, POLLING);
	submit(&often, IORING_OP_READ, pipes[0], data, sizeof(data), READING);
	must("pthread_create", pthread_create(&thread, NULL, aside, NULL) == 0);
	while (!aside_ready)
		usleep(1000);

	for (unsigned turn = 1;; turn++) {
		char text[16];
		int n;

		for (uint64_t i = 0; i < TURNS; i++) {
			submit(&often, IORING_OP_NOP, -1, NULL, 0, i);
			if (!completed(&often, i, 0))
				bad("the ring at turn %u", turn);
		}
		n = snprintf(text, sizeof(text), "%u\n", turn);
		if (write(pipes[1], text, (size_t)n) != n || !completed(&often, READING, n) || memcmp(data, text, (size_t)n))
			bad("the read in flight at turn %u", turn);
		if (!is_empty(&often))
			bad("a completion too many at turn %u", turn);
		memset(data, 0, sizeof(data));
		submit(&often, IORING_OP_READ, pipes[0], data, sizeof(data), READING);
		mapped[turn % 1024] = turn;
		if (pread(file, &seen, sizeof(seen), (off_t)(turn % 1024 * sizeof(seen))) != sizeof(seen) || seen != turn)
			bad("the mapped file at turn %u", turn);
		if (stat("/", &now) || now.st_ino != root.st_ino || access("/file", F_OK))
			bad("the root at turn %u", turn);
		if (mq_send(turning, text, (size_t)n, turn % 7) || mq_receive(turning, message, sizeof(message), &priority) != n ||
		    memcmp(message, text, (size_t)n) || priority != turn % 7)
			bad("the queue at turn %u", turn);
		if (write(log, text, (size_t)n) != n)
			bad("the log at turn %u", turn);
		usleep(1000);
		if (event < 0 || faccessat(host, "lab/check", F_OK, 0))
			continue;

		out = openat(host, "lab/checked", O_CREAT | O_WRONLY | O_TRUNC, 0644);
		for (int i = 0; i < UNREAD; i++)
			check(out, "an unread completion", completed(&waits, WAITING + (uint64_t)i, 0));
		check(out, "nothing has come before", is_empty(&waits));
		check(out, "a poll in flight", eventfd_write(event, 1) == 0 && completed(&waits, POLLING, POLLIN));
		usleep(20000);
		check(out, "it comes once", is_empty(&waits));
		check(out, "a message", mq_receive(still, message, sizeof(message), &priority) == 6 && !strcmp(message, "still") && priority == 3);
		check(out, "nothing of the datagram has been sent", recv(from, message, sizeof(message), 0) < 0 && errno == EAGAIN);
		check(out, "a corked datagram", send(to, "second", 6, 0) == 6 && setsockopt(to, IPPROTO_UDP, UDP_CORK, &off, sizeof(off)) == 0 &&
			      recv(from, message, sizeof(message), 0) == 12 && !memcmp(message, "first second", 12));
		dprintf(out, "done\n");
		close(out);
		close(event);
		event = -1;
	}
}
