// SPDX-License-Identifier: Apache-2.0
/* Copies of mounts that are nowhere to be seen, and files in them, for shim/carriers/detached.ts. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <node_api.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "addon.h"

#define HANDLE_MAX 128

/* linux/mount.h, which does not go together with sys/mount.h everywhere. */
enum { OPEN_TREE_CLONE_ = 1, MOVE_MOUNT_F_EMPTY_PATH_ = 4 };
struct mount_attr_ {
	uint64_t attr_set, attr_clr, propagation, userns_fd;
};

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

/* isBeneath(dir, path, fd): boolean: whether openBeneath, of a link itself, leads to the same inode as a descriptor */
static napi_value is_beneath(napi_env env, napi_callback_info info)
{
	struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
	struct stat there, here;
	int32_t dir, fd, found;
	napi_value args[3], out;
	char path[4096];
	bool same;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &dir) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &fd))
		return NULL;
	if (fstat(fd, &here))
		return throw_errno(env, errno, "fstat");
	found = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
	same = found >= 0 && !fstat(found, &there) && there.st_ino == here.st_ino && there.st_dev == here.st_dev &&
	       there.st_mode == here.st_mode;
	if (found >= 0)
		close(found);
	return napi_get_boolean(env, same, &out) == napi_ok ? out : NULL;
}

/* A file handle; a Buffer of JavaScript's has the type, then the bytes. */
union handle {
	struct file_handle head;
	char space[sizeof(struct file_handle) + HANDLE_MAX];
};
#define HANDLE_TYPE sizeof(((struct file_handle *)NULL)->handle_type)

/* Of a descriptor. Returns whether its file system has such, and tells it. */
static bool read_handle(int fd, union handle *h)
{
	int mount;

	h->head.handle_bytes = HANDLE_MAX;
	return name_to_handle_at(fd, "", &h->head, &mount, AT_EMPTY_PATH) == 0;
}

#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200	/* fcntl.h, Linux 6.5 */
#endif

/* The same, of a file system too whose handles tell inodes apart but open none: an overlay without nfs_export (Linux 6.6). */
static bool read_id(int fd, union handle *h)
{
	int mount;

	if (read_handle(fd, h))
		return true;
	h->head.handle_bytes = HANDLE_MAX;
	return name_to_handle_at(fd, "", &h->head, &mount, AT_EMPTY_PATH | AT_HANDLE_FID) == 0;
}

/* What areAt() is told of one file. */
struct known {
	const char *path;
	int64_t dev, ino, mode;
	const char *handle;	/* as fileId() has it; NULL: none */
	size_t len;
};

static bool has_id(int fd, const char *id, size_t len)
{
	union handle h;

	return read_id(fd, &h) && len == HANDLE_TYPE + h.head.handle_bytes && !memcmp(id, &h.head.handle_type, HANDLE_TYPE) &&
	       !memcmp(id + HANDLE_TYPE, h.head.f_handle, h.head.handle_bytes);
}

static bool has_handle(int fd, const struct known *k)
{
	return !k->handle || has_id(fd, k->handle, k->len);
}

static bool is_known(const struct stat *st, const struct known *k)
{
	return (int64_t)st->st_dev == k->dev && (int64_t)st->st_ino == k->ino && (int64_t)st->st_mode == k->mode;
}

