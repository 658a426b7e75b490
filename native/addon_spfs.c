// SPDX-License-Identifier: Apache-2.0
/* What the control of the stub-proxy file system needs (spfs/control.ts). */
#define _GNU_SOURCE
#include <errno.h>
#include <node_api.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../spfs/wire.h"
#include "addon.h"

/* seqpacketConnect(path): number: a socket of a SOCK_SEQPACKET server that listens at a path, close-on-exec */
static napi_value seqpacket_connect(napi_env env, napi_callback_info info)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	napi_value args[1], out;
	size_t len;
	int fd, err;

	if (!get_args(env, info, 1, args))
		return NULL;
	if (napi_get_value_string_utf8(env, args[0], NULL, 0, &len) != napi_ok || len >= sizeof(address.sun_path) ||
	    napi_get_value_string_utf8(env, args[0], address.sun_path, sizeof(address.sun_path), &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a short path was expected");
		return NULL;
	}
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return throw_errno(env, errno, "socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		err = errno;
		close(fd);
		return throw_errno(env, err, "connect");
	}
	if (napi_create_int32(env, fd, &out) != napi_ok) {
		close(fd);
		return NULL;
	}
	return out;
}

static bool put(napi_env env, napi_value object, const char *name, uint32_t n)
{
	napi_value v;

	return napi_create_uint32(env, n, &v) == napi_ok && napi_set_named_property(env, object, name, v) == napi_ok;
}

/* spfsLayout(): what spfs/wire.h says, as it was compiled */
static napi_value spfs_layout(napi_env env, napi_callback_info info)
{
	napi_value layout, fields, types, node;
	bool ok;

	(void)info;
	ok = napi_create_object(env, &layout) == napi_ok && napi_create_object(env, &fields) == napi_ok &&
	     napi_create_object(env, &types) == napi_ok && napi_create_object(env, &node) == napi_ok &&
	     put(env, layout, "size", sizeof(struct spfs_msg)) && put(env, layout, "nodeSize", sizeof(struct spfs_node)) &&
	     put(env, layout, "recordSize", sizeof(struct spfs_record)) && put(env, layout, "magic", SPFS_MAGIC) &&
	     put(env, layout, "version", SPFS_VERSION) && put(env, layout, "maxData", SPFS_MAX_DATA);
#define X(name, type) ok = ok && put(env, fields, #name, offsetof(struct spfs_msg, name));
	SPFS_FIELDS(X)
#undef X
#define X(name, type) ok = ok && put(env, node, #name, offsetof(struct spfs_node, name));
	SPFS_NODE_FIELDS(X)
#undef X
#define X(name, number) ok = ok && put(env, types, #name, number);
	SPFS_TYPES(X)
#undef X
	ok = ok && napi_set_named_property(env, layout, "fields", fields) == napi_ok &&
	     napi_set_named_property(env, layout, "node", node) == napi_ok &&
	     napi_set_named_property(env, layout, "types", types) == napi_ok;
	return ok ? layout : NULL;
}

bool spfs_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "seqpacketConnect", NULL, seqpacket_connect, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "spfsLayout", NULL, spfs_layout, NULL, NULL, NULL, napi_default_jsproperty, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
