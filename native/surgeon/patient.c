// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#define _GNU_SOURCE
#include "patient.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096u
/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_FILE (1ULL << 61)
#define PM_SWAP (1ULL << 62)
#define PM_PRESENT (1ULL << 63)

static int fail(struct surgeon_error *err, const char *step, int e)
{
	err->step = step;
	err->err = e;
	return -1;
}

/* One call, with at most one descriptor, which is meant where `load` has a bit. */
static int call(struct parasite *p, const char *step, struct parasite_call c, const int *ours, int64_t *ret,
		struct surgeon_error *err)
{
	unsigned int done;

	for (int i = 0; i < 6; i++)
		if (c.load & 1u << i)
			c.arg[i] = parasite_fd(p, 0);
	if (!parasite_allows(p, c.nr))
		return fail(err, step, EACCES);
	if (parasite_run(p, &c, 1, ours, ours ? 1 : 0, &done, err))
		return -1;
	if (c.ret < 0 && c.ret >= -4095)
		return fail(err, step, (int)-c.ret);
	if (ret)
		*ret = c.ret;
	return 0;
}

#define CALL(...) ((struct parasite_call){ __VA_ARGS__ })

/* The calls that let go of a lock, or take it; `range` is where its struct flock goes. */
static struct parasite_call lock_call(const struct patient_lock *lock, int fd, bool take, uint64_t at, struct flock *range)
{
	if (lock->kind == LOCK_FLOCK) {
		int op = !take ? LOCK_UN : lock->type == F_WRLCK ? LOCK_EX : LOCK_SH;

		return CALL(.nr = SYS_flock, .go_on = PARASITE_MAY_FAIL, .arg = { (uint64_t)fd, (uint64_t)(op | LOCK_NB) });
	}
	*range = (struct flock){ .l_type = (short)(take ? lock->type : F_UNLCK), .l_whence = SEEK_SET, .l_start = lock->start,
				 .l_len = lock->len };
	return CALL(.nr = SYS_fcntl, .go_on = PARASITE_MAY_FAIL,
		    .arg = { (uint64_t)fd, lock->kind == LOCK_OFD ? F_OFD_SETLK : F_SETLK, at });
}

/* A server that holds locks for its clients lets go of one when it hears of it: a moment after. */
static int insist(struct parasite *p, struct parasite_call c, struct surgeon_error *err)
{
	for (int try = 0; c.ret == -EAGAIN && try < 50; try++) {
		unsigned int done;

		usleep(2000);
		if (parasite_run(p, &c, 1, NULL, 0, &done, err))
			return -1;
	}
	return c.ret < 0 ? fail(err, "take a lock in the task", (int)-c.ret) : 0;
}

/* What one task is given. */
struct list {
	struct parasite_call calls[2 + PATIENT_MOST_SWAPS * 3 + PATIENT_MOST_LOCKS * 2 + PATIENT_MOST_WATCHES * 2];
	struct flock ranges[PATIENT_MOST_LOCKS * 2];
	unsigned int n, late, ranged;
	unsigned int taken[PATIENT_MOST_LOCKS], takes;	/* calls that take a lock */
	int fds[PARASITE_FDS];
	unsigned int n_fds;
	struct epoll_event events[PATIENT_MOST_WATCHES];
	unsigned int out[PATIENT_MOST_WATCHES], in[PATIENT_MOST_WATCHES];	/* calls that take a watch out and put it in; 0: none */
};

_Static_assert(sizeof(((struct list *)NULL)->calls) <= PARASITE_CALLS * sizeof(struct parasite_call) &&
	       sizeof(((struct list *)NULL)->ranges) + sizeof(((struct list *)NULL)->events) <= PARASITE_SPACE,
	       "a list has room in the task");

/* The calls that take watches out of their epolls, or put them in again, from the first on. */
static void watch_calls(const struct patient_part *part, struct list *l, const struct patient_swap *s, unsigned int first, bool in)
{
	uint64_t events = parasite_space(part->p) + sizeof(l->ranges);

	for (unsigned int k = first; k < first + (unsigned int)s->watches; k++) {
		const struct patient_watch *w = &part->watches[k];

		l->events[k] = (struct epoll_event){ .events = w->events, .data.u64 = w->data };
		*(in ? &l->in[k] : &l->out[k]) = l->n;
		l->calls[l->n++] = CALL(.nr = SYS_epoll_ctl, .go_on = PARASITE_MAY_FAIL,
					.with = in && !w->always ? l->out[k] + 1 : 0,
					.arg = { (uint64_t)w->epfd, in ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, (uint64_t)s->fd,
						 events + k * sizeof(struct epoll_event) });
	}
}

