// SPDX-License-Identifier: Apache-2.0
/* The live switches between the phases. One at a time; requests go on meanwhile, but for the moment in which the phase changes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend.h"
#include "keeper.h"
#include "stub.h"
#include "switch.h"

#define OPENERS 8
#define MAX_RANGES 64

static pthread_mutex_t switching = PTHREAD_MUTEX_INITIALIZER;

static void invalidate(uint64_t nodeid, uint64_t from, uint64_t to)
{
	struct {
		struct fuse_out_header header;
		struct fuse_notify_inval_inode_out out;
	} note = { { sizeof(note), FUSE_NOTIFY_INVAL_INODE, 0 },
		   { nodeid, (int64_t)from, to == UINT64_MAX ? 0 : (int64_t)(to - from) } };

	if (from < to && write(S->fuse, &note, sizeof(note)) < 0 && errno != ENOENT)
		say("invalidation of node %u: %s", (unsigned)nodeid, strerror(errno));
}

/*
 * No zero page may stay: CRIU has touched private mappings, and readahead was there. A page that a waiting read is for is
 * locked, and will be filled by the backend: waiting for it here would be for ever.
 */
static void invalidate_all(void)
{
	uint64_t ranges[MAX_RANGES][2];

	for (uint32_t n = 0; n < S->node_high; n++) {
		uint64_t from = 0;
		uint32_t count;

		if (nodes[n].state != LIVE || !nodes[n].nlookup)
			continue;
		count = stub_reads(n + 1, ranges, MAX_RANGES);
		for (;;) {
			uint64_t (*next)[2] = NULL;

			for (uint32_t i = 0; i < count; i++)
				if (ranges[i][1] > from && (!next || ranges[i][0] < (*next)[0]))
					next = &ranges[i];
			if (!next)
				break;
			invalidate(n + 1, from, (*next)[0] & ~4095ull);
			from = ((*next)[1] + 4095) & ~4095ull;
		}
		invalidate(n + 1, from, UINT64_MAX);
	}
}

/*
 * Lets go of a backend: nothing that was opened there stays open once those who work with it are done. But for files that have
 * no name: they can be had in no other way.
 */
static void drop_backend(void)
{
	uint32_t session = S->session;

	pthread_mutex_lock(&tree);
	for (uint32_t h = 0; h < S->handle_high; h++) {
		if (handles[h].state != LIVE || handles[h].fd < 0 || name_first(handles[h].node) == NONE)
			continue;
		close_later(session, handles[h].fd);
		handles[h].fd = -1;
	}
	for (uint32_t n = 0; n < S->node_high; n++) {
		if (nodes[n].state != LIVE)
			continue;
		if (!node_passed_through(n))
			node_unback(n);
		if (nodes[n].fd >= 0 && (n == ROOT || name_first(n) != NONE)) {
			close_later(session, nodes[n].fd);
			nodes[n].fd = -1;
		}
	}
	S->backend = -1;
	S->session = session + 1;
	pthread_mutex_unlock(&tree);
}

int switch_stub(void)
{
	pthread_mutex_lock(&switching);
	pthread_rwlock_wrlock(&phase_lock);
	if (S->phase == SPFS_PHASE_PROXY) {
		S->phase = SPFS_PHASE_STUB;
		drop_backend();
	}
	S->phase = SPFS_PHASE_STUB;
	pthread_rwlock_unlock(&phase_lock);
	close_now();
	if (S->zeroes) {
		invalidate_all();
		S->zeroes = 0;
	}
	say("stub");
	pthread_mutex_unlock(&switching);
	return 0;
}

void switch_lost(uint32_t session)
{
	bool now;

	pthread_rwlock_wrlock(&phase_lock);
	now = S->phase == SPFS_PHASE_PROXY && S->session == session;
	if (now) {
		S->phase = SPFS_PHASE_STUB;
		drop_backend();
	}
	pthread_rwlock_unlock(&phase_lock);
	if (!now)
		return;
	say("the backend is lost: stub");
	close_now();
	keeper_want();
}

/* One pass over the nodes by several threads: opening is waiting where the backend is far. */
struct pass {
	_Atomic uint32_t next;
	uint32_t end;
	_Atomic uint64_t opened;
	_Atomic int lost;
	uint8_t *found;		/* by node: 0, or what differs plus one */
	bool stable;		/* inode numbers tell files apart */
};

static uint8_t compare(const struct pass *pass, uint32_t n, const struct attr *was)
{
	const struct attr *is = &nodes[n].a;

	if (S->compared || !S_ISREG(is->mode))
		return 0;
	if (pass->stable && nodes[n].flags & NODE_RECORDED && nodes[n].bino != was->ino)
		return SPFS_REPLACED + 1;
	if (is->size > was->size)
		return SPFS_GROWN + 1;
	if (is->size < was->size)
		return SPFS_OTHER_SIZE + 1;
	return is->mtime != was->mtime ? SPFS_OTHER_MTIME + 1 : 0;
}

/* As ourselves, or, where root is nobody (root_squash), as the file's owner. */
static int open_again(uint32_t n, uint32_t flags)
{
	int fd = node_open(n, flags & ~(uint32_t)O_TRUNC);

	if (fd != -EACCES && fd != -EPERM)
		return fd;
	syscall(SYS_setfsgid, nodes[n].a.gid);
	syscall(SYS_setfsuid, nodes[n].a.uid);
	fd = node_open(n, flags & ~(uint32_t)O_TRUNC);
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	return fd;
}

