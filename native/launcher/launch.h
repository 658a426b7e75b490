/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_LAUNCH_H
#define CRYOSHIM_LAUNCH_H

#include <stdint.h>

/*
 * The one message on the launch socket, shim to launcher: what to become. After the head follow NUL-terminated
 * strings: the engine's path, n_env environment entries (NAME=VALUE sets, NAME unsets), n_argv arguments (none: the
 * launcher's own). For LAUNCH_EXIT and LAUNCH_ALONE there is one string, the message. shim/session/plan.ts writes it.
 */
#define LAUNCH_MAGIC 0x314c5343u /* "CSL1" */
#define LAUNCH_MAX (1 << 20)
#define LAUNCH_MAX_FDS 8
#define LAUNCH_FD_FLOOR 200	/* above every fd_target; a soft limit of 256 descriptors is met in the wild */

enum launch_kind {
	LAUNCH_EXEC = 1,	/* become the engine with this environment, these descriptors */
	LAUNCH_ALONE = 2,	/* become the engine as if the shim were not there */
	LAUNCH_EXIT = 3,	/* print the message and exit */
};

struct launch_plan {
	uint32_t magic;
	uint32_t kind;
	uint32_t exit_code;
	uint32_t n_env;
	uint32_t n_argv;
	uint32_t n_fds;
	int32_t fd_target[LAUNCH_MAX_FDS];
};

#endif
