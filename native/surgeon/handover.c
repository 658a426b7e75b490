// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Descriptors of ours in a task: at a number of its own, or as its working directory or root. */
#define _GNU_SOURCE
#include "internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WATCHES 64

/* struct msghdr and its parts as they lie in the task's scratch page. */
struct parcel {
	struct msghdr msg;
	struct iovec iov;
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	int pair[2];
	char byte;
};

static int send_fd(int sk, int fd, struct surgeon_error *err)
{
	struct parcel p = { .byte = 'f' };
	struct cmsghdr *c;

	p.iov = (struct iovec){ &p.byte, 1 };
	p.msg = (struct msghdr){ .msg_iov = &p.iov, .msg_iovlen = 1, .msg_control = &p.control,
				 .msg_controllen = sizeof(p.control) };
	c = CMSG_FIRSTHDR(&p.msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(sk, &p.msg, MSG_NOSIGNAL) != 1)
		return fail(err, "sendmsg", errno);
	return 0;
}

/*
 * Brings a descriptor of ours into the task, at a number of the kernel's choice: a socket pair that is made inside,
 * whose one end we take, so that no path and no namespace matters.
 */
static int send_to_task(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	uint64_t at, page;
	int ours = -1, ret = -1, pair[2];
	struct parcel p = { 0 };
	struct cmsghdr *c;
	int64_t r, ignored;

	if (surgeon_scratch(s, err))
		return -1;
	page = s->scratch;
	at = page + offsetof(struct parcel, pair);
	if (run(s, "socketpair in the task", &r, err, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, at, 0, 0))
		return -1;
	if (surgeon_read(s->tid, at, pair, sizeof(pair), err))
		return -1;
	surgeon_note_fd(-1, pair[0]);
	surgeon_note_fd(-1, pair[1]);
	if (surgeon_take_fd(s->tid, pair[1], &ours, err) || send_fd(ours, fd, err))
		goto close_pair;
	p.iov = (struct iovec){ (void *)(uintptr_t)(page + offsetof(struct parcel, byte)), 1 };
	p.msg = (struct msghdr){ .msg_iov = (void *)(uintptr_t)(page + offsetof(struct parcel, iov)), .msg_iovlen = 1,
				 .msg_control = (void *)(uintptr_t)(page + offsetof(struct parcel, control)),
				 .msg_controllen = sizeof(p.control) };
	if (surgeon_write(s->tid, page, &p, sizeof(p), err) ||
	    run(s, "recvmsg in the task", &r, err, SYS_recvmsg, (uint64_t)pair[0], page, MSG_CMSG_CLOEXEC, 0, 0, 0) ||
	    surgeon_read(s->tid, page, &p, sizeof(p), err))
		goto close_pair;
	c = &p.control.align;
	if (p.msg.msg_controllen < CMSG_LEN(sizeof(int)) || c->cmsg_type != SCM_RIGHTS) {
		/* The task has no descriptor left under its RLIMIT_NOFILE. */
		fail(err, "hand a descriptor to the task", EMFILE);
		goto close_pair;
	}
	memcpy(theirs, CMSG_DATA(c), sizeof(int));
	surgeon_note_fd(-1, *theirs);
	ret = 0;
close_pair:
	for (int i = 0; i < 2; i++) {
		uint64_t call[7] = { SYS_close, (uint64_t)pair[i] };
		struct surgeon_error unused;

		(void)surgeon_syscall(s, call, &ignored, ret ? &unused : err);
		surgeon_note_fd(pair[i], -1);
	}
	if (ours >= 0)
		close(ours);
	return ret;
}

/* The first of the numbers behind a name in /proc/PID/status. */
static bool status_number(const char *status, const char *name, unsigned long *number)
{
	const char *line = strstr(status, name);

	return line && sscanf(line + strlen(name), " %lu", number) == 1;
}

