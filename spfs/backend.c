// SPDX-License-Identifier: Apache-2.0
/*
 * How a node is reached at the backend: by a descriptor if it has one (directories), by a descriptor that is open anyway, or by
 * its name in its directory's descriptor. What is found must be of the same type, and the same file as before if that was seen
 * since the backend came: numbers do not outlive a mount of it (sshfs).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend.h"

const char *proc_path(int fd, char *path)
{
	snprintf(path, PROC_PATH, "/proc/self/fd/%d", fd);
	return path;
}

void ref_put(struct ref *r)
{
	if (r->ours)
		close(r->fd);
	r->ours = false;
}

/* The session that this thread works in. */
static _Thread_local uint32_t mine;

void work_in(uint32_t session)
{
	mine = session;
}

void node_learn(uint32_t n, const struct stat *st)
{
	uint64_t ino = nodes[n].a.ino;

	attr_from(&nodes[n].a, st);
	if (nodes[n].flags & NODE_RECORDED)
		nodes[n].a.ino = ino;
	nodes[n].flags &= ~(uint32_t)NODE_GONE;
	node_identify(n, st->st_dev, st->st_ino);
}

/* What was found under a node's name: is it that node? A backend that has been let go of meanwhile knows nothing of the next one's. */
static int recognise(uint32_t n, const struct stat *st, struct attr *a)
{
	int error = 0;

	pthread_mutex_lock(&tree);
	if (mine != S->session || (nodes[n].a.mode & S_IFMT) != (st->st_mode & S_IFMT))
		error = ESTALE;
	else if (nodes[n].session == S->session && nodes[n].bino && (nodes[n].bino != st->st_ino || nodes[n].bdev != st->st_dev))
		error = ESTALE;
	else
		node_learn(n, st);
	if (a)
		*a = nodes[n].a;
	pthread_mutex_unlock(&tree);
	return error;
}

int node_parent(uint32_t n, struct ref *dir, char *name)
{
	uint32_t at, parent;

	pthread_mutex_lock(&tree);
	/* One that the backend has: what was made in RESTORE it may not. */
	for (at = name_first(n); at != NONE && names[at].flags & NAME_LOCAL;)
		at = name_next(at);
	if (at == NONE || names[at].len > 255) {
		pthread_mutex_unlock(&tree);
		return ESTALE;
	}
	parent = names[at].parent;
	memcpy(name, text + names[at].text, names[at].len);
	name[names[at].len] = 0;
	pthread_mutex_unlock(&tree);
	return node_ref(parent, dir);
}

int node_ref(uint32_t n, struct ref *out)
{
	uint32_t session = S->session;
	struct handle *h;
	struct ref dir;
	struct stat st;
	char name[256];
	int error;

	*out = (struct ref){ -1, false };
	pthread_mutex_lock(&tree);
	out->fd = nodes[n].fd;
	for (h = handle_first(n); out->fd < 0 && h; h = handle_next(h))
		out->fd = h->fd;
	pthread_mutex_unlock(&tree);
	if (out->fd >= 0)
		return 0;
	error = node_parent(n, &dir, name);
	if (error)
		return error;
	out->fd = openat(dir.fd, name, O_PATH | O_NOFOLLOW);
	error = out->fd < 0 ? errno : 0;
	ref_put(&dir);
	if (error)
		return error;
	error = fstat(out->fd, &st) ? errno : recognise(n, &st, NULL);
	if (error) {
		close(out->fd);
		return error;
	}
	out->ours = true;
	if (!S_ISDIR(st.st_mode))
		return 0;
	pthread_mutex_lock(&tree);
	if (nodes[n].fd < 0 && session == S->session) {
		nodes[n].fd = out->fd;
		out->ours = false;
	}
	pthread_mutex_unlock(&tree);
	return 0;
}

void node_keep(uint32_t n)
{
	struct ref ref;

	if (node_ref(n, &ref))
		return;
	pthread_mutex_lock(&tree);
	if (ref.ours && nodes[n].fd < 0 && (nodes[n].nlookup || handle_first(n))) {
		nodes[n].fd = ref.fd;
		ref.ours = false;
	}
	pthread_mutex_unlock(&tree);
	ref_put(&ref);
}

int node_stat(uint32_t n, struct attr *a)
{
	int fd = -1, error;
	struct handle *h;
	struct ref dir;
	struct stat st;
	char name[256];

	pthread_mutex_lock(&tree);
	fd = nodes[n].fd;
	for (h = handle_first(n); fd < 0 && h; h = handle_next(h))
		fd = h->fd;
	pthread_mutex_unlock(&tree);
	if (fd >= 0)
		return fstat(fd, &st) ? errno : recognise(n, &st, a);
	error = node_parent(n, &dir, name);
	if (error)
		return error;
	error = fstatat(dir.fd, name, &st, AT_SYMLINK_NOFOLLOW) ? errno : recognise(n, &st, a);
	ref_put(&dir);
	return error;
}

