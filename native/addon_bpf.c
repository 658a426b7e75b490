// SPDX-License-Identifier: Apache-2.0
/* bpf(2) for shim/netlock: the attr is made in TypeScript, pointers to buffers are put in here. */
#define _GNU_SOURCE
#include <errno.h>
#include <node_api.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "addon.h"

#define MAX_ATTR 256

struct bpf_arg {
	int cmd;
	void *attr;
	size_t len;
};

static long bpf_here(void *arg)
{
	struct bpf_arg *call = arg;

	return syscall(SYS_bpf, call->cmd, call->attr, call->len);
}

/* bpf(cmd, attr, pointers: [offset, Buffer][], netns): number */
napi_value bpf_call(napi_env env, napi_callback_info info)
{
	napi_value args[4], pair, part, result = NULL;
	uint8_t attr[MAX_ATTR] = { 0 };
	int32_t cmd, netns, offset;
	uint32_t n_pointers;
	size_t len, part_len;
	void *data;
	struct bpf_arg call;
	long ret;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &cmd) || !get_int(env, args[3], &netns))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok || len > sizeof(attr) ||
	    napi_get_array_length(env, args[2], &n_pointers) != napi_ok)
		goto wrong;
	memcpy(attr, data, len);
	for (uint32_t i = 0; i < n_pointers; i++) {
		uint64_t address;

		if (napi_get_element(env, args[2], i, &pair) != napi_ok || napi_get_element(env, pair, 0, &part) != napi_ok ||
		    !get_int(env, part, &offset) || napi_get_element(env, pair, 1, &part) != napi_ok ||
		    napi_get_buffer_info(env, part, &data, &part_len) != napi_ok || offset < 0 ||
		    (size_t)offset + sizeof(address) > len)
			goto wrong;
		address = (uintptr_t)data;
		memcpy(attr + offset, &address, sizeof(address));
	}
	call = (struct bpf_arg){ .cmd = cmd, .attr = attr, .len = len };
	ret = netns >= 0 ? in_namespace(netns, CLONE_NEWNET, bpf_here, &call) : bpf_here(&call);
	if (ret < 0)
		return throw_errno(env, errno, "bpf");
	if (napi_create_int32(env, (int32_t)ret, &result) != napi_ok)
		return NULL;
	return result;
wrong:
	napi_throw_type_error(env, "ERR_ARGS", "bpf(cmd, attr, [offset, Buffer][], netns)");
	return NULL;
}

/* mountBpffs(path) */
napi_value mount_bpffs(napi_env env, napi_callback_info info)
{
	char path[4096];
	napi_value args[1];
	size_t len;

	if (!get_args(env, info, 1, args))
		return NULL;
	if (napi_get_value_string_utf8(env, args[0], path, sizeof(path), &len) != napi_ok || len >= sizeof(path) - 1) {
		napi_throw_type_error(env, "ERR_ARGS", "mountBpffs(path)");
		return NULL;
	}
	if (mount("bpf", path, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"))
		return throw_errno(env, errno, "mount");
	return NULL;
}

/* linux/mount.h, which does not go together with sys/mount.h everywhere. */
enum { FSCONFIG_CREATE = 6, FSOPEN_CLOSE = 1, FSMOUNT_CLOSE = 1 };

/* cgroupRoot(): number: the unified hierarchy from this cgroup namespace's root on, wherever it is mounted or not */
napi_value cgroup_root(napi_env env, napi_callback_info info)
{
	const char *step = "fsopen";
	int fs, mnt = -1, err;
	napi_value out;

	(void)info;
	fs = (int)syscall(SYS_fsopen, "cgroup2", FSOPEN_CLOSE);
	if (fs < 0)
		return throw_errno(env, errno, step);
	step = "fsconfig";
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CREATE, NULL, NULL, 0) == 0) {
		step = "fsmount";
		mnt = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOSE, 0);
	}
	err = errno;
	close(fs);
	if (mnt < 0)
		return throw_errno(env, err, step);
	if (napi_create_int32(env, mnt, &out) != napi_ok) {
		close(mnt);
		return NULL;
	}
	return out;
}
