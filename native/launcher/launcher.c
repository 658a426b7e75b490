// SPDX-License-Identifier: Apache-2.0
/*
 * The program that container runtimes start as `criu`.
 *
 * What needs no help (VERSION, FEATURE_CHECK, `criu check`, ...) goes straight to the engine: one exec, no Node.
 * For a dump, pre-dump or restore the process dance is
 *
 *	caller ---- forks ----> launcher ---- execs ----> CRIU          (one pid: the caller's child *is* the engine,
 *	                          |  ^                                   so reaping, rst_sibling and inherited
 *	                          |  | plan: path, argv, env, fds         descriptors behave as with bare CRIU)
 *	                          v  |
 *	                middle -> shim (Node)                            (the middle process exits at once: CRIU never
 *	                       -> guard                                   has a child that it does not know; the guard
 *	                                                                  settles what sudden deaths leave, guard.c)
 *
 * The shim may only look at the client's request (MSG_PEEK) until this process has become the engine; so at any
 * failure before that, running the engine alone loses nothing. Only a restore of images that need cryoshim is
 * refused then.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"
#include "launch.h"
#include "look.h"
#include "pins.h"
#include "standin.h"

/* Found by other launchers that look for an engine: this file is not one. */
__attribute__((used)) static const char mark[] = "CRYOSHIM-LAUNCHER-MARK";

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define LAUNCH_FILE "/run/cryoshim/launch"
#define CONFIG_FILE "/etc/cryoshim/config.toml"
#define NEEDS_US "cryoshim.img"
#define SHIM_TIMEOUT_MS 20000
#define NOTIFIER "cryoshim-notify"	/* the name by which CRIU starts this program as an action script */
#define LOOKER "cryoshim-look"		/* the name by which the shim starts it to look at files that may not answer */

/* IPv4 and IPv6, three hooks */
#define EARLY_LINKS 6
#define KIT_PROGRAM "/sys/fs/bpf/cryoshim/kit1/lock_all"

/* rpc.proto, enum criu_req_type */
enum { REQ_DUMP = 1, REQ_RESTORE = 2, REQ_PRE_DUMP = 4, REQ_SINGLE_PRE_DUMP = 13 };

struct launch {
	char **argv;
	char self[PATH_MAX];	/* this binary, links resolved */
	struct stat self_st;
	char engine[PATH_MAX];
	char node[PATH_MAX];
	int swrk_fd;		/* the client's socket, -1 for the command line */
	uint64_t req_type;
	int64_t images_dir_fd;	/* in the client's table; -1: none */
	int64_t work_dir_fd;
	int64_t netns_fd;	/* the network namespace that a restore goes to; -1: none from outside */
	int links[EARLY_LINKS];	/* of the early lock, see early_lock() */
	int n_links;
	bool restore;
};

/* Whether a file is a launcher like this one (another copy of cryoshim in PATH). */
static bool has_mark(const char *path)
{
	char buf[65536 + sizeof(mark)];
	size_t keep = 0;
	bool found = false;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	for (;;) {
		ssize_t n = read(fd, buf + keep, 65536);

		if (n <= 0)
			break;
		n += keep;
		if (memmem(buf, n, mark, sizeof(mark) - 1)) {
			found = true;
			break;
		}
		keep = (size_t)n < sizeof(mark) ? (size_t)n : sizeof(mark);
		memmove(buf, buf + n - keep, keep);
	}
	close(fd);
	return found;
}

static bool is_us(const struct launch *l, const struct stat *st)
{
	return st->st_dev == l->self_st.st_dev && st->st_ino == l->self_st.st_ino;
}

/*
 * The next `name` in PATH; with `engine` one that is not this launcher, and (when this process was itself taken for
 * an engine by another launcher, or the file is small enough to be one) not another launcher either.
 */
