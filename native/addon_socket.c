// SPDX-License-Identifier: Apache-2.0
/* Sockets of other processes: what they are, and what waits in them; and their loopback device, and their end. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <node_api.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "addon.h"

/* socketProtocol(path): string: the xattr that sockfs gives each socket (net/socket.c), by a link of /proc/PID/fd */
static napi_value socket_protocol(napi_env env, napi_callback_info info)
{
	char path[64], name[64];
	napi_value args[1], out;
	size_t len;
	ssize_t got;

	if (!get_args(env, info, 1, args))
		return NULL;
	if (napi_get_value_string_utf8(env, args[0], path, sizeof(path), &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a path was expected");
		return NULL;
	}
	got = getxattr(path, "system.sockprotoname", name, sizeof(name));
	if (got < 0)
		return throw_errno(env, errno, "getxattr");
	if (napi_create_string_utf8(env, name, strnlen(name, (size_t)got), &out) != napi_ok)
		return NULL;
	return out;
}

/* getSocketOption(fd, level, name): number */
static napi_value get_socket_option(napi_env env, napi_callback_info info)
{
	int32_t fd, level, name;
	int value = 0;
	socklen_t len = sizeof(value);
	napi_value args[3], out;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &level) ||
	    !get_int(env, args[2], &name))
		return NULL;
	if (getsockopt(fd, level, name, &value, &len))
		return throw_errno(env, errno, "getsockopt");
	if (napi_create_int32(env, value, &out) != napi_ok)
		return NULL;
	return out;
}

/* setSocketOption(fd, level, name, value) */
static napi_value set_socket_option(napi_env env, napi_callback_info info)
{
	int32_t fd, level, name, value;
	napi_value args[4];

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &level) ||
	    !get_int(env, args[2], &name) || !get_int(env, args[3], &value))
		return NULL;
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		return throw_errno(env, errno, "setsockopt");
	return NULL;
}

static bool get_bytes(napi_env env, napi_value value, void **data, size_t *len)
{
	napi_typedarray_type type;
	napi_value buffer;
	size_t offset;

	if (napi_get_typedarray_info(env, value, &type, len, data, &buffer, &offset) == napi_ok &&
	    type == napi_uint8_array)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "bytes were expected");
	return false;
}

/* sendTo(fd, flags, address, control, data): sendmsg(2) with a sockaddr and control messages as the kernel has them */
static napi_value send_to(napi_env env, napi_callback_info info)
{
	struct msghdr msg = { 0 };
	struct iovec iov = { 0 };
	int32_t fd, flags;
	size_t name_len;
	napi_value args[5];
	ssize_t sent;

	if (!get_args(env, info, 5, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &flags) ||
	    !get_bytes(env, args[2], &msg.msg_name, &name_len) ||
	    !get_bytes(env, args[3], &msg.msg_control, &msg.msg_controllen) ||
	    !get_bytes(env, args[4], &iov.iov_base, &iov.iov_len))
		return NULL;
	msg.msg_namelen = (socklen_t)name_len;
	msg.msg_iov = &iov;
	msg.msg_iovlen = 1;
	sent = sendmsg(fd, &msg, flags | MSG_NOSIGNAL);
	if (sent < 0)
		return throw_errno(env, errno, "sendmsg");
	if ((size_t)sent != iov.iov_len)
		return throw_errno(env, EMSGSIZE, "sendmsg");
	return NULL;
}

static long loopback_up(void *unused)
{
	struct ifreq request = { .ifr_name = "lo" };
	int sk = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), err;
	long ret = -1;

	(void)unused;
	if (sk < 0)
		return -1;
	if (!ioctl(sk, SIOCGIFFLAGS, &request)) {
		request.ifr_flags |= IFF_UP;
		ret = ioctl(sk, SIOCSIFFLAGS, &request);
	}
	err = errno;
	close(sk);
	errno = err;
	return ret;
}

/* setUpLoopback(ns): in a network namespace */
static napi_value set_up_loopback(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t ns;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &ns))
		return NULL;
	return in_namespace(ns, CLONE_NEWNET, loopback_up, NULL) < 0 ? throw_errno(env, errno, "set up lo") : NULL;
}

