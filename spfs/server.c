// SPDX-License-Identifier: Apache-2.0
/* Threads that read requests from /dev/fuse, and how each is answered. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server.h"
#include "stub.h"

/*
 * It begins with two threads, and whoever takes the last idle one's place starts another. More stay than are started: else one would
 * be started and ended for each request of two tasks.
 */
#define FIRST_THREADS 2
#define IDLE_THREADS 4
#define SESSIONS 64
#define STACK (256u << 10)
#define GRAVES (1u << 20)

pthread_rwlock_t phase_lock = PTHREAD_RWLOCK_INITIALIZER;
int wake_fd = -1;

static _Atomic int idle;
static _Atomic uint32_t taken[MAX_INBOXES];	/* inboxes with a thread */
static bool touched[MAX_INBOXES];	/* their memory is there */
static _Atomic uint32_t at_work[SESSIONS];
static struct grave {
	uint32_t session;
	int fd;
} *graves;
static uint32_t n_graves;
static bool sweeping;
static pthread_mutex_t graves_lock = PTHREAD_MUTEX_INITIALIZER;

void wake_control(void)
{
	uint64_t one = 1;

	if (write(wake_fd, &one, sizeof(one)) < 0)
		return; /* it is awake */
}

void journal_begin(struct request *r)
{
	if (r->again)
		return;
	r->journal->before = UINT64_MAX;
	atomic_store(&r->journal->state, DOING);
}

/*
 * Whether doing it again, when the task has had its answer and has gone on, would undo what it did then. Only reading, and letting
 * go, can be done twice.
 */
bool changes(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_READLINK:
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_STATFS:
	case FUSE_LSEEK:
	case FUSE_ACCESS:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		return false;
	}
	return true;
}

static void send(struct request *r, int error, const void *data, size_t len)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof(out) + len), .error = -error, .unique = r->in->unique };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)data, len } };

	r->answered = true;
	while (writev(S->fuse, iov, len ? 2 : 1) < 0) {
		if (errno == EINTR || errno == EAGAIN)
			continue;
		if (errno != ENOENT && errno != ENODEV)
			say("answer to request %u of type %u: %s", (unsigned)r->in->unique, r->in->opcode, strerror(errno));
		break;
	}
}

void reply(struct request *r, int error, const void *data, size_t len)
{
	struct journal *j = r->journal;

	if (error)
		len = 0;
	/* Removed by the worker that died over it. */
	if (r->again && error == ENOENT && (r->in->opcode == FUSE_UNLINK || r->in->opcode == FUSE_RMDIR ||
					    r->in->opcode == FUSE_RENAME || r->in->opcode == FUSE_RENAME2))
		error = 0;
	if (j->state == DOING && len <= sizeof(j->answer)) {
		j->error = error;
		j->len = (uint32_t)len;
		if (len)
			memcpy(j->answer, data, len);
		atomic_store(&j->state, DONE);
	}
	send(r, error, data, len);
}

const void *argument(struct request *r, size_t size)
{
	if (r->len >= size)
		return r->arg;
	reply(r, EIO, NULL, 0);
	return NULL;
}

const char *argument_name(struct request *r, size_t at)
{
	const char *name = (const char *)r->arg + at;
	const char *end = at < r->len ? memchr(name, 0, r->len - at) : NULL;
	size_t len = end ? (size_t)(end - name) : 0;

	if (end && len && len <= 255 && !memchr(name, '/', len) && strcmp(name, ".") && strcmp(name, ".."))
		return name;
	reply(r, len > 255 ? ENAMETOOLONG : EIO, NULL, 0);
	return NULL;
}

void fill_attr(struct fuse_attr *out, const struct attr *a)
{
	*out = (struct fuse_attr){
		.ino = a->ino, .size = a->size, .blocks = a->blocks ? a->blocks : (a->size + 511) / 512,
		.atime = (uint64_t)(a->atime / 1000000000), .atimensec = (uint32_t)(a->atime % 1000000000),
		.mtime = (uint64_t)(a->mtime / 1000000000), .mtimensec = (uint32_t)(a->mtime % 1000000000),
		.ctime = (uint64_t)(a->ctime / 1000000000), .ctimensec = (uint32_t)(a->ctime % 1000000000),
		.mode = a->mode, .nlink = a->nlink, .uid = a->uid, .gid = a->gid, .rdev = a->rdev, .blksize = 4096,
	};
}

