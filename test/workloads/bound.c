// SPDX-License-Identifier: Apache-2.0
/*
 * Unix sockets that are bound on a mount which has been unmounted lazily, for a checkpoint in the middle. DIR/sub is made and bound to
 * DIR/at; all is bound there, it is unmounted with MNT_DETACH, "ready" is written to OUT. When GO exists clients come by each
 * path that leads there: "ok what" or "BAD what" for each thing, then "done". Two processes: the second has a client and a datagram socket.
 *
 *	bound DIR OUT GO [ro]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/un.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unmounted.h"

static int bound_to(int type, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sk = socket(AF_UNIX, type, 0);

	memcpy(addr.sun_path, name, strlen(name));
	must(name, sk >= 0 && bind(sk, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	return sk;
}

static int connected(int type, const char *name)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sk = socket(AF_UNIX, type, 0);

	memcpy(addr.sun_path, name, strlen(name));
	if (sk >= 0 && connect(sk, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return sk;
	if (sk >= 0)
		close(sk);
	return -1;
}

static bool is_called(int sk, const char *name)
{
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);

	memset(&addr, 0, sizeof(addr));
	return getsockname(sk, (struct sockaddr *)&addr, &len) == 0 && !strncmp(addr.sun_path, name, sizeof(addr.sun_path));
}

/* What a socket is bound to; times apart. */
static bool is_bound_to(int sk, const struct stat *was)
{
	struct stat st = { 0 };
	int fd = ioctl(sk, SIOCUNIXFILE);
	bool same = fd >= 0 && fstat(fd, &st) == 0 && st.st_mode == was->st_mode && st.st_uid == was->st_uid &&
		    st.st_gid == was->st_gid && st.st_nlink == was->st_nlink && st.st_mtim.tv_sec == was->st_mtim.tv_sec &&
		    st.st_mtim.tv_nsec == was->st_mtim.tv_nsec;

	close(fd);
	return same;
}

static bool is_file_of(int sk, const char *path)
{
	struct stat st, named;
	int fd = ioctl(sk, SIOCUNIXFILE);
	bool same = fd >= 0 && fstat(fd, &st) == 0 && stat(path, &named) == 0 && st.st_ino == named.st_ino && st.st_dev == named.st_dev;

	close(fd);
	return same;
}

static bool is_on(int sk, int other)
{
	int fd = ioctl(sk, SIOCUNIXFILE);
	bool same = fd >= 0 && mount_of(fd) == mount_of(other);

	close(fd);
	return same;
}

static bool serves(int listener, int client)
{
	char buf[8] = "";
	int server;

	if (client < 0)
		return false;
	server = accept(listener, NULL, NULL);
	return server >= 0 && write(client, "hello", 5) == 5 && read(server, buf, sizeof(buf)) == 5 && !memcmp(buf, "hello", 5) &&
	       close(server) == 0 && close(client) == 0;
}

static bool gets(int sk, int client, const char *text)
{
	char buf[32] = "";

	return client >= 0 && write(client, text, strlen(text)) == (ssize_t)strlen(text) &&
	       recv(sk, buf, sizeof(buf), MSG_DONTWAIT) == (ssize_t)strlen(text) && !strcmp(buf, text);
}

/* A path in the directory, short enough for a socket's. */
static char *name_of(const char *name)
{
	char *path = strdup(at(name));

	must(name, path != NULL && strlen(path) < sizeof(((struct sockaddr_un *)0)->sun_path));
	return path;
}

