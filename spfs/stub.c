// SPDX-License-Identifier: Apache-2.0
/*
 * The stub: what can be told from the record is told, everything else waits, as in an NFS hard mount: a fatal signal ends the
 * wait, no other does.
 *
 * The kernel tells of a signal once (FUSE_INTERRUPT), whatever it is; answering EINTR to one that is not fatal would fail a
 * read(2) that the application never had fail. So only SIGKILL counts, to which the kernel turns every fatal signal
 * (kernel/signal.c, complete_signal), and a task that has been sent another is looked at again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "stub.h"

#define LOOK_MS 200
#define REPLAYERS 8
#define BUCKETS 4096

static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;
enum { NOT_LISTED, WAITING, READY, WORKED_ON };
/* Beside each `held`: lists by number plus one. */
static struct place {
	uint32_t next, prev, hash_next, where;
} *places;
static struct list {
	uint32_t first, last, count;
} waiting, ready;
static uint32_t buckets[BUCKETS], small_free, large_free, *large_next;
/* Those of the backend that is there now: others may hang at one that is lost. */
static uint32_t replayers, replayers_session;

static uint32_t *bucket_of(uint64_t unique)
{
	return &buckets[(unique >> 1) % BUCKETS];
}

static void append(struct list *list, uint32_t i, uint32_t where)
{
	places[i].next = 0;
	places[i].prev = list->last;
	if (list->last)
		places[list->last - 1].next = i + 1;
	else
		list->first = i + 1;
	list->last = i + 1;
	list->count++;
	places[i].where = where;
}

static void removed(struct list *list, uint32_t i)
{
	if (places[i].prev)
		places[places[i].prev - 1].next = places[i].next;
	else
		list->first = places[i].next;
	if (places[i].next)
		places[places[i].next - 1].prev = places[i].prev;
	else
		list->last = places[i].prev;
	list->count--;
	places[i].where = WORKED_ON;
}

static struct fuse_in_header *header_of(struct held *h)
{
	return h->large == NONE ? &h->header : (void *)larges[h->large];
}

static void hash(uint32_t i)
{
	uint32_t *bucket = bucket_of(header_of(&smalls[i])->unique);

	places[i].hash_next = *bucket;
	*bucket = i + 1;
}

/* A place for `len` bytes, or NULL. */
static struct held *held_new(uint32_t len)
{
	uint32_t i = small_free - 1, l = NONE;

	if (len > sizeof(smalls[0].bytes)) {
		l = large_free - 1;
		if (large_free)
			large_free = large_next[l];
		else if (S->large_high >= MAX_LARGE)
			return NULL;
		else
			l = atomic_fetch_add(&S->large_high, 1);
	}
	if (small_free)
		small_free = places[i].next;
	else if (S->small_high >= MAX_SMALL)
		return NULL;
	else
		i = atomic_fetch_add(&S->small_high, 1);
	memset(&smalls[i], 0, offsetof(struct held, bytes));
	smalls[i].large = l;
	smalls[i].journal.handle = NONE;
	return &smalls[i];
}

static void unhash_and_free(struct held *h)
{
	uint32_t i = (uint32_t)(h - smalls), *at = bucket_of(header_of(h)->unique);

	while (*at && *at != i + 1)
		at = &places[*at - 1].hash_next;
	if (*at)
		*at = places[i].hash_next;
	atomic_store(&h->state, FREE);
	if (h->large != NONE) {
		/* Give the pages back: a megabyte each. */
		(void)madvise(larges[h->large] + (4096 - (uintptr_t)larges[h->large] % 4096) % 4096, SPFS_MAX_WRITE, MADV_REMOVE);
		large_next[h->large] = large_free;
		large_free = h->large + 1;
	}
	places[i].where = NOT_LISTED;
	places[i].next = small_free;
	small_free = i + 1;
}

void stub_free(struct held *h)
{
	pthread_mutex_lock(&queue);
	unhash_and_free(h);
	pthread_mutex_unlock(&queue);
}

static void take_over(struct held *h, const struct inbox *box)
{
	memcpy(h->large == NONE ? h->bytes : larges[h->large], box->bytes, box->header.len);
	h->journal = box->journal;
	h->interrupted = box->interrupted;
	atomic_store(&h->state, LIVE);
	hash((uint32_t)(h - smalls));
}

void stub_hold(struct request *r)
{
	struct held *h;

	pthread_mutex_lock(&queue);
	h = r->held ? r->held : held_new(r->in->len);
	if (h) {
		if (!r->held) {
			take_over(h, r->box);
			/* From here on it is in one place: the next worker must not find it here when it has long been answered there. */
			r->box->header.len = 0;
		}
		if (!h->deadline && S->timeout_ms)
			h->deadline = now_ms() + S->timeout_ms;
		append(&waiting, (uint32_t)(h - smalls), WAITING);
		r->held = NULL;
		r->answered = true;
	}
	pthread_mutex_unlock(&queue);
	if (!h)
		reply(r, ENOMEM, NULL, 0);
	else if (h->deadline || h->interrupted)
		wake_control();
}