/* boundName(socket): string: the path that a unix socket was bound by, latin1 */
static napi_value bound_name(napi_env env, napi_callback_info info)
{
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);
	size_t head = offsetof(struct sockaddr_un, sun_path);
	napi_value args[1], out;
	int32_t fd;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (getsockname(fd, (struct sockaddr *)&addr, &len))
		return throw_errno(env, errno, "getsockname");
	if (addr.sun_family != AF_UNIX || len <= head || !addr.sun_path[0])
		return throw_errno(env, ENOENT, "getsockname");
	/* The kernel counts the NUL after it, for which there may be no room. */
	if (len > sizeof(addr))
		len = sizeof(addr);
	if (napi_create_string_latin1(env, addr.sun_path, strnlen(addr.sun_path, len - head), &out) != napi_ok)
		return NULL;
	return out;
}

#ifndef SIOCUNIXFILE
#define SIOCUNIXFILE 0x89e0	/* linux/un.h */
#endif

/* boundFile(socket): number: what a unix socket is bound to, as O_PATH (Linux 4.10) */
static napi_value bound_file(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t fd;
	int file;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	file = ioctl(fd, SIOCUNIXFILE);
	return file < 0 ? throw_errno(env, errno, "SIOCUNIXFILE") : make_int(env, file);
}

struct connection {
	struct nlmsghdr head;
	struct inet_diag_req_v2 request;
};

static long destroy(void *arg)
{
	struct connection *c = arg;
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
	} answer;
	int sk = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), err;
	long ret = -1;

	if (sk < 0)
		return -1;
	if (send(sk, c, sizeof(*c), 0) == (ssize_t)sizeof(*c) && recv(sk, &answer, sizeof(answer), 0) >= (ssize_t)sizeof(answer)) {
		errno = -answer.error.error;
		ret = errno ? -1 : 0;
	}
	err = errno;
	close(sk);
	errno = err;
	return ret;
}

/* destroyConnection(ns, family, localPort, local, remotePort, remote): of TCP, in a network namespace; its sockets are closed then, also orphans */
static napi_value destroy_connection(napi_env env, napi_callback_info info)
{
	struct connection c = { .head = { .nlmsg_len = sizeof(c), .nlmsg_type = SOCK_DESTROY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
				.request = { .sdiag_protocol = IPPROTO_TCP, .idiag_states = ~0U,
					     .id = { .idiag_cookie = { INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE } } } };
	int32_t ns, family, local_port, remote_port;
	size_t local_len, remote_len;
	void *local, *remote;
	napi_value args[6];

	if (!get_args(env, info, 6, args) || !get_int(env, args[0], &ns) || !get_int(env, args[1], &family) ||
	    !get_int(env, args[2], &local_port) || !get_bytes(env, args[3], &local, &local_len) ||
	    !get_int(env, args[4], &remote_port) || !get_bytes(env, args[5], &remote, &remote_len))
		return NULL;
	if (local_len != remote_len || local_len > sizeof(c.request.id.idiag_src))
		return throw_errno(env, EINVAL, "destroy a connection");
	c.request.sdiag_family = (uint8_t)family;
	c.request.id.idiag_sport = htons((uint16_t)local_port);
	c.request.id.idiag_dport = htons((uint16_t)remote_port);
	memcpy(c.request.id.idiag_src, local, local_len);
	memcpy(c.request.id.idiag_dst, remote, remote_len);
	return in_namespace(ns, CLONE_NEWNET, destroy, &c) < 0 ? throw_errno(env, errno, "destroy a connection") : NULL;
}

bool socket_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "socketProtocol", NULL, socket_protocol, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "getSocketOption", NULL, get_socket_option, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "setSocketOption", NULL, set_socket_option, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "boundName", NULL, bound_name, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "boundFile", NULL, bound_file, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "setUpLoopback", NULL, set_up_loopback, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "destroyConnection", NULL, destroy_connection, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "sendTo", NULL, send_to, NULL, NULL, NULL, napi_default_jsproperty, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
