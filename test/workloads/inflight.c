// SPDX-License-Identifier: Apache-2.0
/*
 * io_uring requests of every kind in flight, for a checkpoint in the middle. Submits all, writes "ready" to OUT, waits until GO
 * exists, then lets each complete and writes "ok" or "BAD what" for each thing. Without a library: struct by struct.
 *
 *	inflight OUT GO [SETUP_FLAGS [POLLS | FIFO | more]]
 *
 * POLLS: instead of all these, so many polls. FIFO: a worker of the kernel opens that FIFO, which has no writer yet. more: what else there
 * is (Linux 6.7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Of headers that are newer than Debian 12's. */
enum { READ_MULTISHOT = 49, WAITID = 50, FUTEX_WAIT_OP = 51, FUTEX_WAITV_OP = 53, EPOLL_WAIT_OP = 59, TIMEOUT_MULTISHOT = 1 << 6, FUTEX2_32 = 2, FUTEX2_PRIV = 128 };

#define ENTRIES 256
#define SECOND 1000000000LL
#define MAX_DATA 512

struct ring {
	int fd;
	unsigned flags, mask, *sq_head, *sq_tail, *sq_array, *sq_flags, *cq_head, *cq_tail, cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	unsigned tail;
	/* By user_data: how many completions, and the last. */
	int count[MAX_DATA], res[MAX_DATA], order[MAX_DATA], next;
	unsigned cqe_flags[MAX_DATA];
};

/* struct futex_waitv, Linux 5.16. */
struct waitv {
	uint64_t val, uaddr;
	uint32_t flags, reserved;
};

static FILE *out;

static void check(const char *what, bool ok)
{
	fprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
	fflush(out);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void open_ring(struct ring *r, unsigned flags)
{
	struct io_uring_params p = { .flags = flags, .sq_thread_idle = 50 };
	char *rings;
	size_t size;

	r->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	if (r->fd < 0)
		die("io_uring_setup");
	size = p.sq_off.array + p.sq_entries * 4;
	if (size < p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe))
		size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
		       IORING_OFF_SQES);
	if (rings == MAP_FAILED || r->sqes == MAP_FAILED)
		die("mmap");
	r->flags = flags;
	r->sq_head = (unsigned *)(rings + p.sq_off.head);
	r->sq_tail = (unsigned *)(rings + p.sq_off.tail);
	r->sq_flags = (unsigned *)(rings + p.sq_off.flags);
	r->sq_array = (unsigned *)(rings + p.sq_off.array);
	r->mask = *(unsigned *)(rings + p.sq_off.ring_mask);
	r->cq_head = (unsigned *)(rings + p.cq_off.head);
	r->cq_tail = (unsigned *)(rings + p.cq_off.tail);
	r->cq_mask = *(unsigned *)(rings + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(rings + p.cq_off.cqes);
}

static struct io_uring_sqe *add(struct ring *r, int opcode, int fd, const void *addr, unsigned len, uint64_t off, uint64_t data)
{
	unsigned tail = r->tail++;
	struct io_uring_sqe *sqe = &r->sqes[tail & r->mask];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = (uint8_t)opcode;
	sqe->fd = fd;
	sqe->addr = (uint64_t)(uintptr_t)addr;
	sqe->len = len;
	sqe->off = off;
	sqe->user_data = data;
	r->sq_array[tail & r->mask] = tail & r->mask;
	return sqe;
}

static void enter(struct ring *r, unsigned submit, unsigned flags)
{
	long ret;

	do
		ret = syscall(SYS_io_uring_enter, r->fd, submit, 0, flags, NULL, 0);
	while (ret < 0 && errno == EINTR);
	if (ret < 0 || (unsigned)ret < submit)
		die("io_uring_enter");
}

