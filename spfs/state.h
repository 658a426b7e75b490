/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_STATE_H
#define SPFS_STATE_H

/*
 * What outlives a worker. A worker may be killed between any two instructions, so nothing here is a linked structure:
 * there are arrays of records, each with a `state` that is written last when it is made and first when it goes. Hashes and free
 * lists are each worker's own and made anew (nodes.c). Descriptors outlive it as well: holder and worker share one table.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "kernel.h"
#include "wire.h"

#define MAX_NODES (1u << 22)
#define MAX_NAMES (1u << 22)
#define MAX_HANDLES (1u << 20)
#define MAX_INBOXES 128
#define MAX_SMALL (1u << 20)
#define MAX_LARGE (1u << 14)
#define TEXT_SIZE (1ull << 30)
#define NONE UINT32_MAX

enum { FREE, LIVE };

struct attr {
	uint64_t ino, size, blocks;
	int64_t atime, mtime, ctime;	/* ns */
	uint32_t mode, nlink, uid, gid, rdev;
};

enum {
	NODE_RECORDED = 1,	/* the checkpoint saw it: its metadata is known in STUB */
	NODE_LOCAL = 2,		/* made in RESTORE, lives here alone */
	NODE_GONE = 4,		/* not found at the backend */
};

struct node {
	_Atomic uint32_t state;
	uint32_t flags;
	uint64_t nlookup;	/* the kernel's references */
	uint64_t generation;
	struct attr a;
	int32_t fd;		/* O_PATH at the backend; -1 */
	int32_t shadow;		/* contents of a local regular file; -1 */
	int32_t backing;	/* its id for passthrough; 0 */
	uint32_t backing_session;
	uint32_t target;	/* text of a symbolic link; NONE */
	uint32_t target_len;
	uint32_t session;	/* in which bdev and bino were seen */
	uint64_t bdev, bino;
};

enum {
	NAME_LOCAL = 1,		/* made in RESTORE; the backend may not have it */
	NAME_DOOMED = 2,	/* removed in RESTORE: to be removed at the backend, hidden until then */
};

struct name {
	_Atomic uint32_t state;
	uint32_t flags;
	uint32_t parent, node;
	uint32_t text;
	uint32_t len;
};

enum {
	HANDLE_DIR = 1,
	HANDLE_CACHED = 2,	/* opened for the page cache: its inode takes no passthrough */
	HANDLE_PASSTHROUGH = 4,
};

struct handle {
	_Atomic uint32_t state;
	uint32_t flags;
	uint32_t generation;
	uint32_t node;
	uint32_t open_flags;
	int32_t fd;		/* at the backend; -1 */
	uint64_t dir_offset;	/* where the stream of `fd` stands */
	uint32_t uid, gid;
};

/* What a worker has done for a request, in case it dies before the kernel has the answer. */
enum { UNDONE, DOING, DONE };
struct journal {
	_Atomic uint32_t state;
	int32_t error;		/* DONE: the answer */
	uint32_t len;
	uint32_t handle;	/* made for it; NONE */
	uint32_t cursor;	/* FORGET: how far, and what was before */
	uint64_t before;	/* of WRITE: where it goes */
	uint8_t answer[256];
};

#define REQUEST_MAX (SPFS_MAX_WRITE + 4096)
#define SMALL_MAX 832

/* A request as it was read; header.len is 0 while there is none. */
struct inbox {
	struct journal journal;
	_Atomic uint32_t interrupted;
	_Atomic uint64_t since;	/* ms; being worked on */
	uint8_t pad[4096 - sizeof(struct journal) - 16];
	union {
		struct fuse_in_header header;
		uint8_t bytes[REQUEST_MAX];
	};
};

/* A request that waits. Its bytes are here or, if they are many, in a `large` one. */
struct held {
	_Atomic uint32_t state;
	uint32_t large;		/* NONE: in `bytes` */
	uint64_t deadline;	/* ms, 0 none */
	uint32_t interrupted;
	uint32_t pad;
	_Atomic uint64_t since;	/* ms; being worked on */
	struct journal journal;
	union {
		struct fuse_in_header header;
		uint8_t bytes[SMALL_MAX - 136];
	};
};

struct state {
	uint32_t version;
	_Atomic uint32_t phase;
	_Atomic uint32_t session;	/* counts the backends */
	_Atomic uint32_t restarts;
	_Atomic uint32_t over;		/* unmounted or stopped: nobody is started again */
	_Atomic uint32_t cleared;	/* its directory is gone, and may be another's by now */
	uint32_t timeout_ms, read_only, want_passthrough, on_loss_stub, loss_ms;
	_Atomic uint32_t minor;	/* the kernel's; 0 until it has begun */
	uint32_t passthrough;
	uint64_t init_flags;
	int32_t fuse, listen, log, backend, memory, dir;
	int32_t keeper, owner;	/* pidfds; -1 none */
	_Atomic uint32_t keep;	/* a keeper is wanted */
	uint32_t keeper_wait;	/* ms; before the next is started */
	uint64_t keeper_born, keeper_next;
	uint32_t owner_flags;
	_Atomic int32_t holder, worker;
	_Atomic uint32_t node_high, name_high, handle_high, small_high, large_high;
	_Atomic uint64_t text_high;
	_Atomic uint32_t zeroes;	/* RESTORE's zero pages may be in the page cache */
	uint32_t compared;	/* the record has been held against a backend */
	char id[72], mountpoint[4096], directory[96], keeper_command[8192];
	uint32_t keeper_len;
	uint32_t gone_waits;
	uint32_t no_passthrough;	/* not to this backend */
};

extern struct state *S;
extern struct node *nodes;
extern struct name *names;
extern struct handle *handles;
extern struct inbox *inboxes;
extern struct held *smalls;
extern uint8_t (*larges)[REQUEST_MAX];
extern char *text;

/* Maps the memory; fd -1: makes it. Returns the descriptor, or -1. */
int state_map(int fd);

uint64_t now_ms(void);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