static int make_list(const struct patient_part *part, int gate, struct list *l, struct surgeon_error *err)
{
	struct parasite_call last[PATIENT_MOST_LOCKS];
	const struct patient_lock *lock = part->locks;
	struct parasite *p = part->p;
	unsigned int posix = 0, get, watch = 0;
	bool watches = parasite_allows(part->p, SYS_epoll_ctl);

	memset(l, 0, sizeof(*l));
	for (unsigned int k = 0; k < part->n_watches; k++)
		part->watches[k].result = watches ? ENOENT : -EACCES;
	if (part->n > PATIENT_MOST_SWAPS || part->n_locks > PATIENT_MOST_LOCKS || part->n_watches > PATIENT_MOST_WATCHES)
		return fail(err, "exchange as many descriptors at once", E2BIG);
	if (gate >= 0) {
		parasite_gate(p, l->calls, part->n);
		l->n = 2;
	}
	for (unsigned int i = 0; i < part->n; i++) {
		const struct patient_swap *s = &part->swaps[i];

		if (s->locks < 0 || lock + s->locks > part->locks + part->n_locks || s->watches < 0 ||
		    watch + (unsigned int)s->watches > part->n_watches)
			return fail(err, "exchange descriptors with locks and watches", EINVAL);
		l->fds[l->n_fds++] = s->ours;
		/* A POSIX lock goes with the old descriptor; the others are let go of. */
		for (int k = 0; k < s->locks; k++, l->ranged++)
			if (lock[k].kind != LOCK_POSIX)
				l->calls[l->n++] = lock_call(&lock[k], s->fd, false,
							     parasite_space(p) + l->ranged * sizeof(struct flock),
							     &l->ranges[l->ranged]);
		get = l->n;
		l->calls[l->n++] = CALL(.nr = SYS_fcntl, .arg = { (uint64_t)s->fd, F_GETFD });
		if (watches)
			watch_calls(part, l, s, watch, false);
		l->calls[l->n++] = CALL(.nr = SYS_dup3, .load = 1, .arg = { parasite_fd(p, i), (uint64_t)s->fd });
		l->calls[l->n++] = CALL(.nr = SYS_fcntl, .load = 4,
					.arg = { (uint64_t)s->fd, F_SETFD, parasite_result(p, get) });
		if (watches)
			watch_calls(part, l, s, watch, true);
		watch += (unsigned int)s->watches;
		for (int k = 0; k < s->locks; k++, l->ranged++) {
			struct parasite_call take = lock_call(&lock[k], s->fd, true,
							      parasite_space(p) + l->ranged * sizeof(struct flock),
							      &l->ranges[l->ranged]);

			if (lock[k].kind == LOCK_POSIX) {
				last[posix++] = take;
			} else {
				l->taken[l->takes++] = l->n;
				l->calls[l->n++] = take;
			}
		}
		lock += s->locks;
	}
	if (gate >= 0)
		l->fds[l->n_fds++] = gate;
	l->late = l->n;
	for (unsigned int i = 0; i < posix; i++) {
		l->taken[l->takes++] = l->n;
		l->calls[l->n++] = last[i];
	}
	if (l->ranged && surgeon_write(p->s.tid, parasite_space(p), l->ranges, l->ranged * sizeof(struct flock), err))
		return -1;
	if (watch && surgeon_write(p->s.tid, parasite_space(p) + sizeof(l->ranges), l->events, watch * sizeof(struct epoll_event), err))
		return -1;
	return 0;
}

/* What has become of a list. */
static int read_list(struct patient_part *part, struct list *l, struct surgeon_error *err)
{
	unsigned int ran;

	if (parasite_await(part->p, l->calls, l->n, &ran, err))
		return -1;
	for (unsigned int k = 0; k < part->n_watches; k++)
		if (l->in[k] && l->out[k] < ran && (l->calls[l->out[k]].ret == 0 || part->watches[k].always))
			part->watches[k].result = l->in[k] < ran ? (int)l->calls[l->in[k]].ret : -ECANCELED;
	for (unsigned int i = 0; i < ran; i++) {
		if (l->calls[i].nr == SYS_dup3 && l->calls[i].ret >= 0)
			part->done++;
		if (l->calls[i].ret < 0 && l->calls[i].go_on != PARASITE_MAY_FAIL)
			return fail(err, l->calls[i].nr == SYS_dup3 ? "dup3 in the task" : "fcntl in the task",
				    (int)-l->calls[i].ret);
	}
	return 0;
}