static bool find_in_path(const struct launch *l, const char *name, bool engine, char out[PATH_MAX])
{
	const char *lists[] = { getenv("PATH"), DEFAULT_PATH };

	for (size_t i = 0; i < 2; i++) {
		const char *p = lists[i];

		while (p && *p) {
			size_t len = strcspn(p, ":");
			struct stat st;
			int n = snprintf(out, PATH_MAX, "%.*s/%s", (int)len, p, name);

			p += len;
			if (*p == ':')
				p++;
			/* A relative entry would make the choice depend on the caller's directory: root must not. */
			if (out[0] != '/' || n <= 0 || n >= PATH_MAX)
				continue;
			if (stat(out, &st) || !S_ISREG(st.st_mode) || access(out, X_OK))
				continue;
			if (is_us(l, &st) || (engine && st.st_size < 512 * 1024 && has_mark(out)))
				continue;
			return true;
		}
	}
	out[0] = '\0';
	return false;
}

static bool copy_value(char *dst, const char *value)
{
	size_t len = strcspn(value, "\n");

	if (len == 0 || len >= PATH_MAX || value[0] != '/')
		return false;
	memcpy(dst, value, len);
	dst[len] = '\0';
	return true;
}

/*
 * What shim/engine/launch-file.ts compiled from the configuration. It counts only while the configuration file is
 * the one it was made from, and only when nobody but root can have written it.
 */
static bool read_launch_file(struct launch *l)
{
	char buf[16384], stamp[128] = "stamp=none\n";
	struct stat conf, st;
	ssize_t n = -1;
	int fd = open(LAUNCH_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char *p;

	if (fd < 0)
		return false;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == 0 && !(st.st_mode & 022))
		n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	if (stat(CONFIG_FILE, &conf) == 0)
		snprintf(stamp, sizeof(stamp), "stamp=%llu:%lld:%lld\n", (unsigned long long)conf.st_ino,
			 (long long)conf.st_size,
			 (long long)conf.st_mtim.tv_sec * 1000000000LL + conf.st_mtim.tv_nsec);
	if (strncmp(buf, stamp, strlen(stamp)))
		return false;
	p = strstr(buf, "\nnode=");
	if (!p || !copy_value(l->node, p + 6))
		l->node[0] = '\0';
	p = strstr(buf, "\nengine=");
	return p && copy_value(l->engine, p + 8);
}

static void choose_engine(struct launch *l)
{
	const char *env = getenv("CRYOSHIM_ENGINE"), *node = getenv("CRYOSHIM_NODE"), *config = getenv("CRYOSHIM_CONFIG");
	struct stat st;

	/* The launch file speaks for the default configuration only. */
	if (config || !read_launch_file(l))
		l->engine[0] = l->node[0] = '\0';
	if (env && env[0] == '/' && stat(env, &st) == 0 && !is_us(l, &st))
		snprintf(l->engine, sizeof(l->engine), "%s", env);
	else if (l->engine[0] && (stat(l->engine, &st) || is_us(l, &st)))
		l->engine[0] = '\0';
	if (!l->engine[0])
		find_in_path(l, "criu", true, l->engine);
	if (node && node[0] == '/')
		snprintf(l->node, sizeof(l->node), "%s", node);
	if (!l->node[0] || access(l->node, X_OK))
		find_in_path(l, "node", false, l->node);
}

static _Noreturn void exec_engine(struct launch *l, char **argv)
{
	if (!l->engine[0]) {
		dprintf(2, "cryoshim: cannot find CRIU: no `criu` in PATH but this launcher "
			   "(install CRIU, or set [engine] path in " CONFIG_FILE ")\n");
		_exit(127);
	}
	execv(l->engine, argv);
	dprintf(2, "cryoshim: cannot start the engine `%s`: %s (see `cryoshim doctor`)\n", l->engine, strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

static bool varint(const uint8_t **p, const uint8_t *end, uint64_t *out)
{
	*out = 0;
	for (unsigned int shift = 0; *p < end && shift < 64; shift += 7) {
		uint8_t b = *(*p)++;

		*out |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80))
			return true;
	}
	return false;
}

