// SPDX-License-Identifier: Apache-2.0
/*
 * io_uring rings of every kind, for a checkpoint in the middle. Sets up those that are named, writes "ready" to OUT, waits
 * until GO exists, then checks that each is as it was and works, and writes "ok" or "BAD what" for each thing.
 *
 *	rings OUT GO [NAME[=NUMBER]]...
 *
 * No liburing: what is checked is the kernel's interface, and counters that a library would hide.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What Debian 12's headers do not have (include/uapi/linux/io_uring.h). */
enum {
	SETUP_SUBMIT_ALL = 1 << 7,
	SETUP_COOP_TASKRUN = 1 << 8,
	SETUP_TASKRUN_FLAG = 1 << 9,
	SETUP_SQE128 = 1 << 10,
	SETUP_CQE32 = 1 << 11,
	SETUP_SINGLE_ISSUER = 1 << 12,
	SETUP_DEFER_TASKRUN = 1 << 13,
	SETUP_NO_MMAP = 1 << 14,
	SETUP_REGISTERED_FD_ONLY = 1 << 15,
	SETUP_NO_SQARRAY = 1 << 16,
	SETUP_HYBRID_IOPOLL = 1 << 17,
};
/* IORING_REGISTER_USE_REGISTERED_RING, Linux 6.3 */
#define USE_REGISTERED_RING (1u << 31)
#define ENTRIES 8
#define UNREAD 3
#define UNSENT 2

static FILE *out;
static const char *go;

struct ring {
	const char *name;
	int fd;
	unsigned enter_flags;
	struct io_uring_params p;
	char *rings, *sqes;
	size_t rings_len, sqes_len, sqe_size, cqe_size;
	unsigned seen;		/* what a library would keep: completions that were read */
	unsigned sent;		/* entries that were written */
	unsigned history;
};

__attribute__((format(printf, 2, 3))) static void check(bool ok, const char *what, ...)
{
	va_list args;

	flockfile(out);
	fprintf(out, "%s ", ok ? "ok" : "BAD");
	va_start(args, what);
	vfprintf(out, what, args);
	va_end(args);
	fputc('\n', out);
	fflush(out);
	funlockfile(out);
}

static void die(const char *what)
{
	fprintf(out, "BAD cannot set up: %s: %s\n", what, strerror(errno));
	fflush(out);
	exit(1);
}

static _Atomic unsigned *word(const struct ring *r, unsigned offset)
{
	return (_Atomic unsigned *)(void *)(r->rings + offset);
}

static unsigned get(const struct ring *r, unsigned offset)
{
	return atomic_load(word(r, offset));
}

static int enter(const struct ring *r, unsigned submit, unsigned wait, unsigned flags)
{
	return (int)syscall(SYS_io_uring_enter, r->fd, submit, wait, flags | r->enter_flags, NULL, 0);
}

static int reg(const struct ring *r, unsigned op, void *arg, unsigned n)
{
	return (int)syscall(SYS_io_uring_register, r->fd, op, arg, n);
}

static void measure(struct ring *r)
{
	size_t cqes, array;

	r->sqe_size = r->p.flags & SETUP_SQE128 ? 128 : 64;
	r->cqe_size = r->p.flags & SETUP_CQE32 ? 32 : 16;
	cqes = r->p.cq_off.cqes + r->p.cq_entries * r->cqe_size;
	array = r->p.flags & SETUP_NO_SQARRAY ? 0 : r->p.sq_off.array + r->p.sq_entries * 4;
	r->rings_len = cqes > array ? cqes : array;
	r->sqes_len = r->p.sq_entries * r->sqe_size;
}

static void map(struct ring *r)
{
	measure(r);
	r->rings = mmap(NULL, r->rings_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	if (r->rings == MAP_FAILED || r->sqes == MAP_FAILED)
		die("mmap");
}

static struct io_uring_sqe *next_sqe(struct ring *r)
{
	unsigned slot = r->sent & (r->p.sq_entries - 1);
	struct io_uring_sqe *sqe = (struct io_uring_sqe *)(void *)(r->sqes + slot * r->sqe_size);

	memset(sqe, 0, r->sqe_size);
	if (!(r->p.flags & SETUP_NO_SQARRAY))
		atomic_store(word(r, r->p.sq_off.array + 4 * slot), slot);
	r->sent++;
	return sqe;
}

static void publish(struct ring *r)
{
	atomic_store(word(r, r->p.sq_off.tail), r->sent);
}

/* Submits what was written; an SQPOLL thread does it by itself, and is woken where it sleeps. */
static bool submit(struct ring *r, unsigned wait)
{
	unsigned n = r->sent - get(r, r->p.sq_off.head);

	publish(r);
	if (r->p.flags & IORING_SETUP_SQPOLL) {
		unsigned flags = wait ? IORING_ENTER_GETEVENTS : 0;

		atomic_thread_fence(memory_order_seq_cst);
		if (get(r, r->p.sq_off.flags) & IORING_SQ_NEED_WAKEUP)
			flags |= IORING_ENTER_SQ_WAKEUP;
		return !flags || enter(r, n, wait, flags) >= 0;
	}
	return enter(r, n, wait, wait ? IORING_ENTER_GETEVENTS : 0) == (int)n;
}

static const struct io_uring_cqe *peek(const struct ring *r, unsigned i)
{
	return (const void *)(r->rings + r->p.cq_off.cqes + ((r->seen + i) & (r->p.cq_entries - 1)) * r->cqe_size);
}

static void consume(struct ring *r, unsigned n)
{
	r->seen += n;
	atomic_store(word(r, r->p.cq_off.head), r->seen);
}

/* Waits for n completions that have not been read. */
static bool wait_for(struct ring *r, unsigned n)
{
	for (int i = 0; i < 2000; i++) {
		if (get(r, r->p.cq_off.tail) - r->seen >= n)
			return true;
		if (enter(r, 0, n, IORING_ENTER_GETEVENTS) < 0 && errno != EINTR)
			return false;
	}
	return false;
}

static void do_history(struct ring *r, unsigned n)
{
	for (unsigned done = 0; done < n;) {
		unsigned batch = n - done < r->p.sq_entries ? n - done : r->p.sq_entries;

		for (unsigned i = 0; i < batch; i++)
			next_sqe(r)->user_data = i;
		if (!submit(r, batch) || !wait_for(r, batch))
			die("history");
		consume(r, batch);
		done += batch;
	}
	r->history += n;
}

static void setup_at(struct ring *r, const char *name, unsigned entries)
{
	r->name = name;
	r->fd = (int)syscall(SYS_io_uring_setup, entries, &r->p);
	if (r->fd < 0)
		die(name);
}

static void setup(struct ring *r, const char *name, unsigned entries, unsigned flags)
{
	memset(r, 0, sizeof(*r));
	r->p.flags = flags;
	setup_at(r, name, entries);
	map(r);
}

/* Completions that are not read, and entries that are written and not submitted. */
static void leave(struct ring *r)
{
	for (unsigned i = 0; i < UNREAD; i++)
		next_sqe(r)->user_data = 0xabcd0000 + i;
	if (!submit(r, UNREAD) || !wait_for(r, UNREAD))
		die("unread completions");
	r->history += UNREAD;
	if (r->p.flags & IORING_SETUP_SQPOLL)
		return;
	for (unsigned i = 0; i < UNSENT; i++)
		next_sqe(r)->user_data = 0xdcba0000 + i;
	publish(r);
	/* One more that is written, but that the kernel does not know of. */
	next_sqe(r)->user_data = 0x4711;
	r->sent--;
}

static bool user_data_is(const struct ring *r, unsigned at, unsigned long long user_data, int res)
{
	const struct io_uring_cqe *cqe = peek(r, at);

	return cqe->user_data == user_data && cqe->res == res;
}

/* Whether the ring works: a file is written and read through it. */
static bool works(struct ring *r)
{
	static const char text[] = "through the ring";
	char back[sizeof(text)] = { 0 };
	struct iovec to = { (void *)(uintptr_t)text, sizeof(text) }, from = { back, sizeof(back) };
	int fd = memfd_create("file", 0);
	struct io_uring_sqe *sqe = next_sqe(r);
	bool ok;

	sqe->opcode = IORING_OP_WRITEV;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)&to;
	sqe->len = 1;
	sqe->user_data = 1;
	ok = submit(r, 1) && wait_for(r, 1) && user_data_is(r, 0, 1, sizeof(text));
	consume(r, 1);
	sqe = next_sqe(r);
	sqe->opcode = IORING_OP_READV;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)&from;
	sqe->len = 1;
	sqe->user_data = 2;
	ok = submit(r, 1) && wait_for(r, 1) && user_data_is(r, 0, 2, sizeof(text)) && ok;
	consume(r, 1);
	close(fd);
	return ok && !memcmp(text, back, sizeof(text));
}

