/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_CONTROL_H
#define CRYOSHIM_CONTROL_H

/*
 * The control socket between the engine plugin and the shim: SOCK_SEQPACKET, one struct per message, then data_len
 * bytes of data; descriptors by SCM_RIGHTS. Declared here once; shim/control/wire.ts says the same, and a test holds
 * the two together.
 *
 * The plugin speaks first (HELLO, HOOK, EXIT) and waits; while it waits the shim may give commands, each answered by
 * a RESULT of the same seq; DONE ends the wait.
 *
 * The guard is sent each SWAP_* as well, before the plugin (native/launcher/guard.h).
 */
#include <stdint.h>

#define CONTROL_MAGIC 0x31534343u /* "CCS1" */
#define CONTROL_VERSION 7
#define CONTROL_MAX_DATA (64u << 10)

/*
 * SWAP_MAPPING: the placeholder is private memory of no file; what is there now is a mapping of the task's own descriptor fd,
 * which stays where it is (an io_uring cannot be sent over a socket).
 */
#define CONTROL_ANONYMOUS 2u
#define CONTROL_OWN_FD 4u
/* SWAP_FD: for the same reason only the placeholder comes along; what is there now is taken from the task. */
#define CONTROL_TAKE 8u

/* DONE: without the shim the images of this dump are not complete. */
#define CONTROL_NEEDED 1u
/* DONE, of EXIT: the images are complete when END is answered, and the engine says no sooner that it has succeeded. */
#define CONTROL_LATER 2u

/* name, type */
#define CONTROL_FIELDS(X)                                                                          \
	X(magic, uint32_t)                                                                         \
	X(type, uint16_t)                                                                          \
	X(hook, uint16_t)	/* HOOK: CRIU's hook number; HELLO, EXIT: stage */                 \
	X(seq, uint32_t)                                                                           \
	X(pid, int32_t)		/* the task; HELLO: the engine */                                  \
	X(ret, int64_t)		/* RESULT: what the call returned; DONE: what the hook returns */  \
	X(err, int32_t)		/* RESULT: errno of the step in the data, 0: it was done */        \
	X(fd, int32_t)                                                                             \
	X(addr, uint64_t)                                                                          \
	X(len, uint64_t)                                                                           \
	X(data_len, uint32_t)                                                                      \
	X(flags, uint32_t)                                                                         \
	X(a0, uint64_t)                                                                            \
	X(a1, uint64_t)                                                                            \
	X(a2, uint64_t)                                                                            \
	X(a3, uint64_t)                                                                            \
	X(a4, uint64_t)                                                                            \
	X(a5, uint64_t)                                                                            \
	X(a6, uint64_t)

struct control_msg {
#define X(name, type) type name;
	CONTROL_FIELDS(X)
#undef X
};

#define CONTROL_TYPES(X)                                                                           \
	X(HELLO, 1)		/* a0: CONTROL_VERSION; in a dump with a socket for the guard (plugin/guarded.h); answered by DONE, a0: bits of wanted hooks, a1: of those for the first task alone, \
				   a2: 1 to keep threads of io_uring's from CRIU */             \
	X(HOOK, 2)                                                                                 \
	X(EXIT, 3)		/* ret: how the stage ended */                                     \
	X(DONE, 4)		/* flags: CONTROL_NEEDED, CONTROL_LATER */                         \
	X(END, 6)		/* after an EXIT whose DONE said CONTROL_LATER: the tasks run, the engine is about to end */ \
	X(RESULT, 5)		/* with data: of READ, or the name of the step that failed */      \
	X(INJECT, 10)		/* a0: system call, a1..a6: its arguments */                       \
	X(READ, 11)		/* addr, len */                                                    \
	X(WRITE, 12)		/* addr, data */                                                   \
	X(SWAP_FD, 13)		/* fd, flags: 1 close-on-exec; with descriptors: the placeholder, what is there now */ \
	X(SWAP_MAPPING, 14)	/* addr, len, a0 prot, a1 flags, a2 offset, undo's a3 offset, a4 flags, a5 and a6 what it cuts \
				   off before and after; with both descriptors but for CONTROL_ANONYMOUS and CONTROL_OWN_FD */ \
	X(ROLLBACK, 15)		/* undo all swaps, newest first */                                 \
	X(FORGET, 16)		/* the swaps stay: drop the undo record */                         \
	X(LOG, 17)		/* flags: CRIU's log level; data: a line for CRIU's log */      \
	X(EXTERNAL, 18)		/* data: keys of --external, each with a NUL, before anything is collected */ \
	X(INHERIT, 19)		/* data: a key of --inherit-fd, with a descriptor, before tasks are forked */ \
	X(NO_FS_DUMP, 20)	/* data: a file system whose contents CRIU need not look at */     \
	X(SWAP_CWD, 21)		/* with both descriptors, as O_PATH */                             \
	X(SWAP_ROOT, 22)                                                                           \
	X(MAP, 23)		/* addr, len, a0 prot, a1 flags, a2 offset, a3 and a4 what to cut off; fd: the task's own */ \
	X(INTERCEPT, 24)	/* a0: CONTROL_KNOWN_*; HOOK_KNOWN is asked for each file of it, a0 the kind, fd its id */ \
	X(HOLD, 30)		/* before the first swap in a process. a0: 0 asks whether it may be held, 1 does so (surgeon/hold.h) */ \
	X(SUBMIT, 25)		/* fd: a ring of the task's, len: of its memory, a0 entries each, a1 times; where in it a2 the */ \
				/* submissions' tail, a3 the completions' head and a4 tail; a5: the process */ \
	X(RESTART, 26)		/* a0: system call; ret: 1 where the stop had interrupted it, which is undone */ \
	X(BOUND, 28)		/* in a restore: HOOK_BIND and HOOK_CONNECT are asked; in a dump with data, inodes of sockets (plugin/bound.h) */ \
	X(GIVE, 27)		/* as SWAP_FD, but that it stays: process a0's descriptor a1 (an io_uring can be sent over no socket) */

/* Files that CRIU knows, and of which it refuses some: pidfds, POSIX queues, UDP sockets with unsent bytes. */
enum control_known { KNOWN_PIDFD = 1, KNOWN_QUEUE, KNOWN_UDP };
/* Our own hook, beside CRIU's: with a descriptor. */
#define CONTROL_HOOK_KNOWN 100
/* With a pidfd, the number of a socket in that process, and its name in the images; with that name alone, DONE brings the file it is bound to. */
#define CONTROL_HOOK_BIND 101
#define CONTROL_HOOK_CONNECT 102

enum control_type {
#define X(name, number) CONTROL_##name = number,
	CONTROL_TYPES(X)
#undef X
};

#endif
