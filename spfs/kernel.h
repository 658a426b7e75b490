/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_KERNEL_H
#define SPFS_KERNEL_H

/*
 * What this server speaks with the kernel beyond what the oldest supported header says (Debian 12: FUSE 7.38).
 * The numbers are those of include/uapi/linux/fuse.h of Linux 6.18 (7.45).
 */
#include <linux/fuse.h>
#include <stdint.h>

#define SPFS_MAX_WRITE (1u << 20)

/* INIT flags, both words */
#define INIT_PASSTHROUGH (1ull << 37)		/* 6.9 */
#define INIT_CREATE_SUPP_GROUP (1ull << 34)	/* 6.3 */
#define INIT_DIRECT_IO_ALLOW_MMAP (1ull << 36)	/* 6.6 */

#define OPEN_PASSTHROUGH (1u << 7)
#define OP_COPY_FILE_RANGE_64 53		/* 6.18 */
#define OP_STATX 52				/* 6.6 */
#define OP_SYNCFS 50

struct init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint16_t request_timeout;
	uint16_t unused[11];
};

struct open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define DEV_IOC_BACKING_OPEN _IOW(229, 1, struct backing_map)
#define DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

struct copy_out {
	uint64_t bytes_copied;
};

#endif