/* Whether a process's descriptor is still that file, and its name below `dir` leads to it. */
static bool is_at(int dir, int pid, int fd, const struct known *k)
{
	struct open_how how = { .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
	char link[48];
	struct stat st;
	bool same;
	int found;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", pid, fd);
	if (stat(link, &st) || !st.st_nlink || !is_known(&st, k))
		return false;
	found = (int)syscall(SYS_openat2, dir, k->path, &how, sizeof(how));
	if (found < 0)
		return false;
	same = !fstat(found, &st) && is_known(&st, k) && has_handle(found, k);
	close(found);
	return same;
}

/*
 * areAt(dir, pid, fds, paths, words, handles): Uint8Array: 1 for each descriptor of a process that is still what is known of it (of st_dev,
 * st_ino and st_mode in `words`, and the handle, undefined for none) and is to be found below `dir`. Many at once: see addon_many.c.
 */
static napi_value are_at(napi_env env, napi_callback_info info)
{
	napi_value args[6], result, each;
	size_t n, n_words;
	int32_t *fds, dir, pid;
	void *out, *handle;
	int64_t *words;
	char path[4096];
	bool is_buffer;

	if (!get_args(env, info, 6, args) || !get_int(env, args[0], &dir) || !get_int(env, args[1], &pid) ||
	    !get_ints(env, args[2], &fds, &n) || !get_longs(env, args[4], &words, &n_words))
		return NULL;
	if (n_words != 3 * n) {
		napi_throw_type_error(env, "ERR_ARGS", "three words for each descriptor were expected");
		return NULL;
	}
	result = make_array(env, napi_uint8_array, n, 1, &out);
	if (!result)
		return NULL;
	for (uint32_t i = 0; i < n; i++) {
		const int64_t *w = words + 3 * (size_t)i;
		struct known k = { .path = path, .dev = w[0], .ino = w[1], .mode = w[2] };

		if (napi_get_element(env, args[3], i, &each) != napi_ok || !get_path(env, each, path, sizeof(path)) ||
		    napi_get_element(env, args[5], i, &each) != napi_ok || napi_is_buffer(env, each, &is_buffer) != napi_ok)
			return NULL;
		if (is_buffer) {
			if (napi_get_buffer_info(env, each, &handle, &k.len) != napi_ok)
				return NULL;
			k.handle = handle;
		}
		((uint8_t *)out)[i] = is_at(dir, pid, fds[i], &k);
	}
	return result;
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

/* All that waits in a pipe, which stays there: what tee(2) has brought into another of its size. Returns -1 with errno. */
static ssize_t peek_pipe(int fd, int size, char *data, size_t len)
{
	int copy[2], err;
	ssize_t n, got = -1;

	if (pipe2(copy, O_CLOEXEC | O_NONBLOCK))
		return -1;
	if (fcntl(copy[1], F_SETPIPE_SZ, size) < 0)
		goto out;
	n = tee(fd, copy[1], len, SPLICE_F_NONBLOCK);
	if (n != (ssize_t)len) {
		errno = n < 0 ? errno : EIO;
		goto out;
	}
	for (got = 0; got < n;) {
		ssize_t r = read(copy[0], data + got, len - (size_t)got);

		if (r <= 0) {
			errno = r < 0 ? errno : EIO;
			got = -1;
			break;
		}
		got += r;
	}
out:
	err = errno;
	close(copy[0]);
	close(copy[1]);
	errno = err;
	return got;
}

/* peekPipe(fd): [size, Buffer]: how large a pipe or FIFO is that is open for reading, and what waits in it */
static napi_value peek(napi_env env, napi_callback_info info)
{
	napi_value args[1], result, element;
	int32_t fd;
	int size, len;
	void *data;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	size = fcntl(fd, F_GETPIPE_SZ);
	if (size < 0 || ioctl(fd, FIONREAD, &len))
		return throw_errno(env, errno, "look into a pipe");
	if (napi_create_buffer(env, (size_t)len, &data, &element) != napi_ok)
		return NULL;
	if (len > 0 && peek_pipe(fd, size, data, (size_t)len) < 0)
		return throw_errno(env, errno, "tee");
	if (napi_create_array_with_length(env, 2, &result) != napi_ok || napi_set_element(env, result, 1, element) != napi_ok ||
	    napi_set_element(env, result, 0, make_int(env, size)) != napi_ok)
		return NULL;
	return result;
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

static napi_value handle_by(napi_env env, napi_callback_info info, bool (*read)(int fd, union handle *h))
{
	napi_value args[1], out;
	union handle h;
	int32_t fd;
	char *copy;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (!read(fd, &h) || napi_create_buffer(env, HANDLE_TYPE + h.head.handle_bytes, (void **)&copy, &out) != napi_ok)
		return NULL;
	memcpy(copy, &h.head.handle_type, HANDLE_TYPE);
	memcpy(copy + HANDLE_TYPE, h.head.f_handle, h.head.handle_bytes);
	return out;
}

/* fileHandle(fd): Buffer | undefined: the kernel's name for an inode in its file system; some have none, or cannot tell it */
static napi_value file_handle(napi_env env, napi_callback_info info)
{
	return handle_by(env, info, read_handle);
}

/* fileId(fd): Buffer | undefined: the same, where it is good for comparing alone, too */
static napi_value file_id(napi_env env, napi_callback_info info)
{
	return handle_by(env, info, read_id);
}

/* fileSystemId(fd): Buffer: what statfs(2) has as f_fsid; zeros where the file system has none */
static napi_value file_system_id(napi_env env, napi_callback_info info)
{
	napi_value args[1], out;
	struct statfs st;
	int32_t fd;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (fstatfs(fd, &st))
		return throw_errno(env, errno, "fstatfs");
	return napi_create_buffer_copy(env, sizeof(st.f_fsid), &st.f_fsid, NULL, &out) == napi_ok ? out : NULL;
}

/* openHandle(mount, handle, flags): number: an inode by its handle, on the mount of another descriptor */
static napi_value open_handle(napi_env env, napi_callback_info info)
{
	int32_t mount, flags;
	napi_value args[3];
	union handle h;
	size_t len;
	void *data;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &mount) || !get_int(env, args[2], &flags))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok || len < HANDLE_TYPE ||
	    len > HANDLE_TYPE + HANDLE_MAX) {
		napi_throw_type_error(env, "ERR_ARGS", "a file handle was expected");
		return NULL;
	}
	memcpy(&h.head.handle_type, data, HANDLE_TYPE);
	h.head.handle_bytes = (unsigned int)(len - HANDLE_TYPE);
	memcpy(h.head.f_handle, (char *)data + HANDLE_TYPE, h.head.handle_bytes);
	return fd_or_throw(env, open_by_handle_at(mount, &h.head, flags | O_CLOEXEC), "open_by_handle_at");
}