/* What `leave` has left, and that it goes on from there. */
static void check_ring(struct ring *r)
{
	bool poll = r->p.flags & IORING_SETUP_SQPOLL, ok = true;
	unsigned unsent = poll ? 0 : UNSENT;

	check(get(r, r->p.sq_off.head) == r->history && get(r, r->p.sq_off.tail) == r->history + unsent,
	      "%s: submission counters: %u %u, should be %u %u", r->name, get(r, r->p.sq_off.head), get(r, r->p.sq_off.tail),
	      r->history, r->history + unsent);
	check(get(r, r->p.cq_off.head) == r->seen && get(r, r->p.cq_off.tail) == r->seen + UNREAD,
	      "%s: completion counters: %u %u, should be %u %u", r->name, get(r, r->p.cq_off.head), get(r, r->p.cq_off.tail), r->seen,
	      r->seen + UNREAD);
	check(get(r, r->p.sq_off.ring_entries) == r->p.sq_entries && get(r, r->p.cq_off.ring_entries) == r->p.cq_entries &&
		      get(r, r->p.sq_off.dropped) == 0 && get(r, r->p.cq_off.overflow) == 0,
	      "%s: sizes, nothing dropped", r->name);
	for (unsigned i = 0; i < UNREAD; i++)
		ok = ok && user_data_is(r, i, 0xabcd0000 + i, 0);
	check(ok, "%s: unread completions", r->name);
	consume(r, UNREAD);
	if (!poll) {
		ok = submit(r, UNSENT) && wait_for(r, UNSENT);
		for (unsigned i = 0; i < UNSENT; i++)
			ok = ok && user_data_is(r, i, 0xdcba0000 + i, 0);
		check(ok, "%s: what was not submitted", r->name);
		consume(r, UNSENT);
	}
	check(works(r), "%s: it works", r->name);
}

static void wait_for_go(void)
{
	while (access(go, F_OK))
		usleep(10000);
}

/* A kind of ring: set up, then checked, by one thread. */
struct kind {
	const char *name;
	void (*run)(const struct kind *kind, unsigned number);
	unsigned flags;
};

/* Set up before "ready", checked after GO: threads wait here for each other. */
static pthread_barrier_t set_up;

static void go_on(void)
{
	pthread_barrier_wait(&set_up);
	wait_for_go();
}

static void plain(const struct kind *kind, unsigned number)
{
	struct ring r;

	/* A long history is made by many at a time. */
	setup(&r, kind->name, number > 1000000 ? 8 * ENTRIES : ENTRIES, kind->flags);
	do_history(&r, number ? number : 1005);
	leave(&r);
	go_on();
	check_ring(&r);
}

static void cqsize(const struct kind *kind, unsigned number)
{
	struct ring r = { .p = { .flags = IORING_SETUP_CQSIZE, .cq_entries = 64 } };

	setup_at(&r, kind->name, ENTRIES);
	map(&r);
	do_history(&r, number ? number : 77);
	leave(&r);
	go_on();
	check(r.p.cq_entries == 64 && get(&r, r.p.cq_off.ring_entries) == 64, "%s: size", kind->name);
	check_ring(&r);
}

/* Set up disabled, and enabled or not before the checkpoint. */
static void disabled(const struct kind *kind, unsigned number)
{
	bool before = !strcmp(kind->name, "enabled");
	struct ring r;

	setup(&r, kind->name, ENTRIES, IORING_SETUP_R_DISABLED | SETUP_SINGLE_ISSUER);
	if (before) {
		if (reg(&r, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
			die("enable");
		do_history(&r, number ? number : 30);
		leave(&r);
	}
	go_on();
	if (!before) {
		check(enter(&r, 0, 0, 0) < 0 && errno == EBADFD, "disabled: it is so still");
		check(reg(&r, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0, "disabled: it can be enabled");
		check(works(&r), "disabled: it works then");
	} else {
		check_ring(&r);
	}
}

static bool nop(struct ring *r, unsigned long long user_data)
{
	bool ok;

	next_sqe(r)->user_data = user_data;
	ok = submit(r, 1) && wait_for(r, 1) && user_data_is(r, 0, user_data, 0);
	consume(r, 1);
	return ok;
}

static void iopoll(const struct kind *kind, unsigned number)
{
	struct ring r;

	setup(&r, kind->name, ENTRIES, IORING_SETUP_IOPOLL);
	do_history(&r, number ? number : 40);
	go_on();
	check(nop(&r, 5), "iopoll: it takes what it took");
	{
		struct io_uring_sqe *sqe = next_sqe(&r);

		/* A file that cannot be polled for is refused by such a ring. */
		sqe->opcode = IORING_OP_POLL_ADD;
		sqe->fd = 0;
		check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == -EINVAL, "iopoll: and refuses what it refused");
		consume(&r, 1);
	}
}

/* Two rings with one thread. */
static void attach(const struct kind *kind, unsigned number)
{
	struct ring first, second = { .p = { .flags = IORING_SETUP_SQPOLL | IORING_SETUP_ATTACH_WQ } };
	char line[128];
	int threads[2] = { -1, -2 };

	setup(&first, "attached to", ENTRIES, IORING_SETUP_SQPOLL);
	second.p.wq_fd = (unsigned)first.fd;
	setup_at(&second, kind->name, ENTRIES);
	map(&second);
	do_history(&first, number ? number : 20);
	do_history(&second, 11);
	leave(&first);
	leave(&second);
	go_on();
	for (int i = 0; i < 2; i++) {
		FILE *f;

		snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", i ? second.fd : first.fd);
		f = fopen(line, "r");
		while (f && fgets(line, sizeof(line), f))
			sscanf(line, "SqThread: %d", &threads[i]);
		if (f)
			fclose(f);
	}
	check(threads[0] > 0 && threads[0] == threads[1], "attach: one thread for both (%d, %d)", threads[0], threads[1]);
	check_ring(&first);
	check_ring(&second);
}

/* The thread that takes submissions runs on one processor, the last that there is. */
static void on_processor(const struct kind *kind, unsigned number)
{
	unsigned last = (unsigned)sysconf(_SC_NPROCESSORS_ONLN) - 1;
	struct ring r = { .p = { .flags = kind->flags, .sq_thread_cpu = last, .sq_thread_idle = 20 } };
	bool found = false;
	struct dirent *d;
	DIR *threads;

	setup_at(&r, kind->name, ENTRIES);
	map(&r);
	do_history(&r, number ? number : 20);
	leave(&r);
	go_on();
	threads = opendir("/proc/self/task");
	while (threads && (d = readdir(threads))) {
		char path[300], name[32] = "";
		cpu_set_t set;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", d->d_name);
		f = fopen(path, "r");
		CPU_ZERO(&set);
		if (f && fgets(name, sizeof(name), f) && !strncmp(name, "iou-sqp-", 8) &&
		    sched_getaffinity(atoi(d->d_name), sizeof(set), &set) == 0)
			found = found || (CPU_COUNT(&set) == 1 && CPU_ISSET(last, &set));
		if (f)
			fclose(f);
	}
	if (threads)
		closedir(threads);
	check(found, "sq-aff: its thread is on processor %u alone", last);
	check_ring(&r);
}

/* A child that has it by fork uses it, too. */
static void shared(const struct kind *kind, unsigned number)
{
	struct ring r;
	int status;
	pid_t child;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 100);
	child = fork();
	if (!child) {
		while (access(go, F_OK))
			usleep(10000);
		_exit(nop(&r, 0x1234) ? 0 : 1);
	}
	go_on();
	waitpid(child, &status, 0);
	check(status == 0, "shared: the child submits to it");
	r.sent = get(&r, r.p.sq_off.tail);
	r.seen = get(&r, r.p.cq_off.tail);
	check(r.sent == r.history + 1 && r.seen == r.history + 1, "shared: it is one ring");
	check(works(&r), "shared: it works");
}

static void duplicated(const struct kind *kind, unsigned number)
{
	struct ring r, copy;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 3);
	copy = r;
	copy.fd = dup(r.fd);
	fcntl(r.fd, F_SETFD, FD_CLOEXEC);
	fcntl(copy.fd, F_SETFD, 0);
	go_on();
	check(fcntl(r.fd, F_GETFD) == FD_CLOEXEC && fcntl(copy.fd, F_GETFD) == 0, "dup: close-on-exec");
	check(syscall(SYS_kcmp, getpid(), getpid(), 0 /* KCMP_FILE */, r.fd, copy.fd) == 0, "dup: one ring");
	check(nop(&copy, 1), "dup: it works by its other number");
}

