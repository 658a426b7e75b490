// SPDX-License-Identifier: Apache-2.0
/* Nodes, their names and their handles. Order of writes: a record is filled, then LIVE; it is FREE before it is anything else. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nodes.h"

#define BUCKETS (1u << 18)
#define TEXT_CLASSES 260 /* of 16 bytes: a name, a target */

pthread_mutex_t tree = PTHREAD_MUTEX_INITIALIZER;

/* One entry per record, zero: none (so numbers are stored plus one); sparse. */
static struct node_index {
	uint32_t first_name, first_handle, id_next, children, cached, passed;
	bool hashed;
} *node_index;
static struct name_index {
	uint32_t hash_next, next, prev;
} *name_index;
static struct handle_index {
	uint32_t next, prev;
} *handle_index;
static uint32_t *name_buckets, *id_buckets;
static uint32_t node_free_list, name_free_list, handle_free_list, text_free_list[TEXT_CLASSES];
static uint32_t live_nodes, live_handles;
static uint64_t generations;

static void *sparse(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static uint32_t hash_name(uint32_t parent, const char *name, size_t len)
{
	uint32_t h = 2166136261u ^ (parent * 2654435761u);

	for (size_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)name[i]) * 16777619u;
	return (h ^ (h >> 15)) & (BUCKETS - 1);
}

static uint32_t hash_id(uint64_t dev, uint64_t ino)
{
	return (uint32_t)(((ino ^ (dev << 7)) * 0x9e3779b97f4a7c15ull) >> 40) & (BUCKETS - 1);
}

static uint32_t text_new(const char *from, size_t len)
{
	uint32_t class = (uint32_t)(len + 15) / 16, at;

	if (!class)
		class = 1;
	if (class >= TEXT_CLASSES)
		return NONE;
	at = text_free_list[class];
	if (at) {
		memcpy(&text_free_list[class], text + at, sizeof(at));
	} else {
		uint64_t high = atomic_load(&S->text_high);

		if (!high)
			high = 16;
		if (high + class * 16 > TEXT_SIZE)
			return NONE;
		at = (uint32_t)high;
		atomic_store(&S->text_high, high + class * 16);
	}
	memcpy(text + at, from, len);
	return at;
}

static void text_free(uint32_t at, size_t len)
{
	uint32_t class = (uint32_t)(len + 15) / 16;

	if (at == NONE)
		return;
	if (!class)
		class = 1;
	memcpy(text + at, &text_free_list[class], sizeof(at));
	text_free_list[class] = at;
}

static void name_hash(uint32_t n)
{
	struct name *name = &names[n];
	uint32_t *bucket = &name_buckets[hash_name(name->parent, text + name->text, name->len)];
	struct node_index *node = &node_index[name->node];

	name_index[n].hash_next = *bucket;
	*bucket = n + 1;
	name_index[n].prev = 0;
	name_index[n].next = node->first_name;
	if (node->first_name)
		name_index[node->first_name - 1].prev = n + 1;
	node->first_name = n + 1;
	node_index[name->parent].children++;
}

static void handle_link(uint32_t h)
{
	struct node_index *node = &node_index[handles[h].node];

	handle_index[h].prev = 0;
	handle_index[h].next = node->first_handle;
	if (node->first_handle)
		handle_index[node->first_handle - 1].prev = h + 1;
	node->first_handle = h + 1;
	if (handles[h].flags & HANDLE_CACHED)
		node->cached++;
	if (handles[h].flags & HANDLE_PASSTHROUGH)
		node->passed++;
	live_handles++;
}

static void id_hash(uint32_t n)
{
	uint32_t *bucket = &id_buckets[hash_id(nodes[n].bdev, nodes[n].bino)];

	node_index[n].id_next = *bucket;
	*bucket = n + 1;
	node_index[n].hashed = true;
}

static void id_unhash(uint32_t n)
{
	uint32_t *at = &id_buckets[hash_id(nodes[n].bdev, nodes[n].bino)];

	if (!node_index[n].hashed)
		return;
	while (*at && *at != n + 1)
		at = &node_index[*at - 1].id_next;
	if (*at)
		*at = node_index[n].id_next;
	node_index[n].hashed = false;
}

