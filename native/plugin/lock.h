/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_LOCK_H
#define CRYOSHIM_LOCK_H

#include <stdint.h>

/*
 * A lock between CRIU and the tasks that it restores, in memory that they share. CRIU makes tasks by clone(2) itself, so that
 * nothing of the C library's about threads is right in them, robust mutexes least of all; and it kills them at any moment. So
 * the kernel is told of this lock by each (set_robust_list(2)), and gives it back when its holder dies.
 */
struct plugin_lock;

/* NULL with errno set. */
struct plugin_lock *lock_make(void);
void lock_take(struct plugin_lock *lock);
void lock_give(struct plugin_lock *lock);
/* A number that no other holder gets. While it is held. */
uint32_t lock_count(struct plugin_lock *lock);

#endif