static void submit(struct ring *r)
{
	unsigned waiting = r->tail - *r->sq_tail;

	__atomic_store_n(r->sq_tail, r->tail, __ATOMIC_RELEASE);
	if (!(r->flags & IORING_SETUP_SQPOLL)) {
		enter(r, waiting, IORING_ENTER_GETEVENTS);
		return;
	}
	while (*r->sq_tail != __atomic_load_n(r->sq_head, __ATOMIC_ACQUIRE)) {
		if (__atomic_load_n(r->sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)
			enter(r, 0, IORING_ENTER_SQ_WAKEUP);
		usleep(1000);
	}
}

static void reap(struct ring *r)
{
	if (!(r->flags & IORING_SETUP_SQPOLL))
		enter(r, 0, IORING_ENTER_GETEVENTS);
	while (*r->cq_head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
		struct io_uring_cqe *cqe = &r->cqes[*r->cq_head & r->cq_mask];

		if (cqe->user_data < MAX_DATA) {
			r->count[cqe->user_data]++;
			r->res[cqe->user_data] = cqe->res;
			r->cqe_flags[cqe->user_data] = cqe->flags;
			r->order[cqe->user_data] = ++r->next;
		} else {
			fprintf(out, "BAD completion of nothing: %llx %d\n", (unsigned long long)cqe->user_data, cqe->res);
		}
		__atomic_store_n(r->cq_head, *r->cq_head + 1, __ATOMIC_RELEASE);
	}
}

/* Waits until there have been so many completions, ten seconds. */
static bool came(struct ring *r, unsigned data, int count)
{
	for (int i = 0; i < 1000 && r->count[data] < count; i++) {
		reap(r);
		if (r->count[data] < count)
			usleep(10000);
	}
	return r->count[data] == count;
}

/* One completion, with this result. */
static bool gave(struct ring *r, unsigned data, int res)
{
	bool ok = came(r, data, 1) && r->res[data] == res && !(r->cqe_flags[data] & IORING_CQE_F_MORE);

	if (!ok)
		fprintf(out, "# %u: %d completions, the last %d\n", data, r->count[data], r->res[data]);
	return ok;
}

static void say(int fd, const char *text)
{
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		die("write");
}

static void pipe_(int fds[2])
{
	if (pipe(fds))
		die("pipe");
}

static void pair(int fds[2])
{
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
		die("socketpair");
}

static int listening(const char *name, struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	memset(at, 0, sizeof(*at));
	at->sun_family = AF_UNIX;
	snprintf(at->sun_path + 1, sizeof(at->sun_path) - 1, "inflight-%d-%s", getpid(), name);
	if (bind(fd, (struct sockaddr *)at, sizeof(*at)) || listen(fd, 8))
		die("listen");
	return fd;
}

static int connected(const struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (connect(fd, (const struct sockaddr *)at, sizeof(*at)))
		die("connect");
	return fd;
}

/* What a submission points to may be gone as soon as it is submitted: overwritten here, by what is no address. */
static void submit_and_spoil(struct ring *r, void *what, size_t len)
{
	submit(r);
	memset(what, 0xee, len);
}

struct side {
	unsigned flags;
	int pipe[2];
	char data[8];
	bool ok;
	const char *go;
};

static volatile int sides_ready;

/* A thread with a ring of its own: its requests are its own, too. */
static void *aside(void *arg)
{
	struct side *s = arg;
	struct ring r = { 0 };

	open_ring(&r, s->flags);
	add(&r, IORING_OP_READ, s->pipe[0], s->data, sizeof(s->data), 0, 1);
	submit(&r);
	sides_ready = 1;
	while (access(s->go, F_OK))
		usleep(10000);
	say(s->pipe[1], "thread");
	s->ok = gave(&r, 1, 6) && !memcmp(s->data, "thread", 6);
	return NULL;
}

static void many(const char *go, unsigned flags, int polls)
{
	struct ring r = { 0 };
	int event = eventfd(0, 0), last = 0;

	open_ring(&r, flags);
	for (int i = 0; i < polls; i++) {
		add(&r, IORING_OP_POLL_ADD, event, NULL, 0, 0, (uint64_t)(i % (MAX_DATA - 1)))->poll32_events = POLLIN;
		if (i % ENTRIES == ENTRIES - 1 || i == polls - 1)
			submit(&r);
	}
	fprintf(out, "ready\n");
	fflush(out);
	while (access(go, F_OK))
		usleep(10000);
	reap(&r);
	check("none came before", r.next == 0);
	eventfd_write(event, 1);
	for (int i = 0; i < 500 && r.next < polls; i++) {
		reap(&r);
		if (r.next != last)
			last = r.next;
		else
			usleep(10000);
	}
	check("each came once", r.next == polls);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}

/* A terminal and its master: what waits there for a read is not CRIU's to save. */
static int terminal(int *master)
{
	int unlock = 0, fd;

	*master = posix_openpt(O_RDWR | O_NOCTTY);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock))
		die("a terminal");
	fd = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	if (fd < 0)
		die("a terminal");
	return fd;
}

