// SPDX-License-Identifier: Apache-2.0
/* The proxy: directory streams and extended attributes. Offsets in a stream are the backend's own, as before the checkpoint. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "proxy.h"

#define BATCH 16384
#define FUSE_SUPER_MAGIC 0x65735546

/* As getdents64(2) gives it. */
struct linux_dirent {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* One entry into the answer; 0 when it does not fit. */
static size_t put(uint8_t *to, size_t room, const struct linux_dirent *d, uint32_t dir, int fd, bool plus)
{
	struct fuse_entry_out out = { 0 };
	size_t len = strlen(d->name), head = plus ? sizeof(out) : 0, need = head + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + len);
	struct fuse_dirent dirent = { .ino = d->ino, .off = (uint64_t)d->off, .namelen = (uint32_t)len, .type = d->type };
	bool dot = d->name[0] == '.' && (!d->name[1] || (d->name[1] == '.' && !d->name[2]));
	struct stat st;
	uint32_t at;

	if (need > room)
		return 0;
	/* An entry that has gone, or that cannot be asked about, is told without its attributes. */
	if (plus && !dot && !fstatat(fd, d->name, &st, AT_SYMLINK_NOFOLLOW) && entry(dir, d->name, &st, &out))
		out = (struct fuse_entry_out){ 0 };
	pthread_mutex_lock(&tree);
	at = dot ? NONE : name_find(dir, d->name, len);
	if (at != NONE)
		dirent.ino = nodes[names[at].node].a.ino;
	pthread_mutex_unlock(&tree);
	memset(to, 0, need);
	memcpy(to, &out, head);
	memcpy(to + head, &dirent, FUSE_NAME_OFFSET);
	memcpy(to + head + FUSE_NAME_OFFSET, d->name, len);
	return need;
}

/*
 * Goes to an offset of a stream. A server of FUSE knows the offsets that it has told whoever has opened the directory, and may
 * know no others: sshfs ends itself over one (sshfs.c:sftp_readdir_async). So a stream that nothing has been read from is
 * read up to there first, as the program has once done.
 */
static int go_to(struct handle *h, int fd, uint64_t at, uint8_t *batch)
{
	bool there = !at || h->dir_offset;
	struct statfs fs;
	long n;

	if (!there && !fstatfs(fd, &fs) && fs.f_type == FUSE_SUPER_MAGIC)
		while (!there && (n = syscall(SYS_getdents64, fd, batch, BATCH)) != 0) {
			if (n < 0)
				return errno;
			for (long i = 0; i < n; i += ((const struct linux_dirent *)(batch + i))->reclen)
				there = there || (uint64_t)((const struct linux_dirent *)(batch + i))->off == at;
		}
	if (lseek(fd, (off_t)at, SEEK_SET) < 0)
		return errno;
	h->dir_offset = at;
	return 0;
}

int proxy_readdir(struct request *r)
{
	const struct fuse_read_in *in = argument(r, sizeof(*in));
	size_t size = in && in->size < SPFS_MAX_WRITE - BATCH ? in->size : SPFS_MAX_WRITE - BATCH, used = 0;
	bool plus = r->in->opcode == FUSE_READDIRPLUS;
	/* Behind the answer. */
	uint8_t *batch = r->buffer + SPFS_MAX_WRITE - BATCH;
	struct handle *h;
	uint64_t at;
	long n = 0;
	int fd;

	if (!in)
		return 0;
	h = handle_of(in->fh);
	fd = h ? handle_fd(h) : -EBADF;
	if (fd < 0)
		return -fd;
	at = in->offset;
	for (;;) {
		if (h->dir_offset != at || !at) {
			int error = go_to(h, fd, at, batch);

			if (error)
				return error;
		}
		/* No more than will fit, or most of it is read twice. */
		n = syscall(SYS_getdents64, fd, batch, size - used < BATCH ? size - used : BATCH);
		if (n < 0 && errno == EINVAL && used)
			break;
		if (n < 0)
			return errno;
		if (!n)
			break;
		for (long i = 0; i < n;) {
			const struct linux_dirent *d = (const void *)(batch + i);
			size_t put_ = put(r->buffer + used, size - used, d, h->node, fd, plus);

			if (!put_) {
				h->dir_offset = UINT64_MAX; /* it stands behind what was told */
				goto full;
			}
			used += put_;
			at = (uint64_t)d->off;
			i += d->reclen;
		}
		h->dir_offset = at;
	}
full:
	reply(r, 0, r->buffer, used);
	return 0;
}

int proxy_xattr(struct request *r)
{
	const struct fuse_setxattr_in *set = (const void *)r->arg;
	const struct fuse_getxattr_in *get = (const void *)r->arg;
	struct fuse_getxattr_out out = { 0 };
	uint32_t op = r->in->opcode, n;
	size_t head = op == FUSE_SETXATTR ? FUSE_COMPAT_SETXATTR_IN_SIZE : op == FUSE_REMOVEXATTR ? 0 : sizeof(*get);
	size_t room = 0;
	const char *name = NULL;
	char path[PROC_PATH];
	struct ref ref;
	ssize_t got = 0;
	int error;

	if (!argument(r, head))
		return 0;
	if (op != FUSE_LISTXATTR) {
		name = (const char *)r->arg + head;
		if (!memchr(name, 0, r->len - head))
			return EINVAL;
	}
	pthread_mutex_lock(&tree);
	n = node_of(r->in->nodeid);
	pthread_mutex_unlock(&tree);
	error = n == NONE ? ESTALE : node_ref(n, &ref);
	if (error)
		return error;
	proc_path(ref.fd, path);
	become(r);
	switch (op) {
	case FUSE_SETXATTR: {
		const char *value = name + strlen(name) + 1;

		got = (size_t)((const uint8_t *)value - r->arg) + set->size > r->len ? (errno = EINVAL, -1) :
			setxattr(path, name, value, set->size, (int)set->flags);
		break;
	}
	case FUSE_REMOVEXATTR:
		got = removexattr(path, name);
		break;
	case FUSE_GETXATTR:
		room = get->size < SPFS_MAX_WRITE ? get->size : SPFS_MAX_WRITE;
		got = getxattr(path, name, r->buffer, room);
		break;
	default:
		room = get->size < SPFS_MAX_WRITE ? get->size : SPFS_MAX_WRITE;
		got = listxattr(path, (char *)r->buffer, room);
	}
	error = got < 0 ? errno : 0;
	come_back();
	ref_put(&ref);
	if (error)
		return error;
	out.size = (uint32_t)got;
	if (op == FUSE_SETXATTR || op == FUSE_REMOVEXATTR)
		reply(r, 0, NULL, 0);
	else if (!room)
		reply(r, 0, &out, sizeof(out));
	else
		reply(r, 0, r->buffer, (size_t)got);
	return 0;
}
