// SPDX-License-Identifier: Apache-2.0
/*
 * The guard of a session: a small process that outlives shim and engine, and puts right what a sudden death of
 * either, or of both, leaves behind: placeholders in the tasks of a dump (undo.c), a frozen cgroup (criu/seize.c), half restored tasks that wait for ever for their
 * engine, and the cgroup mounts in CRIU's working directory (criu/cgroup.c, cgyard).
 *
 * It holds the client's socket open until it is done, so that a runtime which takes the socket's end for the
 * engine's finds everything settled.
 */
#define _GNU_SOURCE
#include "guard.h"
#include "pins.h"
#include "undo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* While a restore runs: how often new tasks are looked for. They live as copies of the engine for many times that. */
#define LOOK_MS 5
#define END_MS 5000
#define MAX_THAW 8
#define MAX_MOUNTS 64
#define MAX_TASKS 65536

struct task {
	pid_t pid;
	int pidfd;
};

struct thaw {
	char thawed[16];
	char path[PATH_MAX];
};

static struct {
	int sk, client, engine_fd;
	pid_t engine, caller;
	char kind;		/* '\0': not armed */
	struct timespec armed;
	struct stat engine_exe;
	ino_t pid_ns;
	struct task *tasks;	/* what the engine has made */
	size_t n_tasks;
	struct thaw thaw[MAX_THAW];
	size_t n_thaw;
	char *mounts[MAX_MOUNTS];
	size_t n_mounts;
	char yard[PATH_MAX];
	char log[PATH_MAX];
	char session[128];
	char kept[32];
	pid_t task;
} g;

static int pidfd_open(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void note(const char *text)
{
	int fd;

	if (!g.log[0])
		return;
	fd = open(g.log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	dprintf(fd, "Warn  (guard): %s\n", text);
	close(fd);
}

static bool known(pid_t pid)
{
	for (size_t i = 0; i < g.n_tasks; i++)
		if (g.tasks[i].pid == pid)
			return true;
	return false;
}

static void remember(pid_t pid)
{
	struct task *more;
	int fd;

	if (known(pid) || g.n_tasks >= MAX_TASKS)
		return;
	fd = pidfd_open(pid);
	if (fd < 0)
		return;
	more = realloc(g.tasks, (g.n_tasks + 1) * sizeof(*more));
	if (!more) {
		close(fd);
		return;
	}
	g.tasks = more;
	g.tasks[g.n_tasks++] = (struct task){ .pid = pid, .pidfd = fd };
}

/* A child of the caller may be a hook that it runs: only a copy of the engine, or what has a pid namespace of its own. */
static bool made_by_engine(pid_t pid)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	if (stat(path, &st) == 0 && st.st_dev == g.engine_exe.st_dev && st.st_ino == g.engine_exe.st_ino)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/ns/pid", pid);
	return stat(path, &st) == 0 && st.st_ino != g.pid_ns;
}

static void look_at_children(pid_t parent, pid_t thread)
{
	char path[64], buf[65536], *p, *end;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", parent, thread);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return;
	buf[n] = '\0';
	for (p = buf;; p = end) {
		long pid = strtol(p, &end, 10);

		if (end == p)
			return;
		if (pid > 0 && pid != g.engine && pid != getpid() && !known((pid_t)pid) &&
		    (parent == g.engine || made_by_engine((pid_t)pid)))
			remember((pid_t)pid);
	}
}

static void look(void)
{
	char path[64];
	struct dirent *d;
	DIR *dir;

	look_at_children(g.engine, g.engine);
	snprintf(path, sizeof(path), "/proc/%d/task", g.caller);
	dir = opendir(path);
	if (!dir)
		return;
	while ((d = readdir(dir)))
		if (d->d_name[0] != '.')
			look_at_children(g.caller, atoi(d->d_name));
	closedir(dir);
}

/* Adds the descendants of what is known; a task that is being killed makes no new ones in its pid namespace. */
static bool look_at_descendants(void)
{
	size_t before = g.n_tasks;
	struct dirent *d;
	DIR *dir = opendir("/proc");

	if (!dir)
		return false;
	while ((d = readdir(dir))) {
		char path[64], buf[1024], *p;
		pid_t pid = atoi(d->d_name), parent;
		ssize_t n;
		int fd;

		if (pid <= 1 || pid == getpid() || known(pid))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, buf, sizeof(buf) - 1);
		close(fd);
		if (n <= 0)
			continue;
		buf[n] = '\0';
		p = strrchr(buf, ')');
		if (p && sscanf(p + 1, " %*c %d", &parent) == 1 && known(parent))
			remember(pid);
	}
	closedir(dir);
	return g.n_tasks > before;
}

