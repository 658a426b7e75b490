// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "guarded.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../surgeon/surgeon.h"
#include "imports.h"

static int channel = -1;

/* The guard may be gone, or behind with reading: then it is done without. */
static void give(char what, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &what, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c;

	memset(&control, 0, sizeof(control));
	c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	(void)!sendmsg(channel, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A parasite calls its CRIU (compel/src/lib/infect.c:accept_tsock, 4.1.1, 4.2.1). */
static int accept_guarded(int sk, struct sockaddr *addr, socklen_t *len)
{
	int fd = accept(sk, addr, len);

	if (fd >= 0)
		give('p', fd);
	return fd;
}

static void give_record(void)
{
	int fd = memfd_create("cryoshim-record", MFD_CLOEXEC);
	struct surgeon_record *record;

	if (fd < 0)
		return;
	if (ftruncate(fd, sizeof(*record)) == 0) {
		/* For as long as we live. */
		record = mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (record != MAP_FAILED) {
			surgeon_keep(record);
			give('r', fd);
		}
	}
	close(fd);
}

int guarded_open(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -1;
	channel = pair[0];
	give_record();
	(void)redirect_import((const char *const[]){ "accept", NULL }, (void *)(uintptr_t)accept_guarded);
	return pair[1];
}
