/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_HOLDER_H
#define SPFS_HOLDER_H

/* Starts workers until the file system is over; never returns. */
_Noreturn void holder_run(void);
/* In a worker: a holder in place of one that has been killed. */
void holder_replace(void);
/* The worker itself; returns its exit code. */
int worker_run(void);

#endif
