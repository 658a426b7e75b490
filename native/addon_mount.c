// SPDX-License-Identifier: Apache-2.0
/* Copies of mounts that are nowhere to be seen, and files in them, for shim/carriers/detached.ts. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <node_api.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "addon.h"

/* linux/mount.h, which does not go together with sys/mount.h everywhere. */
enum { OPEN_TREE_CLONE_ = 1 };
struct mount_attr_ {
	uint64_t attr_set, attr_clr, propagation, userns_fd;
};

static bool get_path(napi_env env, napi_value value, char *path, size_t size)
{
	size_t len;

	if (napi_get_value_string_latin1(env, value, path, size, &len) == napi_ok && len > 0 && len < size - 1 &&
	    strlen(path) == len)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a path was expected");
	return false;
}

static napi_value fd_or_throw(napi_env env, int fd, const char *call)
{
	napi_value out;

	if (fd < 0)
		return throw_errno(env, errno, call);
	if (napi_create_int32(env, fd, &out) == napi_ok)
		return out;
	close(fd);
	return NULL;
}

/* openBeneath(dir, path, flags, mode): number: no link is followed, and nothing outside of `dir` is reached */
static napi_value open_beneath(napi_env env, napi_callback_info info)
{
	struct open_how how = { .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
	int32_t dir, flags, mode;
	napi_value args[4];
	char path[4096];

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &dir) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &flags) || !get_int(env, args[3], &mode))
		return NULL;
	how.flags = (uint32_t)flags | O_CLOEXEC;
	how.mode = (uint32_t)mode;
	return fd_or_throw(env, (int)syscall(SYS_openat2, dir, path, &how, sizeof(how)), "openat2");
}

/* seek(fd, position) */
static napi_value seek_to(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int64_t position;
	int32_t fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (napi_get_value_int64(env, args[1], &position) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a position was expected");
		return NULL;
	}
	if (lseek(fd, position, SEEK_SET) < 0)
		return throw_errno(env, errno, "lseek");
	return NULL;
}

static bool get_double(napi_env env, napi_value value, int64_t *out)
{
	if (napi_get_value_int64(env, value, out) == napi_ok)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a number was expected");
	return false;
}

/* nextData(fd, from): [start, end] | undefined: the next piece of a file that is no hole */
static napi_value next_data(napi_env env, napi_callback_info info)
{
	napi_value args[2], out, each;
	int64_t from, ends[2];
	int32_t fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd) || !get_double(env, args[1], &from))
		return NULL;
	ends[0] = lseek(fd, from, SEEK_DATA);
	if (ends[0] < 0)
		return errno == ENXIO ? NULL : throw_errno(env, errno, "lseek");
	ends[1] = lseek(fd, ends[0], SEEK_HOLE);
	if (ends[1] < 0)
		return throw_errno(env, errno, "lseek");
	if (napi_create_array_with_length(env, 2, &out) != napi_ok)
		return NULL;
	for (uint32_t i = 0; i < 2; i++)
		if (napi_create_int64(env, ends[i], &each) != napi_ok || napi_set_element(env, out, i, each) != napi_ok)
			return NULL;
	return out;
}

/* setPipeSize(fd, bytes) */
static napi_value set_pipe_size(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int32_t fd, size;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &size))
		return NULL;
	return fcntl(fd, F_SETPIPE_SZ, size) < 0 ? throw_errno(env, errno, "F_SETPIPE_SZ") : NULL;
}

/* setBlocking(fd): takes O_NONBLOCK away */
static napi_value set_blocking(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t fd;
	int flags;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK))
		return throw_errno(env, errno, "F_SETFL");
	return NULL;
}

static bool get_ns(napi_env env, napi_value value, struct timespec *out)
{
	bool lossless;
	int64_t ns;

	if (napi_get_value_bigint_int64(env, value, &ns, &lossless) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a bigint was expected");
		return false;
	}
	out->tv_sec = ns / 1000000000;
	out->tv_nsec = ns % 1000000000;
	if (out->tv_nsec < 0) {
		out->tv_nsec += 1000000000;
		out->tv_sec--;
	}
	return true;
}

