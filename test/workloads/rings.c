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
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
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
};
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

	setup(&r, kind->name, ENTRIES, kind->flags);
	do_history(&r, number ? number : 1005);
	leave(&r);
	go_on();
	check_ring(&r);
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
