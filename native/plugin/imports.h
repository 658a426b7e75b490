/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_IMPORTS_H
#define CRYOSHIM_IMPORTS_H

#include <stdbool.h>

/*
 * What CRIU itself, and no library, calls by one of these names (the last is NULL) becomes a call of the replacement. Returns false where this CRIU does not
 * import it.
 */
bool redirect_import(const char *const *names, void *replacement);

#endif
