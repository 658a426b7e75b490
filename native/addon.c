// SPDX-License-Identifier: Apache-2.0
/*
 * The native side of the shim: kernel interfaces that Node does not have. Flat verbs, plain numbers and buffers; all
 * policy is TypeScript's (native/index.ts types and documents each).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <node_api.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <uv.h>

#include "addon.h"

#define MAX_FDS 64

napi_value throw_errno(napi_env env, int err, const char *syscall_name)
{
	napi_value message, error, value;
	char text[128], code[16];

	snprintf(text, sizeof(text), "%s: %s", syscall_name, strerror(err));
	snprintf(code, sizeof(code), "%s", strerrorname_np(err) ? strerrorname_np(err) : "EUNKNOWN");
	if (napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &message) == napi_ok &&
	    napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &value) == napi_ok &&
	    napi_create_error(env, value, message, &error) == napi_ok &&
	    napi_create_int32(env, -err, &value) == napi_ok &&
	    napi_set_named_property(env, error, "errno", value) == napi_ok &&
	    napi_create_string_utf8(env, syscall_name, NAPI_AUTO_LENGTH, &value) == napi_ok &&
	    napi_set_named_property(env, error, "syscall", value) == napi_ok)
		napi_throw(env, error);
	return NULL;
}

bool get_args(napi_env env, napi_callback_info info, size_t want, napi_value *args)
{
	size_t got = want;

	if (napi_get_cb_info(env, info, &got, args, NULL, NULL) != napi_ok || got < want) {
		napi_throw_type_error(env, "ERR_ARGS", "too few arguments");
		return false;
	}
	return true;
}

bool get_int(napi_env env, napi_value value, int32_t *out)
{
	if (napi_get_value_int32(env, value, out) == napi_ok)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a number was expected");
	return false;
}

bool get_u64(napi_env env, napi_value value, uint64_t *out)
{
	bool lossless;

	if (napi_get_value_bigint_uint64(env, value, out, &lossless) == napi_ok)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a bigint was expected");
	return false;
}

static bool get_array(napi_env env, napi_value value, napi_typedarray_type wanted, const char *otherwise, void **data, size_t *n)
{
	napi_typedarray_type type;

	if (napi_get_typedarray_info(env, value, &type, n, data, NULL, NULL) == napi_ok && type == wanted)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", otherwise);
	return false;
}

bool get_ints(napi_env env, napi_value value, int32_t **ints, size_t *n)
{
	void *data;

	if (!get_array(env, value, napi_int32_array, "an Int32Array was expected", &data, n))
		return false;
	*ints = data;
	return true;
}

bool get_longs(napi_env env, napi_value value, int64_t **longs, size_t *n)
{
	void *data;

	if (!get_array(env, value, napi_bigint64_array, "a BigInt64Array was expected", &data, n))
		return false;
	*longs = data;
	return true;
}

bool get_path(napi_env env, napi_value value, char *path, size_t size)
{
	size_t len;

	if (napi_get_value_string_latin1(env, value, path, size, &len) == napi_ok && len > 0 && len < size - 1 &&
	    strlen(path) == len)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a path was expected");
	return false;
}

napi_value make_array(napi_env env, napi_typedarray_type type, size_t n, size_t each, void **data)
{
	napi_value buffer, array;

	if (napi_create_arraybuffer(env, n * each, data, &buffer) != napi_ok ||
	    napi_create_typedarray(env, type, n, buffer, 0, &array) != napi_ok)
		return NULL;
	return array;
}

napi_value make_int(napi_env env, int32_t n)
{
	napi_value v = NULL;

	napi_create_int32(env, n, &v);
	return v;
}

/* seqpacketPair(): [number, number] */
static napi_value seqpacket_pair(napi_env env, napi_callback_info info)
{
	napi_value pair;
	int sk[2], size = 1 << 20;

	(void)info;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sk))
		return throw_errno(env, errno, "socketpair");
	/* A request can carry hundreds of external mounts; the default buffer is 208 KiB. Best effort by design. */
	for (int i = 0; i < 2; i++)
		if (setsockopt(sk[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
			(void)setsockopt(sk[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (napi_create_array_with_length(env, 2, &pair) != napi_ok ||
	    napi_set_element(env, pair, 0, make_int(env, sk[0])) != napi_ok ||
	    napi_set_element(env, pair, 1, make_int(env, sk[1])) != napi_ok) {
		close(sk[0]);
		close(sk[1]);
		return NULL;
	}
	return pair;
}

/* sendMessage(fd, data, fds) */
static napi_value send_message(napi_env env, napi_callback_info info)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
		struct cmsghdr align;
	} control;
	struct msghdr msg = { 0 };
	struct iovec iov;
	napi_value args[3], element;
	uint32_t n_fds;
	int fds[MAX_FDS];
	int32_t fd;
	size_t len;
	void *data;
	ssize_t n;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok ||
	    napi_get_array_length(env, args[2], &n_fds) != napi_ok || n_fds > MAX_FDS) {
		napi_throw_type_error(env, "ERR_ARGS", "sendMessage(fd, Buffer, number[])");
		return NULL;
	}
	for (uint32_t i = 0; i < n_fds; i++)
		if (napi_get_element(env, args[2], i, &element) != napi_ok || !get_int(env, element, &fds[i]))
			return NULL;
	iov = (struct iovec){ .iov_base = data, .iov_len = len };
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	if (n_fds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	do
		n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return throw_errno(env, errno, "sendmsg");
	return make_int(env, (int32_t)n);
}

static napi_value message_value(napi_env env, const void *data, size_t len, const int *fds, size_t n_fds)
{
	napi_value result, value;

	if (napi_create_object(env, &result) != napi_ok || napi_create_buffer_copy(env, len, data, NULL, &value) != napi_ok ||
	    napi_set_named_property(env, result, "data", value) != napi_ok ||
	    napi_create_array_with_length(env, n_fds, &value) != napi_ok)
		return NULL;
	for (size_t i = 0; i < n_fds; i++)
		if (napi_set_element(env, value, (uint32_t)i, make_int(env, fds[i])) != napi_ok)
			return NULL;
	if (napi_set_named_property(env, result, "fds", value) != napi_ok)
		return NULL;
	return result;
}

/* receiveMessage(fd, max, peek): { data, fds } | undefined; never blocks (EAGAIN is thrown) */
static napi_value receive_message(napi_env env, napi_callback_info info)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
		struct cmsghdr align;
	} control;
	napi_value args[3], result = NULL;
	struct msghdr msg = { 0 };
	int fds[MAX_FDS], flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
	struct iovec iov;
	size_t n_fds = 0;
	int32_t fd, max;
	bool peek;
	char *buf;
	ssize_t n;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &max))
		return NULL;
	if (napi_get_value_bool(env, args[2], &peek) != napi_ok || max <= 0) {
		napi_throw_type_error(env, "ERR_ARGS", "receiveMessage(fd, max, peek)");
		return NULL;
	}
	/* The size first: a peer may send more than anyone expects, and a cut request must not be acted on. */
	do
		n = recv(fd, NULL, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return throw_errno(env, errno, "recv");
	if (n > max)
		return throw_errno(env, EMSGSIZE, "recv");
	buf = malloc(n ? (size_t)n : 1);
	if (!buf)
		return throw_errno(env, ENOMEM, "recv");
	iov = (struct iovec){ .iov_base = buf, .iov_len = n ? (size_t)n : 1 };
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	if (!peek) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	} else {
		flags |= MSG_PEEK;
	}
	do
		n = recvmsg(fd, &msg, flags);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		free(buf);
		return throw_errno(env, errno, "recvmsg");
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), n_fds * sizeof(int));
	}
	if (n == 0 && n_fds == 0)
		napi_get_undefined(env, &result);
	else
		result = message_value(env, buf, (size_t)n, fds, n_fds);
	free(buf);
	return result;
}

