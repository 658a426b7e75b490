/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_STUB_H
#define SPFS_STUB_H

#include "server.h"

/* Puts a request aside until stub_release(); it takes no thread. */
void stub_hold(struct request *r);
/* Is done with a request that was held. */
void stub_free(struct held *h);
/* FUSE_INTERRUPT: a task that waits has been sent a signal. */
void stub_interrupt(struct request *r);
/* Serves all that wait, in threads; `fresh`: what has to wait once more may do so for the whole time. */
void stub_release(bool fresh);
/* What a dead worker was doing, and what waited there. Before any thread. */
int stub_recover(void);
/* Answers what waits too long or for dead tasks; the time until the next look in ms, -1: none is needed. */
int stub_tick(void);
uint32_t stub_blocked(void);
/* Requests that were held and have been worked on since before a moment. */
uint32_t stub_stuck(uint64_t moment);
/* The bytes of a file that waiting reads will fill: [start, end). */
uint32_t stub_reads(uint64_t nodeid, uint64_t (*ranges)[2], uint32_t max);

#endif