int node_open(uint32_t n, uint32_t flags)
{
	int fd = -1, error, ask = (int)(flags & (O_ACCMODE | O_TRUNC | O_NOATIME | O_SYNC | O_DSYNC));
	struct handle *h;
	struct ref dir;
	struct stat st;
	char name[256], path[PROC_PATH];

	if (S_ISDIR(nodes[n].a.mode))
		ask = O_RDONLY | O_DIRECTORY;
	pthread_mutex_lock(&tree);
	fd = nodes[n].fd;
	for (h = handle_first(n); fd < 0 && name_first(n) == NONE && h; h = handle_next(h))
		fd = h->fd;
	pthread_mutex_unlock(&tree);
	if (fd >= 0) {
		fd = open(proc_path(fd, path), ask);
		return fd < 0 ? -errno : fd;
	}
	error = node_parent(n, &dir, name);
	if (error)
		return -error;
	fd = openat(dir.fd, name, ask | O_NOFOLLOW | O_NONBLOCK);
	error = fd < 0 ? errno : 0;
	ref_put(&dir);
	if (error)
		return -error;
	error = fstat(fd, &st) ? errno : recognise(n, &st, NULL);
	if (!error)
		return fd;
	close(fd);
	return -error;
}

int entry(uint32_t parent, const char *name, const struct stat *st, struct fuse_entry_out *out)
{
	size_t len = strlen(name);
	uint32_t at, n, old;
	struct attr a;
	int error = 0;

	pthread_mutex_lock(&tree);
	if (mine != S->session) {
		pthread_mutex_unlock(&tree);
		return ESTALE;
	}
	at = name_find(parent, name, len);
	n = node_by_id(st->st_dev, st->st_ino);
	if (n != NONE && (nodes[n].a.mode & S_IFMT) != (st->st_mode & S_IFMT)) {
		nodes[n].bino = 0; /* the number has been given to another file */
		n = NONE;
	}
	if (at != NONE && names[at].node != n) {
		old = names[at].node;
		if (n == NONE && (nodes[old].session != S->session || !nodes[old].bino) &&
		    (nodes[old].a.mode & S_IFMT) == (st->st_mode & S_IFMT)) {
			n = old;
		} else {
			name_free(at);
			node_settle(old);
			at = NONE;
		}
	}
	if (n == NONE) {
		attr_from(&a, st);
		n = node_new(&a, 0);
	}
	if (n == NONE || (at == NONE && name_new(parent, n, name, len, 0) == NONE)) {
		error = ENOMEM;
	} else {
		node_learn(n, st);
		fill_entry(out, n, TTL_MS);
	}
	pthread_mutex_unlock(&tree);
	return error;
}

int handle_fd(struct handle *h)
{
	uint32_t session = S->session;
	int fd, other = -1;

	if (h->fd >= 0)
		return h->fd;
	fd = node_open(h->node, h->open_flags & ~(uint32_t)O_TRUNC);
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&tree);
	if (h->fd < 0 && session == S->session)
		h->fd = fd;
	else
		other = fd; /* another was quicker, or the backend has changed meanwhile */
	fd = h->fd < 0 ? -ESTALE : h->fd;
	pthread_mutex_unlock(&tree);
	if (other >= 0)
		close(other);
	return fd;
}

#define MAX_GROUPS 256

static _Thread_local bool changed;

void become(const struct request *r)
{
	gid_t groups[MAX_GROUPS];
	char path[32], status[8192], *at, *end;
	size_t count = 0;
	ssize_t n = -1;
	int fd;

	if (!r->in->uid && !r->in->gid)
		return;
	changed = true;
	/* The calls themselves, for this thread alone: the C library's would change all threads. */
	if (r->in->uid) {
		snprintf(path, sizeof(path), "/proc/%u/status", r->in->pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, status, sizeof(status) - 1);
		if (fd >= 0)
			close(fd);
		status[n > 0 ? n : 0] = 0;
		at = n > 0 ? strstr(status, "\nGroups:") : NULL;
		for (at = at ? at + 8 : NULL; at && count < MAX_GROUPS; at = end) {
			unsigned long gid;

			while (*at == ' ' || *at == '\t')
				at++;
			if (*at < '0' || *at > '9')
				break;
			gid = 0;
			for (end = at; *end >= '0' && *end <= '9'; end++)
				gid = gid * 10 + (unsigned long)(*end - '0');
			groups[count++] = (gid_t)gid;
		}
		syscall(SYS_setgroups, count, groups);
	}
	syscall(SYS_setfsgid, r->in->gid);
	syscall(SYS_setfsuid, r->in->uid);
}

void come_back(void)
{
	int error = errno;

	if (!changed)
		return;
	changed = false;
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	syscall(SYS_setgroups, 0, NULL);
	errno = error;
}

int kill_rights(int fd)
{
	char path[PROC_PATH];
	struct stat st;

	if (fstat(fd, &st))
		return errno;
	if (!mode_kills(st.st_mode) || !chmod(proc_path(fd, path), st.st_mode & 07777 & ~mode_kills(st.st_mode)))
		return 0;
	return errno == EPERM || errno == EACCES ? 0 : errno;
}

bool backend_lost(int error)
{
	struct statfs st;

	switch (error) {
	case ENOTCONN:
	case ECONNABORTED:
	case EHOSTDOWN:
	case EHOSTUNREACH:
	case ESHUTDOWN:
	case ESTALE:
	case EIO:
	case ETIMEDOUT:
		/* One file's trouble, or all of it? This asks the server itself, whatever is cached. */
		return S->backend < 0 || fstatfs(S->backend, &st);
	}
	return false;
}