int patient_swap_fds(struct patient_part *parts, unsigned int n, struct surgeon_error *err)
{
	struct surgeon_error ignored;
	unsigned int i, sent = 0, ready = 0;
	int gate[2] = { -1, -1 }, ret = -1;
	struct list *lists;
	bool *there;

	for (i = 0; i < n; i++)
		parts[i].done = 0;
	lists = malloc(n * sizeof(*lists));
	there = calloc(n, sizeof(*there));
	if (!lists || !there || (n > 1 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, gate))) {
		fail(err, "exchange descriptors", errno);
		goto out;
	}
	for (i = 0; i < n; i++)
		if (make_list(&parts[i], gate[1], &lists[i], err))
			goto out;
	for (; sent < n; sent++)
		if (parasite_send(parts[sent].p, lists[sent].calls, lists[sent].n, lists[sent].late, lists[sent].fds,
				  lists[sent].n_fds, err))
			break;
	if (n > 1) {
		for (i = 0; i < sent; i++) {
			there[i] = !parasite_await_gate(parts[i].p, sent < n || ready < i ? &ignored : err);
			ready += there[i];
		}
		/* Now, and by one call, for all; or, by the end of the socket, for none. */
		if (ready == n && send(gate[0], "g", 1, MSG_NOSIGNAL) != 1) {
			fail(err, "send to the tasks", errno);
			ready = 0;
		}
		if (ready < n) {
			close(gate[0]);
			gate[0] = -1;
			for (i = 0; i < sent; i++)
				if (there[i])
					(void)read_list(&parts[i], &lists[i], &ignored);
			goto out;
		}
	} else if (sent < n) {
		goto out;
	}
	ret = 0;
	for (i = 0; i < n; i++)
		if (read_list(&parts[i], &lists[i], ret ? &ignored : err))
			ret = -1;
	for (i = 0; i < n && !ret; i++)
		for (unsigned int k = 0; k < lists[i].takes && !ret; k++)
			ret = insist(parts[i].p, lists[i].calls[lists[i].taken[k]], err);
out:
	for (i = 0; i < 2; i++)
		if (gate[i] >= 0)
			close(gate[i]);
	free(there);
	free(lists);
	return ret;
}

int patient_chdir(struct parasite *p, int root, int cwd, struct surgeon_error *err)
{
	struct parasite_call calls[3] = {
		CALL(.nr = SYS_fchdir, .load = 1, .arg = { parasite_fd(p, 0) }),
		/* Where it may not, it still gets its working directory back. */
		CALL(.nr = SYS_chroot, .go_on = PARASITE_MAY_FAIL, .arg = { parasite_space(p) }),
		CALL(.nr = SYS_fchdir, .load = 1, .arg = { parasite_fd(p, 1) }),
	};
	const int fds[2] = { root, cwd };
	unsigned int done;

	if (root < 0)
		return call(p, "fchdir in the task", calls[0], &cwd, NULL, err);
	if (!parasite_allows(p, SYS_chroot) || !parasite_allows(p, SYS_fchdir))
		return fail(err, "chroot in the task", EACCES);
	if (surgeon_write(p->s.tid, parasite_space(p), ".", 2, err) || parasite_run(p, calls, 3, fds, 2, &done, err))
		return -1;
	for (unsigned int i = 0; i < done; i++)
		if (calls[i].ret < 0)
			return fail(err, i == 1 ? "chroot in the task" : "fchdir in the task", (int)-calls[i].ret);
	return 0;
}

/* Takes the pages that the task has written to from one mapping to the other. */
static int copy_private(struct parasite *p, uint64_t from, uint64_t to, uint64_t len, struct surgeon_error *err)
{
	uint64_t entries[512], at, n, i;
	uint8_t page[PAGE];
	char path[64];
	int fd, ret = -1;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", p->s.tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail(err, "open /proc/PID/pagemap", errno);
	for (at = 0; at < len / PAGE; at += n) {
		n = len / PAGE - at < 512 ? len / PAGE - at : 512;
		if (pread(fd, entries, n * 8, (off_t)((from / PAGE + at) * 8)) != (ssize_t)(n * 8)) {
			fail(err, "read /proc/PID/pagemap", errno ? errno : EIO);
			goto out;
		}
		for (i = 0; i < n; i++) {
			if (!(entries[i] & PM_SWAP) && (!(entries[i] & PM_PRESENT) || entries[i] & PM_FILE))
				continue;
			if (surgeon_read(p->s.tid, from + (at + i) * PAGE, page, PAGE, err) ||
			    surgeon_write(p->s.tid, to + (at + i) * PAGE, page, PAGE, err))
				goto out;
		}
	}
	ret = 0;
out:
	close(fd);
	return ret;
}