/* How findInode walks: `left` entries may still be looked at. */
struct walk {
	uint64_t ino;
	const char *id;		/* what it must have as fileId(), a directory as well; NULL: it is no directory */
	size_t id_len;
	int64_t left;
	char path[4096];
};

static bool is_sought(int dir, const struct dirent *e, const struct walk *w)
{
	bool same;
	int fd;

	if (e->d_ino != w->ino || !w->id)
		return e->d_ino == w->ino && e->d_type != DT_DIR;
	fd = openat(dir, e->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return false;
	same = has_id(fd, w->id, w->id_len);
	close(fd);
	return same;
}

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
		found = is_sought(dirfd(d), e, w);
		if (found || e->d_type != DT_DIR || depth >= 64)
			continue;
		sub = (int)syscall(SYS_openat2, dirfd(d), e->d_name, &how, sizeof(how));
		if (sub >= 0)
			found = walk_down(sub, w, len + 1 + n, depth + 1);
	}
	closedir(d);
	return found;
}

/* findInode(dir, ino, most, id): string | undefined: a name of an inode, looking at no more than so many; `id`: its fileId(), or undefined; latin1 */
static napi_value find_inode(napi_env env, napi_callback_info info)
{
	napi_value args[4], out;
	bool has;
	void *id;
	struct walk *w;
	int32_t dir, fd;
	bool lossless;

	w = calloc(1, sizeof(*w));
	if (!w)
		return throw_errno(env, ENOMEM, "calloc");
	out = NULL;
	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &dir) || !get_double(env, args[2], &w->left) ||
	    napi_is_buffer(env, args[3], &has) != napi_ok || (has && napi_get_buffer_info(env, args[3], &id, &w->id_len) != napi_ok))
		goto end;
	if (has)
		w->id = id;
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

/* Work in another mount namespace. */
struct visit {
	int ns;			/* -1: here */
	bool (*work)(struct visit *v);
	const char *step;	/* what failed, and how */
	int err;
};