int nodes_index(void)
{
	/* A worker is a copy of the holder, with what that has indexed before. */
	node_free_list = name_free_list = handle_free_list = live_nodes = live_handles = 0;
	memset(text_free_list, 0, sizeof(text_free_list));
	node_index = sparse(sizeof(*node_index) * (size_t)MAX_NODES);
	name_index = sparse(sizeof(*name_index) * (size_t)MAX_NAMES);
	handle_index = sparse(sizeof(*handle_index) * (size_t)MAX_HANDLES);
	name_buckets = sparse(sizeof(uint32_t) * BUCKETS);
	id_buckets = sparse(sizeof(uint32_t) * BUCKETS);
	if (!node_index || !name_index || !handle_index || !name_buckets || !id_buckets)
		return -1;
	for (uint32_t n = 0; n < S->node_high; n++) {
		if (nodes[n].generation > generations)
			generations = nodes[n].generation;
		if (nodes[n].state == LIVE) {
			live_nodes++;
			if (nodes[n].session == S->session && nodes[n].bino)
				id_hash(n);
		} else {
			node_index[n].id_next = node_free_list;
			node_free_list = n + 1;
		}
	}
	for (uint32_t n = 0; n < S->name_high; n++) {
		if (names[n].state == LIVE && nodes[names[n].node].state == LIVE && nodes[names[n].parent].state == LIVE) {
			name_hash(n);
		} else {
			atomic_store(&names[n].state, FREE);
			name_index[n].hash_next = name_free_list;
			name_free_list = n + 1;
		}
	}
	for (uint32_t h = 0; h < S->handle_high; h++) {
		if (handles[h].state == LIVE && nodes[handles[h].node].state == LIVE) {
			handle_link(h);
		} else {
			atomic_store(&handles[h].state, FREE);
			handle_index[h].next = handle_free_list;
			handle_free_list = h + 1;
		}
	}
	return 0;
}

uint32_t node_new(const struct attr *a, uint32_t flags)
{
	uint32_t n = node_free_list - 1;
	struct node *node;

	if (node_free_list)
		node_free_list = node_index[n].id_next;
	else if (S->node_high >= MAX_NODES)
		return NONE;
	else
		n = atomic_fetch_add(&S->node_high, 1);
	node = &nodes[n];
	memset(&node_index[n], 0, sizeof(node_index[n]));
	*node = (struct node){ .flags = flags, .generation = ++generations, .a = *a, .fd = -1, .shadow = -1, .target = NONE };
	if (!node->a.ino)
		node->a.ino = (1ull << 48) + node->generation;
	atomic_store(&node->state, LIVE);
	live_nodes++;
	return n;
}

void node_target(uint32_t n, const char *target, uint32_t len)
{
	nodes[n].target_len = len;
	nodes[n].target = text_new(target, len);
}

uint32_t node_of(uint64_t nodeid)
{
	if (!nodeid || nodeid > S->node_high || nodes[nodeid - 1].state != LIVE)
		return NONE;
	return (uint32_t)(nodeid - 1);
}

uint32_t node_by_id(uint64_t dev, uint64_t ino)
{
	for (uint32_t n = id_buckets[hash_id(dev, ino)]; n; n = node_index[n - 1].id_next)
		if (nodes[n - 1].bdev == dev && nodes[n - 1].bino == ino && nodes[n - 1].session == S->session)
			return n - 1;
	return NONE;
}

void node_identify(uint32_t n, uint64_t dev, uint64_t ino)
{
	if (node_index[n].hashed && nodes[n].bdev == dev && nodes[n].bino == ino && nodes[n].session == S->session)
		return;
	id_unhash(n);
	nodes[n].bdev = dev;
	nodes[n].bino = ino;
	nodes[n].session = S->session;
	id_hash(n);
}

bool node_cached(uint32_t n)
{
	return node_index[n].cached > 0;
}

bool node_has_children(uint32_t n)
{
	for (uint32_t i = 0; i < S->name_high && node_index[n].children; i++)
		if (names[i].state == LIVE && names[i].parent == n && !(names[i].flags & NAME_DOOMED))
			return true;
	return false;
}

bool node_passed_through(uint32_t n)
{
	return node_index[n].passed > 0;
}

void node_unback(uint32_t n)
{
	if (nodes[n].backing)
		(void)ioctl(S->fuse, DEV_IOC_BACKING_CLOSE, &nodes[n].backing);
	nodes[n].backing = 0;
}

uint32_t nodes_count(void)
{
	return live_nodes;
}

void node_settle(uint32_t n)
{
	struct node *node = &nodes[n];
	struct node_index *index = &node_index[n];

	if (n == ROOT || node->state != LIVE || node->nlookup || index->children || index->first_handle ||
	    ((node->flags & (NODE_RECORDED | NODE_LOCAL)) && index->first_name))
		return;
	id_unhash(n);
	atomic_store(&node->state, FREE);
	live_nodes--;
	if (node->fd >= 0)
		close(node->fd);
	if (node->shadow >= 0)
		close(node->shadow);
	node_unback(n);
	text_free(node->target, node->target_len);
	while (index->first_name)
		name_free(index->first_name - 1);
	index->id_next = node_free_list;
	node_free_list = n + 1;
}

