// SPDX-License-Identifier: Apache-2.0
/*
 * What RESTORE left in the tree goes to the backend when there is one: sockets that CRIU bound again, fifos, links; and what
 * was removed is removed. Usually CRIU has tidied up itself and there is nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "backend.h"
#include "switch.h"

/* Makes one file; 0 or an errno. What is there already and of the type is it: a socket that was bound anew. */
static int make(const struct node *node, int dir, const char *name)
{
	char target[PATH_MAX];
	struct stat st;
	int result, fd;

	switch (node->a.mode & S_IFMT) {
	case S_IFDIR:
		result = mkdirat(dir, name, node->a.mode & 07777);
		break;
	case S_IFLNK:
		memcpy(target, text + node->target, node->target_len);
		target[node->target_len] = 0;
		result = symlinkat(target, dir, name);
		break;
	case S_IFREG:
		fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, node->a.mode & 07777);
		result = fd < 0 ? -1 : 0;
		for (off_t at = 0; !result && at < (off_t)node->a.size;)
			if (sendfile(fd, node->shadow, &at, node->a.size - (size_t)at) <= 0)
				result = -1;
		if (fd >= 0 && close(fd))
			result = -1;
		break;
	default:
		result = mknodat(dir, name, node->a.mode, (dev_t)node->a.rdev);
	}
	if (result && errno != EEXIST)
		return errno;
	if (result && (S_ISREG(node->a.mode) || fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ||
		       (st.st_mode & S_IFMT) != (node->a.mode & S_IFMT)))
		return EEXIST;
	if (!result && (fchownat(dir, name, node->a.uid, node->a.gid, AT_SYMLINK_NOFOLLOW) ||
			(!S_ISLNK(node->a.mode) && fchmodat(dir, name, node->a.mode & 07777, 0))))
		say("owner or mode of a new file: %s", strerror(errno));
	return 0;
}

/* A file that was removed and made again under its name is not removed at the backend. */
static void spare(uint32_t parent, const char *name, size_t len)
{
	for (uint32_t i = 0; i < S->name_high; i++) {
		uint32_t n = names[i].node;

		if (names[i].state != LIVE || !(names[i].flags & NAME_DOOMED) || names[i].parent != parent ||
		    names[i].len != len || memcmp(text + names[i].text, name, len))
			continue;
		name_free(i);
		node_settle(n);
	}
}

static int carry(uint32_t at, char *name)
{
	uint32_t n = names[at].node, parent = names[at].parent;
	struct ref dir, old;
	char path[PROC_PATH];
	struct stat st;
	int error;

	memcpy(name, text + names[at].text, names[at].len);
	name[names[at].len] = 0;
	error = nodes[parent].flags & NODE_LOCAL ? ENOENT : node_ref(parent, &dir);
	if (error)
		return error;
	if (nodes[n].flags & NODE_LOCAL) {
		error = make(&nodes[n], dir.fd, name);
	} else {
		error = node_ref(n, &old);
		if (!error) {
			if (linkat(AT_FDCWD, proc_path(old.fd, path), dir.fd, name, AT_SYMLINK_FOLLOW))
				error = errno;
			ref_put(&old);
		}
	}
	if (!error && fstatat(dir.fd, name, &st, AT_SYMLINK_NOFOLLOW))
		error = errno;
	ref_put(&dir);
	if (error)
		return error;
	pthread_mutex_lock(&tree);
	spare(parent, name, strlen(name));
	names[at].flags &= ~(uint32_t)NAME_LOCAL;
	nodes[n].flags = (nodes[n].flags & ~(uint32_t)NODE_LOCAL) | NODE_RECORDED;
	node_learn(n, &st);
	if (nodes[n].shadow >= 0)
		close(nodes[n].shadow);
	nodes[n].shadow = -1;
	pthread_mutex_unlock(&tree);
	return 0;
}

void carry_over(differs_fn *differs, void *arg)
{
	static char path[PATH_MAX];
	char name[256];

	for (uint32_t at = 0; at < S->name_high; at++) {
		uint32_t n = names[at].node;
		bool known;
		int error;

		if (names[at].state != LIVE || !(names[at].flags & NAME_LOCAL))
			continue;
		error = carry(at, name);
		if (!error)
			continue;
		say("`%s` of the restore cannot be made at the backend: %s", name, strerror(error));
		pthread_mutex_lock(&tree);
		known = node_path(n, path, sizeof(path));
		name_free(at);
		node_settle(n);
		pthread_mutex_unlock(&tree);
		if (known)
			differs(arg, SPFS_NOT_MADE, path);
	}
}

void carry_removals(void)
{
	char name[256];

	for (uint32_t at = 0; at < S->name_high; at++) {
		uint32_t n = names[at].node;
		struct ref dir;
		bool is_dir;

		if (names[at].state != LIVE || !(names[at].flags & NAME_DOOMED))
			continue;
		node_keep(n);
		memcpy(name, text + names[at].text, names[at].len);
		name[names[at].len] = 0;
		is_dir = S_ISDIR(nodes[n].a.mode);
		if (!node_ref(names[at].parent, &dir)) {
			if (unlinkat(dir.fd, name, is_dir ? AT_REMOVEDIR : 0) && errno != ENOENT)
				say("`%s`, removed in the restore, stays at the backend: %s", name, strerror(errno));
			ref_put(&dir);
		}
		pthread_mutex_lock(&tree);
		name_free(at);
		node_settle(n);
		pthread_mutex_unlock(&tree);
	}
}
