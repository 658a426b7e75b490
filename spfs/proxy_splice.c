// SPDX-License-Identifier: Apache-2.0
/*
 * The proxy: large reads without a copy of their own. The backend's pages go into a pipe behind the head of the answer, and from there
 * to the kernel: it copies them once, where read and write are two copies. It keeps the pages' owner (no SPLICE_F_MOVE): the
 * backend's cache stays as it is.
 *
 * A pipe belongs to a worker. What is in one when that is killed goes with it (control.c, close_unknown), and the request,
 * which is in the inbox all the time, is done again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

/*
 * Below SPLICE_MIN the copy is as cheap. Few pipes, and no larger than the page cache's requests need (128 KiB), as the pages that they may
 * have count against all that the user has: who has too many gets pipes that are too small, in containers as well.
 */
#define SPLICE_MIN (64u << 10)
#define PIPES 4
#define PIPE_SIZE (256u << 10)
#define PAGE 4096u

static struct conduit {
	_Atomic bool taken;
	int out, in;		/* 0: none yet */
} conduits[PIPES];

static bool conduit_open(struct conduit *c)
{
	int fd[2];

	if (c->in)
		return true;
	if (pipe2(fd, O_CLOEXEC | O_NONBLOCK))
		return false;
	if (fcntl(fd[1], F_SETPIPE_SZ, PIPE_SIZE) < (int)PIPE_SIZE) {
		close(fd[0]);
		close(fd[1]);
		return false;
	}
	c->out = fd[0];
	c->in = fd[1];
	return true;
}

static struct conduit *conduit_take(void)
{
	for (struct conduit *c = conduits; c < conduits + PIPES; c++) {
		if (atomic_exchange(&c->taken, true))
			continue;
		/* One that cannot be as large as it must stays taken: it is not tried for each request. */
		return conduit_open(c) ? c : NULL;
	}
	return NULL;
}

/* Nobody knows what is in it. */
static void conduit_renew(struct conduit *c)
{
	close(c->out);
	close(c->in);
	c->out = c->in = 0;
}

/* All of `len` bytes, or not. */
static bool take_out(const struct conduit *c, void *data, size_t len)
{
	ssize_t n;

	for (size_t done = 0; done < len; done += (size_t)n) {
		n = read(c->out, (uint8_t *)data + done, len - done);
		if (n <= 0)
			return false;
	}
	return true;
}

/* The end of the file, as far as is known, is not within: an answer whose head tells another length is taken back, at the price of a copy more. */
static bool is_whole(const struct fuse_read_in *in, size_t size)
{
	const struct handle *h = handle_of(in->fh);
	bool whole;

	pthread_mutex_lock(&tree);
	whole = h && in->offset + size <= nodes[h->node].a.size;
	pthread_mutex_unlock(&tree);
	return whole;
}

bool spliced_read(struct request *r, const struct fuse_read_in *in, int fd, size_t size, size_t *done)
{
	struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + size), .unique = r->in->unique };
	off64_t at = (off64_t)in->offset;
	struct conduit *c;
	bool sent = false;
	ssize_t n = 1;

	*done = 0;
	/* A page for the head, and one more where the first is not whole. */
	if (size < SPLICE_MIN || size > PIPE_SIZE - 2 * PAGE || !is_whole(in, size) || !(c = conduit_take()))
		return false;
	if (write(c->in, &head, sizeof(head)) != sizeof(head)) {
		conduit_renew(c);
		goto out;
	}
	/* Of the pipe alone it is said that there is no waiting: whoever fills it with less than pages gets no further. */
	while (*done < size && n > 0) {
		n = splice(fd, &at, c->in, NULL, size - *done, SPLICE_F_NONBLOCK);
		if (n > 0)
			*done += (size_t)n;
	}
	if (*done == size) {
		sent = splice(c->out, NULL, S->fuse, NULL, sizeof(head) + size, 0) == (ssize_t)(sizeof(head) + size);
		r->answered |= sent;
	}
	/* What has come so far is for the thread's buffer: the reader goes on from there, and is told what is wrong. */
	if (!sent && (*done == size || !take_out(c, &head, sizeof(head)) || !take_out(c, r->buffer, *done))) {
		conduit_renew(c);
		*done = 0;
	}
out:
	atomic_store(&c->taken, false);
	return sent;
}