/* peerPid(fd): number — SO_PEERCRED, the process that made the peer's end */
static napi_value peer_pid(napi_env env, napi_callback_info info)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	napi_value args[1];
	int32_t fd;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return throw_errno(env, errno, "getsockopt");
	return make_int(env, cred.pid);
}

/* pidfdOpen(pid): number */
static napi_value pidfd_open_(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t pid;
	long fd;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &pid))
		return NULL;
	fd = syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0)
		return throw_errno(env, errno, "pidfd_open");
	return make_int(env, (int32_t)fd);
}

/* pidfdGetfd(pidfd, fd): number — a duplicate of another process's descriptor */
static napi_value pidfd_getfd_(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int32_t pidfd, target;
	long fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &pidfd) || !get_int(env, args[1], &target))
		return NULL;
	fd = syscall(SYS_pidfd_getfd, pidfd, target, 0);
	if (fd < 0)
		return throw_errno(env, errno, "pidfd_getfd");
	return make_int(env, (int32_t)fd);
}

/* memfd(name): number */
static napi_value memfd(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	char name[64];
	size_t len;
	long fd;

	if (!get_args(env, info, 1, args))
		return NULL;
	if (napi_get_value_string_utf8(env, args[0], name, sizeof(name), &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a string was expected");
		return NULL;
	}
	fd = syscall(SYS_memfd_create, name, 1 /* MFD_CLOEXEC */);
	if (fd < 0)
		return throw_errno(env, errno, "memfd_create");
	return make_int(env, (int32_t)fd);
}

struct watch {
	uv_poll_t poll;
	napi_env env;
	napi_ref callback;
	napi_async_context context;
	bool stopped;
};

static void watch_freed(uv_handle_t *handle)
{
	free(handle->data);
}

static void watch_fired(uv_poll_t *poll, int status, int events)
{
	struct watch *w = poll->data;
	napi_handle_scope scope;
	napi_value callback, global, result;

	(void)status;
	(void)events;
	if (w->stopped || napi_open_handle_scope(w->env, &scope) != napi_ok)
		return;
	if (napi_get_reference_value(w->env, w->callback, &callback) == napi_ok &&
	    napi_get_global(w->env, &global) == napi_ok &&
	    napi_make_callback(w->env, w->context, global, callback, 0, NULL, &result) == napi_pending_exception) {
		napi_value error;

		if (napi_get_and_clear_last_exception(w->env, &error) == napi_ok)
			napi_fatal_exception(w->env, error);
	}
	napi_close_handle_scope(w->env, scope);
}

/* watchReadable(fd, callback): handle; the descriptor stays the caller's */
static napi_value watch_readable(napi_env env, napi_callback_info info)
{
	napi_value args[2], name, handle;
	struct uv_loop_s *loop;
	struct watch *w;
	int32_t fd;
	int err;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (napi_get_uv_event_loop(env, &loop) != napi_ok)
		return throw_errno(env, ENOSYS, "uv_poll");
	w = calloc(1, sizeof(*w));
	if (!w)
		return throw_errno(env, ENOMEM, "uv_poll");
	w->env = env;
	w->poll.data = w;
	err = uv_poll_init(loop, &w->poll, fd);
	if (err) {
		free(w);
		return throw_errno(env, -err, "uv_poll_init");
	}
	if (napi_create_reference(env, args[1], 1, &w->callback) != napi_ok ||
	    napi_create_string_utf8(env, "cryoshim:watch", NAPI_AUTO_LENGTH, &name) != napi_ok ||
	    napi_async_init(env, NULL, name, &w->context) != napi_ok ||
	    napi_create_external(env, w, NULL, NULL, &handle) != napi_ok) {
		uv_close((uv_handle_t *)&w->poll, watch_freed);
		return throw_errno(env, ENOMEM, "uv_poll");
	}
	err = uv_poll_start(&w->poll, UV_READABLE | UV_DISCONNECT, watch_fired);
	if (err) {
		uv_close((uv_handle_t *)&w->poll, watch_freed);
		return throw_errno(env, -err, "uv_poll_start");
	}
	return handle;
}

/* unwatch(handle): stops, before the descriptor is closed; once per handle (native/index.ts sees to it) */
static napi_value unwatch(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	struct watch *w;
	void *data;

	if (!get_args(env, info, 1, args))
		return NULL;
	if (napi_get_value_external(env, args[0], &data) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a watch was expected");
		return NULL;
	}
	w = data;
	if (w->stopped)
		return NULL;
	w->stopped = true;
	uv_poll_stop(&w->poll);
	napi_delete_reference(env, w->callback);
	napi_async_destroy(env, w->context);
	uv_close((uv_handle_t *)&w->poll, watch_freed);
	return NULL;
}

NAPI_MODULE_INIT()
{
	const napi_property_descriptor verbs[] = {
#define VERB(name, fn) { name, NULL, fn, NULL, NULL, NULL, napi_default_jsproperty, NULL }
		VERB("seqpacketPair", seqpacket_pair), VERB("sendMessage", send_message),
		VERB("receiveMessage", receive_message), VERB("peerPid", peer_pid),
		VERB("pidfdOpen", pidfd_open_),	VERB("pidfdGetfd", pidfd_getfd_), VERB("memfd", memfd),
		VERB("watchReadable", watch_readable), VERB("unwatch", unwatch),
		VERB("bpf", bpf_call), VERB("mountBpffs", mount_bpffs),
		VERB("cgroupRoot", cgroup_root),
#undef VERB
	};

	if (napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) != napi_ok ||
	    !mqueue_register(env, exports) || !socket_register(env, exports) ||
	    !mount_register(env, exports) || !spfs_register(env, exports) || !uring_register(env, exports) ||
	    !pidfd_register(env, exports) || !many_register(env, exports) || !patient_register(env, exports) || !retire_register(env, exports))
		return NULL;
	return surgeon_register(env, exports);
}