/* In a thread of its own: a mount namespace is changed only by who shares his working directory with nobody. */
static void *visit_in_thread(void *arg)
{
	struct visit *v = arg;

	v->err = 0;
	v->step = "unshare";
	if (unshare(CLONE_FS))
		goto failed;
	v->step = "setns";
	if (v->ns >= 0 && setns(v->ns, CLONE_NEWNS))
		goto failed;
	if (v->work(v))
		return NULL;
failed:
	v->err = errno ? errno : EIO;
	return NULL;
}

/* Throws where it fails. */
static bool visit(napi_env env, struct visit *v)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, visit_in_thread, v);

	if (err) {
		throw_errno(env, err, "pthread_create");
		return false;
	}
	pthread_join(thread, NULL);
	if (v->err)
		throw_errno(env, v->err, v->step);
	return !v->err;
}

#define ALL_ATTRIBUTES 15	/* MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC */

/* A copy of a mount, or of a part of it, that allows all. */
static int copy_of(const char *path, struct visit *v)
{
	struct mount_attr_ attr = { .attr_clr = ALL_ATTRIBUTES };
	int fd, err;

	v->step = "open_tree";
	fd = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE_ | O_CLOEXEC | AT_SYMLINK_NOFOLLOW);
	if (fd < 0)
		return -1;
	v->step = "mount_setattr";
	if (!syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		return fd;
	err = errno;
	close(fd);
	errno = err;
	return -1;
}

struct set {
	struct visit v;
	int tree;
	uint64_t set, clear;
};

static bool set_there(struct visit *v)
{
	struct set *s = (struct set *)v;
	struct mount_attr_ attr = { .attr_set = s->set, .attr_clr = s->clear };

	v->step = "mount_setattr";
	return !syscall(SYS_mount_setattr, s->tree, "", AT_EMPTY_PATH, &attr, sizeof(attr));
}

/* setMount(ns, tree, set, clear): gives MOUNT_ATTR_* to a mount of a namespace, or of none, and takes others away */
static napi_value set_mount(napi_env env, napi_callback_info info)
{
	struct set s = { .v.work = set_there };
	napi_value args[4];
	int32_t set, clear;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &s.v.ns) || !get_int(env, args[1], &s.tree) ||
	    !get_int(env, args[2], &set) || !get_int(env, args[3], &clear))
		return NULL;
	s.set = (uint32_t)set;
	s.clear = (uint32_t)clear;
	visit(env, &s.v);
	return NULL;
}

struct name_socket {
	struct visit v;
	int root, socket;
	const char *start;
	struct sockaddr_un addr;
	socklen_t len;
};

static bool name_there(struct visit *v)
{
	struct name_socket *n = (struct name_socket *)v;

	v->step = "chroot";
	if (fchdir(n->root) || chroot(".") || chdir(n->start))
		return false;
	v->step = "bind";
	return !bind(n->socket, (const struct sockaddr *)&n->addr, n->len);
}

/* bindBelow(root, start, socket, name): binds a unix socket as who has that root, and that working directory below it */
static napi_value bind_below(napi_env env, napi_callback_info info)
{
	struct name_socket n = { .v = { .ns = -1, .work = name_there }, .addr.sun_family = AF_UNIX };
	char start[4096], name[4096];
	napi_value args[4];
	size_t len;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &n.root) || !get_path(env, args[1], start, sizeof(start)) ||
	    !get_int(env, args[2], &n.socket) || !get_path(env, args[3], name, sizeof(name)))
		return NULL;
	len = strlen(name);
	if (!len || len > sizeof(n.addr.sun_path))
		return throw_errno(env, ENAMETOOLONG, "bind");
	memcpy(n.addr.sun_path, name, len);
	n.len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	n.start = start;
	visit(env, &n.v);
	return NULL;
}

struct fresh {
	struct visit v;
	const char *options;
	int fd;
};