void attr_from(struct attr *a, const struct stat *st)
{
	*a = (struct attr){
		.ino = st->st_ino, .size = (uint64_t)st->st_size, .blocks = (uint64_t)st->st_blocks,
		.atime = st->st_atim.tv_sec * 1000000000ll + st->st_atim.tv_nsec,
		.mtime = st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec,
		.ctime = st->st_ctim.tv_sec * 1000000000ll + st->st_ctim.tv_nsec,
		.mode = st->st_mode, .nlink = (uint32_t)st->st_nlink, .uid = st->st_uid, .gid = st->st_gid,
		.rdev = (uint32_t)st->st_rdev, /* the kernel's new_encode_dev() */
	};
}

uint32_t mode_kills(uint32_t mode)
{
	if (!S_ISREG(mode))
		return 0;
	return (mode & S_ISUID) | ((mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) ? S_ISGID : 0);
}

uint64_t attr_ttl(uint32_t mode, uint64_t ttl)
{
	return mode_kills(mode) ? 0 : ttl;
}

void fill_entry(struct fuse_entry_out *out, uint32_t node, uint64_t ttl)
{
	uint64_t trust = attr_ttl(nodes[node].a.mode, ttl);

	nodes[node].nlookup++;
	*out = (struct fuse_entry_out){
		.nodeid = node + 1, .generation = nodes[node].generation,
		.entry_valid = ttl / 1000, .entry_valid_nsec = (uint32_t)(ttl % 1000) * 1000000,
		.attr_valid = trust / 1000, .attr_valid_nsec = (uint32_t)(trust % 1000) * 1000000,
	};
	fill_attr(&out->attr, &nodes[node].a);
}

static void forget(uint64_t nodeid, uint64_t count, struct journal *j)
{
	uint32_t n;

	pthread_mutex_lock(&tree);
	n = node_of(nodeid);
	if (n != NONE) {
		/* Twice is as once: what it was before is written down. */
		if (j->state != DOING) {
			j->before = nodes[n].nlookup;
			atomic_store(&j->state, DOING);
		}
		nodes[n].nlookup = j->before > count ? j->before - count : 0;
		node_settle(n);
	}
	pthread_mutex_unlock(&tree);
}

static void serve_forget(struct request *r)
{
	const struct fuse_batch_forget_in *batch = (const void *)r->arg;
	const struct fuse_forget_one *one = (const void *)(r->arg + sizeof(*batch));
	const struct fuse_forget_in *single = (const void *)r->arg;

	if (r->in->opcode == FUSE_FORGET) {
		if (r->len >= sizeof(*single))
			forget(r->in->nodeid, single->nlookup, r->journal);
		return;
	}
	if (r->len < sizeof(*batch))
		return;
	while (r->journal->cursor < batch->count &&
	       sizeof(*batch) + (r->journal->cursor + 1) * sizeof(*one) <= r->len) {
		forget(one[r->journal->cursor].nodeid, one[r->journal->cursor].nlookup, r->journal);
		r->journal->cursor++;
		atomic_store(&r->journal->state, UNDONE);
	}
}