/* Steps over one protobuf field; for length-delimited ones *p is left at the content and *len says how long it is. */
static bool next_field(const uint8_t **p, const uint8_t *end, uint64_t *tag, uint64_t *value)
{
	if (!varint(p, end, tag))
		return false;
	switch (*tag & 7) {
	case 0:
		return varint(p, end, value);
	case 1:
		*p += 8;
		return *p <= end;
	case 2:
		return varint(p, end, value) && *value <= (uint64_t)(end - *p);
	case 5:
		*p += 4;
		return *p <= end;
	default:
		return false;
	}
}

/* inherit_fd { key, fd } of a request: the key of the network namespace is runc's and crun's. */
static void find_netns(struct launch *l, const uint8_t *p, const uint8_t *end)
{
	static const char key[] = "extRootNetNS";
	uint64_t tag, value, fd = 0;
	bool found = false;

	while (p < end && next_field(&p, end, &tag, &value)) {
		if (tag == (1 << 3 | 2))
			found = value == sizeof(key) - 1 && !memcmp(p, key, value);
		else if (tag == (2 << 3 | 0))
			fd = value;
		if ((tag & 7) == 2)
			p += value;
	}
	if (found && fd > 2)
		l->netns_fd = (int32_t)fd;
}

/*
 * Looks at the first request without taking it. Returns true when the engine may serve the connection alone. What
 * cannot be read here goes to the shim, which answers in CRIU's way.
 */
