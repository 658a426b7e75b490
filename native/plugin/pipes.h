/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_PIPES_H
#define CRYOSHIM_PIPES_H

/* Before a restore. Without it pipes in a user namespace come back as before: not where the owner of the namespace has many. */
void let_pipes_grow(void);

#endif