static bool mount_fresh(struct visit *v)
{
	struct fresh *f = (struct fresh *)v;

	v->step = "unshare";
	if (unshare(CLONE_NEWNS))
		return false;
	v->step = "mount";
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("tmpfs", "/", "tmpfs", 0, f->options))
		return false;
	/* What is mounted over a root is not in the way of whose root it is. */
	v->step = "open";
	f->fd = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
	return f->fd >= 0;
}

/* newTmpfs(options): number: a mount namespace with a new tmpfs as its root */
static napi_value new_tmpfs(napi_env env, napi_callback_info info)
{
	char options[256];
	struct fresh f = { .v = { .ns = -1, .work = mount_fresh }, .options = options, .fd = -1 };
	napi_value args[1];

	if (!get_args(env, info, 1, args) || !get_path(env, args[0], options, sizeof(options)))
		return NULL;
	return visit(env, &f.v) ? fd_or_throw(env, f.fd, f.v.step) : NULL;
}

/* setTimes(path, atime, mtime): nanoseconds; of a symbolic link itself */
static napi_value set_times(napi_env env, napi_callback_info info)
{
	struct timespec times[2];
	napi_value args[3];
	char path[4096];

	if (!get_args(env, info, 3, args) || !get_path(env, args[0], path, sizeof(path)) || !get_ns(env, args[1], &times[0]) ||
	    !get_ns(env, args[2], &times[1]))
		return NULL;
	return utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) ? throw_errno(env, errno, "utimensat") : NULL;
}

static bool add_xattr(napi_env env, napi_value list, uint32_t i, const char *path, const char *name, bool follow)
{
	static char value[65536];
	napi_value pair, each[2];
	ssize_t n = (follow ? getxattr : lgetxattr)(path, name, value, sizeof(value));

	if (n < 0) {
		throw_errno(env, errno, "lgetxattr");
		return false;
	}
	return napi_create_array_with_length(env, 2, &pair) == napi_ok &&
	       napi_create_string_latin1(env, name, NAPI_AUTO_LENGTH, &each[0]) == napi_ok &&
	       napi_create_buffer_copy(env, (size_t)n, value, NULL, &each[1]) == napi_ok &&
	       napi_set_element(env, pair, 0, each[0]) == napi_ok && napi_set_element(env, pair, 1, each[1]) == napi_ok &&
	       napi_set_element(env, list, i, pair) == napi_ok;
}

/* xattrs(path, follow): [name, Buffer][]: extended attributes; of a symbolic link itself, unless it is followed */
static napi_value xattrs(napi_env env, napi_callback_info info)
{
	static char names[65536];
	napi_value args[2], list;
	char path[4096];
	uint32_t i = 0;
	bool follow;
	ssize_t n;

	if (!get_args(env, info, 2, args) || !get_path(env, args[0], path, sizeof(path)) ||
	    napi_get_value_bool(env, args[1], &follow) != napi_ok || napi_create_array(env, &list) != napi_ok)
		return NULL;
	n = (follow ? listxattr : llistxattr)(path, names, sizeof(names));
	if (n < 0)
		return errno == EOPNOTSUPP ? list : throw_errno(env, errno, "llistxattr");
	for (char *name = names; name < names + n; name += strlen(name) + 1)
		if (!add_xattr(env, list, i++, path, name, follow))
			return NULL;
	return list;
}

/* setXattr(path, name, value: Buffer) */
static napi_value set_xattr(napi_env env, napi_callback_info info)
{
	char path[4096], name[256];
	napi_value args[3];
	size_t len;
	void *data;

	if (!get_args(env, info, 3, args) || !get_path(env, args[0], path, sizeof(path)) ||
	    !get_path(env, args[1], name, sizeof(name)))
		return NULL;
	if (napi_get_buffer_info(env, args[2], &data, &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a Buffer was expected");
		return NULL;
	}
	return lsetxattr(path, name, data, len, 0) ? throw_errno(env, errno, "lsetxattr") : NULL;
}

#define STORE "criu-fdstore-"	/* criu/fdstore.c, after a NUL and a slash */
#define MOST_STORED 65536

/* The descriptor with a number in CRIU's store; -1: there are not so many. */
static int stored(int store, int number)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * 4)];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	int fd;

	if (setsockopt(store, SOL_SOCKET, SO_PEEK_OFF, &number, sizeof(number)) ||
	    recvmsg(store, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
		return -1;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -1;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

static bool is_store(int fd)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr);

	return !getsockname(fd, (struct sockaddr *)&addr, &len) && addr.sun_family == AF_UNIX && !addr.sun_path[0] &&
	       !strncmp(addr.sun_path + 2, STORE, strlen(STORE));
}