int main(int argc, char **argv)
{
	enum { STREAM, PACKET, DATAGRAM, RELATIVE, NESTED, CLIMBING, DEEP, RENAMED, GONE, MOVED, ALL };
	static const char *const what[ALL] = { "a stream", "a seqpacket socket", "a datagram socket", "one with a relative name", "one with directories in it",
					       "one whose name climbs", "one in a directory", "one that was renamed", "one without a file",
					       "one that was moved to another directory" };
	/* Where they are in the directory that is bound. */
	static const char *const places[ALL] = { "sub/stream", "sub/packet", "sub/datagram", "sub/relative", "sub/nested", "sub/climbing",
						 "sub/deep/socket", "sub/other", NULL, "sub/deep/moved" };
	char *names[ALL], buf[32] = "", path[64];
	int sk[ALL], dir_fd, client, server, datagrams, i, type, queued, turn[2];
	struct stat before[ALL];
	pid_t child;

	if (argc != 4 && argc != 5)
		return 2;
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	out = fopen(argv[2], "w");
	must(argv[2], out != NULL);
	umask(0);
	must("mkdir", mkdir(at("sub"), 0755) == 0 && mkdir(at("sub/deep"), 0755) == 0 && mkdir(at("at"), 0755) == 0);
	must("mount", mount(at("sub"), at("at"), NULL, MS_BIND, NULL) == 0);
	names[STREAM] = name_of("at/stream");
	names[PACKET] = name_of("at/packet");
	names[DATAGRAM] = name_of("at/datagram");
	names[RELATIVE] = strdup("relative");
	names[NESTED] = strdup("at/nested");
	names[CLIMBING] = name_of("at/deep/../../at/./climbing");
	names[DEEP] = name_of("at/deep/socket");
	names[RENAMED] = name_of("at/renamed");
	names[GONE] = name_of("at/gone");
	names[MOVED] = name_of("at/moved");
	for (i = 0; i < ALL; i++) {
		type = i == DATAGRAM ? SOCK_DGRAM : i == PACKET ? SOCK_SEQPACKET : SOCK_STREAM;
		must("chdir", chdir(i == NESTED ? dir : at("at")) == 0);
		sk[i] = bound_to(type, names[i]);
		must("listen", type == SOCK_DGRAM || listen(sk[i], 5) == 0);
	}
	must("rename", rename(at("at/renamed"), at("at/other")) == 0 && rename(at("at/moved"), at("at/deep/moved")) == 0);
	must("unlink", unlink(at("at/gone")) == 0);
	must("chmod", chmod(at("at/stream"), 0620) == 0 && chown(at("at/datagram"), 12, 34) == 0);
	dir_fd = open(at("at"), O_RDONLY | O_DIRECTORY);
	must("open", dir_fd >= 0);
	client = connected(SOCK_STREAM, names[STREAM]);
	server = accept(sk[STREAM], NULL, NULL);
	must("accept", client >= 0 && server >= 0 && write(server, "queued", 6) == 6);
	queued = connected(SOCK_DGRAM, names[DATAGRAM]);
	must("datagram", queued >= 0 && write(queued, "waits", 5) == 5);
	for (i = 0; i < ALL; i++) {
		int fd = ioctl(sk[i], SIOCUNIXFILE);

		must("SIOCUNIXFILE", fd >= 0 && fstat(fd, &before[i]) == 0 && close(fd) == 0);
	}
	must("pipe", pipe(turn) == 0);
	child = fork();
	must("fork", child >= 0);
	if (child == 0) {
		datagrams = connected(SOCK_DGRAM, names[DATAGRAM]);
		for (i = 0; i < ALL; i++)
			close(sk[i]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (datagrams < 0)
			_exit(1);
		if (read(turn[0], buf, 1) != 1 || write(datagrams, "child", 5) != 5)
			_exit(1);
		for (;;)
			pause();
	}
	usleep(100000);
	if (argc == 5)
		must("remount", mount(NULL, at("at"), NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);
	must("umount", umount2(at("at"), MNT_DETACH) == 0);
	fprintf(out, "ready\n");
	fflush(out);
	while (access(argv[3], F_OK))
		usleep(20000);

	for (i = 0; i < ALL; i++) {
		type = i == DATAGRAM ? SOCK_DGRAM : i == PACKET ? SOCK_SEQPACKET : SOCK_STREAM;
		check(what[i], is_called(sk[i], names[i]) && is_bound_to(sk[i], &before[i]) && is_on(sk[i], dir_fd));
		if (places[i])
			check("its file has its place", is_file_of(sk[i], at(places[i])));
		else
			check("its file has no name", access(at("sub/gone"), F_OK) < 0);
		if (type == SOCK_DGRAM || !places[i])
			continue;
		check("who comes by the other mount finds it", serves(sk[i], connected(type, at(places[i]))));
		snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir_fd, strchr(places[i], '/') + 1);
		check("who comes by a descriptor finds it", serves(sk[i], connected(type, path)));
		check("who comes from the working directory finds it",
		      serves(sk[i], connected(type, strchr(places[i], '/') + 1)));
	}
	check("a datagram that waited", recv(sk[DATAGRAM], buf, sizeof(buf), 0) == 5 && !memcmp(buf, "waits", 5));
	check("who was connected sends on", write(queued, "on", 2) == 2 && recv(sk[DATAGRAM], buf, sizeof(buf), 0) == 2);
	check("so does another process", write(turn[1], "x", 1) == 1 && recv(sk[DATAGRAM], buf, sizeof(buf), 0) == 5 && !memcmp(buf, "child", 5));
	check("a datagram comes by the other mount", gets(sk[DATAGRAM], connected(SOCK_DGRAM, at("sub/datagram")), "mount"));
	check("and from the working directory", gets(sk[DATAGRAM], connected(SOCK_DGRAM, "datagram"), "cwd"));
	check("a connection is as it was", read(client, buf, sizeof(buf)) == 6 && !memcmp(buf, "queued", 6) && write(client, "on", 2) == 2 &&
						   read(server, buf, sizeof(buf)) == 2);
	check("nothing is where it would be now", access(at("at/stream"), F_OK) < 0);
	if (argc == 5)
		check("read-only", openat(dir_fd, "new", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS);
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}