uint32_t name_new(uint32_t parent, uint32_t node, const char *from, size_t len, uint32_t flags)
{
	uint32_t n = name_free_list - 1, at = text_new(from, len);

	if (at == NONE)
		return NONE;
	if (name_free_list)
		name_free_list = name_index[n].hash_next;
	else if (S->name_high >= MAX_NAMES)
		return NONE;
	else
		n = atomic_fetch_add(&S->name_high, 1);
	names[n] = (struct name){ .flags = flags, .parent = parent, .node = node, .text = at, .len = (uint32_t)len };
	atomic_store(&names[n].state, LIVE);
	name_hash(n);
	return n;
}

uint32_t name_find(uint32_t parent, const char *name, size_t len)
{
	for (uint32_t n = name_buckets[hash_name(parent, name, len)]; n; n = name_index[n - 1].hash_next) {
		struct name *at = &names[n - 1];

		if (at->parent == parent && at->len == len && !(at->flags & NAME_DOOMED) && !memcmp(text + at->text, name, len))
			return n - 1;
	}
	return NONE;
}

uint32_t name_first(uint32_t node)
{
	return node_index[node].first_name - 1;
}

uint32_t name_next(uint32_t n)
{
	return name_index[n].next - 1;
}

void name_free(uint32_t n)
{
	struct name *name = &names[n];
	struct name_index *index = &name_index[n];
	uint32_t *at = &name_buckets[hash_name(name->parent, text + name->text, name->len)];
	uint32_t parent = name->parent;

	atomic_store(&name->state, FREE);
	while (*at && *at != n + 1)
		at = &name_index[*at - 1].hash_next;
	if (*at)
		*at = index->hash_next;
	if (index->prev)
		name_index[index->prev - 1].next = index->next;
	else
		node_index[name->node].first_name = index->next;
	if (index->next)
		name_index[index->next - 1].prev = index->prev;
	text_free(name->text, name->len);
	index->hash_next = name_free_list;
	name_free_list = n + 1;
	node_index[parent].children--;
	node_settle(parent);
}

uint32_t handle_new(uint32_t node, uint32_t flags, uint32_t open_flags, int fd)
{
	uint32_t h = handle_free_list - 1, generation;

	if (handle_free_list)
		handle_free_list = handle_index[h].next;
	else if (S->handle_high >= MAX_HANDLES)
		return NONE;
	else
		h = atomic_fetch_add(&S->handle_high, 1);
	generation = handles[h].generation + 1;
	handles[h] = (struct handle){ .flags = flags, .generation = generation, .node = node, .open_flags = open_flags, .fd = fd };
	atomic_store(&handles[h].state, LIVE);
	handle_link(h);
	return h;
}

uint64_t handle_number(uint32_t h)
{
	return (uint64_t)handles[h].generation << 32 | h;
}

struct handle *handle_of(uint64_t fh)
{
	uint32_t h = (uint32_t)fh;

	if (h >= S->handle_high || handles[h].state != LIVE || handles[h].generation != fh >> 32)
		return NULL;
	return &handles[h];
}

struct handle *handle_first(uint32_t node)
{
	uint32_t h = node_index[node].first_handle;

	return h ? &handles[h - 1] : NULL;
}

struct handle *handle_next(struct handle *handle)
{
	uint32_t h = handle_index[handle - handles].next;

	return h ? &handles[h - 1] : NULL;
}

int handle_free(struct handle *handle)
{
	uint32_t h = (uint32_t)(handle - handles), node = handle->node;
	int fd = handle->fd;

	atomic_store(&handle->state, FREE);
	if (handle_index[h].prev)
		handle_index[handle_index[h].prev - 1].next = handle_index[h].next;
	else
		node_index[node].first_handle = handle_index[h].next;
	if (handle_index[h].next)
		handle_index[handle_index[h].next - 1].prev = handle_index[h].prev;
	if (handle->flags & HANDLE_CACHED)
		node_index[node].cached--;
	if (handle->flags & HANDLE_PASSTHROUGH && !--node_index[node].passed && nodes[node].backing_session != S->session)
		node_unback(node);
	live_handles--;
	handle_index[h].next = handle_free_list;
	handle_free_list = h + 1;
	node_settle(node);
	return fd;
}

uint32_t handles_count(void)
{
	return live_handles;
}

bool node_path(uint32_t n, char *path, size_t size)
{
	size_t at = size - 1;

	path[at] = 0;
	while (n != ROOT) {
		uint32_t name = name_first(n);

		if (name == NONE || names[name].len + 1 > at)
			return false;
		at -= names[name].len;
		memcpy(path + at, text + names[name].text, names[name].len);
		n = names[name].parent;
		if (n != ROOT)
			path[--at] = '/';
	}
	memmove(path, path + at, size - at);
	return true;
}