/* setAttributes(path, mode, atime, mtime): times in nanoseconds */
static napi_value set_attributes(napi_env env, napi_callback_info info)
{
	struct timespec times[2];
	napi_value args[4];
	char path[4096];
	int32_t mode;

	if (!get_args(env, info, 4, args) || !get_path(env, args[0], path, sizeof(path)) || !get_int(env, args[1], &mode) ||
	    !get_ns(env, args[2], &times[0]) || !get_ns(env, args[3], &times[1]))
		return NULL;
	if (chmod(path, (mode_t)mode))
		return throw_errno(env, errno, "chmod");
	if (utimensat(AT_FDCWD, path, times, 0))
		return throw_errno(env, errno, "utimensat");
	return NULL;
}

/* makeNode(dir, name, mode, rdev): a device node, FIFO or directory; `rdev` as stat(2) has it */
static napi_value make_node(napi_env env, napi_callback_info info)
{
	int32_t dir, mode;
	napi_value args[4];
	char path[4096];
	int64_t rdev;
	int err;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &dir) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &mode) || !get_double(env, args[3], &rdev))
		return NULL;
	err = S_ISDIR(mode) ? mkdirat(dir, path, (mode_t)mode & 07777) : mknodat(dir, path, (mode_t)mode, (dev_t)rdev);
	return err ? throw_errno(env, errno, "mknodat") : NULL;
}

#define HANDLE_MAX 128

/* fileHandle(fd): Buffer | undefined: the kernel's name for an inode in its file system; some have none */
static napi_value file_handle(napi_env env, napi_callback_info info)
{
	union {
		struct file_handle head;
		char space[sizeof(struct file_handle) + HANDLE_MAX];
	} h = { .head.handle_bytes = HANDLE_MAX };
	napi_value args[1], out;
	int32_t fd;
	int mount;
	char *copy;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (name_to_handle_at(fd, "", &h.head, &mount, AT_EMPTY_PATH))
		return errno == EOPNOTSUPP || errno == EOVERFLOW ? NULL : throw_errno(env, errno, "name_to_handle_at");
	if (napi_create_buffer(env, sizeof(h.head.handle_type) + h.head.handle_bytes, (void **)&copy, &out) != napi_ok)
		return NULL;
	memcpy(copy, &h.head.handle_type, sizeof(h.head.handle_type));
	memcpy(copy + sizeof(h.head.handle_type), h.head.f_handle, h.head.handle_bytes);
	return out;
}

/* openHandle(mount, handle, flags): number: an inode by its handle, on the mount of another descriptor */
static napi_value open_handle(napi_env env, napi_callback_info info)
{
	union {
		struct file_handle head;
		char space[sizeof(struct file_handle) + HANDLE_MAX];
	} h = { .head.handle_bytes = 0 };
	int32_t mount, flags;
	napi_value args[3];
	size_t len;
	void *data;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &mount) || !get_int(env, args[2], &flags))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok || len < sizeof(h.head.handle_type) ||
	    len > sizeof(h.head.handle_type) + HANDLE_MAX) {
		napi_throw_type_error(env, "ERR_ARGS", "a file handle was expected");
		return NULL;
	}
	memcpy(&h.head.handle_type, data, sizeof(h.head.handle_type));
	h.head.handle_bytes = (unsigned int)(len - sizeof(h.head.handle_type));
	memcpy(h.head.f_handle, (char *)data + sizeof(h.head.handle_type), h.head.handle_bytes);
	return fd_or_throw(env, open_by_handle_at(mount, &h.head, flags | O_CLOEXEC), "open_by_handle_at");
}

/* How findInode walks: `left` entries may still be looked at. */
struct walk {
	uint64_t ino;
	int64_t left;
	char path[4096];
};

