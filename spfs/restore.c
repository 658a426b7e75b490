// SPDX-License-Identifier: Apache-2.0
/*
 * The restore phase: CRIU opens files, and finds them as the checkpoint saw them, without a backend. What it makes for a moment
 * (ghosts: files that were unlinked but open; links to bring them back: criu/files-reg.c) lives in this tree alone;
 * contents of regular files that it makes are memfds. What it removes of the recorded is removed at the backend later.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "server.h"

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static uint32_t seen(uint32_t parent, const char *name)
{
	return parent == NONE ? NONE : name_find(parent, name, strlen(name));
}

static void reply_entry(struct request *r, uint32_t node)
{
	struct fuse_entry_out out;

	fill_entry(&out, node, 0);
	reply(r, 0, &out, sizeof(out));
}

/* A directory that names can be put into, or answers and returns NONE. */
static uint32_t parent_of(struct request *r, uint64_t nodeid)
{
	uint32_t n = node_of(nodeid);
	int error = n == NONE ? ESTALE : !S_ISDIR(nodes[n].a.mode) ? ENOTDIR : S->read_only ? EROFS : 0;

	if (!error)
		return n;
	reply(r, error, NULL, 0);
	return NONE;
}

/* Makes a node with a name; `name` NULL: without one (O_TMPFILE). */
static uint32_t make(struct request *r, const char *name, uint32_t mode, uint32_t rdev)
{
	uint32_t parent = parent_of(r, r->in->nodeid), n;
	struct attr a = { .mode = mode, .nlink = name ? 1 : 0, .uid = r->in->uid, .gid = r->in->gid, .rdev = rdev };

	if (parent == NONE)
		return NONE;
	if (name && (n = seen(parent, name)) != NONE) {
		if (r->again && nodes[names[n].node].flags & NODE_LOCAL)
			return names[n].node;
		reply(r, EEXIST, NULL, 0);
		return NONE;
	}
	if (nodes[parent].a.mode & S_ISGID) {
		a.gid = nodes[parent].a.gid;
		a.mode |= S_ISDIR(mode) ? S_ISGID : 0;
	}
	if (S_ISDIR(mode))
		a.nlink = 2;
	a.atime = a.mtime = a.ctime = now();
	n = node_new(&a, NODE_LOCAL);
	if (n != NONE && S_ISREG(mode)) {
		nodes[n].shadow = memfd_create("spfs-shadow", 0);
		if (nodes[n].shadow < 0) {
			node_settle(n);
			n = NONE;
		}
	}
	if (n == NONE || (name && name_new(parent, n, name, strlen(name), NAME_LOCAL) == NONE)) {
		reply(r, ENOSPC, NULL, 0);
		return NONE;
	}
	return n;
}

static void make_open(struct request *r, const char *name, uint32_t mode, uint32_t flags)
{
	struct {
		struct fuse_entry_out entry;
		struct open_out open;
	} out = { 0 };
	uint32_t n, h;

	n = make(r, name, S_IFREG | (mode & 07777), 0);
	if (n == NONE)
		return;
	h = handle_new(n, HANDLE_CACHED, flags & ~(O_CREAT | O_EXCL), -1);
	if (h == NONE) {
		reply(r, ENFILE, NULL, 0);
		return;
	}
	fill_entry(&out.entry, n, 0);
	r->journal->handle = h;
	out.open.fh = handle_number(h);
	reply(r, 0, &out, sizeof(out));
}

static void link_(struct request *r, uint64_t old, const char *name)
{
	uint32_t parent = parent_of(r, r->in->nodeid), n = node_of(old), at;

	if (parent == NONE)
		return;
	at = seen(parent, name);
	if (r->again && at != NONE && names[at].node == n)
		reply_entry(r, n);
	else if (n == NONE || S_ISDIR(nodes[n].a.mode))
		reply(r, n == NONE ? ESTALE : EPERM, NULL, 0);
	else if (at != NONE) {
		reply(r, EEXIST, NULL, 0);
	} else if (name_new(parent, n, name, strlen(name), NAME_LOCAL) == NONE) {
		reply(r, ENOSPC, NULL, 0);
	} else {
		nodes[n].a.nlink++;
		nodes[n].a.ctime = now();
		reply_entry(r, n);
	}
}

