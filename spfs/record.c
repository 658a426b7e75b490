// SPDX-License-Identifier: Apache-2.0
/* The record of a checkpoint becomes the tree that RESTORE and STUB answer from. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "nodes.h"
#include "record.h"

#define MAX_RECORD (256u << 20)

static int refuse(char *why, size_t size, const char *what, const char *path, size_t len, int error)
{
	snprintf(why, size, "%s `%.*s`", what, (int)(len > 200 ? 200 : len), path);
	errno = error;
	return -1;
}

/* The directory `name` in `parent`; made if the record has not said what it is. */
static uint32_t directory(uint32_t parent, const char *name, size_t len)
{
	const struct attr a = { .mode = S_IFDIR | 0755, .nlink = 2 };
	uint32_t at = name_find(parent, name, len), n;

	if (at != NONE)
		return names[at].node;
	n = node_new(&a, NODE_RECORDED);
	return n == NONE || name_new(parent, n, name, len, 0) == NONE ? NONE : n;
}

/* Two names of one file: the same number, and nothing that speaks against it. */
static uint32_t same_file(const struct spfs_node *in)
{
	uint32_t n = in->nlink > 1 && in->ino && !S_ISDIR(in->mode) ? node_by_id(0, in->ino) : NONE;

	return n != NONE && nodes[n].a.mode == in->mode && nodes[n].a.size == in->size ? n : NONE;
}

static int add(const struct spfs_node *in, const char *path, const char *target, char *why, size_t size)
{
	const struct attr a = { .ino = in->ino, .size = in->size, .mode = in->mode, .nlink = in->nlink, .uid = in->uid,
				.gid = in->gid, .rdev = in->rdev, .atime = in->atime, .mtime = in->mtime, .ctime = in->ctime };
	const char *name = path, *end = path + in->path_len, *slash;
	uint32_t parent = ROOT, at, n;

	if (!in->path_len) {
		if (!S_ISDIR(in->mode))
			return refuse(why, size, "the root is no directory", "", 0, ENOTDIR);
		nodes[ROOT].a = a;
		return 0;
	}
	for (;; name = slash + 1) {
		slash = memchr(name, '/', (size_t)(end - name));
		size_t len = (size_t)((slash ? slash : end) - name);

		if (!len || len > NAME_MAX || memchr(name, 0, len) || (len == 1 && name[0] == '.') ||
		    (len == 2 && name[0] == '.' && name[1] == '.'))
			return refuse(why, size, "no path below the mount:", path, in->path_len, EINVAL);
		if (!slash)
			break;
		parent = directory(parent, name, len);
		if (parent == NONE)
			return refuse(why, size, "no room for", path, in->path_len, ENOSPC);
		if (!S_ISDIR(nodes[parent].a.mode))
			return refuse(why, size, "below what is no directory:", path, in->path_len, ENOTDIR);
	}
	at = name_find(parent, name, (size_t)(end - name));
	if (at != NONE) {
		/* A directory that was made for what is in it is told now; anything else is told twice. */
		if (S_ISDIR(in->mode) && S_ISDIR(nodes[names[at].node].a.mode) && nodes[names[at].node].bdev == 0 &&
		    nodes[names[at].node].target == NONE && nodes[names[at].node].a.ctime == 0) {
			nodes[names[at].node].a = a;
			return 0;
		}
		return refuse(why, size, "twice:", path, in->path_len, EEXIST);
	}
	n = same_file(in);
	if (n == NONE) {
		n = node_new(&a, NODE_RECORDED);
		if (n == NONE)
			return refuse(why, size, "no room for", path, in->path_len, ENOSPC);
		if (in->ino && !S_ISDIR(in->mode))
			node_identify(n, 0, in->ino);
		if (in->target_len)
			node_target(n, target, in->target_len);
	}
	if (name_new(parent, n, name, (size_t)(end - name), 0) == NONE)
		return refuse(why, size, "no room for", path, in->path_len, ENOSPC);
	return 0;
}

static int check(const struct spfs_node *in, const char *path, const char *target, char *why, size_t size)
{
	switch (in->mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
	case S_IFIFO:
	case S_IFSOCK:
	case S_IFCHR:
	case S_IFBLK:
	case S_IFLNK:
		break;
	default:
		return refuse(why, size, "of no type:", path, in->path_len, EINVAL);
	}
	if (S_ISLNK(in->mode) != !!in->target_len || in->target_len >= PATH_MAX || memchr(target, 0, in->target_len))
		return refuse(why, size, "a symbolic link without a target, or a target without one:", path, in->path_len, EINVAL);
	if (in->size > INT64_MAX || in->path_len >= PATH_MAX)
		return refuse(why, size, "too large:", path, in->path_len, EFBIG);
	return 0;
}

int record_load(int fd, char *why, unsigned long size)
{
	const struct attr root = { .mode = S_IFDIR | 0755, .nlink = 2, .ino = 1 };
	struct spfs_record head;
	struct spfs_node in;
	struct stat st;
	size_t at = sizeof(head), len;
	const char *bytes;
	int ret = -1;

	if (node_new(&root, NODE_RECORDED) != ROOT)
		return refuse(why, size, "no room for", "", 0, ENOSPC);
	if (fstat(fd, &st))
		return refuse(why, size, "no record", "", 0, errno);
	if (st.st_size < (off_t)sizeof(head) || st.st_size > MAX_RECORD)
		return refuse(why, size, "no record, or too large a one", "", 0, EINVAL);
	len = (size_t)st.st_size;
	bytes = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		return refuse(why, size, "no record", "", 0, errno);
	memcpy(&head, bytes, sizeof(head));
	if (head.magic != SPFS_MAGIC || head.version != SPFS_VERSION) {
		refuse(why, size, "a record of another version", "", 0, EINVAL);
		goto out;
	}
	for (uint64_t i = 0; i < head.count; i++) {
		const char *path = bytes + at + sizeof(in);

		if (len - at < sizeof(in))
			goto cut;
		memcpy(&in, bytes + at, sizeof(in));
		if (len - at - sizeof(in) < (size_t)in.path_len + in.target_len)
			goto cut;
		if (check(&in, path, path + in.path_len, why, size) || add(&in, path, path + in.path_len, why, size))
			goto out;
		at += sizeof(in) + in.path_len + in.target_len;
	}
	if (at != len)
		goto cut;
	/* The numbers were the checkpoint's, for hard links alone: no backend is known yet. */
	S->session = 1;
	ret = 0;
	goto out;
cut:
	refuse(why, size, "a record that is cut, or has more than it says", "", 0, EINVAL);
out:
	munmap((void *)bytes, len);
	return ret;
}
