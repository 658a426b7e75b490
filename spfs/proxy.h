/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_PROXY_H
#define SPFS_PROXY_H

/* The proxy's operations. Each answers and returns 0, or leaves it to the caller with an errno. */
#include "backend.h"

int proxy_open(struct request *r);
int proxy_create(struct request *r);
int proxy_release(struct request *r);
int proxy_flush(struct request *r);
int proxy_read(struct request *r);
/* True: answered. Otherwise `done` bytes of it are in the thread's buffer. */
bool spliced_read(struct request *r, const struct fuse_read_in *in, int fd, size_t size, size_t *done);
int proxy_write(struct request *r);
int proxy_fsync(struct request *r);
int proxy_fallocate(struct request *r);
int proxy_lseek(struct request *r);
int proxy_copy(struct request *r);
int proxy_readdir(struct request *r);
int proxy_xattr(struct request *r);

#endif
