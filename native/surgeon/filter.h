/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_FILTER_H
#define CRYOSHIM_FILTER_H

#include "surgeon.h"

/*
 * While we trace a task its seccomp filters are suspended; if we are killed they are not any more, and what the task was
 * about to do for us counts as its own. Tells what its filters would do with a call: 0 when they allow it or let it fail,
 * 1 when the task would suffer for it (a signal, its end, or somebody else's decision). -1: they cannot be read.
 */
int filter_forbids(pid_t tid, const uint64_t call[7], struct surgeon_error *err);

/* The same, where a call that does not happen is harm enough. */
int filter_forbids_or_fails(pid_t tid, const uint64_t call[7], struct surgeon_error *err);

#endif
