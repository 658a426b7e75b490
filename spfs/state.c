// SPDX-License-Identifier: Apache-2.0
/* The memory that holder and workers share: one memfd, sparse, each array at its place. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

struct state *S;
struct node *nodes;
struct name *names;
struct handle *handles;
struct inbox *inboxes;
struct held *smalls;
uint8_t (*larges)[REQUEST_MAX];
char *text;

_Static_assert(sizeof(struct inbox) % 4096 == 0, "inboxes lie on pages");

int state_map(int fd)
{
	struct {
		void *place;
		size_t size;
	} arrays[] = {
		{ &S, sizeof(*S) },
		{ &nodes, sizeof(*nodes) * (size_t)MAX_NODES },
		{ &names, sizeof(*names) * (size_t)MAX_NAMES },
		{ &handles, sizeof(*handles) * (size_t)MAX_HANDLES },
		{ &inboxes, sizeof(*inboxes) * (size_t)MAX_INBOXES },
		{ &smalls, sizeof(*smalls) * (size_t)MAX_SMALL },
		{ &larges, sizeof(*larges) * (size_t)MAX_LARGE },
		{ &text, TEXT_SIZE },
	};
	size_t total = 0;
	bool fresh = fd < 0;
	char *base;

	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++)
		total += (arrays[i].size + 4095) & ~4095ul;
	if (fresh)
		fd = memfd_create("spfs", 0);
	if (fd < 0 || (fresh && ftruncate(fd, (off_t)total)))
		return -1;
	base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (base == MAP_FAILED)
		return -1;
	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) {
		memcpy(arrays[i].place, &base, sizeof(base));
		base += (arrays[i].size + 4095) & ~4095ul;
	}
	if (fresh) {
		S->version = SPFS_VERSION;
		S->fuse = S->listen = S->log = S->backend = S->dir = S->keeper = S->owner = -1;
		S->memory = fd;
	}
	return fd;
}

uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void say(const char *format, ...)
{
	char line[1024];
	struct timespec t;
	struct tm tm;
	va_list list;
	size_t n;
	int len;

	clock_gettime(CLOCK_REALTIME, &t);
	gmtime_r(&t.tv_sec, &tm);
	n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
	n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ld [%d] ", t.tv_nsec / 1000000, (int)getpid());
	va_start(list, format);
	len = vsnprintf(line + n, sizeof(line) - n - 1, format, list);
	va_end(list);
	if (len < 0)
		return;
	n = n + (size_t)len < sizeof(line) - 1 ? n + (size_t)len : sizeof(line) - 2;
	line[n++] = '\n';
	if (S && S->log >= 0 && write(S->log, line, n) < 0)
		return;
}