/* Takes a name away; what the backend has under it goes when there is one. */
static void drop(uint32_t at)
{
	uint32_t n = names[at].node;

	if (nodes[n].a.nlink)
		nodes[n].a.nlink = S_ISDIR(nodes[n].a.mode) ? 0 : nodes[n].a.nlink - 1;
	nodes[n].a.ctime = now();
	if (names[at].flags & NAME_LOCAL)
		name_free(at);
	else
		names[at].flags |= NAME_DOOMED;
	node_settle(n);
}

static void unlink_(struct request *r, const char *name)
{
	uint32_t parent = parent_of(r, r->in->nodeid), at;
	bool dir;

	if (parent == NONE)
		return;
	at = seen(parent, name);
	if (at == NONE) {
		reply(r, ENOENT, NULL, 0);
		return;
	}
	dir = S_ISDIR(nodes[names[at].node].a.mode);
	if (dir != (r->in->opcode == FUSE_RMDIR)) {
		reply(r, dir ? EISDIR : ENOTDIR, NULL, 0);
	} else if (dir && node_has_children(names[at].node)) {
		reply(r, ENOTEMPTY, NULL, 0);
	} else {
		drop(at);
		reply(r, 0, NULL, 0);
	}
}

/* What is of this tree alone can be renamed; for the recorded the backend must be there. */
static void rename_(struct request *r, uint64_t newdir, uint32_t flags, const char *from, const char *to)
{
	uint32_t parent = parent_of(r, r->in->nodeid), other, at, over, n;

	if (parent == NONE)
		return;
	other = parent_of(r, newdir);
	if (other == NONE)
		return;
	at = seen(parent, from);
	over = seen(other, to);
	if (at == NONE || (over != NONE && flags & 1 /* RENAME_NOREPLACE */)) {
		reply(r, at == NONE ? ENOENT : EEXIST, NULL, 0);
		return;
	}
	if (!(names[at].flags & NAME_LOCAL) || flags & ~1u) {
		reply(r, flags & ~1u ? EINVAL : EXDEV, NULL, 0);
		return;
	}
	n = names[at].node;
	if (over != NONE && names[over].node != n) {
		if (S_ISDIR(nodes[names[over].node].a.mode)) {
			reply(r, EISDIR, NULL, 0);
			return;
		}
		drop(over);
	}
	if (over == NONE || names[over].node != n) {
		if (name_new(other, n, to, strlen(to), NAME_LOCAL) == NONE) {
			reply(r, ENOSPC, NULL, 0);
			return;
		}
		name_free(at);
	}
	reply(r, 0, NULL, 0);
}

static void setattr(struct request *r, const struct fuse_setattr_in *in)
{
	struct fuse_attr_out out = { 0 };
	uint32_t n = node_of(r->in->nodeid);
	struct attr *a = &nodes[n].a;

	if (n == NONE) {
		reply(r, ESTALE, NULL, 0);
		return;
	}
	if (in->valid & FATTR_SIZE) {
		if (nodes[n].shadow < 0 || ftruncate(nodes[n].shadow, (off_t)in->size)) {
			reply(r, nodes[n].shadow < 0 ? EROFS : errno, NULL, 0);
			return;
		}
		a->size = in->size;
	}
	a->ctime = now();
	if (in->valid & FATTR_KILL_SUIDGID)
		a->mode &= ~mode_kills(a->mode);
	if (in->valid & FATTR_MODE)
		a->mode = (a->mode & S_IFMT) | (in->mode & 07777);
	if (in->valid & FATTR_UID)
		a->uid = in->uid;
	if (in->valid & FATTR_GID)
		a->gid = in->gid;
	if (in->valid & FATTR_ATIME)
		a->atime = in->valid & FATTR_ATIME_NOW ? a->ctime : (int64_t)in->atime * 1000000000 + in->atimensec;
	if (in->valid & FATTR_MTIME)
		a->mtime = in->valid & FATTR_MTIME_NOW ? a->ctime : (int64_t)in->mtime * 1000000000 + in->mtimensec;
	fill_attr(&out.attr, a);
	reply(r, 0, &out, sizeof(out));
}