/* CRIU's store of descriptors among those of a process; -1: it has none. */
static int store_of(int pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), found = -1, fd;
	struct dirent *e;
	char path[64];
	DIR *d;

	if (pidfd < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	while (d && found < 0 && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(e->d_name), 0);
		if (fd < 0)
			continue;
		if (is_store(fd))
			found = fd;
		else
			close(fd);
	}
	if (d)
		closedir(d);
	close(pidfd);
	return found;
}

/*
 * storedNamespaces(pid): number[]: the mount namespaces that CRIU has made for a restore whose root task this is. Only while
 * CRIU waits: it looks into its store in two steps.
 */
static napi_value stored_namespaces(napi_env env, napi_callback_info info)
{
	napi_value args[1], out, each;
	int32_t pid;
	int store, fd;
	uint32_t n = 0;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &pid) || napi_create_array(env, &out) != napi_ok)
		return NULL;
	store = store_of(pid);
	if (store < 0)
		return out;
	for (int i = 0; i < MOST_STORED && (fd = stored(store, i)) >= 0; i++) {
		if (ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNS || napi_create_int32(env, fd, &each) != napi_ok ||
		    napi_set_element(env, out, n++, each) != napi_ok)
			close(fd);
	}
	close(store);
	return out;
}

struct clone {
	struct visit v;
	const char *path;
	int fd;
};

static bool clone_there(struct visit *v)
{
	struct clone *c = (struct clone *)v;

	c->fd = copy_of(c->path, v);
	return c->fd >= 0;
}

/* cloneMount(ns, path): number: a copy of a mount that is in no namespace */
static napi_value clone_mount(napi_env env, napi_callback_info info)
{
	char path[4096];
	struct clone c = { .v.work = clone_there, .path = path, .fd = -1 };
	napi_value args[2];

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &c.v.ns) || !get_path(env, args[1], path, sizeof(path)))
		return NULL;
	return visit(env, &c.v) ? fd_or_throw(env, c.fd, c.v.step) : NULL;
}

static bool open_there(struct visit *v)
{
	struct clone *c = (struct clone *)v;

	v->step = "open";
	c->fd = open(c->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return c->fd >= 0;
}

/* openIn(ns, path): number: a directory of another mount namespace */
static napi_value open_in(napi_env env, napi_callback_info info)
{
	char path[4096];
	struct clone c = { .v.work = open_there, .path = path, .fd = -1 };
	napi_value args[2];

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &c.v.ns) || !get_path(env, args[1], path, sizeof(path)))
		return NULL;
	return visit(env, &c.v) ? fd_or_throw(env, c.fd, c.v.step) : NULL;
}

struct listing {
	struct visit v;
	int proc;
	char *text;
	size_t len;
};

static bool list_there(struct visit *v)
{
	struct listing *l = (struct listing *)v;
	size_t size = 0;
	ssize_t n = 0;
	char *grown;
	int fd;

	v->step = "read mountinfo";
	fd = openat(l->proc, "thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	do {
		if (size - l->len < 65536) {
			grown = realloc(l->text, size + 131072);
			if (!grown)
				break;
			l->text = grown;
			size += 131072;
		}
		n = read(fd, l->text + l->len, size - l->len);
		if (n > 0)
			l->len += (size_t)n;
	} while (n > 0);
	close(fd);
	return n == 0;
}