static void wait_end(int pidfd, int ms)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	while (poll(&p, 1, ms) < 0 && errno == EINTR)
		;
}

/* Adds copies of the engine that have outlived it, such as those with which CRIU tries the kernel (criu/kerndat.c). */
static void look_at_copies(void)
{
	size_t len = strlen(g.session);
	struct dirent *d;
	DIR *dir = len ? opendir("/proc") : NULL;

	if (!dir)
		return;
	while ((d = readdir(dir))) {
		static char buf[1 << 18];
		char path[64];
		struct stat st;
		pid_t pid = atoi(d->d_name);
		ssize_t n;
		int fd;

		if (pid <= 1 || pid == getpid() || pid == g.engine || known(pid))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/exe", pid);
		if (stat(path, &st) || st.st_dev != g.engine_exe.st_dev || st.st_ino != g.engine_exe.st_ino)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/environ", pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, buf, sizeof(buf));
		close(fd);
		if (n > 0 && memmem(buf, n, g.session, len))
			remember(pid);
	}
	closedir(dir);
}

static void kill_made(bool restored)
{
	char text[80];

	look_at_copies();
	if (restored) {
		look();
		while (look_at_descendants())
			;
	}
	if (!g.n_tasks)
		return;
	for (size_t i = 0; i < g.n_tasks; i++)
		syscall(SYS_pidfd_send_signal, g.tasks[i].pidfd, SIGKILL, NULL, 0);
	for (size_t i = 0; i < g.n_tasks; i++)
		wait_end(g.tasks[i].pidfd, END_MS);
	snprintf(text, sizeof(text), "the engine died: killed the %zu tasks that it had made", g.n_tasks);
	note(text);
}

static void thaw(const struct thaw *t)
{
	char buf[32] = "", text[PATH_MAX + 64];
	int fd = open(t->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	ssize_t n;

	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	if (n > 0 && strncmp(buf, t->thawed, strlen(t->thawed)) &&
	    write(fd, t->thawed, strlen(t->thawed)) == (ssize_t)strlen(t->thawed)) {
		snprintf(text, sizeof(text), "the engine died while it had the cgroup of `%s` frozen: thawed", t->path);
		note(text);
	}
	close(fd);
}

static void remove_yards(void)
{
	struct dirent *d;
	DIR *dir = g.yard[0] ? opendir(g.yard) : NULL;

	if (!dir)
		return;
	while ((d = readdir(dir))) {
		if (strncmp(d->d_name, ".criu.cgyard.", 13))
			continue;
		if (fchdir(dirfd(dir)))
			break;
		/* One tmpfs with the hierarchies mounted in it: the whole tree goes. */
		if (umount2(d->d_name, MNT_DETACH | UMOUNT_NOFOLLOW) && errno != EINVAL)
			continue;
		if (unlinkat(dirfd(dir), d->d_name, AT_REMOVEDIR) == 0)
			note("the engine died and left cgroup mounts in its working directory: removed");
	}
	closedir(dir);
}

/* Whether any process sees a mount there: the restore of another container, which still lives. */
static bool mounted_by_anyone(const char *path)
{
	char file[64], line[8192], needle[PATH_MAX + 3];
	struct dirent *d;
	bool found = false;
	DIR *dir = opendir("/proc");

	if (!dir)
		return true;
	snprintf(needle, sizeof(needle), " %s ", path);
	while (!found && (d = readdir(dir))) {
		FILE *f;

		if (atoi(d->d_name) <= 0)
			continue;
		snprintf(file, sizeof(file), "/proc/%d/mountinfo", atoi(d->d_name));
		f = fopen(file, "re");
		while (f && !found && fgets(line, sizeof(line), f))
			found = strstr(line, needle) != NULL;
		if (f)
			fclose(f);
	}
	closedir(dir);
	return found;
}

/* CRIU makes the roots of mount namespaces in a directory of /tmp (criu/mount.c), removed when the restore ends. */
static void remove_roots(void)
{
	struct dirent *d;
	DIR *dir = opendir("/tmp");

	if (!dir)
		return;
	while ((d = readdir(dir))) {
		char path[PATH_MAX];
		struct stat st;

		if (strncmp(d->d_name, ".criu.mntns.", 12) ||
		    fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode) || st.st_uid)
			continue;
		if (st.st_mtim.tv_sec < g.armed.tv_sec ||
		    (st.st_mtim.tv_sec == g.armed.tv_sec && st.st_mtim.tv_nsec < g.armed.tv_nsec))
			continue;
		snprintf(path, sizeof(path), "/tmp/%s", d->d_name);
		if (!mounted_by_anyone(path))
			unlinkat(dirfd(dir), d->d_name, AT_REMOVEDIR);
	}
	closedir(dir);
}

