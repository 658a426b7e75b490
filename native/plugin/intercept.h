/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_INTERCEPT_H
#define CRYOSHIM_INTERCEPT_H

#include <stdint.h>

#include "../control.h"
#include "../surgeon/surgeon.h"

/*
 * Files of kinds that CRIU knows, and of which it refuses some: before it dumps one, `ask` is asked. 0: the shim has it, and in
 * files.img it becomes a file of a plugin (FD_TYPES__EXT), by the same id; -ENOTSUP: CRIU dumps it; else the dump fails.
 * It finds those that are in no task's hands as well: on their way in a message (criu/sk-queue.c:dump_scm_rights).
 */
typedef int (*intercept_ask)(enum control_known kind, int lfd, uint32_t id);

int intercept(enum control_known kind, intercept_ask ask, struct surgeon_error *err);
/* Whether the file with this id is being dumped as the shim's: then CRIU need not ask again. */
int intercept_has(int id);

#endif