/* Whether a task has been killed, or is no more. */
static bool doomed(uint32_t tid)
{
	char path[32], status[4096], *line;
	bool dead = true;
	ssize_t n;
	int fd;

	if (!tid)
		return false; /* in a pid namespace beside ours: nobody can tell */
	snprintf(path, sizeof(path), "/proc/%u/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	n = read(fd, status, sizeof(status) - 1);
	close(fd);
	if (n <= 0)
		return true;
	status[n] = 0;
	line = strstr(status, "\nState:\t");
	if (line && (line[8] == 'Z' || line[8] == 'X'))
		return true;
	for (int i = 0; i < 2; i++) {
		line = strstr(status, i ? "\nShdPnd:" : "\nSigPnd:");
		dead = line && (strtoull(line + 8, NULL, 16) & 1ull << (SIGKILL - 1));
		if (dead)
			return true;
	}
	return false;
}

static void refuse(struct held *h, int error)
{
	struct request r = { .in = header_of(h), .journal = &h->journal, .held = h };

	reply(&r, error, NULL, 0);
	unhash_and_free(h);
}

void stub_interrupt(struct request *r)
{
	const struct fuse_interrupt_in *in = (const void *)r->arg;
	bool look = false;

	if (r->len < sizeof(*in))
		return;
	pthread_mutex_lock(&queue);
	for (uint32_t i = *bucket_of(in->unique); i; i = places[i - 1].hash_next) {
		struct held *h = &smalls[i - 1];

		if (header_of(h)->unique != in->unique)
			continue;
		h->interrupted = 1;
		look = true;
		if (places[i - 1].where == WAITING && doomed(header_of(h)->pid)) {
			removed(&waiting, i - 1);
			refuse(h, EINTR);
			look = false;
		}
		goto out;
	}
	/* Or it is being worked on, and will be held only then. */
	for (uint32_t i = 0; i < MAX_INBOXES; i++)
		if (inboxes[i].header.len && inboxes[i].header.unique == in->unique)
			atomic_store(&inboxes[i].interrupted, 1);
out:
	pthread_mutex_unlock(&queue);
	if (look)
		wake_control();
}

int stub_tick(void)
{
	uint64_t now = now_ms(), next = UINT64_MAX;

	pthread_mutex_lock(&queue);
	for (uint32_t i = waiting.first; i;) {
		struct held *h = &smalls[i - 1];
		uint32_t after = places[i - 1].next;

		if (h->interrupted && doomed(header_of(h)->pid)) {
			removed(&waiting, i - 1);
			refuse(h, EINTR);
		} else if (h->deadline && h->deadline <= now) {
			removed(&waiting, i - 1);
			refuse(h, EIO);
		} else {
			if (h->interrupted && next > now + LOOK_MS)
				next = now + LOOK_MS;
			if (h->deadline && h->deadline < next)
				next = h->deadline;
		}
		i = after;
	}
	pthread_mutex_unlock(&queue);
	return next == UINT64_MAX ? -1 : (int)(next - now);
}

uint32_t stub_blocked(void)
{
	pthread_mutex_lock(&queue);
	for (uint32_t i = waiting.first; i;) {
		struct held *h = &smalls[i - 1];
		uint32_t after = places[i - 1].next;

		/* A read into the page cache is nobody's: its task can be killed and gone. Others who wait for the page ask themselves. */
		if (header_of(h)->opcode == FUSE_READ && doomed(header_of(h)->pid)) {
			removed(&waiting, i - 1);
			refuse(h, EIO);
		}
		i = after;
	}
	pthread_mutex_unlock(&queue);
	return waiting.count + ready.count;
}

uint32_t stub_stuck(uint64_t moment)
{
	uint32_t stuck = 0;

	pthread_mutex_lock(&queue);
	for (uint32_t i = 0; i < S->small_high; i++)
		if (smalls[i].state == LIVE && places[i].where == WORKED_ON && smalls[i].since < moment)
			stuck++;
	pthread_mutex_unlock(&queue);
	return stuck;
}

uint32_t stub_reads(uint64_t nodeid, uint64_t (*ranges)[2], uint32_t max)
{
	uint32_t n = 0;

	pthread_mutex_lock(&queue);
	for (uint32_t i = waiting.first; i && n < max; i = places[i - 1].next) {
		struct fuse_in_header *in = header_of(&smalls[i - 1]);
		const struct fuse_read_in *read = (const void *)(in + 1);

		if (in->opcode != FUSE_READ || in->nodeid != nodeid)
			continue;
		ranges[n][0] = read->offset;
		ranges[n++][1] = read->offset + read->size;
	}
	pthread_mutex_unlock(&queue);
	return n;
}

static void *replayer(void *arg)
{
	uint32_t session = (uint32_t)(uintptr_t)arg;
	uint8_t *buffer = mmap(NULL, SPFS_MAX_WRITE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (unshare(CLONE_FS))
		say("unshare: %s", strerror(errno));
	pthread_mutex_lock(&queue);
	while (buffer != MAP_FAILED && ready.first) {
		uint32_t i = ready.first - 1;

		removed(&ready, i);
		pthread_mutex_unlock(&queue);
		serve_held(&smalls[i], buffer);
		pthread_mutex_lock(&queue);
	}
	if (session == replayers_session)
		replayers--;
	pthread_mutex_unlock(&queue);
	if (buffer != MAP_FAILED)
		munmap(buffer, SPFS_MAX_WRITE);
	return NULL;
}

void stub_release(bool fresh)
{
	pthread_mutex_lock(&queue);
	while (waiting.first) {
		uint32_t i = waiting.first - 1;

		removed(&waiting, i);
		if (fresh)
			smalls[i].deadline = 0;
		append(&ready, i, READY);
	}
	if (replayers_session != S->session)
		replayers = 0;
	replayers_session = S->session;
	for (uint32_t n = ready.count; n && replayers < REPLAYERS; n--) {
		replayers++;
		start_thread(replayer, (void *)(uintptr_t)replayers_session);
	}
	pthread_mutex_unlock(&queue);
}

int stub_recover(void)
{
	size_t size = sizeof(*places) * (size_t)MAX_SMALL;

	places = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	large_next = mmap(NULL, sizeof(*large_next) * MAX_LARGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (places == MAP_FAILED || large_next == MAP_FAILED)
		return -1;
	/* A large one is free unless a request that lives names it. */
	for (uint32_t i = 0; i < S->small_high; i++)
		if (smalls[i].state == LIVE && smalls[i].large != NONE)
			large_next[smalls[i].large] = NONE;
	for (uint32_t i = 0; i < S->large_high; i++) {
		if (large_next[i] == NONE)
			continue;
		large_next[i] = large_free;
		large_free = i + 1;
	}
	for (uint32_t i = 0; i < S->small_high; i++) {
		if (smalls[i].state == LIVE) {
			hash(i);
			append(&waiting, i, WAITING);
		} else {
			places[i].next = small_free;
			small_free = i + 1;
		}
	}
	for (uint32_t b = 0; b < MAX_INBOXES; b++) {
		struct inbox *box = &inboxes[b];
		struct held *h;
		uint32_t i;

		if (!box->header.len)
			continue;
		/* It may have been put aside already. */
		for (i = *bucket_of(box->header.unique); i; i = places[i - 1].hash_next)
			if (header_of(&smalls[i - 1])->unique == box->header.unique)
				break;
		if (!i && box->header.len <= REQUEST_MAX && (h = held_new(box->header.len))) {
			take_over(h, box);
			h->deadline = S->timeout_ms ? now_ms() + S->timeout_ms : 0;
			append(&waiting, (uint32_t)(h - smalls), WAITING);
		}
		box->header.len = 0;
	}
	return 0;
}

/*
 * Whether a node is as it is remembered. Once a backend has been there a file may have grown since: the kernel would believe the old
 * size, forget what is behind it, and append there. The tree is locked.
 */
static bool is_known(uint32_t n)
{
	return n != NONE && (n == ROOT || nodes[n].flags & NODE_LOCAL ||
			     (nodes[n].flags & NODE_RECORDED && !(S->compared && S_ISREG(nodes[n].a.mode))));
}

/* What needs no backend. The phase is locked. */
bool stub_serve(struct request *r)
{
	struct fuse_entry_out entry = { 0 };
	struct fuse_attr_out attr = { 0 };
	struct fuse_statfs_out statfs = { .st = { .bsize = 4096, .namelen = 255, .frsize = 4096 } };
	bool known = false;
	uint32_t n, at;

	switch (r->in->opcode) {
	case FUSE_STATFS:
		reply(r, 0, &statfs, sizeof(statfs));
		return true;
	case FUSE_FLUSH:
	case FUSE_ACCESS:
		reply(r, 0, NULL, 0);
		return true;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		restore_serve(r);
		return true;
	case FUSE_GETATTR:
		pthread_mutex_lock(&tree);
		n = node_of(r->in->nodeid);
		known = is_known(n);
		if (known)
			fill_attr(&attr.attr, &nodes[n].a);
		pthread_mutex_unlock(&tree);
		if (known)
			reply(r, 0, &attr, sizeof(attr));
		return known;
	case FUSE_LOOKUP: {
		const char *name = argument_name(r, 0);

		if (!name)
			return true;
		pthread_mutex_lock(&tree);
		n = node_of(r->in->nodeid);
		at = n == NONE ? NONE : name_find(n, name, strlen(name));
		known = at != NONE && is_known(names[at].node);
		if (known)
			fill_entry(&entry, names[at].node, 0);
		pthread_mutex_unlock(&tree);
		if (known)
			reply(r, 0, &entry, sizeof(entry));
		return known;
	}
	case FUSE_READLINK:
		pthread_mutex_lock(&tree);
		n = node_of(r->in->nodeid);
		known = n != NONE && nodes[n].target != NONE;
		if (known)
			memcpy(r->buffer, text + nodes[n].target, nodes[n].target_len);
		at = known ? nodes[n].target_len : 0;
		pthread_mutex_unlock(&tree);
		if (known)
			reply(r, 0, r->buffer, at);
		return known;
	}
	return false;
}
