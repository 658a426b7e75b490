// SPDX-License-Identifier: Apache-2.0
/*
 * spfs: the stub-proxy file system. `spfs serve` mounts it and leaves two processes, holder and worker; spfs/control.ts
 * starts it and speaks with it.
 *
 *	caller -> spfs serve -> (a session of its own) -> holder -> worker
 *	            `- waits until it is mounted
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "holder.h"
#include "keeper.h"
#include "mount.h"
#include "nodes.h"
#include "record.h"

static char why[512];
static uint32_t owner;	/* 0: nobody */

static int failed(const char *step)
{
	int error = errno;

	if (!why[0])
		snprintf(why, sizeof(why), "%s", step);
	errno = error;
	return -1;
}

static bool number(const char *value, uint32_t *out)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	*out = (uint32_t)n;
	return *value >= '0' && *value <= '9' && !*end && n <= 0x7fffffff;
}

/* KEY=VALUE; command once for each word of the keeper's. */
static bool option(char *arg)
{
	struct {
		const char *key;
		char *text;
		size_t size;
		uint32_t *number;
	} keys[] = {
		{ "dir", S->directory, sizeof(S->directory), NULL },
		{ "id", S->id, sizeof(S->id), NULL },
		{ "mountpoint", S->mountpoint, sizeof(S->mountpoint), NULL },
		{ "timeout", NULL, 0, &S->timeout_ms },
		{ "read-only", NULL, 0, &S->read_only },
		{ "passthrough", NULL, 0, &S->want_passthrough },
		{ "stub-on-loss", NULL, 0, &S->on_loss_stub },
		{ "loss-after", NULL, 0, &S->loss_ms },
		{ "owner", NULL, 0, &owner },
		{ "own", NULL, 0, &S->owner_flags },
	};
	char *value = strchr(arg, '=');

	if (!value)
		return false;
	*value++ = 0;
	if (!strcmp(arg, "command")) {
		size_t len = strlen(value) + 1;

		if (S->keeper_len + len > sizeof(S->keeper_command))
			return false;
		memcpy(S->keeper_command + S->keeper_len, value, len);
		S->keeper_len += (uint32_t)len;
		return true;
	}
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strcmp(arg, keys[i].key))
			continue;
		if (keys[i].number)
			return number(value, keys[i].number);
		if (strlen(value) >= keys[i].size)
			return false;
		strcpy(keys[i].text, value);
		return true;
	}
	return false;
}

/* A descriptor of a file in the state directory, which is ours alone. */
static int own_file(const char *name, int flags)
{
	return openat(S->dir, name, flags | O_NOFOLLOW, 0600);
}

static int listen_at(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	if (fd < 0)
		return -1;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/control", S->directory);
	(void)unlinkat(S->dir, "control", 0);
	umask(0177);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 16)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The record, from whoever starts it: it is here before the state directory is, and a starter that is killed leaves no half of it. */
static int take_record(void)
{
	static char bytes[1 << 16];
	int fd = own_file("record", O_RDWR | O_CREAT | O_EXCL), ret;
	ssize_t n;

	if (fd < 0)
		return failed("record");
	while ((n = read(0, bytes, sizeof(bytes))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 || write(fd, bytes, (size_t)n) != n) {
			close(fd);
			return failed("record");
		}
	}
	ret = record_load(fd, why, sizeof(why));
	close(fd);
	return ret ? failed("record") : 0;
}

/* For whoever opens it again, and for people. */
static int tell_mountpoint(void)
{
	size_t len = strlen(S->mountpoint);
	int fd = own_file("mountpoint", O_WRONLY | O_CREAT | O_EXCL), ret;

	if (fd < 0)
		return failed("mountpoint");
	ret = write(fd, S->mountpoint, len) == (ssize_t)len ? 0 : failed("mountpoint");
	close(fd);
	return ret;
}

static void detach(void)
{
	struct rlimit limit;
	FILE *file;
	int null;

	/* As many open files as can be had; each of the container's takes one. */
	limit.rlim_cur = limit.rlim_max = 1 << 20;
	if (setrlimit(RLIMIT_NOFILE, &limit) && !getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	leave_cgroups();
	file = fopen("/proc/self/oom_score_adj", "we");
	if (file) {
		fputs("-1000", file);
		if (fclose(file))
			say("the OOM score stays as it is: %s", strerror(errno));
	}
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; null >= 0 && fd < 3; fd++)
		(void)dup2(null, fd);
	if (null > 2)
		close(null);
	(void)chdir("/");
	for (int sig = 1; sig < 32; sig++)
		if (sig != SIGCHLD)
			(void)signal(sig, sig == SIGPIPE || sig == SIGHUP || sig == SIGINT ? SIG_IGN : SIG_DFL);
	(void)prctl(PR_SET_NAME, "spfs");
}

