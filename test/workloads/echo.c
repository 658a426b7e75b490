// SPDX-License-Identifier: Apache-2.0
/*
 * echo PORT STATUS: echoes what comes over TCP and UDP, IPv4 and IPv6, on one port. STATUS is a file into which it writes
 * "connections bytes datagrams" after each event, always at its begin.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX 20000

static struct pollfd fds[MAX];

static int open_socket(int type, unsigned short port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, type, 0), off = 0, on = 1;

	if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) || bind(fd, (struct sockaddr *)&any, sizeof(any)) ||
	    (type == SOCK_STREAM && listen(fd, 4096))) {
		perror("echo");
		exit(1);
	}
	return fd;
}

/* False when the peer is gone. */
static bool echo_stream(int fd, long *bytes)
{
	char buf[65536];
	ssize_t n = recv(fd, buf, sizeof(buf), 0);

	if (n <= 0)
		return n < 0 && errno == EINTR;
	*bytes += n;
	for (ssize_t sent = 0; sent < n;) {
		ssize_t m = send(fd, buf + sent, n - sent, MSG_NOSIGNAL);

		if (m < 0 && errno != EINTR)
			return false;
		sent += m > 0 ? m : 0;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	long connections = 0, bytes = 0, datagrams = 0;
	int status, n = 2;

	if (argc != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	status = open(argv[2], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (status < 0)
		return 1;
	fds[0] = (struct pollfd){ .fd = open_socket(SOCK_STREAM, (unsigned short)atoi(argv[1])), .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = open_socket(SOCK_DGRAM, (unsigned short)atoi(argv[1])), .events = POLLIN };
	for (;;) {
		char text[128];
		int len = snprintf(text, sizeof(text), "%10ld %12ld %10ld\n", connections, bytes, datagrams);

		if (pwrite(status, text, len, 0) != len)
			return 1;
		/* Restored in the middle of it, poll may end with EINTR. */
		if (poll(fds, n, -1) < 0)
			continue;
		if (fds[0].revents && n < MAX) {
			int fd = accept(fds[0].fd, NULL, NULL);

			if (fd >= 0) {
				fds[n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
				connections++;
			}
		}
		if (fds[1].revents) {
			struct sockaddr_in6 from;
			socklen_t size = sizeof(from);
			char buf[65536];
			ssize_t got = recvfrom(fds[1].fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &size);

			if (got >= 0 && sendto(fds[1].fd, buf, got, 0, (struct sockaddr *)&from, size) == got)
				datagrams++;
		}
		for (int i = 2; i < n; i++) {
			if (!fds[i].revents || echo_stream(fds[i].fd, &bytes))
				continue;
			close(fds[i].fd);
			fds[i] = fds[--n];
		}
	}
}