/* Buffers for the kernel to choose from (struct io_uring_buf, io_uring_buf_reg): four of 64 bytes. */
static char *choose_from(struct ring *r, uint16_t group)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t id, tail;
	} *all = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct {
		uint64_t addr;
		uint32_t entries;
		uint16_t group, flags;
		uint64_t resv[3];
	} ring = { .addr = (uintptr_t)all, .entries = 4, .group = group };
	static char memory[4 * 64];

	if (all == MAP_FAILED || syscall(SYS_io_uring_register, r->fd, 22 /* IORING_REGISTER_PBUF_RING */, &ring, 1))
		die("buffers");
	for (uint16_t i = 0; i < 4; i++) {
		all[i].addr = (uintptr_t)memory + 64u * i;
		all[i].len = 64;
		all[i].id = i;
	}
	__atomic_store_n(&all[0].tail, 4, __ATOMIC_RELEASE);
	return memory;
}

static void more(const char *go, unsigned flags)
{
	static struct ring r, other;
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 4712 }, got = { 0 };
	int p[2], q[2], x[2], y[2], epoll = epoll_create1(0), ticks, tty, master;
	struct __kernel_timespec t = { .tv_sec = 1 };
	static char line[32], data[8];
	struct io_uring_sqe *sqe;
	struct termios mode;
	char *buffers;

	open_ring(&r, flags);
	open_ring(&other, 0);
	pipe_(p);
	pipe_(q);
	pipe_(x);
	pipe_(y);
	buffers = choose_from(&r, 17);
	tty = terminal(&master);
	if (tcgetattr(tty, &mode))
		die("tcgetattr");
	mode.c_lflag &= ~(tcflag_t)ECHO;
	if (tcsetattr(tty, TCSANOW, &mode))
		die("tcsetattr");
	/* The first tick is over, six more come. */
	add(&r, IORING_OP_TIMEOUT, -1, &t, 1, 7, 1)->timeout_flags = TIMEOUT_MULTISHOT;
	submit_and_spoil(&r, &t, sizeof(t));
	check("a tick", came(&r, 1, 1) && r.res[1] == -ETIME && (r.cqe_flags[1] & IORING_CQE_F_MORE));
	/* Each begins when the one before it is done: none of these waits when it is its turn. */
	add(&r, IORING_OP_POLL_ADD, p[0], NULL, 0, 0, 2)->poll32_events = POLLIN;
	r.sqes[(r.tail - 1) & r.mask].flags = IOSQE_IO_LINK;
	add(&r, IORING_OP_MSG_RING, other.fd, NULL, 77, 5, 3)->flags = IOSQE_IO_LINK;
	add(&r, IORING_OP_EPOLL_CTL, epoll, &event, EPOLL_CTL_ADD, (uint64_t)q[0], 4)->flags = IOSQE_IO_LINK;
	add(&r, IORING_OP_EPOLL_CTL, epoll, NULL, EPOLL_CTL_DEL, (uint64_t)q[1], 5)->flags = IOSQE_IO_HARDLINK;
	add(&r, IORING_OP_POLL_REMOVE, -1, (void *)9, 0, 0, 6)->flags = IOSQE_IO_HARDLINK;
	add(&r, IORING_OP_ASYNC_CANCEL, -1, (void *)7, 0, 0, 8);
	submit_and_spoil(&r, &event, sizeof(event));
	add(&r, IORING_OP_READ, x[0], data, sizeof(data), (uint64_t)-1, 7);
	add(&r, IORING_OP_POLL_ADD, x[0], NULL, 0, 0, 9)->poll32_events = POLLIN;
	add(&r, IORING_OP_READ, tty, line, sizeof(line), (uint64_t)-1, 10);
	sqe = add(&r, READ_MULTISHOT, y[0], NULL, 0, (uint64_t)-1, 11);
	sqe->flags = IOSQE_BUFFER_SELECT;
	sqe->buf_group = 17;
	submit(&r);
	usleep(100000);
	reap(&r);
	check("nothing has come yet", !r.count[2] && !r.count[3] && !r.count[10] && !r.count[11]);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(go, F_OK))
		usleep(10000);
	reap(&r);
	ticks = r.count[1];
	check("ticks go on", ticks < 7 && came(&r, 1, ticks + 1) && (ticks == 6 || r.cqe_flags[1] & IORING_CQE_F_MORE));
	check("nothing in the chain comes by itself", !r.count[2] && !r.count[3] && !r.count[4]);
	say(p[1], "x");
	check("a message to another ring, in a chain", gave(&r, 2, POLLIN) && gave(&r, 3, 0) && gave(&other, 5, 77));
	say(q[1], "y");
	check("epoll_ctl, in a chain", gave(&r, 4, 0) && epoll_wait(epoll, &got, 1, 1000) == 1 && got.data.u64 == 4712);
	check("one that fails", gave(&r, 5, -ENOENT));
	check("one that takes a poll away, in a chain", gave(&r, 6, 0) && gave(&r, 9, -ECANCELED));
	check("one that cancels, in a chain", gave(&r, 8, 0) && gave(&r, 7, -ECANCELED));
	say(master, "a line\n");
	check("a read on a terminal", gave(&r, 10, 7) && !memcmp(line, "a line\n", 7));
	say(y[1], "one");
	check("a multishot read", came(&r, 11, 1) && r.res[11] == 3 && (r.cqe_flags[11] & IORING_CQE_F_MORE) && !memcmp(buffers, "one", 3));
	say(y[1], "two");
	check("which goes on", came(&r, 11, 2) && r.res[11] == 3 && (r.cqe_flags[11] & IORING_CQE_F_MORE) && !memcmp(buffers + 64, "two", 3));
	check("as many ticks as were asked for", came(&r, 1, 7) && !(r.cqe_flags[1] & IORING_CQE_F_MORE));
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}

