// SPDX-License-Identifier: Apache-2.0
/*
 * A workload that notices when something of it was lost in a checkpoint.
 *
 *	workload serve PORT DIR        echoes what each connection sends
 *	workload count HOST PORT DIR   counts; keeps an open file, a pipe and one connection to serve
 *	workload solo PORT DIR         both, over the loopback
 *
 * count is two processes: the child sends a number and a time stamp through a pipe every millisecond, the parent checks
 * that none is missing, has the number echoed over its connection, and writes it into a file at the file's own offset.
 * Nothing is opened or connected twice: if an offset, a byte in the pipe or the connection is lost, it exits.
 *
 * In DIR: "numbers" (16 bytes a number), "status" (one line, overwritten in place), "gaps" (pauses of the child of 2 ms
 * and more: wall clock of its end and length, in microseconds), "served" (connections and bytes), "failure" (why it exited).
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 1000000
#define GAP_US 2000

struct tick {
	int64_t number;
	int64_t time_us;
};

static const char *directory;

static int open_in_directory(const char *name, int flags)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, flags | O_CLOEXEC, 0644);
	if (fd < 0)
		exit(1);
	return fd;
}

/* The container's output goes nowhere, so the reason is left in a file. */
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	int error = errno;
	int fd = open_in_directory("failure", O_WRONLY | O_CREAT | O_TRUNC);
	va_list arguments;

	va_start(arguments, format);
	vdprintf(fd, format, arguments);
	va_end(arguments);
	dprintf(fd, " (errno: %s)\n", strerror(error));
	exit(1);
}

/* A restore lets an interrupted call return EINTR, so each of these goes on where it was. */
static void read_all(int fd, void *data, size_t size, const char *what)
{
	size_t done = 0;

	while (done < size) {
		ssize_t got = read(fd, (char *)data + done, size - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			fail("read from the %s: %s", what, got == 0 ? "it was closed" : "error");
		done += (size_t)got;
	}
}

static void write_all(int fd, const void *data, size_t size, const char *what)
{
	size_t done = 0;

	while (done < size) {
		ssize_t put = write(fd, (const char *)data + done, size - done);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			fail("write to the %s", what);
		done += (size_t)put;
	}
}

/* The wall clock: a restored task lives in a time namespace with a monotonic clock of its own. */
static int64_t now_us(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_REALTIME, &now) != 0)
		fail("clock_gettime");
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void rest(void)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};

	nanosleep(&tick, NULL); /* EINTR after a restore: then this tick is shorter */
}

static struct sockaddr_in address_of(const char *host, const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};

	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		fail("%s is no address", host);
	return address;
}

static int listen_on(const char *port)
{
	struct sockaddr_in address = address_of("0.0.0.0", port);
	int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 8) != 0)
		fail("listen on %s", port);
	return fd;
}

/* In a container without a network not even the loopback is up. */
static void raise_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) != 0)
		fail("raise the loopback");
	close(fd);
}

/* One connection after the other: a second one would show in "served" that the first was lost. */
__attribute__((noreturn)) static void serve(int listener)
{
	int served = open_in_directory("served", O_WRONLY | O_CREAT | O_TRUNC);
	int64_t connections = 0;
	int64_t bytes = 0;

	for (;;) {
		int fd = accept(listener, NULL, NULL);
		char data[4096];
		char line[64];

		if (fd < 0 && errno == EINTR)
			continue;
		if (fd < 0)
			fail("accept");
		connections++;
		for (;;) {
			ssize_t got = read(fd, data, sizeof(data));
			int length;

			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0)
				break;
			write_all(fd, data, (size_t)got, "accepted connection");
			bytes += got;
			length = snprintf(line, sizeof(line), "connections=%03lld bytes=%015lld\n", (long long)connections, (long long)bytes);
			if (pwrite(served, line, (size_t)length, 0) != length)
				fail("write served");
		}
		close(fd);
	}
}

__attribute__((noreturn)) static void tick(int out)
{
	struct tick next = {.number = 1};

	for (;;) {
		next.time_us = now_us();
		write_all(out, &next, sizeof(next), "pipe");
		next.number++;
		rest();
	}
}

static int connect_to(const char *host, const char *port)
{
	struct sockaddr_in address = address_of(host, port);
	int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		fail("connect to %s", host);
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0)
		fail("setsockopt");
	return fd;
}

static int local_port(int connection)
{
	struct sockaddr_in address;
	socklen_t size = sizeof(address);

	if (getsockname(connection, (struct sockaddr *)&address, &size) != 0)
		fail("getsockname");
	return ntohs(address.sin_port);
}

__attribute__((noreturn)) static void count(int connection)
{
	int numbers = open_in_directory("numbers", O_RDWR | O_CREAT | O_TRUNC);
	int status = open_in_directory("status", O_WRONLY | O_CREAT | O_TRUNC);
	int gaps = open_in_directory("gaps", O_WRONLY | O_CREAT | O_TRUNC);
	struct tick last = {0};
	int ends[2];
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) != 0)
		fail("pipe");
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		close(ends[0]);
		close(connection);
		tick(ends[1]);
	}
	close(ends[1]);

	for (;;) {
		struct tick next;
		int64_t echo = 0;
		char line[128];
		int length;

		read_all(ends[0], &next, sizeof(next), "pipe");
		if (next.number != last.number + 1)
			fail("the pipe jumped from %lld to %lld", (long long)last.number, (long long)next.number);
		write_all(connection, &next.number, sizeof(next.number), "connection");
		read_all(connection, &echo, sizeof(echo), "connection");
		if (echo != next.number)
			fail("the connection said %lld instead of %lld", (long long)echo, (long long)next.number);
		length = snprintf(line, sizeof(line), "%015lld\n", (long long)next.number);
		write_all(numbers, line, (size_t)length, "file");
		if (last.number > 0 && next.time_us - last.time_us >= GAP_US)
			dprintf(gaps, "%lld %lld\n", (long long)next.time_us, (long long)(next.time_us - last.time_us));
		length = snprintf(line, sizeof(line), "count=%015lld offset=%015lld port=%05d\n", (long long)next.number,
				  (long long)lseek(numbers, 0, SEEK_CUR), local_port(connection));
		if (pwrite(status, line, (size_t)length, 0) != length)
			fail("write status");
		last = next;
	}
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	directory = argv[argc - 1];
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		serve(listen_on(argv[2]));
	if (argc == 5 && strcmp(argv[1], "count") == 0)
		count(connect_to(argv[2], argv[3]));
	if (argc == 4 && strcmp(argv[1], "solo") == 0) {
		int listener;
		pid_t server;

		raise_loopback();
		listener = listen_on(argv[2]);
		server = fork();
		if (server < 0)
			fail("fork");
		if (server == 0)
			serve(listener);
		close(listener);
		count(connect_to("127.0.0.1", argv[2]));
	}
	fprintf(stderr, "usage: workload serve PORT DIR | count HOST PORT DIR | solo PORT DIR\n");
	return 2;
}