/* Becomes a process that the task may look at: its user namespace and ids, no capabilities. */
static bool dress_as(pid_t tid)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };
	unsigned long uid, gid;
	struct stat mine, their;
	char path[64], status[4096];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", tid);
	if (stat("/proc/self/ns/user", &mine) || stat(path, &their))
		return false;
	if (mine.st_ino != their.st_ino) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWUSER))
			return false;
		close(fd);
	}
	/* Opened here: the kernel shows ids as the namespace of who opens it has them. */
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, status, sizeof(status) - 1);
	if (n <= 0)
		return false;
	status[n] = '\0';
	return status_number(status, "\nUid:", &uid) && status_number(status, "\nGid:", &gid) &&
	       syscall(SYS_setresgid, gid, gid, gid) == 0 && syscall(SYS_setresuid, uid, uid, uid) == 0 &&
	       syscall(SYS_capset, &head, none) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0 &&
	       /* Yama: not only those above it. Without Yama there is no such call. */
	       (prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) == 0 || errno == EINVAL);
}

/*
 * A child that holds what we hold, and waits. By clone(2) without a signal at its end: the caller may be CRIU, which
 * counts its children.
 */
static pid_t start_holder(pid_t tid, int *alive, struct surgeon_error *err)
{
	int pair[2];
	char ready;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return fail(err, "socketpair", errno);
	pid = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
	if (pid == 0) {
		close(pair[0]);
		if (dress_as(tid) && write(pair[1], "r", 1) == 1)
			while (read(pair[1], &ready, 1) > 0)
				;
		_exit(0);
	}
	close(pair[1]);
	if (pid > 0 && read(pair[0], &ready, 1) == 1) {
		*alive = pair[0];
		return pid;
	}
	close(pair[0]);
	if (pid < 0)
		return fail(err, "clone", errno);
	(void)waitpid(pid, NULL, __WALL);
	return fail(err, "become a process that the task may look at", EPERM);
}

static void end_holder(struct surgeon *s)
{
	close(s->holder_alive);
	(void)waitpid(s->holder, NULL, __WALL);
	s->holder_alive = -1;
}

/* Whether there is a holder that has the descriptor. */
static bool is_with_holder(const struct surgeon *s, int fd)
{
	return s->holder_alive >= 0 && syscall(SYS_kcmp, getpid(), s->holder, KCMP_FILE, fd, fd) == 0;
}

/* A holder that has the descriptor; the next swap may find it there. */
static int hold(struct surgeon *s, int fd, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int pidfd, ret;

	if (is_with_holder(s, fd))
		return 0;
	if (s->holder_alive >= 0) {
		end_holder(s);
		(void)surgeon_drop_fd(s, s->holder_seen, 0, &unused);
	}
	s->holder = start_holder(s->tid, &s->holder_alive, err);
	if (s->holder < 0)
		return -1;
	pidfd = (int)syscall(SYS_pidfd_open, s->holder, 0);
	ret = pidfd < 0 ? fail(err, "pidfd_open", errno) : send_to_task(s, pidfd, &s->holder_seen, err);
	if (pidfd >= 0)
		close(pidfd);
	if (ret)
		end_holder(s);
	return ret;
}

/*
 * A ring of io_uring can be sent over no socket: the task takes it, by a call of its own, from a child of ours that it
 * may look at (pidfd_getfd(2), Linux 5.6).
 */
static int let_take(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	int64_t r;

	if (hold(s, fd, err) ||
	    run(s, "pidfd_getfd in the task", &r, err, SYS_pidfd_getfd, (uint64_t)s->holder_seen, (uint64_t)fd, 0, 0, 0, 0))
		return -1;
	*theirs = (int)r;
	surgeon_note_fd(-1, *theirs);
	return 0;
}

int surgeon_give_fd(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	/* Whoever has got one need not be asked whether it can be sent. */
	if (is_with_holder(s, fd))
		return let_take(s, fd, theirs, err);
	if (!send_to_task(s, fd, theirs, err))
		return 0;
	if (err->err != EINVAL || strcmp(err->step, "sendmsg"))
		return -1;
	return let_take(s, fd, theirs, err);
}