/* All that can fail, in the process that becomes the holder. */
static int prepare(void)
{
	if (mkdir(S->directory, 0700)) {
		S->cleared = 1; /* another's */
		return failed("state directory");
	}
	S->dir = open(S->directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
	if (S->dir < 0)
		return failed("state directory");
	S->log = own_file("log", O_WRONLY | O_CREAT | O_APPEND);
	if (S->log < 0)
		return failed("log");
	if (nodes_index())
		return failed("memory");
	if (take_record() || tell_mountpoint())
		return -1;
	detach();
	S->fuse = open("/dev/fuse", O_RDWR);
	if (S->fuse < 0)
		return failed("/dev/fuse");
	S->listen = listen_at();
	if (S->listen < 0)
		return failed("control socket");
	errno = owner ? owner_watch((pid_t)owner, S->owner_flags) : 0;
	if (errno)
		return failed("owner");
	/* As the state directory: whoever is killed, there is none without a process that takes it away. */
	if (S->owner_flags & SPFS_OWN_DIRECTORY && mkdir(S->mountpoint, 0700) && errno != EEXIST)
		return failed("mountpoint");
	S->zeroes = 1;
	if (mount_at(S->fuse, S->id, S->mountpoint, S->read_only))
		return failed("mount");
	return 0;
}

static void hold(int report)
{
	char line[600];
	int len;

	if (!prepare()) {
		say("mounted at %s, %u nodes", S->mountpoint, nodes_count());
		len = snprintf(line, sizeof(line), "ok");
	} else {
		len = snprintf(line, sizeof(line), "%d\t%s", errno, why);
		/* Whoever hears of it finds nothing. */
		clear_away();
	}
	/* Whoever has started it may be dead, and then takes nothing away. */
	if (write(report, line, (size_t)len) != len || line[0] != 'o') {
		clear_away();
		_exit(1);
	}
	close(report);
	holder_run();
}

/* Makes the state and reads the words of the command into it; returns 0 or an exit code. */
static int options(int argc, char **argv)
{
	/* Whatever the caller has open is not for a process that stays. */
	(void)syscall(SYS_close_range, 3, ~0u, 0);
	if (state_map(-1) < 0) {
		fprintf(stderr, "%d\tmemory\n", errno);
		return 1;
	}
	S->loss_ms = 10000;
	for (int i = 0; i < argc; i++) {
		if (!option(argv[i])) {
			fprintf(stderr, "%d\toption `%s`\n", EINVAL, argv[i]);
			return 2;
		}
	}
	if (!S->directory[0] || !S->id[0] || !S->mountpoint[0]) {
		fprintf(stderr, "%d\toptions: dir, id and mountpoint are needed\n", EINVAL);
		return 2;
	}
	return 0;
}

/* What both processes have left that were killed at once. */
static int clear_command(void)
{
	S->over = 1;
	clear_away();
	return access(S->directory, F_OK) ? 0 : 1;
}

static int serve_command(void)
{
	char line[600] = "";
	int report[2], status;
	ssize_t n;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC) || (pid = fork()) < 0) {
		fprintf(stderr, "%d\tfork\n", errno);
		return 1;
	}
	if (!pid) {
		close(report[0]);
		if (setsid() < 0)
			_exit(1);
		pid = fork();
		if (pid)
			_exit(pid < 0);
		hold(report[1]);
	}
	close(report[1]);
	if (waitpid(pid, &status, 0) != pid)
		return 1;
	n = read(report[0], line, sizeof(line) - 1);
	if (n == 2 && !memcmp(line, "ok", 2)) {
		/* The kernel asks at once; what it can is known then. Or it is over already: whoever restores has died. */
		for (int ms = 0; ms < 10000 && !S->minor && !S->over; ms++)
			usleep(1000);
		if (S->minor)
			return 0;
		n = snprintf(line, sizeof(line), "%d\tthe kernel has not begun to speak", S->over ? ECANCELED : ETIMEDOUT);
		S->over = 1;
		clear_away();
	}
	fprintf(stderr, "%s\n", n > 0 ? line : "5\tthe server has died");
	return 1;
}

int main(int argc, char **argv)
{
	if (argc >= 3 && (!strcmp(argv[1], "serve") || !strcmp(argv[1], "clear"))) {
		int error = options(argc - 2, argv + 2);

		if (error)
			return error;
		return argv[1][0] == 's' ? serve_command() : clear_command();
	}
	if (argc == 3 && !strcmp(argv[1], "resume")) {
		if (state_map(atoi(argv[2])) < 0 || S->version != SPFS_VERSION)
			return 1;
		holder_run();
	}
	fprintf(stderr, "spfs is started by cryoshim\n");
	return 2;
}
