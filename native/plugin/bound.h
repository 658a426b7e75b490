/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_BOUND_H
#define CRYOSHIM_BOUND_H

#include <stddef.h>
#include <stdint.h>

#include "../surgeon/surgeon.h"

/*
 * Asks the shim for the unix socket `sk` of this process, whose name in the images is one of the shim's: to bind it (*fd stays -1), or, with
 * sk -1, for a descriptor of the file that a bound one has. Returns 0, or -1.
 */
typedef int (*bound_ask)(int sk, const char *name, size_t len, int *fd);

/*
 * In a dump: sockets with these inodes, whose names are relative, need have no file of that name: CRIU would refuse them.
 */
int let_names_be_any(const uint64_t *inodes, size_t n, struct surgeon_error *err);

/* In a restore such sockets are bound by the shim, and others connected to them by what it gives. */
int let_names_be_ours(bound_ask ask, struct surgeon_error *err);

#endif