/* Opens all handles of a node. Returns an errno. */
static int open_handles(uint32_t n, struct pass *pass)
{
	uint64_t list[64];
	int error = 0;

	for (bool more = true; more && !error;) {
		uint32_t count = 0;

		pthread_mutex_lock(&tree);
		for (struct handle *h = handle_first(n); h && count < 64; h = handle_next(h))
			if (h->fd < 0)
				list[count++] = handle_number((uint32_t)(h - handles));
		pthread_mutex_unlock(&tree);
		more = count == 64;
		for (uint32_t i = 0; i < count && !error; i++) {
			struct handle *h = handle_of(list[i]);
			int fd = h ? open_again(n, h->open_flags) : -ENOENT;

			if (!h)
				continue;
			if (fd < 0) {
				error = -fd;
				break;
			}
			pthread_mutex_lock(&tree);
			h = handle_of(list[i]);
			if (h && h->fd < 0) {
				h->fd = fd;
				h->dir_offset = 0;
				fd = -1;
				pass->opened++;
			}
			pthread_mutex_unlock(&tree);
			if (fd >= 0)
				close(fd);
		}
	}
	return error;
}

static void again(uint32_t n, struct pass *pass)
{
	struct attr was = nodes[n].a;
	bool open, named;
	int error;

	pthread_mutex_lock(&tree);
	open = handle_first(n);
	named = name_first(n) != NONE;
	nodes[n].flags &= ~(uint32_t)NODE_GONE;
	pthread_mutex_unlock(&tree);
	if (!named)
		return; /* open from before, or gone with its last name */
	error = open ? open_handles(n, pass) : node_stat(n, NULL);
	if (!error) {
		pass->found[n] = compare(pass, n, &was);
	} else if (error == ENOENT || error == ENOTDIR || error == ESTALE) {
		pass->found[n] = error == ESTALE ? SPFS_OTHER_TYPE + 1 : SPFS_GONE + 1;
		pthread_mutex_lock(&tree);
		nodes[n].flags |= NODE_GONE;
		pthread_mutex_unlock(&tree);
	} else if (backend_lost(error)) {
		pass->lost = error;
	} else {
		say("node %u: %s: tried again when it is used", n, strerror(error));
	}
}

static void *opener(void *arg)
{
	struct pass *pass = arg;
	uint32_t n;

	work_in(S->session);
	while (!pass->lost && (n = pass->next++) < pass->end) {
		pthread_mutex_lock(&tree);
		bool wanted = n != ROOT && nodes[n].state == LIVE && !(nodes[n].flags & NODE_LOCAL) &&
			      (nodes[n].flags & NODE_RECORDED || handle_first(n));
		pthread_mutex_unlock(&tree);
		if (wanted)
			again(n, pass);
	}
	return NULL;
}

static int open_all(struct pass *pass)
{
	pthread_t threads[OPENERS];
	int started = 0;

	/* A few at once find out soon what is there; a thread for each few hundred is enough. */
	while (started < OPENERS && (uint32_t)started * 64 < pass->end &&
	       !pthread_create(&threads[started], NULL, opener, pass))
		started++;
	if (!started)
		opener(pass);
	for (int i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	return pass->lost;
}

static void tell_differences(const struct pass *pass, differs_fn *differs, void *arg)
{
	static char path[PATH_MAX];

	for (uint32_t n = 0; n < pass->end; n++) {
		bool known;

		if (!pass->found[n])
			continue;
		pthread_mutex_lock(&tree);
		known = node_path(n, path, sizeof(path));
		pthread_mutex_unlock(&tree);
		if (known)
			differs(arg, pass->found[n] - 1u, path);
	}
}

int switch_proxy(int backend, uint32_t flags, differs_fn *differs, void *arg, uint64_t *reopened)
{
	struct pass pass = { .end = S->node_high };
	struct stat st;
	int error = switch_stub();

	if (!error)
		error = fstat(backend, &st) ? errno : S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
	if (error) {
		close(backend);
		return error;
	}
	pthread_mutex_lock(&switching);
	pass.found = mmap(NULL, pass.end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pass.found == MAP_FAILED) {
		pthread_mutex_unlock(&switching);
		close(backend);
		return ENOMEM;
	}
	pass.stable = flags & SPFS_PROXY_SAME_INODES && st.st_ino == nodes[ROOT].a.ino;
	drop_backend(); /* what a worker that died over this has opened */
	close_now();
	pthread_mutex_lock(&tree);
	S->backend = backend;
	nodes[ROOT].fd = backend;
	node_learn(ROOT, &st);
	pthread_mutex_unlock(&tree);
	work_in(S->session);
	S->gone_waits = !!(flags & SPFS_PROXY_GONE_WAITS);
	S->no_passthrough = !!(flags & SPFS_PROXY_NO_PASSTHROUGH);
	error = open_all(&pass);
	if (!error) {
		carry_over(differs, arg);
		carry_removals();
		tell_differences(&pass, differs, arg);
		S->compared = 1;
		*reopened = pass.opened;
		pthread_rwlock_wrlock(&phase_lock);
		S->phase = SPFS_PHASE_PROXY;
		pthread_rwlock_unlock(&phase_lock);
		say("proxy: %u handles opened again", (unsigned)pass.opened);
	} else {
		drop_backend();
		close_now();
		say("proxy: %s: stub", strerror(error));
	}
	munmap(pass.found, pass.end);
	pthread_mutex_unlock(&switching);
	if (!error)
		stub_release(true);
	return error;
}
