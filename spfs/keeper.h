/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_KEEPER_H
#define SPFS_KEEPER_H

/* Who brings the backend back (the keeper), and on whose behalf all this stands until the restore is done (the owner). */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A keeper is wanted now, and again whenever it ends before keeper_done(). Any thread. */
void keeper_want(void);
/* Its work is done, unless the backend has been lost meanwhile. */
void keeper_done(void);
/* Starts it if it must be; returns milliseconds until that may be, or -1. The main thread alone, as the next. */
int keeper_tick(void);
/* Its descriptor says that it has ended. */
void keeper_ended(void);

/* Watches the process that restores; 0 or an errno. `unsee` and the rest: enum spfs_own. */
int owner_watch(pid_t pid, uint32_t flags);
/* The restore is done. */
void owner_release(void);
/* It has died before that. */
void owner_died(void);

#endif
