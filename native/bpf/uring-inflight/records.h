/* SPDX-License-Identifier: GPL-2.0-only */
/* What is written, and how far a pass has come: shim/xray/uring-inflight.ts has the same. */
#ifndef CRYOSHIM_BPF_URING_INFLIGHT_RECORDS_H
#define CRYOSHIM_BPF_URING_INFLIGHT_RECORDS_H

#include "kernel.h"

/* Where a request has been found. */
enum {
	POLL = 1 << 0, TIMEOUT = 1 << 1, LINK_TIMEOUT = 1 << 2, DEFER = 1 << 3, WAITID = 1 << 4, FUTEX = 1 << 5, IOPOLL = 1 << 6,
	CMD = 1 << 7, QUEUED = 1 << 8, RUNNING = 1 << 9, TASK_WORK = 1 << 10, LINKED = 1 << 11,
};

enum { REQUEST = 0x51455249, TASK = 0x4b534154, DONE = 0x454e4f44 };

#define VECTORS 8
#define STEPS (1 << 20)

/* As the kernel's struct io_uring_sqe has them, as far as they can be told. */
struct request {
	u32 magic;		/* REQUEST */
	u32 where;
	u64 address;		/* its identity */
	u64 behind;		/* the request that it is linked to, 0: none */
	u64 user_data;
	u64 off;		/* of a timeout: events that it still waits for */
	u64 addr;
	u64 addr3;
	u64 left;		/* ns until a timeout fires; `armed` says that it runs */
	u64 interval;		/* ns for which it was set */
	u32 known;		/* the opcode is one that is read here */
	u32 opcode, sqe_flags, ioprio;
	s32 fd;
	u32 len, op_flags;
	u32 buffer;		/* buf_index, buf_group */
	u32 file_index;
	u32 armed;
	u32 done;		/* bytes that it has moved already */
	u32 failed;		/* it will complete with an error, whatever happens */
	u32 holds_buffer;	/* it has taken a provided buffer and has not given it back */
	s32 personality;	/* 0: its task's own; -1: another that has no number here */
	s32 tgid, tid;		/* the task that submitted it */
	u32 has_file;
	u32 vectors;		/* how many; VECTORS are in the record */
	u32 vector_offset;
	u32 zero;
	u64 name, name_len, control, control_len;	/* of a message */
	struct iovec vector[VECTORS];
};

/* A task that has used the ring. */
struct task_record {
	u32 magic;		/* TASK */
	s32 tgid, tid;
	u32 zero;
	u64 inflight;		/* of all its rings */
	u64 zero2;
};

enum phase {
	HASH, HASH_LOCKED, TIMEOUTS, LTIMEOUTS, DEFERRED, WAITIDS, FUTEXES, IOPOLLS, CMDS, WORK, RETRY, FALLBACK, NEXT_TASK, TASK_LIST, QUEUE0,
	QUEUE1, WORKERS0, WORKERS1, WQES, END,
};

struct walk {
	u32 fd;			/* of the ring, in whose process it is read */
	u32 skip;		/* records that earlier passes have read */
	u32 seen, written;
	u64 ctx;
	u32 phase, entered;
	u64 node;		/* the next of the list that is walked */
	u64 head;		/* where a circular list ends */
	u32 bucket, buckets;
	u64 hbs;
	u64 chain;		/* a request of a chain that is not written yet */
	u64 behind;
	u32 where;
	u32 nodes;		/* NUMA nodes, for Linux 6.1 */
	u64 tctx_node;
	u64 tctx;
	u32 wqe, wqe_part;
	u32 kind;		/* where what is on this list is */
	u32 zero;
	u64 sought, found;
	u64 file;		/* see uring.bpf.c, struct cursor */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} walk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct request);
} scratch SEC(".maps");

/* Tells where each processor has its memory, see inflight_of(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} cpus SEC(".maps");

struct bpf_array {
	void *pptrs[1];
} __core;

#endif