int patient_remap(struct parasite *p, const struct patient_mapping *map, int ours, struct surgeon_error *err)
{
	struct surgeon_error ignored;
	int64_t at, ret;
	uint64_t new;

	if (call(p, "mmap in the task",
		 CALL(.nr = SYS_mmap, .load = 1 << 4,
		      .arg = { 0, map->len, (uint64_t)map->prot, (uint64_t)map->flags, 0, map->offset }),
		 &ours, &at, err))
		return -1;
	new = (uint64_t)at;
	if (map->flags & MAP_PRIVATE && copy_private(p, map->addr, new, map->len, err))
		goto failed;
	for (unsigned int i = 0; i < map->advices; i++)
		if (call(p, "madvise in the task",
			 CALL(.nr = SYS_madvise, .arg = { new, map->len, (uint64_t)map->advice[i] }), NULL, NULL, err))
			goto failed;
	if (map->pkey && call(p, "pkey_mprotect in the task",
			      CALL(.nr = SYS_pkey_mprotect,
				   .arg = { new, map->len, (uint64_t)map->prot, (uint64_t)map->pkey }),
			      NULL, NULL, err))
		goto failed;
	if (map->locked &&
	    call(p, "mlock2 in the task", CALL(.nr = SYS_mlock2, .arg = { new, map->len, (uint64_t)(map->locked - 1) }), NULL,
		 NULL, err))
		goto failed;
	/* Until here nothing of the task's has changed, and after it everything has. */
	if (call(p, "mremap in the task",
		 CALL(.nr = SYS_mremap, .arg = { new, map->len, map->len, MREMAP_MAYMOVE | MREMAP_FIXED, map->addr }), NULL, &ret,
		 err))
		goto failed;
	return 0;
failed:
	(void)call(p, "munmap in the task", CALL(.nr = SYS_munmap, .arg = { new, map->len }), NULL, NULL, &ignored);
	return -1;
}

/* The places in memory that PR_SET_MM_MAP wants told again: fields of /proc/PID/stat, proc(5). */
static int read_layout(pid_t tid, struct prctl_mm_map *mm, struct surgeon_error *err)
{
	char path[64], text[4096], *at;
	unsigned long long field[53] = { 0 };
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	f = fopen(path, "re");
	if (!f)
		return fail(err, "read /proc/PID/stat", errno);
	n = (int)fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n > 0 ? n : 0] = 0;
	at = strrchr(text, ')');
	if (!at)
		return fail(err, "read /proc/PID/stat", EINVAL);
	/* After the name: field 3 is a letter, the others are numbers. */
	at += 3;
	for (n = 4; n < 53 && *at; n++)
		field[n] = strtoull(at, &at, 10);
	*mm = (struct prctl_mm_map){ .start_code = field[26], .end_code = field[27], .start_stack = field[28],
				     .start_data = field[45], .end_data = field[46], .start_brk = field[47],
				     .arg_start = field[48], .arg_end = field[49], .env_start = field[50],
				     .env_end = field[51] };
	return field[51] ? 0 : fail(err, "read /proc/PID/stat", EINVAL);
}

int patient_exe(struct parasite *p, int ours, struct surgeon_error *err)
{
	struct surgeon_error ignored;
	struct prctl_mm_map mm;
	int64_t fd, brk;
	int ret;

	if (read_layout(p->s.tid, &mm, err) || call(p, "brk in the task", CALL(.nr = SYS_brk), NULL, &brk, err) ||
	    call(p, "dup in the task", CALL(.nr = SYS_fcntl, .load = 1, .arg = { 0, F_DUPFD_CLOEXEC, 0 }), &ours, &fd, err))
		return -1;
	mm.brk = (uint64_t)brk;
	mm.exe_fd = (uint32_t)fd;
	ret = surgeon_write(p->s.tid, parasite_space(p), &mm, sizeof(mm), err);
	/* Checkpoint rights in its user namespace are enough for the first way; the second wants CAP_SYS_RESOURCE. */
	if (!ret)
		ret = call(p, "PR_SET_MM_MAP in the task",
			   CALL(.nr = SYS_prctl, .arg = { PR_SET_MM, PR_SET_MM_MAP, parasite_space(p), sizeof(mm) }), NULL, NULL,
			   err);
	if (ret && err->err == EPERM)
		ret = call(p, "PR_SET_MM_EXE_FILE in the task",
			   CALL(.nr = SYS_prctl, .arg = { PR_SET_MM, PR_SET_MM_EXE_FILE, (uint64_t)fd }), NULL, NULL, err);
	(void)call(p, "close in the task", CALL(.nr = SYS_close, .arg = { (uint64_t)fd }), NULL, NULL, &ignored);
	return ret;
}