static void open_(struct request *r, const struct fuse_open_in *in)
{
	uint32_t flags = in->flags;
	uint32_t n = node_of(r->in->nodeid), h;
	struct open_out out = { 0 };
	bool dir = r->in->opcode == FUSE_OPENDIR;

	if (n == NONE || S_ISDIR(nodes[n].a.mode) != dir) {
		reply(r, n == NONE ? ESTALE : dir ? ENOTDIR : EISDIR, NULL, 0);
		return;
	}
	if (flags & O_TRUNC) {
		if (nodes[n].shadow < 0 || ftruncate(nodes[n].shadow, 0)) {
			reply(r, EROFS, NULL, 0);
			return;
		}
		nodes[n].a.size = 0;
		if (in->open_flags & FUSE_OPEN_KILL_SUIDGID)
			nodes[n].a.mode &= ~mode_kills(nodes[n].a.mode);
	}
	h = handle_new(n, dir ? HANDLE_DIR : HANDLE_CACHED, flags & ~O_TRUNC, -1);
	if (h == NONE) {
		reply(r, ENFILE, NULL, 0);
		return;
	}
	r->journal->handle = h;
	out.fh = handle_number(h);
	reply(r, 0, &out, sizeof(out));
}

static void read_(struct request *r, const struct fuse_read_in *in)
{
	struct handle *h = handle_of(in->fh);
	uint32_t size = in->size > SPFS_MAX_WRITE ? SPFS_MAX_WRITE : in->size;
	struct node *node;
	ssize_t n = 0;

	if (!h) {
		reply(r, EBADF, NULL, 0);
		return;
	}
	node = &nodes[h->node];
	if (node->shadow >= 0) {
		n = pread(node->shadow, r->buffer, size, (off_t)in->offset);
	} else if (in->offset < node->a.size) {
		n = (ssize_t)(node->a.size - in->offset < size ? node->a.size - in->offset : size);
		memset(r->buffer, 0, (size_t)n);
	}
	reply(r, n < 0 ? errno : 0, r->buffer, n < 0 ? 0 : (size_t)n);
}

static void write_(struct request *r, const struct fuse_write_in *in)
{
	struct handle *h = handle_of(in->fh);
	struct fuse_write_out out = { 0 };
	struct node *node;
	ssize_t n;

	if (!h || r->len < sizeof(*in) + in->size) {
		reply(r, EBADF, NULL, 0);
		return;
	}
	node = &nodes[h->node];
	if (node->shadow < 0) {
		reply(r, EROFS, NULL, 0);
		return;
	}
	n = pwrite(node->shadow, in + 1, in->size, (off_t)in->offset);
	if (n < 0) {
		reply(r, errno, NULL, 0);
		return;
	}
	if (in->offset + (uint64_t)n > node->a.size)
		node->a.size = in->offset + (uint64_t)n;
	node->a.mtime = node->a.ctime = now();
	if (in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		node->a.mode &= ~mode_kills(node->a.mode);
	out.size = (uint32_t)n;
	reply(r, 0, &out, sizeof(out));
}

/* The place of an entry in the stream is its number: nothing moves when others come and go. */
static void readdir_(struct request *r, const struct fuse_read_in *in, bool plus)
{
	struct handle *h = handle_of(in->fh);
	size_t used = 0, size = in->size > SPFS_MAX_WRITE ? SPFS_MAX_WRITE : in->size;
	uint64_t at = in->offset;
	uint32_t self;

	if (!h) {
		reply(r, EBADF, NULL, 0);
		return;
	}
	self = h->node;
	for (; at < 2 + (uint64_t)S->name_high; at++) {
		const char *name = at == 0 ? "." : "..";
		uint32_t len = at == 0 ? 1 : 2, node = self;
		struct fuse_entry_out entry = { 0 };
		struct fuse_dirent dirent;
		size_t head = plus ? sizeof(entry) : 0, need;

		if (at >= 2) {
			struct name *n = &names[at - 2];

			if (n->state != LIVE || n->parent != self || n->flags & NAME_DOOMED)
				continue;
			name = text + n->text;
			len = n->len;
			node = n->node;
		}
		need = head + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + len);
		if (used + need > size)
			break;
		dirent = (struct fuse_dirent){ .ino = nodes[node].a.ino, .off = at + 1, .namelen = len,
					       .type = (nodes[node].a.mode & S_IFMT) >> 12 };
		if (plus && at >= 2)
			fill_entry(&entry, node, 0);
		memset(r->buffer + used, 0, need);
		memcpy(r->buffer + used, &entry, head);
		memcpy(r->buffer + used + head, &dirent, FUSE_NAME_OFFSET);
		memcpy(r->buffer + used + head + FUSE_NAME_OFFSET, name, len);
		used += need;
	}
	reply(r, 0, r->buffer, used);
}