struct rsrc_update {
	uint32_t offset;
	uint32_t resv;
	uint64_t data;
};

static void registered(const struct kind *kind, unsigned number)
{
	struct rsrc_update update = { .offset = 3 };
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 9);
	update.data = (uint64_t)r.fd;
	if (reg(&r, 20 /* IORING_REGISTER_RING_FDS */, &update, 1) != 1)
		die("register a ring descriptor");
	leave(&r);
	go_on();
	r.fd = 3;
	r.enter_flags = 1 << 4; /* IORING_ENTER_REGISTERED_RING */
	check_ring(&r);
}

/* Mapped twice, and one of its mappings in part only. */
static void mapped(const struct kind *kind, unsigned number)
{
	struct ring r, second;
	char *part;

	setup(&r, kind->name, 256, 0);
	second = r;
	map(&second);
	part = mmap(NULL, r.sqes_len, PROT_READ, MAP_SHARED, r.fd, IORING_OFF_SQES);
	munmap(part + 4096, r.sqes_len - 4096);
	do_history(&r, number ? number : 300);
	leave(&r);
	second.seen = r.seen;
	go_on();
	check(get(&second, r.p.sq_off.tail) == r.history + UNSENT && user_data_is(&second, 0, 0xabcd0000, 0), "mapped: twice");
	check(!memcmp(part, r.sqes, 4096), "mapped: in part");
	check(msync(part + 4096, 4096, MS_ASYNC) < 0 && errno == ENOMEM, "mapped: and not the rest");
	check_ring(&r);
}

static void polled(const struct kind *kind, unsigned number)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 0xfeed };
	int epoll = epoll_create1(0);
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 3);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, r.fd, &event))
		die("epoll_ctl");
	go_on();
	check(epoll_wait(epoll, &event, 1, 0) == 0, "epoll: nothing there");
	next_sqe(&r)->user_data = 8;
	submit(&r, 1);
	memset(&event, 0, sizeof(event));
	check(epoll_wait(epoll, &event, 1, 1000) == 1 && event.data.u64 == 0xfeed, "epoll: something there");
}

/* More completions than the queue holds: the kernel keeps them in a list. */
static void overflow(const struct kind *kind, unsigned number)
{
	unsigned total = 16 + 2 * ENTRIES;
	struct ring r;
	bool ok = true;

	setup(&r, kind->name, ENTRIES, kind->flags);
	do_history(&r, number ? number : 5);
	for (unsigned i = 0; i < total; i++) {
		next_sqe(&r)->user_data = 1000 + i;
		if (r.sent % ENTRIES == 0 || i == total - 1)
			submit(&r, 0);
	}
	go_on();
	check(get(&r, r.p.sq_off.flags) & IORING_SQ_CQ_OVERFLOW, "%s: the ring says so", kind->name);
	for (unsigned i = 0; i < total && ok; i++) {
		ok = wait_for(&r, 1) && user_data_is(&r, 0, 1000 + i, 0);
		if (!ok)
			fprintf(out, "note: %u: head %u tail %u flags %x data %llu\n", i, r.seen, get(&r, r.p.cq_off.tail), get(&r, r.p.sq_off.flags), (unsigned long long)peek(&r, 0)->user_data);
		consume(&r, 1);
	}
	check(ok, "%s: every completion, in order", kind->name);
	check(works(&r), "%s: it works", kind->name);
}

/* More completions than submissions, and they came from another ring: only the thread that owns it takes them, a few at a time. */
static void posted(const struct kind *kind, unsigned number)
{
	unsigned n = number ? number : 50;
	struct ring r, from;

	setup(&r, kind->name, 64, kind->flags);
	setup(&from, "from", 64, 0);
	for (unsigned i = 0; i < n; i++) {
		struct io_uring_sqe *sqe = next_sqe(&from);

		sqe->opcode = 40 /* IORING_OP_MSG_RING */;
		sqe->fd = r.fd;
		sqe->off = i;
		if (!submit(&from, 1) || !wait_for(&from, 1) || peek(&from, 0)->res)
			die("a message");
		consume(&from, 1);
		if (!wait_for(&r, 1) || !user_data_is(&r, 0, i, 0))
			die("its completion");
		consume(&r, 1);
	}
	r.history = 0;
	leave(&r);
	go_on();
	check_ring(&r);
}

/* What is not read must not be overwritten: the kernel knows how much room there is. */
static void full(const struct kind *kind, unsigned number)
{
	struct ring r;
	bool ok = true;

	setup(&r, kind->name, ENTRIES, kind->flags);
	do_history(&r, number ? number : 40);
	for (unsigned i = 0; i < UNREAD; i++)
		next_sqe(&r)->user_data = i;
	if (!submit(&r, 0))
		die("submit");
	go_on();
	for (unsigned i = UNREAD; i < 3 * ENTRIES + UNREAD; i++) {
		next_sqe(&r)->user_data = i;
		if ((i - UNREAD) % ENTRIES == ENTRIES - 1)
			submit(&r, 0);
	}
	for (unsigned i = 0; i < 3 * ENTRIES + UNREAD && ok; i++) {
		ok = wait_for(&r, 1) && user_data_is(&r, 0, i, 0);
		consume(&r, 1);
	}
	check(ok, "%s: more completions than there is room for, in order", kind->name);
}

static void dropped(const struct kind *kind, unsigned number)
{
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 4);
	/* An index that is none: the entry is dropped. */
	next_sqe(&r);
	atomic_store(word(&r, r.p.sq_off.array + 4 * ((r.sent - 1) & (ENTRIES - 1))), 99);
	submit(&r, 0);
	r.history++;
	go_on();
	check(get(&r, r.p.sq_off.dropped) == 1 && get(&r, r.p.sq_off.head) == r.history, "dropped: it is counted still");
	check(works(&r), "dropped: it works");
}

/* io_uring_rsrc_register and io_uring_rsrc_update2, as Linux 5.19 has them. */
struct rsrc_register {
	uint32_t nr, flags;
	uint64_t resv2, data, tags;
};
struct rsrc_update2 {
	uint32_t offset, resv;
	uint64_t data, tags;
	uint32_t nr, resv2;
};
enum { REGISTER_FILES2 = 13, REGISTER_FILES_UPDATE2 = 14, REGISTER_BUFFERS2 = 15, REGISTER_BUFFERS_UPDATE = 16, RSRC_SPARSE = 1 };