static bool engine_can_serve_alone(struct launch *l)
{
	static uint8_t buf[1 << 16];
	const uint8_t *p = buf, *end;
	uint64_t tag, value;
	bool keep_open = false;
	ssize_t n;

	do
		n = recv(l->swrk_fd, buf, sizeof(buf), MSG_PEEK | MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	/* Not a socket, or the client is gone: CRIU's own message is the right one. */
	if (n <= 0)
		return true;
	end = buf + ((size_t)n < sizeof(buf) ? (size_t)n : sizeof(buf));
	while (p < end && next_field(&p, end, &tag, &value)) {
		if (tag == (1 << 3 | 0)) {
			l->req_type = value;
		} else if (tag == (4 << 3 | 0)) {
			keep_open = value;
		} else if (tag == (2 << 3 | 2)) {
			const uint8_t *q = p, *qend = p + value;

			while (q < qend && next_field(&q, qend, &tag, &value)) {
				if (tag == (1 << 3 | 0))
					l->images_dir_fd = (int32_t)value;
				else if (tag == (17 << 3 | 0))
					l->work_dir_fd = (int32_t)value;
				else if (tag == (27 << 3 | 2))
					find_netns(l, q, q + value);
				if ((tag & 7) == 2)
					q += value;
			}
			p = qend;
		} else if ((tag & 7) == 2) {
			p += value;
		}
	}
	l->restore = l->req_type == REQ_RESTORE;
	switch (l->req_type) {
	case REQ_DUMP:
	case REQ_RESTORE:
	case REQ_PRE_DUMP:
	case REQ_SINGLE_PRE_DUMP:
		return false;
	}
	/* A connection that is kept open can still bring a dump. */
	return !keep_open;
}

/* Whether a command line may need the shim; the shim's parser decides, so a word too many does no harm. */
static bool is_session_command(struct launch *l)
{
	bool session = false;

	for (char **a = l->argv + 1; l->argv[0] && *a; a++) {
		if (!strcmp(*a, "restore"))
			session = l->restore = true;
		else if (!strcmp(*a, "dump") || !strcmp(*a, "pre-dump"))
			session = true;
	}
	return session;
}

/* The directory of the images, or of the log: "" when it cannot be told. */
static void session_dir(const struct launch *l, bool work, char out[PATH_MAX])
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int64_t fd = work && l->work_dir_fd >= 0 ? l->work_dir_fd : l->images_dir_fd;

	out[0] = '\0';
	if (l->swrk_fd >= 0) {
		if (fd >= 0 && getsockopt(l->swrk_fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0)
			snprintf(out, PATH_MAX, "/proc/%d/fd/%lld", peer.pid, (long long)fd);
		return;
	}
	snprintf(out, PATH_MAX, ".");
	for (char **a = l->argv + 1; *a; a++) {
		const char *v = NULL;

		if ((!strcmp(*a, "-D") || !strcmp(*a, "--images-dir")) && a[1])
			v = *++a;
		else if (!strncmp(*a, "--images-dir=", 13))
			v = *a + 13;
		else if (!strncmp(*a, "-D", 2) && (*a)[2])
			v = *a + 2;
		else if (work && (!strcmp(*a, "-W") || !strcmp(*a, "--work-dir")) && a[1])
			v = *++a;
		else if (work && !strncmp(*a, "--work-dir=", 11))
			v = *a + 11;
		if (v)
			snprintf(out, PATH_MAX, "%s", v);
	}
}

/* criu_resp { type = RESTORE, success = false, cr_errmsg = text }: what a client of CRIU understands. */
static void refuse_request(const struct launch *l, const char *text)
{
	uint8_t msg[256];
	size_t len = strlen(text), n = 0;

	if (len > 120)
		len = 120;
	msg[n++] = 1 << 3;
	msg[n++] = (uint8_t)l->req_type;
	msg[n++] = 2 << 3;
	msg[n++] = 0;
	msg[n++] = 9 << 3 | 2;
	msg[n++] = (uint8_t)len;
	memcpy(msg + n, text, len);
	n += len;
	/* The request was only looked at; left unread, it would make our end a reset that hides the answer. */
	while (recv(l->swrk_fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
		;
	if (send(l->swrk_fd, msg, n, MSG_NOSIGNAL) < 0)
		dprintf(2, "cryoshim: cannot answer the client: %s\n", strerror(errno));
}

/*
 * Lifts the network lock that the dump of these images has left for their restore: CRIU alone knows nothing of it, and
 * would restore into a network that stays locked.
 */
static void lift_lock_of(const char *images)
{
	char path[PATH_MAX], buf[4096], *id;
	ssize_t n;
	int fd;

	if (snprintf(path, sizeof(path), "%s/cryoshim.json", images) >= (int)sizeof(path))
		return;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return;
	buf[n] = '\0';
	id = strstr(buf, "\"kept\":\"");
	if (!id)
		return;
	id += 8;
	id[strcspn(id, "\"")] = '\0';
	lift_lock(id);
}

/* The engine alone, said on stderr and in cryoshim.log beside CRIU's log; refused when the images need us. */
static _Noreturn void run_without_shim(struct launch *l, const char *why)
{
	char dir[PATH_MAX], path[PATH_MAX + 32];
	int fd;

	if (l->restore) {
		session_dir(l, false, dir);
		snprintf(path, sizeof(path), "%s/" NEEDS_US, dir);
		if (dir[0] && access(path, F_OK) == 0) {
			dprintf(2, "cryoshim: cannot restore: these images need cryoshim, but its shim could not start: %s "
				   "(see `cryoshim doctor`)\n", why);
			if (l->swrk_fd >= 0)
				refuse_request(l, "these images need cryoshim, but its shim could not start (cryoshim doctor)");
			_exit(1);
		}
		if (dir[0])
			lift_lock_of(dir);
	}
	dprintf(2, "cryoshim: the shim could not start: %s; CRIU runs alone (see `cryoshim doctor`)\n", why);
	session_dir(l, true, dir);
	snprintf(path, sizeof(path), "%s/cryoshim.log", dir);
	fd = dir[0] ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
	if (fd >= 0) {
		dprintf(fd, "Warn  (launcher): the shim could not start: %s; CRIU runs alone\n", why);
		close(fd);
	}
	exec_engine(l, l->argv);
}

/* Whether a process lives in a network namespace: then it is not the container's alone. */
static bool netns_is_used(const struct stat *netns)
{
	struct dirent *d;
	bool used = false;
	DIR *dir = opendir("/proc");

	if (!dir)
		return true;
	while (!used && (d = readdir(dir))) {
		char path[64];
		struct stat st;

		if (atoi(d->d_name) <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/ns/net", atoi(d->d_name));
		used = stat(path, &st) == 0 && st.st_dev == netns->st_dev && st.st_ino == netns->st_ino;
	}
	closedir(dir);
	return used;
}

/*
 * A restore goes to a network namespace that its runtime has just set up, and until its sockets are back the kernel
 * would answer its peers with RST. The shim locks when it runs, 30 ms later than CRIU alone would; so the lock is
 * attached here and now, with a program that an earlier session has left loaded (shim/netlock/kit.ts). The shim
 * holds the links from then on, and closes them when all sockets are back. Where anything is missing, the shim locks.
 */
static void early_lock(struct launch *l)
{
	union bpf_attr attr;
	struct stat netns;
	int prog, home;

	if (!l->restore || l->netns_fd < 0 || fstat((int)l->netns_fd, &netns) || netns_is_used(&netns))
		return;
	memset(&attr, 0, sizeof(attr));
	attr.pathname = (uintptr_t)KIT_PROGRAM;
	prog = (int)syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));
	home = prog < 0 ? -1 : open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (home >= 0 && setns((int)l->netns_fd, CLONE_NEWNET) == 0) {
		for (int i = 0; i < EARLY_LINKS; i++) {
			/* union bpf_attr, link_create.netfilter (Linux 6.4): pf, hooknum, priority; older headers lack it. */
			struct {
				uint32_t prog_fd, target_fd, attach_type, flags, pf, hook;
				int32_t priority;
				uint32_t netfilter_flags;
			} create = { .prog_fd = (uint32_t)prog, .attach_type = 45, .pf = i % 2 ? 10 : 2,
				     .hook = 1 + (uint32_t)i / 2, .priority = -400 + 1 };
			int link = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &create, sizeof(create));

			if (link < 0)
				break;
			l->links[l->n_links++] = link;
		}
		/* Nothing may go on in a foreign namespace, least of all CRIU. */
		if (setns(home, CLONE_NEWNET))
			_exit(1);
	}
	if (home >= 0)
		close(home);
	if (prog >= 0)
		close(prog);
}

/*
 * In the shim-to-be and the guard-to-be: nothing of the caller's descriptors may stay open here, or a runtime that
 * waits for the end of a pipe would wait for us. Leaves 0 to 2 on /dev/null and keep[i] at 3 + i; one of -1 is left out.
 */
static void keep_only(const int *keep, int n, bool debug)
{
	int high[3 + EARLY_LINKS], null = open("/dev/null", O_RDWR);

	if (null < 0)
		_exit(1);
	/* Away from the numbers that are given out below; LXC starts us with descriptor 0 closed. */
	null = fcntl(null, F_DUPFD, 64);
	for (int i = 0; i < n; i++) {
		high[i] = keep[i] < 0 ? -1 : fcntl(keep[i], F_DUPFD, 64);
		if (keep[i] >= 0 && high[i] < 0)
			_exit(1);
	}
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || (!debug && dup2(null, 2) < 0))
		_exit(1);
	for (int i = 0; i < n; i++) {
		if (high[i] < 0)
			close(3 + i);
		else if (dup2(high[i], 3 + i) < 0)
			_exit(1);
	}
	if (syscall(SYS_close_range, 3 + n, ~0U, 0))
		_exit(1);
}