/*
 * A lock is kept for a container that ends: one that lives on after all must not be cut off. What a restore has taken
 * over ends with it.
 */
static void lift_kept(void)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/ns/net", g.task);
	if (!g.kept[0] || (g.task > 0 && stat(path, &st)))
		return;
	lift_lock(g.kept);
	note("it was cut off while it kept or took a network lock: lifted");
}

static void thaw_all(void)
{
	for (size_t i = 0; i < g.n_thaw; i++)
		thaw(&g.thaw[i]);
}

/* The socket by which CRIU's action scripts reach the shim (shim/session/notifications.ts). */
static void remove_notify(void)
{
	const char *id = strchr(g.session, '=');
	char path[256];

	if (id && !strchr(id, '/') && snprintf(path, sizeof(path), "/run/cryoshim/notify.%s", id + 1) < (int)sizeof(path))
		(void)unlink(path);
}

static bool is_stopped_or_gone(pid_t pid)
{
	char path[64], buf[512], *p;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	buf[n > 0 ? n : 0] = '\0';
	p = strrchr(buf, ')');
	return !p || !p[1] || strchr("TtZX", p[2]);
}

/* Its children are found by their parent: so they are looked for while it can make no more and still is. */
static void kill_engine(void)
{
	if (syscall(SYS_pidfd_send_signal, g.engine_fd, SIGSTOP, NULL, 0) == 0) {
		for (int tries = 0; tries < END_MS && !is_stopped_or_gone(g.engine); tries++)
			usleep(1000);
		look();
	}
	syscall(SYS_pidfd_send_signal, g.engine_fd, SIGKILL, NULL, 0);
}