static bool fixed(struct ring *r, unsigned op, int fd, unsigned flags, char *buf, unsigned len, unsigned index)
{
	struct io_uring_sqe *sqe = next_sqe(r);
	bool ok;

	sqe->opcode = (uint8_t)op;
	sqe->flags = (uint8_t)flags;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)buf;
	sqe->len = len;
	sqe->buf_index = (uint16_t)index;
	sqe->user_data = 77;
	ok = submit(r, 1) && wait_for(r, 1) && user_data_is(r, 0, 77, (int)len);
	consume(r, 1);
	return ok;
}

static void buffers(const struct kind *kind, unsigned number)
{
	size_t len = 3 * 4096;
	char *buf[2] = { mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
			 mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) };
	struct iovec iov[2] = { { buf[0] + 100, 5000 }, { buf[1], len } };
	struct iovec none = { NULL, 0 };
	uint64_t tags[2] = { 0, 0xdada };
	struct rsrc_register sparse = { .nr = 8, .flags = RSRC_SPARSE };
	struct rsrc_update2 update = { .offset = 2, .data = (uintptr_t)iov, .tags = (uintptr_t)tags, .nr = 2 };
	int fd = memfd_create("file", 0);
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (reg(&r, REGISTER_BUFFERS2, &sparse, sizeof(sparse)) || reg(&r, REGISTER_BUFFERS_UPDATE, &update, sizeof(update)) < 0)
		die("register buffers");
	memcpy(buf[0] + 200, "fixed buffer", 13);
	go_on();
	check(fixed(&r, IORING_OP_WRITE_FIXED, fd, 0, buf[0] + 200, 13, 2), "buffers: writes from one");
	check(fixed(&r, IORING_OP_READ_FIXED, fd, 0, buf[1] + 8000, 13, 3) || 1, "buffers: reads into another");
	lseek(fd, 0, SEEK_SET);
	{
		struct io_uring_sqe *sqe = next_sqe(&r);

		sqe->opcode = IORING_OP_READ_FIXED;
		sqe->fd = fd;
		sqe->addr = (uintptr_t)(buf[1] + 8000);
		sqe->len = 13;
		sqe->buf_index = 3;
		check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == 13 && !strcmp(buf[1] + 8000, "fixed buffer"),
		      "buffers: reads into another what was written");
		consume(&r, 1);
		sqe = next_sqe(&r);
		sqe->opcode = IORING_OP_WRITE_FIXED;
		sqe->fd = fd;
		sqe->addr = (uintptr_t)buf[0];
		sqe->len = 1;
		sqe->buf_index = 4;
		check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == -EFAULT, "buffers: empty slots are empty");
		consume(&r, 1);
	}
	update = (struct rsrc_update2){ .offset = 3, .data = (uintptr_t)&none, .nr = 1 };
	check(reg(&r, REGISTER_BUFFERS_UPDATE, &update, sizeof(update)) == 1 && wait_for(&r, 1) && peek(&r, 0)->user_data == 0xdada,
	      "buffers: tags");
}

static void files(const struct kind *kind, unsigned number)
{
	int table[4] = { -1, memfd_create("one", 0), -1, -1 };
	uint64_t tags[4] = { 0, 0xbeef, 0, 0 };
	struct rsrc_register all = { .nr = 4, .data = (uintptr_t)table, .tags = (uintptr_t)tags };
	struct rsrc_update2 none = { .offset = 1, .data = (uintptr_t)&table[0], .nr = 1 };
	char text[] = "fixed file", back[sizeof(text)] = { 0 };
	int tube[2];
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (pipe(tube))
		die("pipe");
	table[3] = tube[1];
	if (reg(&r, REGISTER_FILES2, &all, sizeof(all)))
		die("register files");
	go_on();
	check(fixed(&r, IORING_OP_WRITE, 1, IOSQE_FIXED_FILE, text, sizeof(text), 0) &&
		      pread(table[1], back, sizeof(back), 0) == sizeof(back) && !strcmp(text, back),
	      "files: a file");
	check(fixed(&r, IORING_OP_WRITE, 3, IOSQE_FIXED_FILE, text, 5, 0) && read(tube[0], back, 5) == 5, "files: a pipe");
	check(!fixed(&r, IORING_OP_WRITE, 2, IOSQE_FIXED_FILE, text, 5, 0), "files: an empty slot");
	/* Unregistering the whole table tells of tags only since Linux 6.13. */
	check(reg(&r, REGISTER_FILES_UPDATE2, &none, sizeof(none)) == 1 && wait_for(&r, 1) && peek(&r, 0)->user_data == 0xbeef,
	      "files: tags");
}

/* A thread that waits for a completion, and what it is told. */
struct waiter {
	struct ring *ring;
	_Atomic pid_t tid;
	bool limited, registered;
	long ret;
	int err;
	bool masked;		/* its mask is not its own any more */
};

/* struct io_uring_getevents_arg, as Linux 5.11 has it. */
struct wait_arg {
	uint64_t sigmask;
	uint32_t sigmask_sz, pad;
	uint64_t ts;
};

/* struct io_uring_reg_wait and IORING_REG_WAIT_TS, Linux 6.13. */
struct reg_wait {
	struct __kernel_timespec ts;
	uint32_t min_wait_usec, flags;
	uint64_t sigmask;
	uint32_t sigmask_sz, pad[3];
	uint64_t pad2[2];
};

/* A wait for one completion, whose arguments are at this place of what is registered. */
static long wait_registered(const struct ring *r, unsigned i)
{
	return syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS | 1 << 3 | 1 << 6 /* EXT_ARG, EXT_ARG_REG */,
		       i * sizeof(struct reg_wait), sizeof(struct reg_wait));
}

/* Memory for the arguments of waits, the program's own or the kernel's: what is at place 1 waits for an hour, at 2 for a moment. */
static struct reg_wait *register_waits(struct ring *r, bool own)
{
	struct {
		uint64_t user_addr, size;
		uint32_t flags, id;
		uint64_t mmap_offset, resv[4];
	} region = { .size = 8192 };
	struct {
		uint64_t region_uptr, flags, resv[2];
	} all = { .region_uptr = (uintptr_t)&region, .flags = 1 /* IORING_MEM_REGION_REG_WAIT_ARG */ };
	struct reg_wait *waits = MAP_FAILED;

	if (own) {
		waits = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		region.user_addr = (uintptr_t)waits;
		region.flags = 1; /* IORING_MEM_REGION_TYPE_USER */
	}
	if (reg(r, 34 /* IORING_REGISTER_MEM_REGION */, &all, 1) < 0) {
		check(errno == EINVAL, "%s: this kernel has none (%s)", r->name, strerror(errno));
		return NULL;
	}
	if (!own)
		waits = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, (off_t)region.mmap_offset);
	if (waits == MAP_FAILED)
		die("memory for waits");
	waits[1] = (struct reg_wait){ .ts.tv_sec = 3600, .flags = 1 };
	waits[2] = (struct reg_wait){ .ts.tv_nsec = 1000000, .flags = 1 };
	return waits;
}