static _Noreturn void become_shim(struct launch *l, int launch_fd, int guard_fd)
{
	int keep[3 + EARLY_LINKS] = { launch_fd, guard_fd, l->swrk_fd };
	char shim[PATH_MAX], links[16];
	char *argv[1024];
	int n = 0;
	char *slash;

	/* <package>/{build/Release,prebuilds/linux-x64}/criu -> <package>/dist/shim.cjs */
	snprintf(shim, sizeof(shim), "%s", l->self);
	for (int up = 0; up < 3; up++) {
		slash = strrchr(shim, '/');
		if (!slash)
			_exit(1);
		*slash = '\0';
	}
	if (strlen(shim) + sizeof("/dist/shim.cjs") > sizeof(shim))
		_exit(1);
	strcat(shim, "/dist/shim.cjs");

	memcpy(keep + 3, l->links, (size_t)l->n_links * sizeof(int));
	keep_only(keep, 3 + l->n_links, getenv("CRYOSHIM_DEBUG") != NULL);
	/* 32 ms of start on Node 20, and the shim speaks to no network. */
	unsetenv("NODE_EXTRA_CA_CERTS");
	unsetenv("NODE_OPTIONS");
	argv[n++] = l->node;
	argv[n++] = shim;
	argv[n++] = "3";
	argv[n++] = "4";
	argv[n++] = l->swrk_fd >= 0 ? "5" : "-1";
	snprintf(links, sizeof(links), "%d", l->n_links);
	argv[n++] = links; /* so many, from descriptor 6 on */
	argv[n++] = "--";
	for (char **a = l->argv; *a; a++) {
		if (n >= 1023)
			_exit(1);
		argv[n++] = *a;
	}
	argv[n] = NULL;
	execv(l->node, argv);
	_exit(1);
}

