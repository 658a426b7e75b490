/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_THREADS_H
#define CRYOSHIM_THREADS_H

#include <stdbool.h>

/* From now on CRIU does not see threads of io_uring's. Returns false where this CRIU is built otherwise. */
bool hide_kernel_threads(void);

#endif
