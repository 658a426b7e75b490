// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "intercept.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MQUEUE_MAGIC 0x19800202
#define UDP_HIDDEN 0x43525900

/* The head of criu/include/files.h's struct fdtype_ops (4.1.1, 4.2.1). */
typedef int (*dump_fn)(int lfd, uint32_t id, const void *parms);
struct fdtype_ops {
	unsigned int type;
	dump_fn dump;
};

/* images/fdinfo.proto, enum fd_types */
enum { TYPE_REG = 1, TYPE_INETSK = 4, TYPE_EXT = 16, TYPE_PIDFD = 20 };

static int dump_pidfd(int lfd, uint32_t id, const void *parms);
static int dump_reg(int lfd, uint32_t id, const void *parms);
static int dump_inet(int lfd, uint32_t id, const void *parms);

static bool is_any(int lfd)
{
	(void)lfd;
	return true;
}

/* The key under which CRIU looks for an external file (criu/files-reg.c). */
static bool is_external(int lfd)
{
	bool (*lookup)(char *) = (bool (*)(char *))(uintptr_t)dlsym(RTLD_DEFAULT, "external_lookup_id");
	char path[64], line[128], key[80];
	struct stat st;
	int mount = -1;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", lfd);
	info = fopen(path, "re");
	while (info && mount < 0 && fgets(line, sizeof(line), info))
		if (sscanf(line, "mnt_id: %d", &mount) != 1)
			mount = -1;
	if (info)
		fclose(info);
	if (!lookup || mount < 0 || fstat(lfd, &st))
		return false;
	snprintf(key, sizeof(key), "file[%x:%" PRIx64 "]", mount, (uint64_t)st.st_ino);
	return lookup(key);
}

/* A POSIX queue that the shim does not know. */
static bool is_queue(int lfd)
{
	struct statfs fs;

	return fstatfs(lfd, &fs) == 0 && fs.f_type == MQUEUE_MAGIC && !is_external(lfd);
}

/* UDP with bytes that have not been sent, and that the shim does not know (native/bpf/cork.bpf.c). */
static bool is_pending(int lfd)
{
	socklen_t len = sizeof(int);
	int protocol = 0, bytes = 0, hidden = 0;

	if (getsockopt(lfd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) ||
	    (protocol != IPPROTO_UDP && protocol != IPPROTO_UDPLITE))
		return false;
	if (ioctl(lfd, SIOCOUTQ, &bytes) || bytes <= 0)
		return false;
	len = sizeof(hidden);
	return getsockopt(lfd, IPPROTO_UDP, UDP_HIDDEN, &hidden, &len) != 0;
}

static struct known {
	const char *symbol;
	unsigned int type;
	bool (*concerns)(int lfd);
	dump_fn instead, original;
} known[] = {
	[KNOWN_PIDFD] = { "pidfd_dump_ops", TYPE_PIDFD, is_any, dump_pidfd, NULL },
	[KNOWN_QUEUE] = { "regfile_dump_ops", TYPE_REG, is_queue, dump_reg, NULL },
	[KNOWN_UDP] = { "inet_dump_ops", TYPE_INETSK, is_pending, dump_inet, NULL },
};

static intercept_ask asked;
static const struct fdtype_ops *ext;
static int dumping = -1;

static int dump_known(enum control_known kind, int lfd, uint32_t id, const void *parms)
{
	const struct known *k = &known[kind];
	int ret = k->concerns(lfd) ? asked(kind, lfd, id) : -ENOTSUP;

	if (ret == -ENOTSUP)
		return k->original(lfd, id, parms);
	if (ret < 0)
		return -1;
	dumping = (int)id;
	ret = ext->dump(lfd, id, parms);
	dumping = -1;
	return ret;
}

static int dump_pidfd(int lfd, uint32_t id, const void *parms)
{
	return dump_known(KNOWN_PIDFD, lfd, id, parms);
}

static int dump_reg(int lfd, uint32_t id, const void *parms)
{
	return dump_known(KNOWN_QUEUE, lfd, id, parms);
}

static int dump_inet(int lfd, uint32_t id, const void *parms)
{
	return dump_known(KNOWN_UDP, lfd, id, parms);
}

/* What CRIU declares const lies in a page that was made read-only after relocation. */
static int make_writable(void *at, size_t len)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)at & ~(page - 1);

	return mprotect((void *)from, (uintptr_t)at + len - from, PROT_READ | PROT_WRITE);
}

int intercept(enum control_known kind, intercept_ask ask, struct surgeon_error *err)
{
	struct fdtype_ops *ops;
	struct known *k;

	if (kind < 1 || (size_t)kind >= sizeof(known) / sizeof(known[0])) {
		*err = (struct surgeon_error){ "a kind of another version", EINVAL };
		return -1;
	}
	k = &known[kind];
	if (k->original)
		return 0;
	ops = dlsym(RTLD_DEFAULT, k->symbol);
	ext = dlsym(RTLD_DEFAULT, "ext_dump_ops");
	/* What is not as we know it is not touched. */
	if (!ops || !ext || ops->type != k->type || ext->type != TYPE_EXT || !ops->dump || !ext->dump) {
		*err = (struct surgeon_error){ "this CRIU does not export what is needed", ENOSYS };
		return -1;
	}
	if (make_writable(ops, sizeof(*ops))) {
		*err = (struct surgeon_error){ "mprotect", errno };
		return -1;
	}
	asked = ask;
	k->original = ops->dump;
	ops->dump = k->instead;
	return 0;
}

int intercept_has(int id)
{
	return dumping == id;
}