static _Noreturn void become_guard(struct launch *l, int guard_fd, pid_t engine, pid_t caller)
{
	const int keep[] = { guard_fd, l->swrk_fd };

	keep_only(keep, 2, false);
	guard(3, l->swrk_fd >= 0 ? 4 : -1, engine, caller);
}

/* Both are grandchildren of nobody that CRIU could meet. Returns the shim, or -1. */
static pid_t fork_shim_and_guard(struct launch *l, int launch_fd, pid_t engine, pid_t caller)
{
	int sk[2];
	pid_t child;

	setsid();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sk))
		return -1;
	child = fork();
	if (child == 0)
		become_shim(l, launch_fd, sk[0]);
	if (child > 0 && fork() == 0)
		become_guard(l, sk[1], engine, caller);
	return child;
}

/* Starts the shim. Returns our end of the launch socket. */
static int start_shim(struct launch *l, pid_t *shim)
{
	int sk[2], pid_pipe[2], status;
	pid_t middle, self = getpid(), caller = getppid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sk))
		return -1;
	if (pipe2(pid_pipe, O_CLOEXEC)) {
		close(sk[0]);
		close(sk[1]);
		return -1;
	}
	middle = fork();
	if (middle == 0) {
		pid_t child = fork_shim_and_guard(l, sk[1], self, caller);

		if (write(pid_pipe[1], &child, sizeof(child)) != sizeof(child))
			_exit(1);
		_exit(child < 0);
	}
	close(sk[1]);
	close(pid_pipe[1]);
	*shim = -1;
	if (middle > 0) {
		if (read(pid_pipe[0], shim, sizeof(*shim)) != sizeof(*shim))
			*shim = -1;
		while (waitpid(middle, &status, 0) < 0 && errno == EINTR)
			;
	}
	close(pid_pipe[0]);
	if (*shim > 0)
		return sk[0];
	close(sk[0]);
	return -1;
}

/* Ends a shim that gave no usable plan: two must never serve one client. It is no child of ours, so watch its pidfd. */
static void stop_shim(pid_t shim)
{
	struct pollfd p = { .fd = (int)syscall(SYS_pidfd_open, shim, 0), .events = POLLIN };

	if (p.fd < 0)
		return;
	if (syscall(SYS_pidfd_send_signal, p.fd, SIGKILL, NULL, 0) == 0)
		poll(&p, 1, 1000);
	close(p.fd);
}