/* Closes a descriptor of the task's. A failure counts only where nothing failed before. */
int surgeon_drop_fd(struct surgeon *s, int theirs, int ret, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int64_t r;

	if (run(s, "close in the task", &r, ret ? &unused : err, SYS_close, (uint64_t)theirs, 0, 0, 0, 0, 0))
		ret = -1;
	surgeon_note_fd(theirs, -1);
	return ret;
}

static int take_lent(struct surgeon *s, int ret, struct surgeon_error *err)
{
	if (s->lent < 0)
		return ret;
	close(s->lent);
	s->lent = -1;
	return surgeon_drop_fd(s, s->lent_seen, ret, err);
}

/* The same for one that stays there until the end: the next swap may bring it again. */
static int lend_fd(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	int kept;

	if (s->lent >= 0 && syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, s->lent) == 0) {
		*theirs = s->lent_seen;
		return 0;
	}
	if (take_lent(s, 0, err))
		return -1;
	kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (kept < 0)
		return fail(err, "dup", errno);
	if (surgeon_give_fd(s, fd, theirs, err)) {
		close(kept);
		return -1;
	}
	s->lent = kept;
	s->lent_seen = *theirs;
	return 0;
}

/* An epoll of the task's, and what it watches a descriptor for. */
struct watch {
	int epoll;
	struct epoll_event event;
};

/* All epolls of the task. */
static int find_epolls(struct surgeon *s, struct surgeon_error *err)
{
	static const char epoll[] = "anon_inode:[eventpoll]";
	char path[64], target[sizeof(epoll)];
	struct dirent *d;
	int ret = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", s->tid);
	dir = opendir(path);
	if (!dir)
		return fail(err, "read /proc/PID/fd", errno);
	s->n_epolls = 0;
	while (!ret && (d = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), d->d_name, target, sizeof(target));
		int *more;

		if (len != (ssize_t)sizeof(epoll) - 1 || memcmp(target, epoll, sizeof(epoll) - 1) != 0)
			continue;
		more = realloc(s->epolls, ((size_t)s->n_epolls + 1) * sizeof(*more));
		if (more) {
			s->epolls = more;
			more[s->n_epolls++] = atoi(d->d_name);
		} else {
			ret = fail(err, "malloc", ENOMEM);
		}
	}
	closedir(dir);
	return ret;
}

/* The epolls in which a descriptor of the task's is (proc_pid_fdinfo(5)); at most `max`. */
static size_t find_watches(const struct surgeon *s, int fd, struct watch *watches, size_t max)
{
	char path[64], line[256];
	size_t n = 0;

	for (int i = 0; n < max && i < s->n_epolls; i++) {
		int epoll = s->epolls[i];
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", s->tid, epoll);
		f = fopen(path, "re");
		while (f && n < max && fgets(line, sizeof(line), f)) {
			unsigned long long data;
			unsigned int events;
			int target;

			if (sscanf(line, "tfd: %d events: %x data: %llx", &target, &events, &data) == 3 && target == fd)
				watches[n++] = (struct watch){ epoll, { .events = events, .data.u64 = data } };
		}
		if (f)
			fclose(f);
	}
	return n;
}

static int swap_watched(struct surgeon *s, int fd, int theirs, int cloexec, struct surgeon_error *err)
{
	struct watch watches[MAX_WATCHES];
	struct surgeon_error unused;
	size_t n, i;
	int64_t r;
	int ret;

	if (s->n_epolls < 0 && find_epolls(s, err))
		return -1;
	n = find_watches(s, fd, watches, MAX_WATCHES);
	/* One that is not this file's any more is another process's affair, who shares the epoll. */
	for (i = 0; i < n; i++)
		if (run(s, "epoll_ctl in the task", &r, &unused, SYS_epoll_ctl, (uint64_t)watches[i].epoll, EPOLL_CTL_DEL,
			(uint64_t)fd, 0, 0, 0))
			watches[i].epoll = -1;
	ret = run(s, "dup3 in the task", &r, err, SYS_dup3, (uint64_t)theirs, (uint64_t)fd, cloexec ? O_CLOEXEC : 0, 0, 0, 0);
	for (i = 0; i < n; i++) {
		if (watches[i].epoll < 0)
			continue;
		if (surgeon_write(s->tid, s->scratch, &watches[i].event, sizeof(watches[i].event), ret ? &unused : err) ||
		    run(s, "epoll_ctl in the task", &r, ret ? &unused : err, SYS_epoll_ctl, (uint64_t)watches[i].epoll,
			EPOLL_CTL_ADD, (uint64_t)fd, s->scratch, 0, 0))
			ret = -1;
	}
	return ret;
}

