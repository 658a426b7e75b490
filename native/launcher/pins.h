/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_PINS_H
#define CRYOSHIM_PINS_H

#include <stdbool.h>

/* Whether a text is the id of a kept lock (shim/netlock/kept.ts), and so safe in a path. */
bool is_lock_id(const char *id);

/* Lifts a network lock that waits for a restore: its pins and its record go. One that is gone is no error. */
void lift_lock(const char *id);

#endif
