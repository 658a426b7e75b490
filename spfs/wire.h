/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_WIRE_H
#define SPFS_WIRE_H

/*
 * The control socket of a file system: SOCK_SEQPACKET, one struct per message, then data_len bytes of data; descriptors
 * by SCM_RIGHTS. And the record that it starts from. Declared here once; spfs/wire.ts says the same, and a test holds
 * the two together.
 *
 * A client asks, the server answers each with a RESULT of the same seq; before that of PROXY comes a DIFFERS
 * for each difference.
 */
#include <stdint.h>

#define SPFS_MAGIC 0x31465053u /* "SPF1" */
#define SPFS_VERSION 1
#define SPFS_MAX_DATA 8192u

/* name, type */
#define SPFS_FIELDS(X)                                                                             \
	X(magic, uint32_t)                                                                         \
	X(type, uint16_t)                                                                          \
	X(flags, uint16_t)                                                                         \
	X(seq, uint32_t)                                                                           \
	X(err, int32_t)		/* RESULT: errno, with the name of the step in the data */         \
	X(data_len, uint32_t)                                                                      \
	X(version, uint32_t)                                                                       \
	X(a0, uint64_t)                                                                            \
	X(a1, uint64_t)                                                                            \
	X(a2, uint64_t)                                                                            \
	X(a3, uint64_t)                                                                            \
	X(a4, uint64_t)                                                                            \
	X(a5, uint64_t)                                                                            \
	X(a6, uint64_t)                                                                            \
	X(a7, uint64_t)

struct spfs_msg {
#define X(name, type) type name;
	SPFS_FIELDS(X)
#undef X
};

#define SPFS_TYPES(X)                                                                              \
	X(STUB, 1)                                                                                 \
	X(PROXY, 2)		/* with the backend's root; flags: enum spfs_proxy */              \
	X(STATUS, 3)		/* RESULT: phase, blocked, open, nodes, passthrough, worker, restarts, holder */ \
	X(STOP, 4)                                                                                 \
	X(OWN, 5)		/* the sender restores, from now on; flags: enum spfs_own */       \
	X(KEEP, 6)		/* the restore is done: the keeper is started, and kept running */ \
	X(KEPT, 7)		/* by the keeper: all is done */                                   \
	X(RESULT, 10)		/* of PROXY: a0 handles opened again */                            \
	X(DIFFERS, 11)		/* a0: what; data: the path */

enum spfs_type {
#define X(name, number) SPFS_##name = number,
	SPFS_TYPES(X)
#undef X
};

enum spfs_proxy {
	SPFS_PROXY_GONE_WAITS = 1,	/* for what is gone, as in stub */
	SPFS_PROXY_SAME_INODES = 2,	/* a file of another number than the recorded one is another, if the root is the same */
	SPFS_PROXY_NO_PASSTHROUGH = 4,	/* not with this backend */
};
enum spfs_own {
	SPFS_OWN_MOUNT = 1,	/* when the restore is done nobody is to see it where it was mounted */
	SPFS_OWN_DIRECTORY = 2,	/* and that directory, made if it is not there, goes, too */
	SPFS_OWN_PREPARED = 4,	/* it stays in RESTORE when the owner dies */
};
enum spfs_phase { SPFS_PHASE_RESTORE, SPFS_PHASE_STUB, SPFS_PHASE_PROXY };
enum spfs_differs { SPFS_GONE, SPFS_OTHER_TYPE, SPFS_OTHER_SIZE, SPFS_GROWN, SPFS_OTHER_MTIME, SPFS_NOT_MADE, SPFS_REPLACED };

/* The record: a head, then each node with its path and its target, unpadded. */
struct spfs_record {
	uint32_t magic;
	uint32_t version;
	uint64_t count;
};

#define SPFS_NODE_FIELDS(X)                                                                        \
	X(ino, uint64_t)                                                                           \
	X(size, uint64_t)                                                                          \
	X(atime, int64_t)	/* ns */                                                           \
	X(mtime, int64_t)                                                                          \
	X(ctime, int64_t)                                                                          \
	X(mode, uint32_t)                                                                          \
	X(nlink, uint32_t)                                                                         \
	X(uid, uint32_t)                                                                           \
	X(gid, uint32_t)                                                                           \
	X(rdev, uint32_t)                                                                          \
	X(path_len, uint16_t)                                                                      \
	X(target_len, uint16_t)

struct spfs_node {
#define X(name, type) type name;
	SPFS_NODE_FIELDS(X)
#undef X
};

#endif
