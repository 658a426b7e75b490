/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_MOUNT_H
#define SPFS_MOUNT_H

#include <stdbool.h>

/* Mounts the connection on a directory. Returns 0, or -1 with errno. */
int mount_at(int fuse, const char *id, const char *mountpoint, bool read_only);
/* Unmounts it where it was mounted: whoever uses it, or has it mounted elsewhere, does so still. `directory`: that goes, too. */
void unsee(bool directory);
/*
 * Unmounts it, if it is what is mounted there, and takes the state directory away. Whoever waits in it gets an error: not even a
 * backend that hangs keeps them.
 */
void clear_away(void);
/* Goes to the root of each cgroup hierarchy: a container's end must not end this, nor its freezer freeze it. */
void leave_cgroups(void);

#endif