/* Says how it ended: opened, or -ECANCELED; both can be right. */
static void worker(const char *go, const char *fifo)
{
	static struct ring r;

	open_ring(&r, 0);
	add(&r, IORING_OP_OPENAT, AT_FDCWD, fifo, 0, 0, 77)->open_flags = O_RDONLY;
	r.sqes[0].flags = IOSQE_ASYNC;
	submit(&r);
	usleep(100000);
	reap(&r);
	check("not opened yet", !r.count[77]);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(go, F_OK))
		usleep(10000);
	came(&r, 77, 1);
	fprintf(out, "result %d of %d\n", r.res[77] < 0 ? r.res[77] : 0, r.count[77]);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	static struct ring r, counted, drained;
	static char data[64][64], big[1 << 16];
	static uint32_t futex = 7, futexes[2] = { 1, 2 };
	struct waitv both[2] = { { 1, (uintptr_t)&futexes[0], FUTEX2_32 | FUTEX2_PRIV, 0 },
				 { 2, (uintptr_t)&futexes[1], FUTEX2_32 | FUTEX2_PRIV, 0 } };
	static uint64_t numbers[4];
	static siginfo_t info;
	static struct sockaddr_un at_once, at_many, peer;
	static struct msghdr message;
	static struct epoll_event got;
	static struct iovec parts[2];
	unsigned flags = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 0;
	struct __kernel_timespec t;
	struct iovec iov[2];
	struct itimerspec timer = { .it_value = { .tv_sec = 3600 } };
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 4711 };
	struct side side = { .flags = flags, .go = argc > 2 ? argv[2] : NULL };
	socklen_t peer_len = sizeof(peer);
	pthread_t thread;
	int p[16][2], s[8][2], ev, ev_many, ev_epoll, tfd, once, each, epoll, child, other, full = 0, status;
	bool waits, epolls;
	int64_t begun;

	if (argc < 3 || !(out = fopen(argv[1], "w")))
		return 2;
	if (argc > 4 && atoi(argv[4]) > 0)
		many(argv[2], flags, atoi(argv[4]));
	if (argc > 4 && !strcmp(argv[4], "more"))
		more(argv[2], flags);
	if (argc > 4)
		worker(argv[2], argv[4]);
	open_ring(&r, flags);
	open_ring(&counted, flags);
	open_ring(&drained, flags);
	for (int i = 0; i < 16; i++)
		pipe_(p[i]);
	for (int i = 0; i < 8; i++)
		pair(s[i]);
	ev = eventfd(0, 0);
	ev_many = eventfd(0, EFD_NONBLOCK);
	ev_epoll = eventfd(0, 0);
	tfd = timerfd_create(CLOCK_MONOTONIC, 0);
	timerfd_settime(tfd, 0, &timer, NULL);
	once = listening("once", &at_once);
	each = listening("each", &at_many);
	epoll = epoll_create1(0);
	epoll_ctl(epoll, EPOLL_CTL_ADD, ev_epoll, &event);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (access(argv[2], F_OK))
			usleep(10000);
		_exit(42);
	}

	/*
	 * Before anything waits for a futex: with the first thread a process gets futexes of its own, and whoever waits already
	 * is not found any more (Linux 6.16).
	 */
	pipe_(side.pipe);
	pthread_create(&thread, NULL, aside, &side);
	while (!sides_ready)
		usleep(1000);
	/* A history: counters that do not begin at 0. */
	for (int i = 0; i < 300; i++) {
		add(&r, IORING_OP_NOP, -1, NULL, 0, 0, 0);
		submit(&r);
		reap(&r);
	}
	add(&r, IORING_OP_POLL_ADD, p[0][0], NULL, 0, 0, 1)->poll32_events = POLLIN;
	add(&r, IORING_OP_POLL_ADD, ev_many, NULL, IORING_POLL_ADD_MULTI, 0, 2)->poll32_events = POLLIN;
	submit(&r);
	/* One has come already: then the kernel does not know any more by which number it was asked for. */
	eventfd_write(ev_many, 1);
	came(&r, 2, 1);
	eventfd_read(ev_many, &numbers[3]);
	add(&r, IORING_OP_ACCEPT, once, &peer, 0, (uint64_t)(uintptr_t)&peer_len, 3)->accept_flags = SOCK_CLOEXEC;
	add(&r, IORING_OP_ACCEPT, each, NULL, 0, 0, 4)->ioprio = IORING_ACCEPT_MULTISHOT;
	add(&r, IORING_OP_RECV, s[0][0], data[5], 64, 0, 5);
	add(&r, IORING_OP_RECV, s[1][0], data[6], 64, 0, 6)->ioprio = IORING_RECVSEND_POLL_FIRST;
	parts[0] = (struct iovec){ data[7], 3 };
	parts[1] = (struct iovec){ data[7] + 16, 40 };
	message = (struct msghdr){ .msg_iov = parts, .msg_iovlen = 2 };
	add(&r, IORING_OP_RECVMSG, s[2][0], &message, 1, 0, 7);
	submit_and_spoil(&r, parts, sizeof(parts));
	add(&r, IORING_OP_READ, p[1][0], data[8], 64, (uint64_t)-1, 8);
	iov[0] = (struct iovec){ data[9], 4 };
	iov[1] = (struct iovec){ data[9] + 32, 20 };
	add(&r, IORING_OP_READV, p[2][0], iov, 2, (uint64_t)-1, 9);
	submit_and_spoil(&r, iov, sizeof(iov));
	add(&r, IORING_OP_READ, ev, &numbers[0], 8, 0, 10);
	add(&r, IORING_OP_READ, tfd, &numbers[1], 8, 0, 11);
	submit(&r);
	t = (struct __kernel_timespec){ .tv_sec = 3600 };
	add(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0, 12);
	submit_and_spoil(&r, &t, sizeof(t));
	t = (struct __kernel_timespec){ .tv_sec = 4 };
	add(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0, 13);
	submit_and_spoil(&r, &t, sizeof(t));
	{
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		begun = now.tv_sec * SECOND + now.tv_nsec;
		t = (struct __kernel_timespec){ .tv_sec = now.tv_sec + 3, .tv_nsec = now.tv_nsec };
		add(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0, 14)->timeout_flags = IORING_TIMEOUT_ABS | IORING_TIMEOUT_REALTIME;
		submit_and_spoil(&r, &t, sizeof(t));
	}
	/* Linked: each begins when the one before it is done. */
	add(&r, IORING_OP_POLL_ADD, p[3][0], NULL, 0, 0, 20)->poll32_events = POLLIN;
	r.sqes[(r.tail - 1) & r.mask].flags = IOSQE_IO_LINK;
	add(&r, IORING_OP_READ, p[3][0], data[21], 5, (uint64_t)-1, 21)->flags = IOSQE_IO_LINK;
	add(&r, IORING_OP_WRITE, p[4][1], "linked", 6, (uint64_t)-1, 22);
	submit(&r);
	/* With a time limit that is kept, and with one that is not. */
	add(&r, IORING_OP_READ, p[5][0], data[23], 64, (uint64_t)-1, 23)->flags = IOSQE_IO_LINK;
	t = (struct __kernel_timespec){ .tv_sec = 3600 };
	add(&r, IORING_OP_LINK_TIMEOUT, -1, &t, 1, 0, 24);
	submit_and_spoil(&r, &t, sizeof(t));
	add(&r, IORING_OP_READ, p[6][0], data[25], 64, (uint64_t)-1, 25)->flags = IOSQE_IO_LINK;
	t = (struct __kernel_timespec){ .tv_sec = 4 };
	add(&r, IORING_OP_LINK_TIMEOUT, -1, &t, 1, 0, 26);
	submit_and_spoil(&r, &t, sizeof(t));
	/* By a number that is gone, and by one that is another file's by now. */
	other = dup(p[7][0]);
	add(&r, IORING_OP_READ, other, data[27], 64, (uint64_t)-1, 27);
	submit(&r);
	close(other);
	other = dup(p[8][0]);
	add(&r, IORING_OP_READ, other, data[28], 64, (uint64_t)-1, 28);
	submit(&r);
	dup2(p[0][0], other);
	/* No room to send. */
	while (send(s[3][1], big, sizeof(big), MSG_DONTWAIT) > 0)
		full++;
	while (send(s[3][1], big, 1, MSG_DONTWAIT) > 0)
		full++;
	add(&r, IORING_OP_SEND, s[3][1], "sent", 4, 0, 29);
	add(&r, IORING_OP_POLL_ADD, p[9][0], NULL, 0, 0, 30)->poll32_events = POLLIN;
	submit(&r);
	/* What this kernel may not have. */
	add(&r, FUTEX_WAIT_OP, FUTEX2_32 | FUTEX2_PRIV, &futex, 0, 7, 31)->addr3 = FUTEX_BITSET_MATCH_ANY;
	add(&r, FUTEX_WAITV_OP, 0, both, 2, 0, 34);
	add(&r, WAITID, child, NULL, P_PID, (uint64_t)(uintptr_t)&info, 32)->file_index = WEXITED | WNOWAIT;
	add(&r, EPOLL_WAIT_OP, epoll, &got, 1, 0, 33);
	submit(&r);
	usleep(50000);
	reap(&r);
	fprintf(out, "# futex %d, waitid %d, epoll_wait %d\n", r.res[31], r.res[32], r.res[33]);
	waits = !r.count[31] && !r.count[32] && !r.count[34];
	memset(both, 0xff, sizeof(both));
	/* Nobody is woken for that, and a wait that begins now would not be for this value. */
	futexes[0] = 100;
	epolls = !r.count[33];
	r.count[31] = r.count[32] = r.count[33] = r.count[34] = 0;

	/* A timeout that counts completions: two, and one has come. */
	t = (struct __kernel_timespec){ .tv_sec = 3600 };
	add(&counted, IORING_OP_TIMEOUT, -1, &t, 1, 2, 1);
	submit_and_spoil(&counted, &t, sizeof(t));
	add(&counted, IORING_OP_NOP, -1, NULL, 0, 0, 2);
	submit(&counted);
	came(&counted, 2, 1);

	add(&drained, IORING_OP_POLL_ADD, p[10][0], NULL, 0, 0, 1)->poll32_events = POLLIN;
	add(&drained, IORING_OP_NOP, -1, NULL, 0, 0, 2)->flags = IOSQE_IO_DRAIN;
	add(&drained, IORING_OP_NOP, -1, NULL, 0, 0, 3);
	add(&drained, IORING_OP_WRITE, p[11][1], "drained", 7, (uint64_t)-1, 4)->flags = IOSQE_IO_DRAIN;
	submit(&drained);

	usleep(100000);
	reap(&r);
	for (int i = 1; i < MAX_DATA; i++)
		if (r.count[i] && i != 2)
			fprintf(out, "# %d came: %d\n", i, r.res[i]);
	check("nothing has come yet", r.next == 301 + (waits ? 0 : 3) + (epolls ? 0 : 1));
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[2], F_OK))
		usleep(10000);

	reap(&r);
	check("nothing comes by itself", !r.count[1] && !r.count[5] && !r.count[8] && !r.count[20] && !r.count[30]);
	say(p[0][1], "x");
	check("poll", gave(&r, 1, POLLIN));
	eventfd_write(ev_many, 1);
	check("multishot poll", came(&r, 2, 2) && (r.cqe_flags[2] & IORING_CQE_F_MORE));
	eventfd_read(ev_many, &numbers[3]);
	eventfd_write(ev_many, 1);
	check("multishot poll goes on", came(&r, 2, 3) && (r.cqe_flags[2] & IORING_CQE_F_MORE));
	other = connected(&at_once);
	check("accept", came(&r, 3, 1) && r.res[3] >= 0 && fcntl(r.res[3], F_GETFD) == FD_CLOEXEC && peer.sun_family == AF_UNIX);
	close(other);
	for (int i = 1; i <= 3; i++) {
		other = connected(&at_many);
		if (!came(&r, 4, i))
			break;
		close(r.res[4]);
		close(other);
	}
	check("multishot accept", r.count[4] == 3 && r.res[4] >= 0 && (r.cqe_flags[4] & IORING_CQE_F_MORE));
	say(s[0][1], "received");
	check("recv", gave(&r, 5, 8) && !memcmp(data[5], "received", 8));
	say(s[1][1], "polled first");
	check("recv, poll first", gave(&r, 6, 12) && !memcmp(data[6], "polled first", 12));
	say(s[2][1], "in two parts");
	check("recvmsg", gave(&r, 7, 12) && !memcmp(data[7], "in ", 3) && !memcmp(data[7] + 16, "two parts", 9));
	say(p[1][1], "piped");
	check("read of a pipe", gave(&r, 8, 5) && !memcmp(data[8], "piped", 5));
	say(p[2][1], "four and more");
	check("readv", gave(&r, 9, 13) && !memcmp(data[9], "four", 4) && !memcmp(data[9] + 32, " and more", 9));
	eventfd_write(ev, 99);
	check("read of an eventfd", gave(&r, 10, 8) && numbers[0] == 99);
	timer.it_value = (struct timespec){ .tv_nsec = 1000000 };
	timerfd_settime(tfd, 0, &timer, NULL);
	check("read of a timerfd", gave(&r, 11, 8) && numbers[1] == 1);
	check("a timeout that runs out", gave(&r, 13, -ETIME));
	{
		struct timespec now;

		check("a timeout at a time on the wall", gave(&r, 14, -ETIME));
		clock_gettime(CLOCK_REALTIME, &now);
		check("which has come", now.tv_sec * SECOND + now.tv_nsec - begun >= 3 * SECOND);
	}
	check("a timeout that has not run out", !r.count[12]);
	add(&r, IORING_OP_TIMEOUT_REMOVE, -1, (void *)12, 0, 0, 40);
	submit(&r);
	check("timeouts are found by what they are called", gave(&r, 40, 0) && gave(&r, 12, -ECANCELED));
	say(p[3][1], "links");
	check("links", gave(&r, 20, POLLIN) && gave(&r, 21, 5) && !memcmp(data[21], "links", 5) && gave(&r, 22, 6) &&
			       read(p[4][0], data[22], 64) == 6 && !memcmp(data[22], "linked", 6));
	say(p[5][1], "in time");
	check("within its time", gave(&r, 23, 7) && gave(&r, 24, -ECANCELED));
	check("not within its time", gave(&r, 25, -ECANCELED) && gave(&r, 26, -ETIME));
	say(p[7][1], "closed");
	check("by a number that was closed", gave(&r, 27, 6) && !memcmp(data[27], "closed", 6));
	say(p[8][1], "reused");
	check("by a number that is another's", gave(&r, 28, 6) && !memcmp(data[28], "reused", 6));
	check("no room to send yet", !r.count[29]);
	while (recv(s[3][0], big, sizeof(big), MSG_DONTWAIT) > 0)
		continue;
	check("send", gave(&r, 29, 4) && full > 0);
	add(&r, IORING_OP_ASYNC_CANCEL, -1, (void *)30, 0, 0, 41);
	submit(&r);
	check("cancel", gave(&r, 41, 0) && gave(&r, 30, -ECANCELED));
	if (waits) {
		check("futex, still waiting", !r.count[31]);
		futex = 8;
		syscall(SYS_futex, &futex, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		check("futex", gave(&r, 31, 0));
		check("two futexes, still waiting", !r.count[34]);
		syscall(SYS_futex, &futexes[1], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		check("two futexes, and which of them", gave(&r, 34, 1));
		check("waitid", gave(&r, 32, 0) && info.si_pid == child && info.si_status == 42);
	}
	waitpid(child, &status, 0);
	if (epolls) {
		eventfd_write(ev_epoll, 1);
		check("epoll_wait", gave(&r, 33, 1) && got.data.u64 == 4711);
	}
	reap(&counted);
	check("a timeout that counts, not yet", !counted.count[1]);
	add(&counted, IORING_OP_NOP, -1, NULL, 0, 0, 3);
	submit(&counted);
	check("a timeout that counts", gave(&counted, 3, 0) && gave(&counted, 1, 0));
	reap(&drained);
	check("drain, not yet", !drained.next);
	say(p[10][1], "x");
	check("drain", gave(&drained, 1, POLLIN) && gave(&drained, 2, 0) && gave(&drained, 3, 0) && gave(&drained, 4, 7) &&
			       drained.order[1] < drained.order[2] && drained.order[2] < drained.order[3] &&
			       drained.order[3] < drained.order[4]);
	pthread_join(thread, NULL);
	check("a thread's own", side.ok);
	check("no completion twice", r.count[1] == 1 && r.count[5] == 1 && r.count[8] == 1 && r.count[12] == 1);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
