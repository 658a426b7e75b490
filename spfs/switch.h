/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_SWITCH_H
#define SPFS_SWITCH_H

/* From phase to phase. */
#include <stdbool.h>
#include <stdint.h>

/* Called for each thing at the backend that is not as it was. */
typedef void differs_fn(void *arg, uint64_t what, const char *path);

/* RESTORE or PROXY to STUB; when it returns no page of RESTORE's is left in the page cache. */
int switch_stub(void);
/* To PROXY; the descriptor (O_PATH) is taken over; flags: enum spfs_proxy. Returns an errno: then it is STUB. */
int switch_proxy(int backend, uint32_t flags, differs_fn *differs, void *arg, uint64_t *reopened);
/* Back to STUB, because the backend of this session is lost. */
void switch_lost(uint32_t session);

/* On the way to PROXY: what was made and removed in RESTORE is made and removed at the backend (carry.c). */
void carry_over(differs_fn *differs, void *arg);
void carry_removals(void);

#endif
