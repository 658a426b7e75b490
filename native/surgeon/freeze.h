/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_FREEZE_H
#define CRYOSHIM_FREEZE_H

#include "surgeon.h"

/*
 * Seizes and stops many threads at once. status[i] becomes 0 (it is stopped) or an errno: ESRCH (it is gone), EPERM (it is
 * a zombie, or somebody else traces it), ETIMEDOUT (it did not stop). After any ETIMEDOUT none is stopped any more, but
 * those that did not stop in time will, and surgeon_thaw_late() must be called for them.
 */
void surgeon_freeze(const pid_t *tids, unsigned int n, int patience_ms, int *status);

/* Lets those go that have stopped after all since; gives how many have not yet. To be called until it is none. */
unsigned int surgeon_thaw_late(void);

/* Lets them all go on. Those that are gone are nobody's failure. */
void surgeon_thaw(const pid_t *tids, unsigned int n);

#endif
