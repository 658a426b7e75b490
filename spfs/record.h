/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_RECORD_H
#define SPFS_RECORD_H

/*
 * Makes the tree from a record (wire.h). Returns 0, or -1 with errno and in `why` what is wrong with which node: a record comes with
 * images, from anywhere.
 */
int record_load(int fd, char *why, unsigned long size);

#endif
