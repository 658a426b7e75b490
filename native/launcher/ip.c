// SPDX-License-Identifier: Apache-2.0
/*
 * What CRIU runs as `ip` to save addresses, routes and rules of a network namespace in a dump (criu/net.c:dump_ifaddr,
 * dump_route, dump_rule), four times with the tasks frozen. The format is iproute2's: a magic, and the kernel's netlink
 * messages as they come (iproute2's ip/ipaddress.c, iproute.c, iprule.c: *_dump_magic). Whatever else is asked of ip is
 * left to the real one.
 */
#define _GNU_SOURCE
#include "standin.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_BYTES (4u << 20)

struct what {
	const char *args[4];
	uint32_t magic;
	uint16_t type;
	uint8_t family;
	bool main_table;
};

static const struct what known[] = {
	{ { "addr", "save" }, 0x47361222, RTM_GETADDR, AF_UNSPEC, false },
	{ { "route", "save" }, 0x45311224, RTM_GETROUTE, AF_INET, true },
	{ { "-6", "route", "save" }, 0x45311224, RTM_GETROUTE, AF_INET6, true },
	{ { "rule", "save" }, 0x71706986, RTM_GETRULE, AF_INET, false },
};

static uint8_t saved[MAX_BYTES];
static size_t used;

static bool keep(const void *data, size_t len)
{
	if (len > sizeof(saved) - used)
		return false;
	memcpy(saved + used, data, len);
	used += len;
	return true;
}

static bool ask(int sk, const struct what *what)
{
	struct {
		struct nlmsghdr head;
		union {
			struct ifaddrmsg address;
			struct rtmsg route;
			struct fib_rule_hdr rule;
		} u;
		struct rtattr attr;
		uint32_t table;
	} req = { .head = { .nlmsg_type = what->type, .nlmsg_flags = NLM_F_DUMP | NLM_F_REQUEST, .nlmsg_seq = 1 } };
	int on = 1;

	/* The kernel then selects the table itself. */
	if (setsockopt(sk, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on)))
		return false;
	req.u.route.rtm_family = what->family; /* each of them begins with its family */
	switch (what->type) {
	case RTM_GETADDR:
		req.head.nlmsg_len = NLMSG_LENGTH(sizeof(req.u.address));
		break;
	case RTM_GETROUTE: {
		struct rtattr *attr = (struct rtattr *)((char *)&req + NLMSG_ALIGN(NLMSG_LENGTH(sizeof(req.u.route))));
		uint32_t table = RT_TABLE_MAIN;

		attr->rta_type = RTA_TABLE;
		attr->rta_len = RTA_LENGTH(sizeof(table));
		memcpy(RTA_DATA(attr), &table, sizeof(table));
		req.head.nlmsg_len = NLMSG_ALIGN(NLMSG_LENGTH(sizeof(req.u.route))) + attr->rta_len;
		break;
	}
	default:
		req.head.nlmsg_len = NLMSG_LENGTH(sizeof(req.u.rule));
	}
	return send(sk, &req, req.head.nlmsg_len, 0) == (ssize_t)req.head.nlmsg_len;
}

static uint32_t table_of(const struct nlmsghdr *n)
{
	const struct rtmsg *route = NLMSG_DATA(n);
	int len = (int)RTM_PAYLOAD(n);

	for (struct rtattr *a = RTM_RTA(route); RTA_OK(a, len); a = RTA_NEXT(a, len)) {
		uint32_t table;

		if (a->rta_type != RTA_TABLE || RTA_PAYLOAD(a) < sizeof(table))
			continue;
		memcpy(&table, RTA_DATA(a), sizeof(table));
		return table;
	}
	return route->rtm_table;
}

static bool wanted(const struct nlmsghdr *n, const struct what *what)
{
	const struct rtmsg *route = NLMSG_DATA(n);

	if (!what->main_table)
		return true;
	return route->rtm_family == what->family && !(route->rtm_flags & RTM_F_CLONED) && table_of(n) == RT_TABLE_MAIN;
}

/* Takes the answer; false: as it is not expected. */
static bool answer(int sk, const struct what *what)
{
	static uint8_t buf[1 << 16];

	for (;;) {
		ssize_t n = recv(sk, buf, sizeof(buf), MSG_TRUNC);
		int len = (int)n;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 || n > (ssize_t)sizeof(buf))
			return false;
		for (struct nlmsghdr *m = (struct nlmsghdr *)buf; NLMSG_OK(m, len); m = NLMSG_NEXT(m, len)) {
			if (m->nlmsg_type == NLMSG_ERROR || m->nlmsg_flags & NLM_F_DUMP_INTR)
				return false;
			if (m->nlmsg_type == NLMSG_DONE)
				return m->nlmsg_len < NLMSG_LENGTH(sizeof(int)) || *(int *)NLMSG_DATA(m) >= 0;
			if (wanted(m, what) && !keep(m, m->nlmsg_len))
				return false;
		}
	}
}

enum standin ip_save(char **argv)
{
	const struct what *what = NULL;
	int sk;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !what; i++) {
		size_t n = 0;

		while (known[i].args[n] && argv[n + 1] && !strcmp(known[i].args[n], argv[n + 1]))
			n++;
		if (!known[i].args[n] && !argv[n + 1])
			what = &known[i];
	}
	if (!what || isatty(STDOUT_FILENO))
		return STANDIN_NOT_SIMPLE;
	sk = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (sk < 0 || !keep(&what->magic, sizeof(what->magic)) || !ask(sk, what) || !answer(sk, what))
		return STANDIN_NOT_SIMPLE;
	for (size_t at = 0; at < used;) {
		ssize_t n = write(STDOUT_FILENO, saved + at, used - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return STANDIN_FAILED;
		at += n;
	}
	return STANDIN_DONE;
}
