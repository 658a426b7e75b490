/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_GUARD_H
#define CRYOSHIM_GUARD_H

#include <sys/types.h>

/*
 * What the shim tells its guard, one SOCK_SEQPACKET message each: a letter, then text or bytes. Declared here once;
 * shim/session/guard.ts says the same. The guard acts when the socket ends while it is armed, and then exits; whoever
 * waits for it sees the end of the socket.
 */
#define GUARD_DUMP 'D'		/* armed: the engine ends by itself, then what it froze is thawed */
#define GUARD_RESTORE 'R'	/* armed: engine and what it has restored so far are killed, its mounts removed */
#define GUARD_THAW 'T'		/* "THAWED path": written to that file when it does not say so already */
#define GUARD_YARD 'Y'		/* the directory in which CRIU makes its `.criu.cgyard.*` */
#define GUARD_SESSION 'S'	/* "NAME=value" in the environment of the engine and its children */
#define GUARD_LOG 'L'		/* the file that is told what was done */
#define GUARD_KEPT 'K'		/* the id of a network lock: kept by a dump, lifted if the task of GUARD_TASK lives; taken by a restore, lifted */
#define GUARD_TASK 'P'		/* the root task of a dump, in decimal */
#define GUARD_MADE 'M'		/* the root task of a restore, in decimal: the guard looks for it as well, but may come too late */
#define GUARD_MOUNT 'U'		/* a mount that a restore has made: taken away, with its directory, if the restore fails */
#define GUARD_ANSWER 'A'	/* disarmed, and the bytes are sent to the client: both or neither */
#define GUARD_FAIL 'F'		/* the engine died: act now as for GUARD_RESTORE */
#define GUARD_SWAP 'B'		/* before a swap in a task of a dump: its struct control_msg, with its descriptors */
#define GUARD_HOLD 'H'		/* before a process of a dump is stopped for its swaps (surgeon/hold.h): its pid in decimal */
/*
 * With a socket of the engine's, on which come, each with a descriptor: "r", its struct surgeon_record (surgeon/surgeon.h), and "p", the
 * engine's end of a parasite's socket, to be kept open until nothing is swapped; only the last is in use.
 */
#define GUARD_RECORD 'J'
#define GUARD_SETTLED 'N'	/* no swap is left to be undone, and nothing held */

/* Its answer to GUARD_SWAP and GUARD_HOLD, one byte each; it says nothing else. */
#define GUARD_KNOWS 'b'
#define GUARD_REFUSES 'e'	/* it must not be done */

#define GUARD_MAX (64 << 10)

/* client: the client's socket or -1. caller: whose children --restore-sibling makes. Does not return. */
_Noreturn void guard(int sk, int client, pid_t engine, pid_t caller);

#endif
