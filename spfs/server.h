/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_SERVER_H
#define SPFS_SERVER_H

/* One request on its way: read by a thread of the worker, answered by it, or held (stub.c) and answered by another. */
#include "nodes.h"

struct request {
	struct fuse_in_header *in;
	uint8_t *arg;
	uint32_t len;		/* of arg */
	struct journal *journal;
	struct inbox *box;	/* where it was read; NULL once it is held */
	struct held *held;
	uint8_t *buffer;	/* the thread's own, SPFS_MAX_WRITE bytes */
	uint32_t session;	/* of the backend that it is served by */
	bool again;		/* a worker died over it: part of it may have been done */
	bool answered;
	uint32_t written;	/* by a write(2) that has failed then */
};

/* Answers; what the kernel no longer waits for is no error. */
void reply(struct request *r, int error, const void *data, size_t len);
/* Whether a request must not be done again once it has been answered. */
bool changes(uint32_t opcode);
/* From here on the request changes something: done twice it would be told that it was done already. */
void journal_begin(struct request *r);

/* The fixed part of the argument, or NULL: answered with EIO. */
const void *argument(struct request *r, size_t size);
/* The name at `at` within the argument, or NULL: answered. */
const char *argument_name(struct request *r, size_t at);

void fill_attr(struct fuse_attr *out, const struct attr *a);
/* With a reference for the kernel; `ttl` in ms, for attributes and entry. The tree is locked. */
void fill_entry(struct fuse_entry_out *out, uint32_t node, uint64_t ttl);
void attr_from(struct attr *a, const struct stat *st);
/* For how many ms of `ttl` attributes may be trusted: bits that give rights may be taken away by a write that is passed through. */
uint64_t attr_ttl(uint32_t mode, uint64_t ttl);
/* The bits of a mode that go when a file is changed by who may not keep them (no CAP_FSETID). */
uint32_t mode_kills(uint32_t mode);

/* The phases: each serves one request. */
void restore_serve(struct request *r);
/* False: it must wait. */
bool stub_serve(struct request *r);
void proxy_serve(struct request *r);

/* Held by a request while it looks at the phase, by a switch while it changes it. */
extern pthread_rwlock_t phase_lock;
void serve(struct request *r);
void serve_held(struct held *h, uint8_t *buffer);
/* A descriptor of an earlier session: closed by close_now(), or when the last who works with it is done. */
void close_later(uint32_t session, int fd);
void close_now(void);
/* A detached thread with a small stack. */
void start_thread(void *(*run)(void *), void *arg);
/* One more thread that takes requests, if there may be one. */
void start_server(void);
int server_start(void);
/* Requests that a thread has worked on for longer than `ms`, and threads that wait for one. */
uint32_t server_stuck(uint64_t ms);

extern int wake_fd;
void wake_control(void);

#endif
