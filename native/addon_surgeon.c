// SPDX-License-Identifier: Apache-2.0
/* The surgeon's verbs for the shim: for tasks that it has seized itself, when there is no engine to do it. */
#include "addon.h"

#include <stddef.h>
#include <errno.h>
#include <unistd.h>

#include "control.h"
#include "surgeon/surgeon.h"

static napi_value undefined(napi_env env)
{
	napi_value v = NULL;

	napi_get_undefined(env, &v);
	return v;
}

/* seize(tid) */
static napi_value seize(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	napi_value args[1];
	int32_t tid;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &tid))
		return NULL;
	return surgeon_seize(tid, &err) ? throw_errno(env, err.err, err.step) : undefined(env);
}

/* release(tid) */
static napi_value release(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	napi_value args[1];
	int32_t tid;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &tid))
		return NULL;
	return surgeon_release(tid, &err) ? throw_errno(env, err.err, err.step) : undefined(env);
}

/* inject(tid, [number, ...6 arguments]: bigint[7]): bigint */
static napi_value inject(napi_env env, napi_callback_info info)
{
	napi_value args[2], element, result;
	struct surgeon_error err, end_err;
	struct surgeon s;
	uint64_t call[7];
	int64_t ret = 0;
	int32_t tid;
	int failed;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &tid))
		return NULL;
	for (uint32_t i = 0; i < 7; i++)
		if (napi_get_element(env, args[1], i, &element) != napi_ok || !get_u64(env, element, &call[i]))
			return NULL;
	if (surgeon_begin(&s, tid, &err))
		return throw_errno(env, err.err, err.step);
	failed = surgeon_syscall(&s, call, &ret, &err);
	if (surgeon_end(&s, &end_err) && !failed) {
		err = end_err;
		failed = -1;
	}
	if (failed)
		return throw_errno(env, err.err, err.step);
	return napi_create_bigint_int64(env, ret, &result) == napi_ok ? result : NULL;
}

/* readMemory(tid, addr, length): Buffer */
static napi_value read_memory(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	napi_value args[3], buffer;
	int32_t tid, len;
	uint64_t addr;
	void *data;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &tid) || !get_u64(env, args[1], &addr) ||
	    !get_int(env, args[2], &len))
		return NULL;
	if (len < 0 || napi_create_buffer(env, (size_t)len, &data, &buffer) != napi_ok)
		return throw_errno(env, ENOMEM, "read the task's memory");
	return surgeon_read(tid, addr, data, (size_t)len, &err) ? throw_errno(env, err.err, err.step) : buffer;
}

/* writeMemory(tid, addr, Buffer) */
static napi_value write_memory(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	napi_value args[3];
	uint64_t addr;
	int32_t tid;
	size_t len;
	void *data;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &tid) || !get_u64(env, args[1], &addr))
		return NULL;
	if (napi_get_buffer_info(env, args[2], &data, &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a Buffer was expected");
		return NULL;
	}
	return surgeon_write(tid, addr, data, len, &err) ? throw_errno(env, err.err, err.step) : undefined(env);
}

/* swapFd(tid, fd, ours, cloexec): number — a descriptor of ours for what was there */
static napi_value swap_fd(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	napi_value args[4], result;
	int32_t tid, fd, ours;
	bool cloexec;
	int old;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &tid) || !get_int(env, args[1], &fd) ||
	    !get_int(env, args[2], &ours))
		return NULL;
	if (napi_get_value_bool(env, args[3], &cloexec) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a boolean was expected");
		return NULL;
	}
	if (surgeon_take_fd(tid, fd, &old, &err))
		return throw_errno(env, err.err, err.step);
	if (surgeon_swap_fd(tid, fd, ours, cloexec, &err)) {
		close(old);
		return throw_errno(env, err.err, err.step);
	}
	return napi_create_int32(env, old, &result) == napi_ok ? result : NULL;
}

/* swapMapping(tid, addr, len, prot, flags, ours, offset) */
static napi_value swap_mapping(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	uint64_t addr, len, offset;
	int32_t tid, prot, flags, ours;
	napi_value args[7];

	if (!get_args(env, info, 7, args) || !get_int(env, args[0], &tid) || !get_u64(env, args[1], &addr) ||
	    !get_u64(env, args[2], &len) || !get_int(env, args[3], &prot) || !get_int(env, args[4], &flags) ||
	    !get_int(env, args[5], &ours) || !get_u64(env, args[6], &offset))
		return NULL;
	return surgeon_swap_mapping(tid, addr, len, prot, flags, ours, -1, offset, (struct surgeon_cut){ 0 }, &err) ?
		       throw_errno(env, err.err, err.step) :
		       undefined(env);
}

static bool set_number(napi_env env, napi_value object, const char *name, uint32_t n)
{
	napi_value v;

	return napi_create_uint32(env, n, &v) == napi_ok && napi_set_named_property(env, object, name, v) == napi_ok;
}

/* controlLayout(): { size, fields: { name: offset }, types: { NAME: number } } as the C side was compiled */
static napi_value control_layout(napi_env env, napi_callback_info info)
{
	napi_value layout, fields, types;
	bool ok;

	(void)info;
	ok = napi_create_object(env, &layout) == napi_ok && napi_create_object(env, &fields) == napi_ok &&
	     napi_create_object(env, &types) == napi_ok &&
	     set_number(env, layout, "size", sizeof(struct control_msg)) &&
	     set_number(env, layout, "magic", CONTROL_MAGIC) && set_number(env, layout, "version", CONTROL_VERSION) &&
	     set_number(env, layout, "maxData", CONTROL_MAX_DATA);
#define X(name, type) ok = ok && set_number(env, fields, #name, offsetof(struct control_msg, name));
	CONTROL_FIELDS(X)
#undef X
#define X(name, number) ok = ok && set_number(env, types, #name, number);
	CONTROL_TYPES(X)
#undef X
	ok = ok && napi_set_named_property(env, layout, "fields", fields) == napi_ok &&
	     napi_set_named_property(env, layout, "types", types) == napi_ok;
	return ok ? layout : NULL;
}

napi_value surgeon_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
#define VERB(name, fn) { name, NULL, fn, NULL, NULL, NULL, napi_default_jsproperty, NULL }
		VERB("seize", seize), VERB("release", release), VERB("inject", inject),
		VERB("readMemory", read_memory), VERB("writeMemory", write_memory), VERB("swapFd", swap_fd),
		VERB("swapMapping", swap_mapping), VERB("controlLayout", control_layout),
#undef VERB
	};

	if (napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) != napi_ok)
		return NULL;
	return exports;
}
