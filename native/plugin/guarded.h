/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CRYOSHIM_GUARDED_H
#define CRYOSHIM_GUARDED_H

/*
 * What the guard must have if this engine dies in the middle of a dump: the surgeon's record, and CRIU's end of the socket of its parasite.
 * Without that the parasite sees the engine's end before the kernel has let go of its task (kernel/exit.c:do_exit closes files first), and
 * returns to the program, which would run with what is swapped; so the guard keeps it open until nothing is.
 *
 * Returns the guard's end of a socket, over which they come (native/launcher/guard.h, GUARD_RECORD), or -1.
 */
int guarded_open(void);

#endif