/* Below `dir`, which is closed; `len` of the path is its name. */
static bool walk_down(int dir, struct walk *w, size_t len, int depth)
{
	struct open_how how = { .flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOATIME,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
	DIR *d = fdopendir(dir);
	struct dirent *e;
	bool found = false;
	size_t n;
	int sub;

	if (!d) {
		close(dir);
		return false;
	}
	while (!found && w->left > 0 && (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		w->left--;
		n = strlen(e->d_name);
		if (len + n + 2 > sizeof(w->path))
			continue;
		w->path[len] = '/';
		memcpy(w->path + len + 1, e->d_name, n + 1);
		if (e->d_ino == w->ino && e->d_type != DT_DIR)
			found = true;
		if (e->d_type != DT_DIR || depth >= 64)
			continue;
		sub = (int)syscall(SYS_openat2, dirfd(d), e->d_name, &how, sizeof(how));
		if (sub >= 0)
			found = walk_down(sub, w, len + 1 + n, depth + 1);
	}
	closedir(d);
	return found;
}

/* findInode(dir, ino, most): string | undefined: a name of an inode, looking at no more than so many; latin1 */
static napi_value find_inode(napi_env env, napi_callback_info info)
{
	napi_value args[3], out;
	struct walk *w;
	int32_t dir, fd;
	bool lossless;

	w = calloc(1, sizeof(*w));
	if (!w)
		return throw_errno(env, ENOMEM, "calloc");
	out = NULL;
	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &dir) || !get_double(env, args[2], &w->left))
		goto end;
	if (napi_get_value_bigint_uint64(env, args[1], &w->ino, &lossless) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a bigint was expected");
		goto end;
	}
	fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOATIME);
	if (fd < 0) {
		throw_errno(env, errno, "openat");
		goto end;
	}
	if (walk_down(fd, w, 0, 0) && napi_create_string_latin1(env, w->path, NAPI_AUTO_LENGTH, &out) != napi_ok)
		out = NULL;
end:
	free(w);
	return out;
}

struct clone {
	int ns;			/* -1: here */
	const char *path;
	uint64_t set, clear;
	int fd, err;
	const char *step;
};

/* In a thread of its own: a mount namespace is changed only by who shares his working directory with nobody. */
static void *clone_in_thread(void *arg)
{
	struct clone *c = arg;
	struct mount_attr_ attr = { .attr_set = c->set, .attr_clr = c->clear };

	c->fd = -1;
	c->step = "unshare";
	if (unshare(CLONE_FS))
		goto failed;
	c->step = "setns";
	if (c->ns >= 0 && setns(c->ns, CLONE_NEWNS))
		goto failed;
	c->step = "open_tree";
	c->fd = (int)syscall(SYS_open_tree, AT_FDCWD, c->path, OPEN_TREE_CLONE_ | O_CLOEXEC | AT_SYMLINK_NOFOLLOW);
	if (c->fd < 0)
		goto failed;
	c->step = "mount_setattr";
	if ((c->set || c->clear) && syscall(SYS_mount_setattr, c->fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		goto failed;
	return NULL;
failed:
	c->err = errno;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	return NULL;
}

/* cloneMount(ns, path, set, clear): number: a copy of a mount, or of a part of it, with other MOUNT_ATTR_* */
static napi_value clone_mount(napi_env env, napi_callback_info info)
{
	int32_t ns, set, clear;
	char path[4096];
	struct clone c = { .path = path };
	napi_value args[4];
	pthread_t thread;
	int err;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &ns) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &set) || !get_int(env, args[3], &clear))
		return NULL;
	c.ns = ns;
	c.set = (uint32_t)set;
	c.clear = (uint32_t)clear;
	err = pthread_create(&thread, NULL, clone_in_thread, &c);
	if (err)
		return throw_errno(env, err, "pthread_create");
	pthread_join(thread, NULL);
	if (c.fd < 0)
		return throw_errno(env, c.err, c.step);
	return fd_or_throw(env, c.fd, c.step);
}

bool mount_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "openBeneath", NULL, open_beneath, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "seek", NULL, seek_to, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "nextData", NULL, next_data, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setPipeSize", NULL, set_pipe_size, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setBlocking", NULL, set_blocking, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setAttributes", NULL, set_attributes, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "makeNode", NULL, make_node, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "fileHandle", NULL, file_handle, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "openHandle", NULL, open_handle, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "findInode", NULL, find_inode, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "cloneMount", NULL, clone_mount, NULL, NULL, NULL, napi_enumerable, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