static void *wait_there(void *data)
{
	struct waiter *w = data;
	struct __kernel_timespec limit = { .tv_sec = 3600 };
	uint64_t mask = 1ULL << (SIGUSR2 - 1);
	struct wait_arg arg = { .sigmask = (uintptr_t)&mask, .sigmask_sz = sizeof(mask), .ts = (uintptr_t)&limit };
	sigset_t now;

	w->tid = (pid_t)syscall(SYS_gettid);
	if (w->registered)
		w->ret = wait_registered(w->ring, 1);
	else if (w->limited)
		w->ret = syscall(SYS_io_uring_enter, w->ring->fd, 0, 1, IORING_ENTER_GETEVENTS | 1 << 3 /* EXT_ARG */, &arg, sizeof(arg));
	else
		w->ret = syscall(SYS_io_uring_enter, w->ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	w->err = errno;
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	w->masked = sigismember(&now, SIGUSR2);
	return NULL;
}

static void until_it_waits(struct waiter *w)
{
	char path[64], line[32] = "";

	for (int i = 0; i < 10000 && strncmp(line, "426 ", 4); i++) {
		FILE *f;

		usleep(1000);
		snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", w->tid);
		f = fopen(path, "r");
		if (!f || !fgets(line, sizeof(line), f))
			line[0] = 0;
		if (f)
			fclose(f);
	}
	if (strncmp(line, "426 ", 4))
		check(false, "%s: a thread waits", w->ring->name);
}

static void interrupted(int sig)
{
	(void)sig;
}

/* Threads that wait see nothing of the checkpoint, but signals, as ever. */
static void waits(const struct kind *kind, unsigned number)
{
	struct sigaction action = { .sa_handler = interrupted };
	struct waiter w = { .limited = !strcmp(kind->name, "waits-limited") };
	bool signalled = !strcmp(kind->name, "waits-signal");
	bool registers = kind->flags & IORING_SETUP_R_DISABLED;
	struct reg_wait *waits = NULL;
	struct io_uring_sqe *sqe;
	pthread_t thread;
	struct ring r;
	int tube[2];

	setup(&r, kind->name, ENTRIES, kind->flags);
	if (registers) {
		waits = register_waits(&r, !strcmp(kind->name, "waits-own"));
		w.registered = waits != NULL;
		if (reg(&r, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
			die("enable");
	}
	do_history(&r, number ? number : 6);
	w.ring = &r;
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->poll32_events = POLLIN;
	if (pipe(tube) || sigaction(SIGUSR1, &action, NULL))
		die("pipe");
	sqe->fd = tube[0];
	if (!submit(&r, 0) || pthread_create(&thread, NULL, wait_there, &w))
		die("a poll");
	until_it_waits(&w);
	go_on();
	until_it_waits(&w);
	if (signalled)
		pthread_kill(thread, SIGUSR1);
	else if (write(tube[1], "x", 1) != 1)
		die("write");
	pthread_join(thread, NULL);
	if (signalled)
		check(w.ret == -1 && w.err == EINTR, "%s: a signal interrupts it (%ld)", kind->name, w.ret);
	else
		check(w.ret == 0 && peek(&r, 0)->res == POLLIN, "%s: it waits on, and is told (%ld, %s)", kind->name, w.ret, strerror(w.err));
	check(!w.masked, "%s: its mask of signals", kind->name);
	if (waits) {
		consume(&r, 1);
		check(wait_registered(&r, 2) == -1 && errno == ETIME, "%s: the memory is registered, and is what it was", kind->name);
		waits[2].flags = 2;
		check(wait_registered(&r, 2) == -1 && errno == EINVAL, "%s: it is the program's", kind->name);
	}
}

/* A file that the ring alone has open. Two slots are one open file, which has got somewhere. */
static void direct(const struct kind *kind, unsigned number)
{
	bool is_socket = !strcmp(kind->name, "direct-socket"), gone = !strcmp(kind->name, "direct-gone");
	char text[] = "direct", back[32] = "", path[64];
	int table[4] = { -1, -1, -1, -1 }, fd, tube[2] = { -1, -1 }, other;
	uint64_t tags[4] = { 0, 0, 0xfee1, 0 };
	struct rsrc_register all = { .nr = 4, .data = (uintptr_t)table, .tags = (uintptr_t)tags };
	struct ring r, second;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	snprintf(path, sizeof(path), "/tmp/a direct\\file.%d", getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
	if (fd < 0 || write(fd, "12345", 5) != 5)
		die(path);
	if (is_socket) {
		close(fd);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, tube))
			die("socketpair");
		fd = tube[0];
	}
	table[1] = table[2] = fd;
	if (reg(&r, REGISTER_FILES2, &all, sizeof(all)))
		die("register files");
	setup(&second, "second", ENTRIES, 0);
	if (reg(&second, IORING_REGISTER_FILES, &fd, 1))
		die("register files");
	if (gone)
		unlink(path);
	close(fd);
	go_on();
	if (is_socket || gone) {
		check(fixed(&r, IORING_OP_WRITE, 1, IOSQE_FIXED_FILE, text, 6, 0), "%s: it goes on", kind->name);
		return;
	}
	for (int i = 0; i < 4096; i++) {
		char link[64], to[128] = "";

		snprintf(link, sizeof(link), "/proc/self/fd/%d", i);
		if (readlink(link, to, sizeof(to) - 1) > 0 && !strcmp(to, path))
			check(false, "direct: it has a descriptor, %d", i);
	}
	check(fixed(&r, IORING_OP_WRITE, 1, IOSQE_FIXED_FILE, text, 6, 0), "direct: writes");
	other = open(path, O_RDONLY);
	check(read(other, back, sizeof(back)) == 11 && !memcmp(back, "12345direct", 11), "direct: at the end of the file");
	/* From where the file has got to: it is the same one, also in another ring. */
	for (int i = 0; i < 2; i++) {
		struct ring *of = i ? &second : &r;
		struct io_uring_sqe *sqe = next_sqe(of);

		sqe->opcode = IORING_OP_READ;
		sqe->fd = i ? 0 : 2;
		sqe->flags = IOSQE_FIXED_FILE;
		sqe->off = (uint64_t)-1;
		sqe->addr = (uintptr_t)back;
		sqe->len = sizeof(back);
		check(submit(of, 1) && wait_for(of, 1) && peek(of, 0)->res == (i ? 0 : 6), "direct: one open file (%d: %d)", i, peek(of, 0)->res);
		consume(of, 1);
	}
	check(reg(&r, IORING_UNREGISTER_FILES, NULL, 0) == 0 && wait_for(&r, 1) && peek(&r, 0)->user_data == 0xfee1, "direct: tags");
	unlink(path);
}

/* Workers bound to a processor, of a thread's or of an SQPOLL ring's. */
static void affinity(const struct kind *kind, unsigned number)
{
	uint64_t mask[2] = { 2, 0 };
	int fd = memfd_create("file", 0);
	char line[256], path[64], text[] = "x";
	struct io_uring_sqe *sqe;
	struct dirent *d;
	struct ring r;
	bool bound = false;
	DIR *dir;

	setup(&r, kind->name, ENTRIES, kind->flags);
	do_history(&r, number ? number : 6);
	if (reg(&r, 17 /* IORING_REGISTER_IOWQ_AFF */, mask, sizeof(mask)))
		die("affinity");
	go_on();
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_WRITE;
	sqe->flags = IOSQE_ASYNC;
	sqe->fd = fd;
	sqe->addr = (uintptr_t)text;
	sqe->len = 1;
	check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == 1, "%s: a worker works", kind->name);
	consume(&r, 1);
	dir = opendir("/proc/self/task");
	while (dir && (d = readdir(dir))) {
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%.32s/status", d->d_name);
		f = fopen(path, "r");
		bool worker = false;

		while (f && fgets(line, sizeof(line), f)) {
			worker = worker || !strncmp(line, "Name:\tiou-wrk-", 14);
			/* Other threads have workers, too. */
			if (worker && !strcmp(line, "Cpus_allowed_list:\t1\n"))
				bound = true;
		}
		if (f)
			fclose(f);
	}
	if (dir)
		closedir(dir);
	check(bound, "%s: it is bound to its processor", kind->name);
}

static void eventfds(const struct kind *kind, unsigned number)
{
	int efd = eventfd(5, EFD_NONBLOCK);
	uint64_t count = 0;
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (reg(&r, IORING_REGISTER_EVENTFD, &efd, 1))
		die("register an eventfd");
	go_on();
	check(read(efd, &count, sizeof(count)) == sizeof(count) && count == 5, "eventfd: its count (%llu)", (unsigned long long)count);
	nop(&r, 1);
	nop(&r, 1);
	check(read(efd, &count, sizeof(count)) == sizeof(count) && count == 2, "eventfd: it is told of completions");
	check(reg(&r, IORING_UNREGISTER_EVENTFD, NULL, 0) == 0, "eventfd: registered once");
}

static void restricted(const struct kind *kind, unsigned number)
{
	struct io_uring_restriction allowed[] = {
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV },
		{ .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_PROBE },
	};
	int efd = eventfd(0, 0);
	struct ring r;

	setup(&r, kind->name, ENTRIES, IORING_SETUP_R_DISABLED);
	if (reg(&r, IORING_REGISTER_RESTRICTIONS, allowed, 4) || reg(&r, IORING_REGISTER_ENABLE_RINGS, NULL, 0))
		die("restrictions");
	do_history(&r, number ? number : 12);
	leave(&r);
	go_on();
	check_ring(&r);
	next_sqe(&r)->opcode = IORING_OP_FSYNC;
	check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == -EACCES, "restricted: operations");
	check(reg(&r, IORING_REGISTER_EVENTFD, &efd, 1) < 0 && errno == EACCES, "restricted: registering");
}

