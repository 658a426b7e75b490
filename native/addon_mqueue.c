// SPDX-License-Identifier: Apache-2.0
/* POSIX message queues of another ipc namespace, for shim/carriers/mqueue.ts. The namespace is given as a pidfd or nsfd. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <node_api.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "addon.h"

/* linux/mount.h, which does not go together with sys/mount.h everywhere. */
enum { FSCONFIG_CREATE = 6, FSOPEN_CLOSE = 1, FSMOUNT_CLOSE = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, ATTR_NOEXEC = 8 };
/* ipc/mqueue.c, HARD_MSGMAX and HARD_MSGSIZEMAX: what the administrator may set at most. */
#define HARD_MSGMAX 65536
#define HARD_MSGSIZEMAX (16 << 20)

struct ipc_call {
	int (*work)(struct ipc_call *);
	const char *step;	/* what failed */
	const char *name;
	struct mq_attr attr;
	mode_t mode;
};

static long work_in_ipc(void *call)
{
	return ((struct ipc_call *)call)->work(call);
}

/* The call's own steps say what failed; before them it is setns(2). */
static int in_ipc(int ns, struct ipc_call *call)
{
	call->step = "setns";
	return (int)in_namespace(ns, CLONE_NEWIPC, work_in_ipc, call);
}

/* A mount of the namespace's queues that is nowhere to be seen. */
static int mount_here(struct ipc_call *call)
{
	int fs = (int)syscall(SYS_fsopen, "mqueue", FSOPEN_CLOSE), mnt = -1, err;

	call->step = "fsopen";
	if (fs < 0)
		return -1;
	call->step = "fsconfig";
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CREATE, NULL, NULL, 0) == 0) {
		call->step = "fsmount";
		mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOSE, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
	}
	err = errno;
	close(fs);
	errno = err;
	return mnt;
}

static int read_limit(const char *path, char *old, size_t size)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, old, size - 1);
	if (n < 0) {
		close(fd);
		return -1;
	}
	old[n] = '\0';
	return fd;
}

/* The three limits of this namespace, raised while a queue is made that is older than they are. */
static int create_above_limits(struct ipc_call *call)
{
	static const char *const path[] = { "/proc/sys/fs/mqueue/msg_max", "/proc/sys/fs/mqueue/msgsize_max",
					    "/proc/sys/fs/mqueue/queues_max" };
	static const char *const most[] = { "65536", "16777216", "65536" };
	char old[3][32];
	int fd[3] = { -1, -1, -1 }, ret = -1, err = 0;

	for (int i = 0; i < 3 && !err; i++) {
		fd[i] = read_limit(path[i], old[i], sizeof(old[i]));
		if (fd[i] < 0 || pwrite(fd[i], most[i], strlen(most[i]), 0) < 0)
			err = errno;
	}
	if (!err) {
		ret = mq_open(call->name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, call->mode, &call->attr);
		err = errno;
	}
	for (int i = 0; i < 3; i++) {
		if (fd[i] < 0)
			continue;
		/* Left raised it would be no harm, but not what was there: the caller hears of it. */
		if (pwrite(fd[i], old[i], strlen(old[i]), 0) < 0 && ret >= 0) {
			err = errno;
			mq_close(ret);
			mq_unlink(call->name);
			ret = -1;
		}
		close(fd[i]);
	}
	errno = err;
	return ret;
}

static int create_here(struct ipc_call *call)
{
	int fd = mq_open(call->name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, call->mode, &call->attr);

	call->step = "mq_open";
	if (fd < 0 && (errno == EINVAL || errno == ENOSPC) && call->attr.mq_maxmsg <= HARD_MSGMAX &&
	    call->attr.mq_msgsize <= HARD_MSGSIZEMAX)
		fd = create_above_limits(call);
	return fd;
}

static napi_value result_of(napi_env env, int ret, const struct ipc_call *call)
{
	napi_value result = NULL;

	if (ret < 0)
		return throw_errno(env, errno, call->step);
	return napi_create_int32(env, ret, &result) == napi_ok ? result : NULL;
}

/* mqueueMount(ns): number */
static napi_value mqueue_mount(napi_env env, napi_callback_info info)
{
	struct ipc_call call = { .work = mount_here };
	napi_value args[1];
	int32_t ns;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &ns))
		return NULL;
	return result_of(env, in_ipc(ns, &call), &call);
}

/* mqueueCreate(ns, name: Buffer, mode, maxmsg, msgsize): number, open for reading and writing, O_NONBLOCK */
static napi_value mqueue_create(napi_env env, napi_callback_info info)
{
	struct ipc_call call = { .work = create_here };
	struct rlimit limit;
	int32_t ns, mode, maxmsg, msgsize;
	char name[258] = "/";
	napi_value args[5];
	mode_t umask_was;
	size_t len;
	void *data;
	int ret;

	if (!get_args(env, info, 5, args) || !get_int(env, args[0], &ns) || !get_int(env, args[2], &mode) ||
	    !get_int(env, args[3], &maxmsg) || !get_int(env, args[4], &msgsize))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok || len == 0 || len > 255 ||
	    memchr(data, '/', len) || memchr(data, '\0', len)) {
		napi_throw_type_error(env, "ERR_ARGS", "mqueueCreate(ns, name, mode, maxmsg, msgsize)");
		return NULL;
	}
	memcpy(name + 1, data, len);
	call.name = name;
	call.mode = (mode_t)mode;
	call.attr.mq_maxmsg = maxmsg;
	call.attr.mq_msgsize = msgsize;
	/* The bytes of a queue count against whoever makes it: for that we may use all that there is. */
	if (getrlimit(RLIMIT_MSGQUEUE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
		struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };

		if (setrlimit(RLIMIT_MSGQUEUE, &all)) {
			limit.rlim_cur = limit.rlim_max;
			(void)setrlimit(RLIMIT_MSGQUEUE, &limit);
		}
	}
	umask_was = umask(0);
	ret = in_ipc(ns, &call);
	umask(umask_was);
	return result_of(env, ret, &call);
}

/* mqueueSend(fd, data: Buffer, priority) */
static napi_value mqueue_send(napi_env env, napi_callback_info info)
{
	int32_t fd, priority;
	napi_value args[3];
	size_t len;
	void *data;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &fd) || !get_int(env, args[2], &priority))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "mqueueSend(fd, data, priority)");
		return NULL;
	}
	/* An empty Buffer has no address. */
	if (mq_send(fd, len ? data : "", len, (unsigned)priority))
		return throw_errno(env, errno, "mq_send");
	return NULL;
}

bool mqueue_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "mqueueMount", NULL, mqueue_mount, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "mqueueCreate", NULL, mqueue_create, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "mqueueSend", NULL, mqueue_send, NULL, NULL, NULL, napi_default_jsproperty, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
