// SPDX-License-Identifier: Apache-2.0
/* System calls for many descriptors at once: in a freeze a call from JavaScript costs more than what it asks for. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <node_api.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "addon.h"

/* pidfdGetfds(pidfd, fds): Int32Array: duplicates of a process's descriptors, all or none (Linux 5.6) */
static napi_value pidfd_getfds(napi_env env, napi_callback_info info)
{
	napi_value args[2], result;
	int32_t *fds;
	int32_t pidfd, *out;
	void *data;
	size_t n;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &pidfd) || !get_ints(env, args[1], &fds, &n))
		return NULL;
	result = make_array(env, napi_int32_array, n, sizeof(*out), &data);
	if (!result)
		return NULL;
	out = data;
	for (size_t i = 0; i < n; i++) {
		int err;

		out[i] = (int32_t)syscall(SYS_pidfd_getfd, pidfd, fds[i], 0);
		if (out[i] >= 0)
			continue;
		err = errno;
		while (i-- > 0)
			close(out[i]);
		return throw_errno(env, err, "pidfd_getfd");
	}
	return result;
}

/* closeFds(fds): what is closed already is passed over */
static napi_value close_fds(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t *fds;
	size_t n;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &fds, &n))
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return NULL;
}

/* bpfMark(map, fds): a zero for each socket, in a map of values of four bytes by descriptor (BPF_MAP_TYPE_SK_STORAGE) */
static napi_value bpf_mark(napi_env env, napi_callback_info info)
{
	const uint32_t value = 0;
	napi_value args[2];
	int32_t *fds;
	int32_t map;
	size_t n;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &map) || !get_ints(env, args[1], &fds, &n))
		return NULL;
	for (size_t i = 0; i < n; i++) {
		union bpf_attr attr;

		memset(&attr, 0, sizeof(attr));
		attr.map_fd = (uint32_t)map;
		attr.key = (uintptr_t)&fds[i];
		attr.value = (uintptr_t)&value;
		if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)))
			return throw_errno(env, errno, "bpf");
	}
	return NULL;
}

/* STAT of native/index.ts, which names them. */
enum { INO, NLINK, MODE, UID, GID, STAT_WORDS };

/* statFds(fds): BigInt64Array: fstat(2) of descriptors of ours, STAT_WORDS for each */
static napi_value stat_fds(napi_env env, napi_callback_info info)
{
	napi_value args[1], result;
	int32_t *fds;
	int64_t *out;
	void *data;
	size_t n;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &fds, &n))
		return NULL;
	result = make_array(env, napi_bigint64_array, n * STAT_WORDS, sizeof(*out), &data);
	if (!result)
		return NULL;
	out = data;
	for (size_t i = 0; i < n; i++, out += STAT_WORDS) {
		struct stat st;

		if (fstat(fds[i], &st))
			return throw_errno(env, errno, "fstat");
		out[INO] = (int64_t)st.st_ino, out[NLINK] = (int64_t)st.st_nlink;
		out[MODE] = st.st_mode, out[UID] = st.st_uid, out[GID] = st.st_gid;
	}
	return result;
}

/* haveChanged(fds): boolean: whether mounts have changed since these /proc/PID/mountinfo were opened, or last asked (man 5 proc_pid_mounts) */
static napi_value have_changed(napi_env env, napi_callback_info info)
{
	napi_value args[1], result;
	bool changed = false;
	int32_t *fds;
	size_t n;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &fds, &n))
		return NULL;
	for (size_t i = 0; i < n; i++) {
		struct pollfd p = { .fd = fds[i], .events = POLLPRI };

		/* Also where it cannot be told. */
		if (poll(&p, 1, 0) != 0)
			changed = true;
	}
	return napi_get_boolean(env, changed, &result) == napi_ok ? result : NULL;
}

bool many_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "pidfdGetfds", NULL, pidfd_getfds, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "closeFds", NULL, close_fds, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "bpfMark", NULL, bpf_mark, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "haveChanged", NULL, have_changed, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "statFds", NULL, stat_fds, NULL, NULL, NULL, napi_default_jsproperty, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
