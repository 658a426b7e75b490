/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_LOOK_H
#define CRYOSHIM_LOOK_H

#include <stdint.h>

/* What look() says of one file; target_len bytes follow. shim/carriers/remote-look.ts reads it. Times in nanoseconds. */
struct looked {
	uint32_t err;
	uint32_t mode, nlink, uid, gid;
	uint32_t dev_major, dev_minor, rdev_major, rdev_minor;
	uint32_t target_len;
	uint64_t ino, size, mnt_id;
	int64_t atime, mtime, ctime;
};

int look(void);

#endif