int surgeon_swap_fd_in(struct surgeon *s, int fd, int new_fd, int cloexec, struct surgeon_error *err)
{
	int theirs = -1, ret;

	if (s->keeps)
		return lend_fd(s, new_fd, &theirs, err) ? -1 : swap_watched(s, fd, theirs, cloexec, err);
	if (surgeon_give_fd(s, new_fd, &theirs, err))
		return -1;
	ret = swap_watched(s, fd, theirs, cloexec, err);
	return surgeon_drop_fd(s, theirs, ret, err);
}

int surgeon_swap_fd(pid_t tid, int fd, int new_fd, int cloexec, struct surgeon_error *err)
{
	struct surgeon s;

	if (surgeon_begin(&s, tid, err))
		return -1;
	return finish(&s, surgeon_swap_fd_in(&s, fd, new_fd, cloexec, err), err);
}

/* Goes to a directory of ours. */
static int change_dir(struct surgeon *s, int dir, struct surgeon_error *err)
{
	int theirs, ret;
	int64_t r;

	if (surgeon_give_fd(s, dir, &theirs, err))
		return -1;
	ret = run(s, "fchdir in the task", &r, err, SYS_fchdir, (uint64_t)theirs, 0, 0, 0, 0, 0);
	return surgeon_drop_fd(s, theirs, ret, err);
}

int surgeon_swap_cwd(pid_t tid, int now, int to, struct surgeon_error *err)
{
	struct surgeon s;
	int ret;

	if (surgeon_begin(&s, tid, err))
		return -1;
	ret = now >= 0 ? change_dir(&s, now, err) : 0;
	if (!ret)
		ret = change_dir(&s, to, err);
	return finish(&s, ret, err);
}

static int change_root(struct surgeon *s, int dir, struct surgeon_error *err)
{
	int64_t r;

	if (change_dir(s, dir, err) || surgeon_write(s->tid, s->scratch, ".", 2, err))
		return -1;
	return run(s, "chroot in the task", &r, err, SYS_chroot, s->scratch, 0, 0, 0, 0, 0);
}

int surgeon_swap_root(pid_t tid, int now, int to, struct surgeon_error *err)
{
	struct surgeon_error unused;
	struct surgeon s;
	char path[64];
	int cwd, ret;

	snprintf(path, sizeof(path), "/proc/%d/cwd", tid);
	cwd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (cwd < 0)
		return fail(err, "open the task's working directory", errno);
	ret = surgeon_begin(&s, tid, err);
	if (!ret) {
		ret = change_dir(&s, cwd, err);
		if (!ret && now >= 0)
			ret = change_root(&s, now, err);
		if (!ret)
			ret = change_root(&s, to, err);
		if (change_dir(&s, cwd, ret ? &unused : err))
			ret = -1;
		ret = finish(&s, ret, err);
	}
	close(cwd);
	return ret;
}

int surgeon_take_back(struct surgeon *s, struct surgeon_error *err)
{
	int ret = take_lent(s, 0, err);

	if (s->holder_alive >= 0) {
		end_holder(s);
		ret = surgeon_drop_fd(s, s->holder_seen, ret, err);
	}
	free(s->epolls);
	s->epolls = NULL;
	s->n_epolls = -1;
	return ret;
}