static void serve_init(struct request *r)
{
	const struct fuse_init_in *in = argument(r, 16);
	struct init_out out = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION };
	/* Without FUSE_HANDLE_KILLPRIV_V2 the kernel asks for an attribute before each write, also one that is passed through. */
	uint64_t want = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_DO_READDIRPLUS |
			FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_AUTO_INVAL_DATA |
			FUSE_POSIX_ACL | FUSE_DONT_MASK | FUSE_MAX_PAGES | FUSE_INIT_EXT | FUSE_HANDLE_KILLPRIV_V2 |
			INIT_CREATE_SUPP_GROUP | INIT_DIRECT_IO_ALLOW_MMAP;
	uint64_t has;

	if (!in)
		return;
	if (in->major != FUSE_KERNEL_VERSION || in->minor < 31) {
		say("the kernel speaks FUSE %u.%u", in->major, in->minor);
		reply(r, EPROTO, NULL, 0);
		return;
	}
	has = in->flags;
	if (r->len >= sizeof(*in) && (in->flags & FUSE_INIT_EXT))
		has |= (uint64_t)in->flags2 << 32;
	if (S->want_passthrough)
		want |= INIT_PASSTHROUGH;
	want &= has;
	out.flags = (uint32_t)want;
	out.flags2 = (uint32_t)(want >> 32);
	out.max_readahead = in->max_readahead;
	out.max_background = 64;
	out.congestion_threshold = 48;
	out.max_write = SPFS_MAX_WRITE;
	out.max_pages = SPFS_MAX_WRITE / 4096;
	out.time_gran = 1;
	/* The backend may be a stacked file system itself (overlayfs); one on top of this one may not. */
	if (want & INIT_PASSTHROUGH)
		out.max_stack_depth = 2;
	S->init_flags = want;
	S->passthrough = !!(want & INIT_PASSTHROUGH);
	S->minor = in->minor;
	say("FUSE 7.%u, passthrough %s", in->minor, S->passthrough ? "yes" : "no");
	reply(r, 0, &out, sizeof(out));
}

static void *sweep(void *unused)
{
	uint32_t kept = 0;

	(void)unused;
	/* Closing can wait for a backend that is gone: no lock is held then, and no thread that answers does it. */
	pthread_mutex_lock(&graves_lock);
	for (uint32_t i = 0; i < n_graves; i++) {
		struct grave grave = graves[i];

		if (at_work[grave.session % SESSIONS]) {
			graves[kept++] = grave;
			continue;
		}
		pthread_mutex_unlock(&graves_lock);
		close(grave.fd);
		pthread_mutex_lock(&graves_lock);
	}
	n_graves = kept;
	sweeping = false;
	pthread_mutex_unlock(&graves_lock);
	return NULL;
}

void close_later(uint32_t session, int fd)
{
	pthread_mutex_lock(&graves_lock);
	if (n_graves < GRAVES)
		graves[n_graves++] = (struct grave){ session, fd };
	pthread_mutex_unlock(&graves_lock);
}

void start_thread(void *(*run)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t thread;
	int error;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK);
	error = pthread_create(&thread, &attr, run, arg);
	pthread_attr_destroy(&attr);
	if (error)
		say("a thread could not be started: %s", strerror(error));
}

void close_now(void)
{
	bool start;

	pthread_mutex_lock(&graves_lock);
	start = !sweeping && n_graves;
	sweeping |= start;
	pthread_mutex_unlock(&graves_lock);
	if (start)
		start_thread(sweep, NULL);
}

static void leave(uint32_t session)
{
	if (atomic_fetch_sub(&at_work[session % SESSIONS], 1) == 1 && session != S->session)
		close_now();
}

/* The handle that a dead worker made for this request, whose number the kernel has never seen. */
static void undo_handle(struct request *r)
{
	int fd = -1;

	pthread_mutex_lock(&tree);
	if (r->journal->handle != NONE && handles[r->journal->handle].state == LIVE)
		fd = handle_free(&handles[r->journal->handle]);
	r->journal->handle = NONE;
	pthread_mutex_unlock(&tree);
	if (fd >= 0)
		close(fd);
}

void serve(struct request *r)
{
	r->again = r->journal->state == DOING;
	switch (r->in->opcode) {
	case FUSE_INIT:
		serve_init(r);
		return;
	case FUSE_DESTROY:
		reply(r, 0, NULL, 0);
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		serve_forget(r);
		return;
	case FUSE_INTERRUPT:
		stub_interrupt(r);
		return;
	/* What is not offered is told at once, and not asked again: GETATTR serves instead of STATX, as for what has no birth time. */
	case OP_STATX:
	case OP_SYNCFS:
	case FUSE_POLL:
	case FUSE_BMAP:
		reply(r, ENOSYS, NULL, 0);
		return;
	case FUSE_IOCTL:
		reply(r, ENOTTY, NULL, 0);
		return;
	}
	if (r->journal->state == DONE) {
		send(r, r->journal->error, r->journal->answer, r->journal->len);
		return;
	}
	if (r->again)
		undo_handle(r);
	pthread_rwlock_rdlock(&phase_lock);
	r->session = S->session;
	if (S->phase == SPFS_PHASE_PROXY) {
		atomic_fetch_add(&at_work[r->session % SESSIONS], 1);
		pthread_rwlock_unlock(&phase_lock);
		proxy_serve(r);
		leave(r->session);
		return;
	}
	if (S->phase == SPFS_PHASE_RESTORE)
		restore_serve(r);
	else if (!stub_serve(r))
		stub_hold(r);
	pthread_rwlock_unlock(&phase_lock);
}

