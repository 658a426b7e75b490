/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors in messages of UNIX sockets (SCM_RIGHTS). */
#ifndef WORKLOADS_SENT_H
#define WORKLOADS_SENT_H

#include <string.h>
#include <sys/socket.h>

union sent_control {
	char space[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

static inline int put_in_flight(int sk, int fd)
{
	union sent_control control;
	struct iovec iov = { "x", 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c;

	memset(&control, 0, sizeof(control));
	c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return fd < 0 || sendmsg(sk, &msg, 0) != 1 ? -1 : 0;
}

static inline int receive_sent(int sk)
{
	union sent_control control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(sk, &msg, MSG_DONTWAIT) != 1 || !CMSG_FIRSTHDR(&msg))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

#endif