/* mountInfo(ns): string: all mounts of a namespace, as its root sees them; latin1 */
static napi_value mount_info(napi_env env, napi_callback_info info)
{
	struct listing l = { .v.work = list_there, .proc = -1 };
	napi_value args[1], out = NULL;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &l.v.ns))
		return NULL;
	l.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (l.proc < 0)
		return throw_errno(env, errno, "open /proc");
	if (visit(env, &l.v) && napi_create_string_latin1(env, l.text ? l.text : "", l.len, &out) != napi_ok)
		out = NULL;
	close(l.proc);
	free(l.text);
	return out;
}

struct copy {
	char path[4096];
	int fd;
};

struct attach {
	struct visit v;
	const char *base;
	struct copy *copies;
	uint32_t n;
};

static bool attach_one(struct visit *v, const char *at, struct copy *c)
{
	v->step = "mkdir";
	if (mkdir(at, 0700))
		return false;
	c->fd = copy_of(c->path, v);
	if (c->fd < 0)
		return false;
	v->step = "move_mount";
	return !syscall(SYS_move_mount, c->fd, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH_);
}

static bool attach_there(struct visit *v)
{
	struct attach *a = (struct attach *)v;
	char at[4200];
	uint32_t i;
	int err;

	v->step = "mount";
	if (mount("cryoshim", a->base, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"))
		return false;
	for (i = 0; i < a->n; i++) {
		snprintf(at, sizeof(at), "%s/%u", a->base, i);
		if (!attach_one(v, at, &a->copies[i]))
			break;
	}
	if (i == a->n)
		return true;
	err = errno;
	(void)umount2(a->base, MNT_DETACH | UMOUNT_NOFOLLOW);
	errno = err;
	return false;
}

/*
 * attachMounts(ns, base, paths): number[]: mounts a tmpfs at `base` and copies of mounts at its
 * directories 0, 1, ...; descriptors of the copies
 */
static napi_value attach_mounts(napi_env env, napi_callback_info info)
{
	struct attach a = { .v.work = attach_there };
	napi_value args[3], each, out = NULL;
	char base[4096];
	int32_t ns;
	uint32_t i;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &ns) || !get_path(env, args[1], base, sizeof(base)) ||
	    napi_get_array_length(env, args[2], &a.n) != napi_ok)
		return NULL;
	a.v.ns = ns;
	a.base = base;
	a.copies = calloc(a.n ? a.n : 1, sizeof(*a.copies));
	if (!a.copies)
		return throw_errno(env, ENOMEM, "calloc");
	for (i = 0; i < a.n; i++)
		a.copies[i].fd = -1;
	for (i = 0; i < a.n; i++)
		if (napi_get_element(env, args[2], i, &each) != napi_ok ||
		    !get_path(env, each, a.copies[i].path, sizeof(a.copies[i].path)))
			goto failed;
	if (!visit(env, &a.v) || napi_create_array_with_length(env, a.n, &out) != napi_ok)
		goto failed;
	for (i = 0; i < a.n; i++) {
		if (napi_create_int32(env, a.copies[i].fd, &each) != napi_ok || napi_set_element(env, out, i, each) != napi_ok) {
			out = NULL;
			goto failed;
		}
	}
	free(a.copies);
	return out;
failed:
	for (i = 0; i < a.n; i++)
		if (a.copies[i].fd >= 0)
			close(a.copies[i].fd);
	free(a.copies);
	return NULL;
}

struct single {
	struct visit v;
	int fd, tree;
	const char *at, *name;
	bool directory;
	uint64_t set;
};