struct plan {
	struct launch_plan head;
	int fds[LAUNCH_MAX_FDS];
	size_t n_fds;
	char *strings;
	size_t len;
};

/* One plan of at most LAUNCH_MAX bytes; NULL and *why otherwise. */
static bool receive_plan(int sk, struct plan *plan, const char **why)
{
	static char buf[LAUNCH_MAX];
	union {
		char space[CMSG_SPACE(sizeof(int) * LAUNCH_MAX_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) - 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct pollfd p = { .fd = sk, .events = POLLIN };
	ssize_t n;
	int ready;

	do
		ready = poll(&p, 1, SHIM_TIMEOUT_MS);
	while (ready < 0 && errno == EINTR);
	if (ready <= 0) {
		*why = "it gave no plan within 20 seconds";
		return false;
	}
	n = recvmsg(sk, &msg, MSG_CMSG_CLOEXEC);
	if (n <= 0) {
		*why = "it ended before it gave a plan";
		return false;
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		plan->n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(plan->fds, CMSG_DATA(c), plan->n_fds * sizeof(int));
	}
	buf[n] = '\0';
	if ((size_t)n < sizeof(plan->head) || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		*why = "its plan was cut short";
		return false;
	}
	memcpy(&plan->head, buf, sizeof(plan->head));
	plan->strings = buf + sizeof(plan->head);
	plan->len = n - sizeof(plan->head);
	if (plan->head.magic != LAUNCH_MAGIC || plan->head.n_fds != plan->n_fds) {
		*why = "its plan is of another version";
		return false;
	}
	return true;
}

static char *next_string(struct plan *plan)
{
	char *s = plan->strings;
	size_t len;

	if (!plan->len)
		return NULL;
	len = strlen(s) + 1;
	if (len > plan->len)
		len = plan->len;
	plan->strings += len;
	plan->len -= len;
	return s;
}

/* Puts each received descriptor at the number that the plan wants; the engine inherits it. */
static bool place_fds(struct plan *plan)
{
	for (size_t i = 0; i < plan->n_fds; i++) {
		/* A received number may be another one's target: move all out of the way first. */
		int fd = fcntl(plan->fds[i], F_DUPFD_CLOEXEC, LAUNCH_FD_FLOOR);

		if (fd < 0)
			return false;
		close(plan->fds[i]);
		plan->fds[i] = fd;
	}
	for (size_t i = 0; i < plan->n_fds; i++)
		if (dup2(plan->fds[i], plan->head.fd_target[i]) < 0)
			return false;
	return true;
}

static _Noreturn void follow_plan(struct launch *l, struct plan *plan, pid_t shim)
{
	static char *argv[4096];
	char *s, *engine = NULL;
	uint32_t i;

	if (plan->head.kind == LAUNCH_EXIT) {
		s = next_string(plan);
		if (s && *s)
			dprintf(2, "%s\n", s);
		if (l->swrk_fd >= 0 && s)
			refuse_request(l, s);
		_exit((int)plan->head.exit_code);
	}
	if (plan->head.kind == LAUNCH_ALONE) {
		s = next_string(plan);
		if (s && *s)
			run_without_shim(l, s);
		exec_engine(l, l->argv);
	}
	if (!place_fds(plan)) {
		const char *why = strerror(errno);

		stop_shim(shim);
		run_without_shim(l, why);
	}
	engine = next_string(plan);
	for (i = 0; i < plan->head.n_env; i++) {
		s = next_string(plan);
		if (!s)
			break;
		if (strchr(s, '='))
			putenv(s);
		else
			unsetenv(s);
	}
	for (i = 0; i < plan->head.n_argv && i < 4095; i++)
		argv[i] = next_string(plan);
	argv[i] = NULL;
	if (engine && *engine)
		snprintf(l->engine, sizeof(l->engine), "%s", engine);
	exec_engine(l, plan->head.n_argv ? argv : l->argv);
}

/*
 * What CRIU runs as an action script in a restore by command line, where it sends no notifications: tells the shim
 * which action it is, and waits until the shim is done. A shim that is gone holds nothing up.
 */
static int notify_shim(void)
{
	const char *path = getenv("CRYOSHIM_NOTIFY"), *action = getenv("CRTOOLS_SCRIPT_ACTION");
	const char *pid = getenv("CRTOOLS_INIT_PID");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char msg[128];
	ssize_t said;
	int n, sk;

	if (!path || strlen(path) >= sizeof(address.sun_path) || !action ||
	    (strcmp(action, "setup-namespaces") && strcmp(action, "post-setup-namespaces") && strcmp(action, "post-restore")))
		return 0;
	strcpy(address.sun_path, path);
	n = snprintf(msg, sizeof(msg), "%s %s\n", action, pid ? pid : "0");
	sk = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sk < 0 || connect(sk, (struct sockaddr *)&address, sizeof(address)) || n <= 0 || (size_t)n >= sizeof(msg) ||
	    send(sk, msg, n, MSG_NOSIGNAL) != n)
		return 0;
	/* The end of the connection is the answer; words before it: the restore is to fail. */
	do
		said = recv(sk, msg, sizeof(msg), 0);
	while (said < 0 && errno == EINTR);
	return said > 0;
}

/* CRIU's `tar` and `ip`: see tar.c and ip.c. */
static _Noreturn void stand_in(struct launch *l, const char *name, enum standin (*work)(char **argv))
{
	char path[PATH_MAX];

	switch (work(l->argv)) {
	case STANDIN_DONE:
		_exit(0);
	case STANDIN_FAILED:
		dprintf(2, "cryoshim: cannot write an image in place of `%s`: %s\n", name, strerror(errno));
		_exit(1);
	case STANDIN_NOT_SIMPLE:
		break;
	}
	if (find_in_path(l, name, false, path))
		execv(path, l->argv);
	dprintf(2, "cryoshim: cannot find `%s` in PATH\n", name);
	_exit(127);
}

int main(int argc, char **argv)
{
	static struct launch l = { .swrk_fd = -1, .images_dir_fd = -1, .work_dir_fd = -1, .netns_fd = -1 };
	static struct plan plan;
	const char *why = NULL;
	const char *slash;
	ssize_t n;
	pid_t shim;
	int sk;

	slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	if (slash && !strcmp(slash + 1, NOTIFIER))
		return notify_shim();
	if (slash && !strcmp(slash + 1, LOOKER))
		return look();
	l.argv = argv;
	n = readlink("/proc/self/exe", l.self, sizeof(l.self) - 1);
	if (n <= 0 || stat("/proc/self/exe", &l.self_st))
		memset(&l.self_st, 0, sizeof(l.self_st));
	if (argc > 0 && !strcmp(argv[0], "tar"))
		stand_in(&l, "tar", tar_create);
	if (argc > 0 && !strcmp(argv[0], "ip"))
		stand_in(&l, "ip", ip_save);
	choose_engine(&l);

	if (argc >= 3 && !strcmp(argv[1], "swrk")) {
		l.swrk_fd = atoi(argv[2]);
		if (engine_can_serve_alone(&l))
			exec_engine(&l, argv);
	} else if (argc < 2 || !is_session_command(&l)) {
		exec_engine(&l, argv);
	}
	if (!l.node[0])
		run_without_shim(&l, "no `node` in PATH (set [engine] node in " CONFIG_FILE ")");
	early_lock(&l);
	sk = start_shim(&l, &shim);
	/* The shim's from now on; the engine must not hold them. */
	for (int i = 0; i < l.n_links; i++)
		close(l.links[i]);
	if (sk < 0)
		run_without_shim(&l, strerror(errno));
	if (!receive_plan(sk, &plan, &why)) {
		stop_shim(shim);
		close(sk);
		run_without_shim(&l, why);
	}
	/* sk is close-on-exec: its end tells the shim that this process has become the engine. */
	follow_plan(&l, &plan, shim);
}