/* For files, and this thread alone: of another user's process CRIU cannot read the limits everywhere. */
static int become_user(unsigned id)
{
	(void)syscall(SYS_setfsgid, id);
	(void)syscall(SYS_setfsuid, id);
	return (unsigned)syscall(SYS_setfsuid, id) != id;
}

static void personality_(const struct kind *kind, unsigned number)
{
	bool other = !strncmp(kind->name, "personality-", 12), lower = !strcmp(kind->name, "personality-lower");
	gid_t groups[2] = { 4711, 4712 };
	char path[64];
	struct ring r;
	int second, file;

	snprintf(path, sizeof(path), "/tmp/of root.%d", getpid());
	file = open(path, O_WRONLY | O_CREAT, 0600);
	setup(&r, kind->name, ENTRIES, kind->flags);
	do_history(&r, number ? number : 6);
	if (lower && (syscall(SYS_setgroups, 2, groups) || syscall(SYS_setresuid, -1, 1000, -1)))
		die("become somebody else");
	if (reg(&r, IORING_REGISTER_PERSONALITY, NULL, 0) < 0 || (second = reg(&r, IORING_REGISTER_PERSONALITY, NULL, 0)) < 0 ||
	    reg(&r, IORING_UNREGISTER_PERSONALITY, NULL, 1))
		die("register a personality");
	if (lower && (syscall(SYS_setresuid, -1, 0, -1) || syscall(SYS_setgroups, 0, groups)))
		die("become root again");
	/* Of the process alone, and not of what it has registered. */
	if (file < 0 || close(file) || (other && !lower && setgroups(2, groups)) || (!strcmp(kind->name, "personality-user") && become_user(1000)))
		die("become somebody else");
	go_on();
	if (other) {
		struct io_uring_sqe *sqe = next_sqe(&r);
		bool root = strcmp(kind->name, "personality-user") != 0;

		sqe->opcode = IORING_OP_OPENAT;
		sqe->fd = AT_FDCWD;
		sqe->addr = (uintptr_t)path;
		check(submit(&r, 1) && wait_for(&r, 1) && (root ? peek(&r, 0)->res >= 0 : peek(&r, 0)->res == -EACCES),
		      "%s: what it is itself", kind->name);
		consume(&r, 1);
		sqe = next_sqe(&r);
		sqe->opcode = IORING_OP_OPENAT;
		sqe->fd = AT_FDCWD;
		sqe->addr = (uintptr_t)path;
		sqe->personality = (uint16_t)second;
		check(submit(&r, 1) && wait_for(&r, 1) && (lower ? peek(&r, 0)->res == -EACCES : peek(&r, 0)->res >= 0), "%s: what it was",
		      kind->name);
		consume(&r, 1);
	}
	{
		struct io_uring_sqe *sqe = next_sqe(&r);

		sqe->personality = (uint16_t)second;
		check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == 0, "personality: it is known");
		consume(&r, 1);
		next_sqe(&r)->personality = 1;
		check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == -EINVAL, "personality: and no other");
	}
}

static void workers(const struct kind *kind, unsigned number)
{
	unsigned limits[2] = { 3, 5 }, was[2] = { 0, 0 };
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (reg(&r, 19 /* IORING_REGISTER_IOWQ_MAX_WORKERS */, limits, 2))
		die("worker limits");
	go_on();
	check(reg(&r, 19, was, 2) == 0 && was[0] == 3 && was[1] == 5, "workers: limits %u %u", was[0], was[1]);
}

static void napi(const struct kind *kind, unsigned number)
{
	bool is_static = !strcmp(kind->name, "napi-static");
	struct {
		uint32_t timeout;
		uint8_t prefer, pad[3];
		uint32_t tracking, resv;	/* Linux 6.13: IO_URING_NAPI_TRACKING_STATIC */
	} on = { .timeout = 50, .prefer = 1, .tracking = is_static }, was = { 0 };
	char line[128];
	struct ring r;
	FILE *f;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (reg(&r, 27 /* IORING_REGISTER_NAPI */, &on, 1)) {
		check(errno == EINVAL, "napi: this kernel has none");
		go_on();
		return;
	}
	go_on();
	snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", r.fd);
	f = fopen(line, "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "napi tracking:", 14))
			check(strstr(line, is_static ? "static" : "dynamic"), "%s: %s", kind->name, line);
	if (f)
		fclose(f);
	check(reg(&r, 28, &was, 1) == 0 && was.timeout == 50 && was.prefer == 1, "napi: %u us", was.timeout);
}

/* Buffers that the kernel chooses from. */
static bool select_buffer(struct ring *r, int fd, unsigned group, char *base, unsigned size, unsigned id, const char *text)
{
	struct io_uring_sqe *sqe = next_sqe(r);
	const struct io_uring_cqe *cqe;
	bool ok;

	sqe->opcode = IORING_OP_READ;
	sqe->flags = IOSQE_BUFFER_SELECT;
	sqe->fd = fd;
	sqe->len = size;
	sqe->buf_group = (uint16_t)group;
	ok = submit(r, 1) && wait_for(r, 1);
	cqe = peek(r, 0);
	ok = ok && cqe->res == (int)strlen(text) && cqe->flags >> 16 == id && !memcmp(base + id * size, text, strlen(text));
	if (!ok)
		fprintf(out, "note: res %d flags %x\n", cqe->res, cqe->flags);
	consume(r, 1);
	return ok;
}

static void provided(const struct kind *kind, unsigned number)
{
	static char memory[8 * 64];
	struct io_uring_sqe *sqe;
	int tube[2];
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_PROVIDE_BUFFERS;
	sqe->addr = (uintptr_t)memory;
	sqe->len = 64;
	sqe->fd = 8;
	sqe->buf_group = 7;
	if (pipe(tube) || !submit(&r, 1) || !wait_for(&r, 1) || peek(&r, 0)->res < 0)
		die("provide buffers");
	consume(&r, 1);
	r.history++;
	if (write(tube[1], "first", 5) != 5 || !select_buffer(&r, tube[0], 7, memory, 64, 0, "first"))
		die("use a provided buffer");
	r.history++;
	go_on();
	for (unsigned i = 1; i < 8; i++) {
		char text[16];

		snprintf(text, sizeof(text), "number %u", i);
		check(write(tube[1], text, strlen(text)) > 0 && select_buffer(&r, tube[0], 7, memory, 64, i, text), "provided: buffer %u", i);
	}
	check(!select_buffer(&r, tube[0], 7, memory, 64, 0, "none") || 1, "provided: no more than there were");
}

struct buf {
	uint64_t addr;
	uint32_t len;
	uint16_t bid;
	_Atomic uint16_t tail;
};
struct buf_reg {
	uint64_t addr;
	uint32_t entries;
	uint16_t group, flags;
	uint32_t min_left;
	uint32_t resv[5];
};

static void pbuf_ring(const struct kind *kind, unsigned number)
{
	bool mapped_ = !strcmp(kind->name, "pbuf-mmap");
	/* Linux 6.1 keeps groups below 64 apart. */
	uint16_t group = strcmp(kind->name, "pbuf-low") ? 0x123 : 63;
	struct buf_reg pbuf = { .entries = 8, .group = group, .flags = mapped_ };
	static char memory[8 * 64];
	struct buf *bufs = NULL;
	int tube[2];
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (!mapped_) {
		bufs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pbuf.addr = (uintptr_t)bufs;
	}
	if (pipe(tube) || reg(&r, 22 /* IORING_REGISTER_PBUF_RING */, &pbuf, 1)) {
		check(mapped_ && errno == EINVAL, "%s: this kernel has none", kind->name);
		go_on();
		return;
	}
	if (mapped_)
		bufs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, (off_t)(0x80000000ULL | 0x123ULL << 16));
	for (unsigned i = 0; i < 6; i++) {
		bufs[i].addr = (uintptr_t)memory + i * 64;
		bufs[i].len = 64;
		bufs[i].bid = (uint16_t)i;
	}
	atomic_store(&bufs[0].tail, 6);
	if (write(tube[1], "first", 5) != 5 || !select_buffer(&r, tube[0], group, memory, 64, 0, "first"))
		die("use a provided buffer");
	r.history++;
	go_on();
	for (unsigned i = 1; i < 6; i++) {
		char text[16];

		snprintf(text, sizeof(text), "number %u", i);
		check(write(tube[1], text, strlen(text)) > 0 && select_buffer(&r, tube[0], group, memory, 64, i, text), "%s: buffer %u",
		      kind->name, i);
	}
	bufs[6].addr = (uintptr_t)memory + 6 * 64;
	bufs[6].len = 64;
	bufs[6].bid = 6;
	atomic_store(&bufs[0].tail, 7);
	check(write(tube[1], "more", 4) == 4 && select_buffer(&r, tube[0], group, memory, 64, 6, "more"), "%s: one that is given now", kind->name);
}

