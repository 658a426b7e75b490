// SPDX-License-Identifier: Apache-2.0
/*
 * passed FILE DIRECTORY: mounts the least FUSE server there is at a directory: one name, "file", whose reads and writes the kernel
 * passes through to FILE (FUSE_PASSTHROUGH). What it reaches is what the kernel's way costs, whoever serves. Says "ready"; ends when
 * it is unmounted.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../../spfs/kernel.h"

#define FILE_ID 2

static uint8_t request[SPFS_MAX_WRITE + 4096];

static struct fuse_attr attributes(int fd, uint64_t id)
{
	struct stat st;

	if (fstat(fd, &st))
		err(1, "fstat");
	if (id != FILE_ID)
		return (struct fuse_attr){ .ino = id, .mode = S_IFDIR | 0755, .nlink = 2, .blksize = 4096 };
	return (struct fuse_attr){ .ino = id, .mode = st.st_mode, .nlink = 1, .size = (uint64_t)st.st_size, .blksize = 4096 };
}

static void answer(int fuse, uint64_t unique, int error, const void *data, size_t size)
{
	struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + size), .error = -error, .unique = unique };
	const struct iovec parts[] = { { &head, sizeof(head) }, { (void *)data, size } };

	if (writev(fuse, parts, 2) < 0 && errno != ENOENT)
		err(1, "answer");
}

static void serve(int fuse, int fd, int32_t backing)
{
	const struct fuse_in_header *in = (const void *)request;
	const char *arguments = (const char *)(in + 1);

	switch (in->opcode) {
	case FUSE_INIT: {
		uint64_t want = FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_INIT_EXT | FUSE_HANDLE_KILLPRIV_V2 | INIT_PASSTHROUGH;
		struct init_out out = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .flags = (uint32_t)want,
					.flags2 = (uint32_t)(want >> 32), .max_write = SPFS_MAX_WRITE, .time_gran = 1,
					.max_pages = SPFS_MAX_WRITE / 4096, .max_stack_depth = 2 };

		answer(fuse, in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = { .nodeid = FILE_ID, .entry_valid = 1, .attr_valid = 1, .attr = attributes(fd, FILE_ID) };

		answer(fuse, in->unique, strcmp(arguments, "file") ? ENOENT : 0, &out, strcmp(arguments, "file") ? 0 : sizeof(out));
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr_valid = 1, .attr = attributes(fd, in->nodeid) };

		answer(fuse, in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_OPEN: {
		struct open_out out = { .open_flags = OPEN_PASSTHROUGH, .backing_id = backing };

		answer(fuse, in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(fuse, in->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		answer(fuse, in->unique, ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC), fd;
	struct backing_map map = { 0 };
	char options[128];
	int32_t backing = 0;

	if (argc != 3)
		errx(2, "passed FILE DIRECTORY");
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (fuse < 0 || fd < 0)
		err(1, fuse < 0 ? "/dev/fuse" : argv[1]);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other", fuse);
	if (mount("passed", argv[2], "fuse.passed", 0, options))
		err(1, "mount");
	puts("ready");
	fflush(stdout);
	while (read(fuse, request, sizeof(request)) > 0) {
		/* There is passthrough once the kernel knows that it is wanted. */
		if (!backing && ((const struct fuse_in_header *)request)->opcode == FUSE_OPEN) {
			map.fd = fd;
			backing = ioctl(fuse, DEV_IOC_BACKING_OPEN, &map);
			if (backing <= 0)
				err(1, "no passthrough");
		}
		serve(fuse, fd, backing);
	}
	return 0;
}
