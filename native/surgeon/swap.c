// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#define _GNU_SOURCE
#include "swap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int swap_read(struct swap *s, const struct control_msg *order, int *fds, int n_fds, struct surgeon_error *err)
{
	uint32_t flags = order->type == CONTROL_SWAP_MAPPING ? order->flags & (CONTROL_ANONYMOUS | CONTROL_OWN_FD) :
			 order->type == CONTROL_SWAP_FD	     ? order->flags & CONTROL_TAKE :
							       0;
	int *all[2], wanted = 0;

	*s = (struct swap){ .order = *order, .placeholder = -1, .now = -1, .task = -1 };
	if (!(flags & CONTROL_ANONYMOUS))
		all[wanted++] = &s->placeholder;
	if (!(flags & (CONTROL_OWN_FD | CONTROL_TAKE)))
		all[wanted++] = &s->now;
	if (n_fds != wanted) {
		*err = (struct surgeon_error){ "a swap comes with the new and the old descriptor", EINVAL };
		return -1;
	}
	s->task = (int)syscall(SYS_pidfd_open, order->pid, 0);
	if (s->task < 0) {
		*err = (struct surgeon_error){ "pidfd_open", errno };
		return -1;
	}
	if (flags & CONTROL_TAKE && surgeon_take_fd(order->pid, order->fd, &s->now, err)) {
		swap_close(s);
		return -1;
	}
	for (int i = 0; i < n_fds; i++) {
		*all[i] = fds[i];
		fds[i] = -1;
	}
	return 0;
}

void swap_close(struct swap *s)
{
	int *all[] = { &s->placeholder, &s->now, &s->task };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (*all[i] >= 0)
			close(*all[i]);
		*all[i] = -1;
	}
}

int swap_leave(struct swap_visit *v, struct surgeon_error *err)
{
	if (!v->open)
		return 0;
	v->open = false;
	return surgeon_end(&v->patient, err);
}

static int visit(struct swap_visit *v, pid_t pid, struct surgeon_error *err)
{
	if (v->open && v->patient.tid == pid)
		return 0;
	if (swap_leave(v, err) || surgeon_begin(&v->patient, pid, err))
		return -1;
	v->open = v->patient.keeps = true;
	return 0;
}

/* After a failure nobody relies on what was kept. */
static int went(struct swap_visit *v, int ret)
{
	struct surgeon_error unused;

	if (ret)
		(void)swap_leave(v, &unused);
	return ret;
}

int swap_map(struct swap_visit *v, pid_t pid, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
	     uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err)
{
	if (visit(v, pid, err))
		return -1;
	return went(v, surgeon_swap_mapping_in(&v->patient, addr, len, prot, flags, new_fd, own_fd, offset, cut, err));
}

static int swap_fd(struct swap_visit *v, const struct control_msg *o, int by, struct surgeon_error *err)
{
	if (visit(v, o->pid, err))
		return -1;
	return went(v, surgeon_swap_fd_in(&v->patient, o->fd, by, o->flags & 1, err));
}

int swap_make(struct swap_visit *v, const struct swap *s, struct surgeon_error *err)
{
	const struct control_msg *o = &s->order;

	switch (o->type) {
	case CONTROL_SWAP_FD:
		return swap_fd(v, o, s->placeholder, err);
	case CONTROL_SWAP_MAPPING:
		return swap_map(v, o->pid, o->addr, o->len, (int)o->a0, (int)o->a1, s->placeholder, -1, o->a2,
				(struct surgeon_cut){ 0 }, err);
	case CONTROL_SWAP_CWD:
		return swap_leave(v, err) ? -1 : surgeon_swap_cwd(o->pid, s->now, s->placeholder, err);
	case CONTROL_SWAP_ROOT:
		return swap_leave(v, err) ? -1 : surgeon_swap_root(o->pid, s->now, s->placeholder, err);
	}
	*err = (struct surgeon_error){ "a swap of another version", ENOSYS };
	return -1;
}

int swap_undo(struct swap_visit *v, const struct swap *s, struct surgeon_error *err)
{
	const struct control_msg *o = &s->order;

	switch (o->type) {
	case CONTROL_SWAP_FD:
		return swap_fd(v, o, s->now, err);
	case CONTROL_SWAP_MAPPING:
		return swap_map(v, o->pid, o->addr, o->len, (int)o->a0, (int)o->a4, s->now,
				o->flags & CONTROL_OWN_FD ? o->fd : -1, o->a3, (struct surgeon_cut){ o->a5, o->a6 }, err);
	case CONTROL_SWAP_CWD:
		return swap_leave(v, err) ? -1 : surgeon_swap_cwd(o->pid, -1, s->now, err);
	case CONTROL_SWAP_ROOT:
		return swap_leave(v, err) ? -1 : surgeon_swap_root(o->pid, -1, s->now, err);
	}
	return 0;
}

static long mount_id(int fd)
{
	char path[64], line[64];
	long id = -1;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	while (info && id < 0 && fgets(line, sizeof(line), info))
		if (sscanf(line, "mnt_id: %ld", &id) != 1)
			id = -1;
	if (info)
		fclose(info);
	return id;
}

/* Whether a path leads to the inode that fd is of, on the same mount. */
static bool same_place(const char *path, int fd)
{
	int there = open(path, O_PATH | O_CLOEXEC);
	struct stat a, b;
	bool same;

	if (there < 0)
		return false;
	same = fstat(there, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino &&
	       mount_id(there) == mount_id(fd);
	close(there);
	return same;
}

/* What is mapped at an address: the file of the mapping there, or none. */
static bool is_mapped(const struct swap *s)
{
	unsigned long long from = 0, to = 0, inode = 0;
	char path[96], line[4608];
	struct stat is, ours;
	bool found = false;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", s->order.pid);
	maps = fopen(path, "re");
	if (!maps)
		return false;
	while (!found && fgets(line, sizeof(line), maps))
		found = sscanf(line, "%llx-%llx %*s %*s %*s %llu", &from, &to, &inode) == 3 &&
			from <= s->order.addr && s->order.addr < to;
	fclose(maps);
	/* Between the two steps of an undo nothing is mapped there: then it is to be undone, too. */
	if (!found)
		return true;
	if (s->placeholder < 0)
		return inode == 0;
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", s->order.pid, from, to);
	return inode && stat(path, &is) == 0 && fstat(s->placeholder, &ours) == 0 && is.st_dev == ours.st_dev &&
	       is.st_ino == ours.st_ino;
}

bool swap_in_place(const struct swap *s)
{
	char path[64];

	switch (s->order.type) {
	case CONTROL_SWAP_FD:
		return syscall(SYS_kcmp, getpid(), s->order.pid, KCMP_FILE, s->placeholder, s->order.fd) == 0;
	case CONTROL_SWAP_MAPPING:
		return is_mapped(s);
	case CONTROL_SWAP_CWD:
	case CONTROL_SWAP_ROOT:
		snprintf(path, sizeof(path), "/proc/%d/%s", s->order.pid,
			 s->order.type == CONTROL_SWAP_CWD ? "cwd" : "root");
		return same_place(path, s->placeholder);
	}
	return false;
}

bool swap_task_lives(const struct swap *s)
{
	struct pollfd p = { .fd = s->task, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
}