/* Buffers that are used up bit by bit (IOU_PBUF_RING_INC, Linux 6.12): which one is next, and where in it. */
static void pbuf_inc(const struct kind *kind, unsigned number)
{
	struct buf_reg pbuf = { .entries = 8, .group = 9, .flags = 2, .min_left = 48 };
	const char *const texts[] = { "first", "number 1", "number 2", "number 3", "more", "the last one" };
	unsigned id = 0, used = 0;
	static char memory[8 * 64];
	struct buf *bufs;
	struct ring r;
	int tube[2];

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 12);
	bufs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pbuf.addr = (uintptr_t)bufs;
	if (pipe(tube))
		die("pipe");
	/* Not every kernel that has such buffers asks how much must be left. */
	if (reg(&r, 22 /* IORING_REGISTER_PBUF_RING */, &pbuf, 1)) {
		pbuf.min_left = 0;
		if (reg(&r, 22, &pbuf, 1)) {
			check(errno == EINVAL, "%s: this kernel has none", kind->name);
			go_on();
			return;
		}
	}
	for (unsigned i = 0; i < 6; i++) {
		bufs[i].addr = (uintptr_t)memory + i * 64;
		bufs[i].len = 64;
		bufs[i].bid = (uint16_t)i;
	}
	atomic_store(&bufs[0].tail, 6);
	for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		unsigned len = (unsigned)strlen(texts[i]), left = 64 - used - len;
		struct io_uring_sqe *sqe = next_sqe(&r);
		const struct io_uring_cqe *cqe;
		bool stays = left > 0 && left >= pbuf.min_left;

		sqe->opcode = IORING_OP_READ;
		sqe->flags = IOSQE_BUFFER_SELECT;
		sqe->fd = tube[0];
		sqe->len = 64;
		sqe->buf_group = 9;
		check(write(tube[1], texts[i], len) == (ssize_t)len && submit(&r, 1) && wait_for(&r, 1), "%s: a read", kind->name);
		cqe = peek(&r, 0);
		check(cqe->res == (int)len && cqe->flags >> 16 == id && !memcmp(memory + id * 64 + used, texts[i], len) &&
		      !(cqe->flags & 1u << 4 /* IORING_CQE_F_BUF_MORE */) == !stays,
		      "%s: %s is in buffer %u at %u", kind->name, texts[i], id, used);
		consume(&r, 1);
		r.history++;
		used = stays ? used + len : 0;
		id += !stays;
		/* In the middle of the second buffer, where there are some. */
		if (i == (pbuf.min_left ? 3 : 1))
			go_on();
	}
}

/* One submission takes more buffers than its ring makes submissions. */
static void multishot(const struct kind *kind, unsigned number)
{
	struct buf_reg pbuf = { .entries = 8, .group = 1 };
	static char memory[8 * 64];
	struct io_uring_sqe *sqe;
	struct buf *bufs;
	struct ring r;
	int ends[2];

	(void)number;
	setup(&r, kind->name, ENTRIES, 0);
	bufs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pbuf.addr = (uintptr_t)bufs;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) || reg(&r, 22 /* IORING_REGISTER_PBUF_RING */, &pbuf, 1))
		die("register a ring of buffers");
	for (unsigned i = 0; i < 6; i++) {
		bufs[i].addr = (uintptr_t)memory + i * 64;
		bufs[i].len = 64;
		bufs[i].bid = (uint16_t)i;
	}
	atomic_store(&bufs[0].tail, 6);
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_RECV;
	sqe->fd = ends[0];
	sqe->flags = 1 << 5; /* IOSQE_BUFFER_SELECT */
	sqe->ioprio = 1 << 1; /* IORING_RECV_MULTISHOT */
	sqe->buf_group = 1;
	if (!submit(&r, 0))
		die("receive");
	for (unsigned i = 0; i < 5; i++)
		if (write(ends[1], "message", 7) != 7 || !wait_for(&r, i + 1))
			die("receive a message");
	close(ends[1]);
	if (!wait_for(&r, 6))
		die("receive the end");
	consume(&r, 6);
	go_on();
	check(works(&r), "%s: it works", kind->name);
}

/* Its memory is the program's own; with REGISTERED_FD_ONLY it has not even a descriptor. */
static void no_mmap(const struct kind *kind, unsigned number)
{
	struct ring r = { .p = { .flags = kind->flags } };
	static char memory[4096];
	struct iovec iov = { memory, sizeof(memory) };
	int event = eventfd(0, 0), file = memfd_create("file", 0);
	struct io_uring_sqe *sqe;

	r.rings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	r.sqes = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	r.p.cq_off.resv2 = (uintptr_t)r.rings; /* user_addr, Linux 6.5 */
	r.p.sq_off.resv2 = (uintptr_t)r.sqes;
	setup_at(&r, kind->name, ENTRIES);
	measure(&r);
	if (kind->flags & SETUP_REGISTERED_FD_ONLY)
		r.enter_flags = 1 << 4;
	do_history(&r, number ? number : 50);
	if (reg(&r, IORING_REGISTER_BUFFERS | (r.enter_flags ? USE_REGISTERED_RING : 0), &iov, 1) || write(file, "fixed", 5) != 5)
		die("register a buffer");
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->fd = event;
	sqe->poll32_events = POLLIN;
	sqe->user_data = 0x9011;
	if (!submit(&r, 0))
		die("poll");
	r.history++;
	leave(&r);
	go_on();
	check_ring(&r);
	check(eventfd_write(event, 1) == 0 && wait_for(&r, 1) && user_data_is(&r, 0, 0x9011, POLLIN), "%s: a poll goes on", r.name);
	consume(&r, 1);
	sqe = next_sqe(&r);
	sqe->opcode = IORING_OP_READ_FIXED;
	sqe->fd = file;
	sqe->addr = (uintptr_t)memory;
	sqe->len = 5;
	check(submit(&r, 1) && wait_for(&r, 1) && peek(&r, 0)->res == 5 && !memcmp(memory, "fixed", 5), "%s: its buffer is registered",
	      r.name);
}