static void release(struct request *r, const struct fuse_release_in *in)
{
	struct handle *h = handle_of(in->fh);
	int fd = h ? handle_free(h) : -1;

	if (fd >= 0)
		close(fd);
	reply(r, 0, NULL, 0);
}

static void lookup(struct request *r, const char *name)
{
	uint32_t at = seen(node_of(r->in->nodeid), name);

	if (at == NONE)
		reply(r, ENOENT, NULL, 0);
	else
		reply_entry(r, names[at].node);
}

static void getattr(struct request *r)
{
	uint32_t n = node_of(r->in->nodeid);
	struct fuse_attr_out out = { 0 };

	if (n != NONE)
		fill_attr(&out.attr, &nodes[n].a);
	reply(r, n == NONE ? ESTALE : 0, &out, sizeof(out));
}

static void readlink_(struct request *r)
{
	uint32_t n = node_of(r->in->nodeid);

	if (n == NONE || nodes[n].target == NONE)
		reply(r, EINVAL, NULL, 0);
	else
		reply(r, 0, text + nodes[n].target, nodes[n].target_len);
}

/* All of it is short work in memory: under the lock. */
static void serve_locked(struct request *r)
{
	struct fuse_statfs_out statfs = { .st = { .bsize = 4096, .namelen = 255, .frsize = 4096,
						  .blocks = 1 << 20, .bfree = 1 << 19, .bavail = 1 << 19,
						  .files = 1 << 20, .ffree = 1 << 19 } };
	const char *name, *other;
	const void *in;
	uint32_t n;

	switch (r->in->opcode) {
	case FUSE_LOOKUP:
		if ((name = argument_name(r, 0)))
			lookup(r, name);
		return;
	case FUSE_GETATTR:
		getattr(r);
		return;
	case FUSE_SETATTR:
		if ((in = argument(r, sizeof(struct fuse_setattr_in))))
			setattr(r, in);
		return;
	case FUSE_READLINK:
		readlink_(r);
		return;
	case FUSE_MKNOD: {
		const struct fuse_mknod_in *mknod = argument(r, sizeof(*mknod));

		if (!mknod || !(name = argument_name(r, sizeof(*mknod))))
			return;
		n = make(r, name, mknod->mode & ~mknod->umask, mknod->rdev);
		if (n != NONE)
			reply_entry(r, n);
		return;
	}
	case FUSE_MKDIR: {
		const struct fuse_mkdir_in *mkdir = argument(r, sizeof(*mkdir));

		if (!mkdir || !(name = argument_name(r, sizeof(*mkdir))))
			return;
		n = make(r, name, S_IFDIR | (mkdir->mode & 07777 & ~mkdir->umask), 0);
		if (n != NONE)
			reply_entry(r, n);
		return;
	}
	case FUSE_SYMLINK:
		if (!(name = argument_name(r, 0)))
			return;
		other = name + strlen(name) + 1;
		if ((size_t)(other - (const char *)r->arg) >= r->len || !memchr(other, 0, r->len - (size_t)(other - (const char *)r->arg))) {
			reply(r, EIO, NULL, 0);
			return;
		}
		n = make(r, name, S_IFLNK | 0777, 0);
		if (n == NONE)
			return;
		node_target(n, other, (uint32_t)strlen(other));
		nodes[n].a.size = strlen(other);
		reply_entry(r, n);
		return;
	case FUSE_CREATE:
	case FUSE_TMPFILE: {
		const struct fuse_create_in *create = argument(r, sizeof(*create));

		if (!create)
			return;
		name = r->in->opcode == FUSE_CREATE ? argument_name(r, sizeof(*create)) : NULL;
		if (name || r->in->opcode == FUSE_TMPFILE)
			make_open(r, name, create->mode & ~create->umask, create->flags);
		return;
	}
	case FUSE_LINK: {
		const struct fuse_link_in *link = argument(r, sizeof(*link));

		if (link && (name = argument_name(r, sizeof(*link))))
			link_(r, link->oldnodeid, name);
		return;
	}
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		if ((name = argument_name(r, 0)))
			unlink_(r, name);
		return;
	case FUSE_RENAME:
	case FUSE_RENAME2: {
		size_t head = r->in->opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(struct fuse_rename2_in);
		const struct fuse_rename2_in *rename = argument(r, head);

		if (!rename || !(name = argument_name(r, head)) || !(other = argument_name(r, head + strlen(name) + 1)))
			return;
		rename_(r, rename->newdir, r->in->opcode == FUSE_RENAME ? 0 : rename->flags, name, other);
		return;
	}
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		if ((in = argument(r, sizeof(struct fuse_open_in))))
			open_(r, in);
		return;
	case FUSE_READ:
		if ((in = argument(r, sizeof(struct fuse_read_in))))
			read_(r, in);
		return;
	case FUSE_WRITE:
		if ((in = argument(r, sizeof(struct fuse_write_in))))
			write_(r, in);
		return;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		if ((in = argument(r, sizeof(struct fuse_read_in))))
			readdir_(r, in, r->in->opcode == FUSE_READDIRPLUS);
		return;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		if ((in = argument(r, sizeof(struct fuse_release_in))))
			release(r, in);
		return;
	case FUSE_STATFS:
		reply(r, 0, &statfs, sizeof(statfs));
		return;
	case FUSE_ACCESS:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		reply(r, 0, NULL, 0);
		return;
	case FUSE_GETXATTR:
	case FUSE_REMOVEXATTR:
		reply(r, ENODATA, NULL, 0);
		return;
	case FUSE_LISTXATTR: {
		const struct fuse_getxattr_in *list = argument(r, sizeof(*list));
		struct fuse_getxattr_out none = { 0 };

		if (list)
			reply(r, 0, &none, list->size ? 0 : sizeof(none));
		return;
	}
	case FUSE_SETXATTR:
		reply(r, EOPNOTSUPP, NULL, 0);
		return;
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
	case OP_COPY_FILE_RANGE_64:
		reply(r, EOPNOTSUPP, NULL, 0);
		return;
	case FUSE_LSEEK:
		reply(r, EINVAL, NULL, 0);
		return;
	default:
		reply(r, ENOSYS, NULL, 0);
	}
}

void restore_serve(struct request *r)
{
	/* Changes are in memory, where a worker that dies leaves them: they must not be made twice. */
	if (changes(r->in->opcode))
		journal_begin(r);
	pthread_mutex_lock(&tree);
	serve_locked(r);
	pthread_mutex_unlock(&tree);
}