void serve_held(struct held *h, uint8_t *buffer)
{
	struct request r = { .journal = &h->journal, .held = h, .buffer = buffer };
	uint8_t *bytes = h->large == NONE ? h->bytes : larges[h->large];

	r.in = (void *)bytes;
	r.arg = bytes + sizeof(*r.in);
	r.len = r.in->len - (uint32_t)sizeof(*r.in);
	atomic_store(&h->since, now_ms());
	serve(&r);
	if (r.held)
		stub_free(h);
}

static void empty(struct inbox *box)
{
	box->header.len = 0;
	atomic_store(&box->interrupted, 0);
	box->journal.handle = NONE;
	box->journal.cursor = 0;
	atomic_store(&box->journal.state, UNDONE);
}

/* Whether this thread is to wait for a request; enough others do, otherwise. Who takes the last one's place starts another. */
static bool wait_for_work(void)
{
	int waiting = idle;

	while (waiting < IDLE_THREADS)
		if (atomic_compare_exchange_weak(&idle, &waiting, waiting + 1))
			return true;
	return false;
}

static void *server(void *arg)
{
	uint32_t mine = (uint32_t)(uintptr_t)arg;
	struct inbox *box = &inboxes[mine];
	uint8_t *buffer = mmap(NULL, SPFS_MAX_WRITE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* The umask is each request's own. */
	if (unshare(CLONE_FS))
		say("unshare: %s", strerror(errno));
	/* All of it is there before a request is read: a kill in the middle of the kernel's copy must not fail at a page. */
	if (!touched[mine])
		memset(box, 0, sizeof(*box));
	touched[mine] = true;
	empty(box);
	while (buffer != MAP_FAILED && !S->over) {
		struct request r = { .in = &box->header, .journal = &box->journal, .box = box, .buffer = buffer };
		ssize_t n;

		if (!wait_for_work())
			break;
		n = read(S->fuse, box->bytes, sizeof(box->bytes));
		atomic_store(&box->since, now_ms());
		if (atomic_fetch_sub(&idle, 1) == 1)
			start_server();
		if (n < 0) {
			if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
				continue;
			if (errno != ENODEV)
				say("read of requests: %s", strerror(errno));
			atomic_store(&S->over, 1);
			wake_control();
			break;
		}
		if ((size_t)n >= sizeof(*r.in) && r.in->len == (size_t)n) {
			r.arg = box->bytes + sizeof(*r.in);
			r.len = (uint32_t)n - (uint32_t)sizeof(*r.in);
			serve(&r);
		}
		empty(box);
		atomic_store(&box->since, 0);
	}
	if (buffer != MAP_FAILED)
		munmap(buffer, SPFS_MAX_WRITE);
	atomic_store(&box->since, 0);
	atomic_store(&taken[mine], 0);
	return NULL;
}

void start_server(void)
{
	uint32_t i = 0, none = 0;

	while (i < MAX_INBOXES && !atomic_compare_exchange_strong(&taken[i], &none, 1)) {
		none = 0;
		i++;
	}
	if (i < MAX_INBOXES)
		start_thread(server, (void *)(uintptr_t)i);
}

uint32_t server_stuck(uint64_t ms)
{
	uint64_t now = now_ms();
	uint32_t stuck = 0;

	for (uint32_t i = 0; i < MAX_INBOXES; i++) {
		uint64_t since = inboxes[i].since;

		if (taken[i] && since && now > since && now - since >= ms)
			stuck++;
	}
	return stuck + stub_stuck(now - ms);
}

int server_start(void)
{
	graves = mmap(NULL, sizeof(*graves) * GRAVES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (graves == MAP_FAILED)
		return -1;
	for (int i = 0; i < FIRST_THREADS; i++)
		start_server();
	return 0;
}