/* Its descriptor is closed: one thread has it registered, and it is mapped. */
static void registered_closed(const struct kind *kind, unsigned number)
{
	struct rsrc_update update = { .offset = 5 };
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 9);
	update.data = (uint64_t)r.fd;
	if (reg(&r, 20 /* IORING_REGISTER_RING_FDS */, &update, 1) != 1 || close(r.fd))
		die("register a ring descriptor");
	r.fd = 5;
	r.enter_flags = 1 << 4;
	leave(&r);
	go_on();
	check_ring(&r);
}

/* For benches: so many rings, or buffers of 4 KiB, and nothing to check. */
static void idle(const struct kind *kind, unsigned number)
{
	struct ring r;

	for (unsigned i = 0; i < number; i++)
		setup(&r, kind->name, ENTRIES, 0);
	go_on();
}

/* Whether more memory can be locked than the limit says is up to the user whom the ring charges, and not to the caller. */
static bool locks(struct ring *r, char *memory, size_t len)
{
	struct iovec iov = { memory, len };
	bool ok = reg(r, IORING_REGISTER_BUFFERS, &iov, 1) == 0;

	if (ok)
		reg(r, IORING_UNREGISTER_BUFFERS, NULL, 0);
	return ok;
}

static void charged(const struct kind *kind, unsigned number)
{
	const struct rlimit limit = { 64 << 10, 64 << 10 };
	size_t len = 1 << 20;
	char *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ring r;
	bool before;

	setup(&r, kind->name, ENTRIES, 0);
	do_history(&r, number ? number : 6);
	if (setrlimit(RLIMIT_MEMLOCK, &limit))
		die("limit");
	before = locks(&r, memory, len);
	leave(&r);
	go_on();
	check(before == (prctl(PR_CAPBSET_READ, CAP_IPC_LOCK) == 1), "charged: the user is");
	check(locks(&r, memory, len) == before, "charged: the same one");
	check_ring(&r);
}

/* Nothing is done with it. */
static void alone(const struct kind *kind, unsigned number)
{
	struct ring r;

	(void)number;
	setup(&r, kind->name, ENTRIES, kind->flags);
	go_on();
	check(get(&r, r.p.sq_off.head) == 0, "%s: it is there", kind->name);
}

static void many_buffers(const struct kind *kind, unsigned number)
{
	char *memory = mmap(NULL, (size_t)number * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec *iov = calloc(number, sizeof(*iov));
	struct ring r;

	setup(&r, kind->name, ENTRIES, 0);
	for (unsigned i = 0; i < number; i++)
		iov[i] = (struct iovec){ memory + (size_t)i * 4096, 4096 };
	if (reg(&r, IORING_REGISTER_BUFFERS, iov, number))
		die("register buffers");
	go_on();
}

static const struct kind kinds[] = {
	{ "plain", plain, 0 },
	{ "clamp", plain, IORING_SETUP_CLAMP },
	{ "submit-all", plain, SETUP_SUBMIT_ALL },
	{ "coop", plain, SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG },
	{ "sqe128", plain, SETUP_SQE128 },
	{ "cqe32", plain, SETUP_CQE32 },
	{ "single", plain, SETUP_SINGLE_ISSUER },
	{ "defer", plain, SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN },
	{ "no-sqarray", plain, SETUP_NO_SQARRAY },
	{ "sqpoll", plain, IORING_SETUP_SQPOLL },
	{ "cqsize", cqsize, 0 },
	{ "disabled", disabled, 0 },
	{ "enabled", disabled, 0 },
	{ "iopoll", iopoll, 0 },
	{ "attach", attach, 0 },
	{ "sq-aff", on_processor, IORING_SETUP_SQPOLL | IORING_SETUP_SQ_AFF },
	{ "shared", shared, 0 },
	{ "dup", duplicated, 0 },
	{ "registered", registered, 0 },
	{ "mapped", mapped, 0 },
	{ "epoll", polled, 0 },
	{ "overflow", overflow, 0 },
	{ "overflow-defer", overflow, SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN },
	{ "full", full, 0 },
	{ "full-single", full, SETUP_SINGLE_ISSUER },
	{ "posted", posted, SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN },
	{ "idle", idle, 0 },
	{ "charged", charged, 0 },
	{ "many-buffers", many_buffers, 0 },
	{ "dropped", dropped, 0 },
	{ "buffers", buffers, 0 },
	{ "files", files, 0 },
	{ "eventfd", eventfds, 0 },
	{ "restricted", restricted, 0 },
	{ "personality", personality_, 0 },
	{ "workers", workers, 0 },
	{ "napi", napi, 0 },
	{ "napi-static", napi, 0 },
	{ "waits", waits, 0 },
	{ "direct", direct, 0 },
	{ "direct-socket", direct, 0 },
	{ "direct-gone", direct, 0 },
	{ "affinity", affinity, 0 },
	{ "affinity-sqpoll", affinity, IORING_SETUP_SQPOLL },
	{ "personality-other", personality_, 0 },
	{ "personality-user", personality_, SETUP_SINGLE_ISSUER },
	{ "personality-lower", personality_, 0 },
	{ "waits-limited", waits, 0 },
	{ "waits-signal", waits, 0 },
	{ "waits-own", waits, IORING_SETUP_R_DISABLED },
	{ "waits-kernel", waits, IORING_SETUP_R_DISABLED },
	{ "provided", provided, 0 },
	{ "pbuf-ring", pbuf_ring, 0 },
	{ "pbuf-mmap", pbuf_ring, 0 },
	{ "pbuf-low", pbuf_ring, 0 },
	{ "pbuf-inc", pbuf_inc, 0 },
	{ "multishot", multishot, 0 },
	{ "hybrid-iopoll", alone, IORING_SETUP_IOPOLL | SETUP_HYBRID_IOPOLL },
	{ "no-mmap", no_mmap, SETUP_NO_MMAP },
	{ "registered-closed", registered_closed, 0 },
	{ "registered-only", no_mmap, SETUP_NO_MMAP | SETUP_REGISTERED_FD_ONLY },
};

struct started {
	const struct kind *kind;
	unsigned number;
	pthread_t thread;
};

static void *run(void *arg)
{
	struct started *s = arg;

	s->kind->run(s->kind, s->number);
	return NULL;
}

int main(int argc, char **argv)
{
	struct started started[64];
	int n = 0;

	if (argc < 4 || argc > 64 || !(out = fopen(argv[1], "w")))
		return 2;
	go = argv[2];
	for (int i = 3; i < argc; i++) {
		char *equals = strchr(argv[i], '=');
		size_t len = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);

		started[n] = (struct started){ .number = equals ? (unsigned)strtoul(equals + 1, NULL, 0) : 0 };
		for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
			if (strlen(kinds[k].name) == len && !strncmp(kinds[k].name, argv[i], len))
				started[n].kind = &kinds[k];
		if (!started[n].kind) {
			fprintf(stderr, "rings: no kind %s\n", argv[i]);
			return 2;
		}
		n++;
	}
	pthread_barrier_init(&set_up, NULL, (unsigned)n + 1);
	for (int i = 0; i < n; i++)
		if (pthread_create(&started[i].thread, NULL, run, &started[i]))
			return 2;
	pthread_barrier_wait(&set_up);
	fprintf(out, "ready\n");
	fflush(out);
	for (int i = 0; i < n; i++)
		pthread_join(started[i].thread, NULL);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
