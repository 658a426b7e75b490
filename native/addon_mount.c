// SPDX-License-Identifier: Apache-2.0
/* Copies of mounts that are nowhere to be seen, and files in them, for shim/carriers/detached.ts. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <node_api.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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
		{ "cloneMount", NULL, clone_mount, NULL, NULL, NULL, napi_enumerable, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