/* Nobody uses them any more: whoever serves them ends with them. */
static void remove_mounts(void)
{
	for (size_t i = 0; i < g.n_mounts; i++)
		if (umount2(g.mounts[i], MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || errno == EINVAL)
			rmdir(g.mounts[i]);
}

static _Noreturn void act(bool restore)
{
	if (restore)
		kill_engine();
	wait_end(g.engine_fd, -1);
	undo_all(thaw_all, note);
	kill_made(restore);
	lift_kept();
	if (restore)
		remove_roots();
	remove_mounts();
	thaw_all();
	remove_yards();
	remove_notify();
	_exit(0);
}

static void copy_text(char *to, size_t size, const char *text, size_t len)
{
	if (len >= size)
		len = 0;
	memcpy(to, text, len);
	to[len] = '\0';
}

/* A swap is about to be made. In a restore nothing need be known: there what is half done is killed. */
static void before_swap(const char *msg, size_t len, int *fds, int n_fds)
{
	char answer = GUARD_REFUSES;
	struct control_msg order;

	if (len == sizeof(order)) {
		memcpy(&order, msg, sizeof(order));
		if (order.magic == CONTROL_MAGIC &&
		    (g.kind == GUARD_DUMP ? undo_know(&order, fds, n_fds) : g.kind != '\0'))
			answer = GUARD_KNOWS;
	}
	/* A shim that is gone makes no swap. */
	(void)!send(g.sk, &answer, 1, MSG_NOSIGNAL);
}

/* In a restore nothing is held: its tasks end with their engine. */
static void before_hold(const char *text, size_t len)
{
	char pid[16], answer;

	copy_text(pid, sizeof(pid), text, len);
	answer = g.kind == GUARD_DUMP && undo_hold(atoi(pid)) ? GUARD_KNOWS : GUARD_REFUSES;
	(void)!send(g.sk, &answer, 1, MSG_NOSIGNAL);
}

static void told(const char *msg, size_t len, int *fds, int n_fds)
{
	const char *text = msg + 1, *space;
	char path[64];

	len--;
	switch (msg[0]) {
	case GUARD_DUMP:
	case GUARD_RESTORE:
		g.kind = msg[0];
		clock_gettime(CLOCK_REALTIME_COARSE, &g.armed); /* the clock of file times */
		snprintf(path, sizeof(path), "/proc/%d/exe", g.engine);
		if (stat(path, &g.engine_exe))
			memset(&g.engine_exe, 0, sizeof(g.engine_exe));
		break;
	case GUARD_THAW:
		space = memchr(text, ' ', len);
		if (!space || g.n_thaw >= MAX_THAW)
			break;
		copy_text(g.thaw[g.n_thaw].thawed, sizeof(g.thaw[0].thawed), text, space - text);
		copy_text(g.thaw[g.n_thaw].path, PATH_MAX, space + 1, text + len - space - 1);
		g.n_thaw++;
		break;
	case GUARD_YARD:
		copy_text(g.yard, sizeof(g.yard), text, len);
		break;
	case GUARD_SESSION:
		copy_text(g.session, sizeof(g.session), text, len);
		break;
	case GUARD_KEPT:
		copy_text(g.kept, sizeof(g.kept), text, len);
		break;
	case GUARD_TASK:
		copy_text(path, sizeof(path), text, len);
		g.task = atoi(path);
		break;
	case GUARD_MADE:
		copy_text(path, sizeof(path), text, len);
		if (atoi(path) > 1)
			remember(atoi(path));
		break;
	case GUARD_LOG:
		copy_text(g.log, sizeof(g.log), text, len);
		break;
	case GUARD_MOUNT:
		g.mounts[g.n_mounts] = g.n_mounts < MAX_MOUNTS - 1 ? strndup(text, len) : NULL;
		if (g.mounts[g.n_mounts])
			g.n_mounts++;
		break;
	case GUARD_ANSWER:
		if (g.client >= 0 && len && send(g.client, text, len, MSG_NOSIGNAL) < 0)
			note("the client has gone before the answer");
		for (size_t i = 0; i < g.n_tasks; i++)
			close(g.tasks[i].pidfd);
		g.kind = '\0';
		g.n_tasks = g.n_thaw = 0;
		while (g.n_mounts > 0)
			free(g.mounts[--g.n_mounts]);
		g.kept[0] = '\0';
		break;
	case GUARD_SWAP:
		before_swap(text, len, fds, n_fds);
		break;
	case GUARD_HOLD:
		before_hold(text, len);
		break;
	case GUARD_RECORD:
		if (n_fds > 0)
			undo_listen(&fds[0]);
		break;
	case GUARD_SETTLED:
		undo_forget();
		break;
	case GUARD_FAIL:
		act(g.kind != GUARD_DUMP);
	}
}

/* The next message; what came with it is closed unless somebody took it. False: the shim is gone. */
static bool listen_to_shim(void)
{
	static char msg[GUARD_MAX];
	union {
		char space[CMSG_SPACE(sizeof(int) * 4)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { msg, sizeof(msg) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	int fds[4], n_fds = 0;
	ssize_t n = recvmsg(g.sk, &m, MSG_CMSG_CLOEXEC);

	/* ECONNRESET: the shim died with an answer of ours unread; what it had sent before still comes. */
	if (n < 0 && (errno == EINTR || errno == ECONNRESET))
		return true;
	if (n <= 0)
		return false;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		n_fds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)n_fds * sizeof(int));
	}
	told(msg, (size_t)n, fds, n_fds);
	for (int i = 0; i < n_fds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return true;
}

/* Each swap that is known holds descriptors. */
static void allow_many_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

_Noreturn void guard(int sk, int client, pid_t engine, pid_t caller)
{
	struct stat st;

	prctl(PR_SET_NAME, "cryoshim-guard");
	/* The caller's group is interrupted as a whole; this process ends with the session and not before. */
	for (int sig = 1; sig < 32; sig++)
		signal(sig, sig == SIGCHLD ? SIG_DFL : SIG_IGN);
	g.sk = sk;
	g.client = client;
	g.engine = engine;
	g.caller = caller;
	g.engine_fd = pidfd_open(engine);
	if (g.engine_fd < 0 || stat("/proc/self/ns/pid", &st))
		_exit(1);
	g.pid_ns = st.st_ino;
	/* What it must see in time, it must not miss for a busy machine's sake. */
	(void)setpriority(PRIO_PROCESS, 0, -20);
	allow_many_descriptors();
	for (;;) {
		bool watching = g.kind == GUARD_RESTORE;
		struct pollfd p[3] = { { .fd = sk, .events = POLLIN },
				       { .fd = undo_knows_any() ? g.engine_fd : -1, .events = POLLIN },
				       { .fd = undo_channel(), .events = POLLIN } };

		if (watching)
			look();
		if (poll(p, 3, watching ? LOOK_MS : -1) <= 0)
			continue;
		if (p[2].revents)
			undo_hear();
		/* All that the shim has said comes first: it may have said that nothing is left. */
		if (p[0].revents) {
			if (!listen_to_shim())
				break;
		} else if (p[1].revents) {
			/* The tasks may run by now: this cannot wait for the shim. */
			undo_all(thaw_all, note);
		}
	}
	if (g.kind)
		act(g.kind == GUARD_RESTORE);
	/* What the engine could not undo itself. */
	if (undo_knows_any()) {
		wait_end(g.engine_fd, -1);
		undo_all(thaw_all, note);
	}
	remove_notify();
	_exit(0);
}