static bool attach_single(struct visit *v)
{
	struct single *s = (struct single *)v;
	struct mount_attr_ attr = { .attr_set = s->set };
	int fd, err;
	bool done;

	v->step = "make a mount point";
	if (s->directory ? mkdir(s->at, 0700) : mknod(s->at, S_IFREG | 0600, 0))
		return false;
	/* A mount whose root has no name is attached nowhere (fs/namespace.c:get_mountpoint), but its root may lose it there. */
	v->step = "linkat";
	if (!s->directory && linkat(s->fd, "", s->tree, s->name, AT_EMPTY_PATH))
		return false;
	v->step = "open_tree";
	fd = (int)syscall(SYS_open_tree, s->tree, s->name, OPEN_TREE_CLONE_ | O_CLOEXEC | AT_SYMLINK_NOFOLLOW);
	done = fd >= 0;
	if (done) {
		v->step = "move_mount";
		done = !syscall(SYS_move_mount, fd, "", AT_FDCWD, s->at, MOVE_MOUNT_F_EMPTY_PATH_) &&
		       (!s->set || !syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
	}
	err = errno;
	if (fd >= 0)
		close(fd);
	if (unlinkat(s->tree, s->name, s->directory ? AT_REMOVEDIR : 0) && done) {
		v->step = "unlinkat";
		return false;
	}
	errno = err;
	return done;
}

/*
 * attachFile(ns, fd, at, directory, set, tree, name): mounts what is open on the attached mount of `tree` with MOUNT_ATTR_*; it may
 * have no name, and has that one meanwhile, a directory before
 */
static napi_value attach_file(napi_env env, napi_callback_info info)
{
	char at[4096], name[256];
	struct single s = { .v.work = attach_single, .at = at, .name = name };
	napi_value args[7];
	int32_t set;

	if (!get_args(env, info, 7, args) || !get_int(env, args[0], &s.v.ns) || !get_int(env, args[1], &s.fd) ||
	    !get_path(env, args[2], at, sizeof(at)) || napi_get_value_bool(env, args[3], &s.directory) != napi_ok ||
	    !get_int(env, args[4], &set) || !get_int(env, args[5], &s.tree) || !get_path(env, args[6], name, sizeof(name)))
		return NULL;
	s.set = (uint32_t)set;
	visit(env, &s.v);
	return NULL;
}

static bool detach_there(struct visit *v)
{
	struct attach *a = (struct attach *)v;

	v->step = "umount2";
	return !umount2(a->base, MNT_DETACH | UMOUNT_NOFOLLOW);
}

/* detachMounts(ns, base): what attachMounts has mounted is in no namespace any more, but stays with who has it open */
static napi_value detach_mounts(napi_env env, napi_callback_info info)
{
	struct attach a = { .v.work = detach_there };
	napi_value args[2];
	char base[4096];
	int32_t ns;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &ns) || !get_path(env, args[1], base, sizeof(base)))
		return NULL;
	a.v.ns = ns;
	a.base = base;
	visit(env, &a.v);
	return NULL;
}

/* unmount(path): from where it is seen, whoever uses it (MNT_DETACH) */
static napi_value unmount(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	char path[4096];

	if (!get_args(env, info, 1, args) || !get_path(env, args[0], path, sizeof(path)))
		return NULL;
	if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW))
		return throw_errno(env, errno, "umount2");
	return NULL;
}

bool mount_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "openBeneath", NULL, open_beneath, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "isBeneath", NULL, is_beneath, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "areAt", NULL, are_at, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "seek", NULL, seek_to, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "nextData", NULL, next_data, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setPipeSize", NULL, set_pipe_size, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "peekPipe", NULL, peek, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setBlocking", NULL, set_blocking, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setAttributes", NULL, set_attributes, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "makeNode", NULL, make_node, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "fileHandle", NULL, file_handle, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "fileId", NULL, file_id, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "fileSystemId", NULL, file_system_id, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "openHandle", NULL, open_handle, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "findInode", NULL, find_inode, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "attachMounts", NULL, attach_mounts, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "attachFile", NULL, attach_file, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "detachMounts", NULL, detach_mounts, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "bindBelow", NULL, bind_below, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "newTmpfs", NULL, new_tmpfs, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setTimes", NULL, set_times, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "xattrs", NULL, xattrs, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setXattr", NULL, set_xattr, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "storedNamespaces", NULL, stored_namespaces, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "setMount", NULL, set_mount, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "mountInfo", NULL, mount_info, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "openIn", NULL, open_in, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "unmount", NULL, unmount, NULL, NULL, NULL, napi_enumerable, NULL },
		{ "cloneMount", NULL, clone_mount, NULL, NULL, NULL, napi_enumerable, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
