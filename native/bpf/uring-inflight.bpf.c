// SPDX-License-Identifier: GPL-2.0-only
/*
 * The requests of an io_uring ring that are in flight: every list of the kernel's on which one can be (io_uring/ of Linux
 * 6.1, 6.12 and 6.18), and of each request what the program had asked for. Nothing is changed. shim/xray/uring-inflight.ts
 * reads the records.
 */
#include "bpf.h"

static u64 (*const bpf_get_current_task)(void) = (void *)BPF_FUNC_get_current_task;
static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;
static void *(*const bpf_map_lookup_percpu_elem)(void *map, const void *key, u32 cpu) = (void *)BPF_FUNC_map_lookup_percpu_elem;

struct bpf_iter_meta {
	void *seq;
} __core;

struct io_ring_ctx;

struct file {
	void *private_data;
} __core;

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
} __core;

struct pid {
	u32 level;
	struct upid numbers[];
} __core;

/* enum pid_type */
enum { PIDTYPE_TGID_ = 1 };

struct signal_struct {
	struct pid *pids[4];
} __core;

struct fdtable {
	u32 max_fds;
	struct file **fd;
} __core;

struct files_struct {
	struct fdtable *fdt;
} __core;

struct cred;
struct io_uring_task;

struct task_struct___uring {
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct files_struct *files;
	const struct cred *cred;
	struct io_uring_task *io_uring;
} __core;

struct list_head {
	struct list_head *next, *prev;
} __core;

struct hlist_node {
	struct hlist_node *next;
} __core;

struct hlist_head {
	struct hlist_node *first;
} __core;

struct llist_node {
	struct llist_node *next;
} __core;

struct llist_head {
	struct llist_node *first;
} __core;

struct io_wq_work_node {
	struct io_wq_work_node *next;
} __core;

struct io_wq_work_list {
	struct io_wq_work_node *first;
} __core;

struct io_wq_work {
	struct io_wq_work_node list;
} __core;

struct io_wq_acct {
	struct list_head all_list;	/* of workers: Linux 6.15, before that in io_wq */
	struct io_wq_work_list work_list;
} __core;

struct io_wq {
	struct io_wq_acct acct[2];
} __core;

struct io_wq___old {
	struct list_head all_list;
} __core;

struct io_wqe_acct {
	struct io_wq_work_list work_list;
} __core;

/* Before Linux 6.3: one for each NUMA node. */
struct io_wqe {
	struct io_wqe_acct acct[2];
	struct list_head all_list;
} __core;

struct io_wq___oldest {
	struct io_wqe *wqes[1];
} __core;

struct io_worker {
	struct list_head all_list;
	struct io_wq_work *cur_work;
} __core;

struct percpu_counter {
	long long count;
	s32 *counters;
} __core;

struct io_uring_task {
	int cached_refs;
	struct io_wq *io_wq;
	struct percpu_counter inflight;
	struct llist_head task_list;
} __core;

struct io_uring_task___new {
	struct task_struct___uring *task;
} __core;

struct io_tctx_node {
	struct list_head ctx_node;
	struct task_struct___uring *task;
} __core;

struct io_hash_bucket {
	struct hlist_head list;
} __core;

struct io_hash_table {
	struct io_hash_bucket *hbs;
	u32 hash_bits;
} __core;

struct io_rsrc_node {
	unsigned long file_ptr;
} __core;

struct io_rsrc_data {
	u32 nr;
	struct io_rsrc_node **nodes;
} __core;

struct io_file_table {
	struct io_rsrc_data data;
} __core;

struct io_fixed_file {
	unsigned long file_ptr;
} __core;

/* Before Linux 6.13. */
struct io_file_table___old {
	struct io_fixed_file *files;
} __core;

struct xa_node {
	u8 shift;
	void *slots[64];
} __core;

struct xarray {
	void *xa_head;
} __core;

typedef struct {
	int counter;
} atomic_t;

struct io_ring_ctx {
	u32 flags;
	u32 cached_sq_head, cached_cq_tail;
	atomic_t cq_timeouts;
	struct io_hash_table cancel_table;
	struct io_wq_work_list iopoll_list;
	struct list_head timeout_list, ltimeout_list, defer_list, tctx_list;
	struct llist_head work_llist, fallback_llist;
	struct io_file_table file_table;
	struct xarray personalities;
} __core;

/* Fields that some of these kernels do not have. */
struct io_ring_ctx___more {
	struct io_hash_table cancel_table_locked;
	struct hlist_head waitid_list, futex_list, cancelable_uring_cmd;
	struct llist_head retry_llist;
	u64 hybrid_poll_time;
	u32 nr_user_files;
} __core;

struct io_cqe {
	u64 user_data;
	s32 res;
	s32 fd;
} __core;

struct io_task_work {
	struct llist_node node;
} __core;

struct io_kiocb {
	struct file *file;
	u8 opcode;
	u16 buf_index;
	unsigned long flags;
	struct io_cqe cqe;
	struct io_ring_ctx *ctx;
	struct io_wq_work_node comp_list;
	struct io_task_work io_task_work;
	struct hlist_node hash_node;
	void *async_data;
	struct io_kiocb *link;
	const struct cred *creds;
	struct io_wq_work work;
} __core;

struct io_kiocb___61 {
	u32 flags;
	struct task_struct___uring *task;
} __core;

struct io_kiocb___new {
	struct io_uring_task *tctx;
} __core;

/* include/linux/io_uring_types.h: what a request begins with is its opcode's own. */
struct io_poll {
	u32 events;
} __core;

struct io_timeout {
	u32 off, target_seq, repeats;
	struct list_head list;
} __core;

struct timespec64 {
	long long tv_sec;
	long tv_nsec;
} __core;

struct timerqueue_node {
	long long expires;
} __core;

struct hrtimer {
	struct timerqueue_node node;
} __core;

struct io_timeout_data {
	struct hrtimer timer;
	struct timespec64 ts;
	u32 flags;
} __core;

struct io_timeout_rem {
	u64 addr;
	struct timespec64 ts;
	u32 flags;
} __core;

struct kiocb {
	long long ki_pos;
	u16 ki_ioprio;
} __core;

struct io_rw {
	struct kiocb kiocb;
	u64 addr;
	u32 len;
	u32 flags;
} __core;

struct iovec {
	u64 base, len;
};

struct iov_iter {
	u8 iter_type;
	unsigned long iov_offset;
	unsigned long count;
	unsigned long nr_segs;
} __core;

struct iov_iter___iov {
	struct iovec *__iov;
	struct iovec *iov;	/* Linux 6.1 */
	void *ubuf;
} __core;

enum iter_type { ITER_UBUF, ITER_IOVEC };

struct io_rw_state {
	struct iov_iter iter;
} __core;

struct io_async_rw {
	unsigned long bytes_done;
	struct iov_iter iter;
} __core;

struct io_async_rw___more {
	struct io_rw_state s;
	u32 buf_group;
} __core;

struct msghdr {
	void *msg_name;
	int msg_namelen;
	struct iov_iter msg_iter;
	void *msg_control_user;
	unsigned long msg_controllen;
} __core;

struct io_async_msghdr {
	int namelen;
	unsigned long controllen;
	void *uaddr;
	struct msghdr msg;
} __core;

struct io_sr_msg {
	void *buf;
	int len;
	u32 done_io;
	u32 msg_flags;
	u16 flags;
	void *msg_control;
} __core;

struct io_sr_msg___more {
	u16 buf_group;
	u32 mshot_len, mshot_total_len;
	void *addr;
} __core;

struct io_accept {
	void *addr;
	int *addr_len;
	int flags, iou_flags;
	u32 file_slot;
} __core;

struct io_futex {
	u64 *uaddr;
	unsigned long futex_val, futex_mask;
	u32 futex_flags;
	u32 futex_nr;
} __core;

/* include/uapi/linux/futex.h */
struct futex_waitv {
	u64 val, uaddr;
	u32 flags, reserved;
};

struct futex_vector {
	struct {
		u64 val;
	} w;
} __core;

/* In newer kernels that is what a request has. */
struct io_futexv_data {
	struct futex_vector futexv[1];
} __core;

struct io_waitid {
	int which;
	int upid;
	int options;
	void *infop;
} __core;

struct epoll_event {
	u32 events;
} __core;

struct io_epoll {
	int epfd, op, fd;
	struct epoll_event event;
} __core;

struct io_epoll_wait {
	int maxevents;
	void *events;
} __core;

struct io_cancel {
	u64 addr;
	u32 flags;
	s32 fd;
	u8 opcode;
} __core;

struct io_msg {
	u64 user_data;
	u32 len, cmd, src_fd, dst_fd, flags;
} __core;

struct io_sync {
	long long len, off;
	int flags, mode;
} __core;

struct io_close {
	int fd;
	u32 file_slot;
} __core;

struct io_shutdown {
	int how;
} __core;

enum {
	OP_NOP = 0, OP_READV = 1, OP_WRITEV = 2, OP_FSYNC = 3, OP_READ_FIXED = 4, OP_WRITE_FIXED = 5, OP_POLL_ADD = 6, OP_SENDMSG = 9,
	OP_RECVMSG = 10, OP_TIMEOUT = 11, OP_TIMEOUT_REMOVE = 12, OP_ACCEPT = 13, OP_ASYNC_CANCEL = 14, OP_LINK_TIMEOUT = 15,
	OP_CLOSE = 19, OP_READ = 22, OP_WRITE = 23, OP_SEND = 26, OP_RECV = 27, OP_EPOLL_CTL = 29, OP_SHUTDOWN = 34, OP_MSG_RING = 40,
	OP_READ_MULTISHOT = 49, OP_WAITID = 50, OP_FUTEX_WAIT = 51, OP_FUTEX_WAITV = 53, OP_EPOLL_WAIT = 59,
};

/* Where a request has been found. */
enum {
	POLL = 1 << 0, TIMEOUT = 1 << 1, LINK_TIMEOUT = 1 << 2, DEFER = 1 << 3, WAITID = 1 << 4, FUTEX = 1 << 5, IOPOLL = 1 << 6,
	CMD = 1 << 7, QUEUED = 1 << 8, RUNNING = 1 << 9, TASK_WORK = 1 << 10, LINKED = 1 << 11,
};

enum { REQUEST = 0x51455249, TASK = 0x4b534154, DONE = 0x454e4f44 };

#define VECTORS 8

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

#define STEPS (1 << 20)
/* The kernel's buffer for one file is 8 pages; what is written beyond it fails the pass. */
#define BUDGET (6 * 4096)
#define MORE(field) HAS(((struct io_ring_ctx___more *)0)->field)

static __attribute__((always_inline)) s32 number_of(struct pid *pid)
{
	struct task_struct___uring *current = (struct task_struct___uring *)bpf_get_current_task();
	struct pid *mine = 0;
	struct upid *upid;
	struct pid_namespace *ns = 0, *their_ns = 0;
	u32 level = 0, their_level = 0;
	s32 number = 0;

	READ(mine, current->thread_pid);
	READ(level, mine->level);
	READ(their_level, pid->level);
	if (level > 32 || their_level < level)
		return 0;
	upid = (struct upid *)((char *)&mine->numbers[0] + level * SIZE_OF(struct upid));
	READ(ns, upid->ns);
	upid = (struct upid *)((char *)&pid->numbers[0] + level * SIZE_OF(struct upid));
	READ(their_ns, upid->ns);
	if (ns == their_ns)
		READ(number, upid->nr);
	return number;
}

static __attribute__((always_inline)) void name_task(struct task_struct___uring *task, s32 *tgid, s32 *tid)
{
	struct signal_struct *signal = 0;
	struct pid *pid = 0;

	READ(signal, task->signal);
	READ(pid, signal->pids[PIDTYPE_TGID_]);
	*tgid = number_of(pid);
	READ(pid, task->thread_pid);
	*tid = number_of(pid);
}

static __attribute__((always_inline)) struct task_struct___uring *task_of(struct io_kiocb *req)
{
	struct io_uring_task *tctx = 0;
	struct task_struct___uring *task = 0;

	if (HAS(((struct io_kiocb___new *)0)->tctx)) {
		READ(tctx, ((struct io_kiocb___new *)req)->tctx);
		READ(task, ((struct io_uring_task___new *)tctx)->task);
	} else {
		READ(task, ((struct io_kiocb___61 *)req)->task);
	}
	return task;
}

static __attribute__((always_inline)) u64 flags_of(struct io_kiocb *req)
{
	u64 flags = 0;
	u32 narrow = 0;

	if (__builtin_preserve_field_info(((struct io_kiocb *)0)->flags, 1 /* size */) == 8) {
		READ(flags, req->flags);
	} else {
		READ(narrow, ((struct io_kiocb___61 *)req)->flags);
		flags = narrow;
	}
	return flags;
}

/* REQ_F_*: those up to 14 have not changed, then Linux 6.13 put one in. */
static __attribute__((always_inline)) u64 late_bit(u32 bit)
{
	return 1UL << (bit + (MORE(hybrid_poll_time) ? 1 : 0));
}

#define REQ_F_FAIL (1 << 8)
#define REQ_F_CUR_POS (1 << 10)
#define REQ_F_BUFFER_SELECT (1 << 5)
#define REQ_F_BUFFER_SELECTED late_bit(15)
#define REQ_F_CREDS late_bit(18)
#define REQ_F_ASYNC_DATA late_bit(21)
#define REQ_F_APOLL_MULTISHOT_61 (1UL << 27)

static __attribute__((always_inline)) void read_iter(struct request *r, struct iov_iter *iter)
{
	u64 vectors = 0, at = 0;
	u8 type = 0;

	READ(type, iter->iter_type);
	if (type == __builtin_preserve_enum_value(*(enum iter_type *)ITER_UBUF, 1)) {
		READ(r->vector[0].base, ((struct iov_iter___iov *)iter)->ubuf);
		READ(r->vector[0].len, iter->count);
		READ(at, iter->iov_offset);
		r->vectors = 1;
		r->vector_offset = at;
		return;
	}
	if (type != __builtin_preserve_enum_value(*(enum iter_type *)ITER_IOVEC, 1))
		return;
	READ(vectors, iter->nr_segs);
	READ(at, iter->iov_offset);
	r->vectors = vectors;
	r->vector_offset = at;
	if (HAS(((struct iov_iter___iov *)0)->__iov))
		READ(at, ((struct iov_iter___iov *)iter)->__iov);
	else
		READ(at, ((struct iov_iter___iov *)iter)->iov);
	if (vectors > VECTORS)
		vectors = VECTORS;
	bpf_probe_read_kernel(r->vector, (u32)(vectors * sizeof(struct iovec)) & 0xff, (void *)at);
}

static __attribute__((always_inline)) void read_timeout(struct request *r, struct io_kiocb *req, struct io_ring_ctx *ctx, void *async)
{
	struct io_timeout *timeout = (struct io_timeout *)req;
	struct io_timeout_data *data = async;
	u32 off = 0, target = 0, tail = 0, repeats = 0;
	atomic_t timeouts = { 0 };
	long long expires = 0, sec = 0;
	long nsec = 0;

	READ(off, timeout->off);
	if (HAS(timeout->repeats))
		READ(repeats, timeout->repeats);
	READ(r->op_flags, data->flags);
	r->len = 1;
	if (r->op_flags & (1 << 6)) {	/* IORING_TIMEOUT_MULTISHOT */
		r->off = repeats;
	} else if (off) {
		READ(target, timeout->target_seq);
		READ(tail, ctx->cached_cq_tail);
		READ(timeouts, ctx->cq_timeouts);
		r->off = r->armed ? target - (tail - timeouts.counter) : off;
	}
	READ(sec, data->ts.tv_sec);
	READ(nsec, data->ts.tv_nsec);
	r->interval = (u64)sec * 1000000000 + nsec;
	READ(expires, data->timer.node.expires);
	if (r->op_flags & (1 << 2))	/* IORING_TIMEOUT_BOOTTIME */
		expires -= bpf_ktime_get_boot_ns();
	else if (!(r->op_flags & (1 << 3)))	/* REALTIME: shim/xray/uring-inflight.ts has that clock */
		expires -= bpf_ktime_get_ns();
	r->left = expires;
}

static __attribute__((always_inline)) void read_rw(struct request *r, struct io_kiocb *req, u64 flags, void *async)
{
	struct io_rw *rw = (struct io_rw *)req;
	unsigned long done = 0;
	u16 ioprio = 0;
	u32 group = 0;
	long long pos = 0;

	READ(pos, rw->kiocb.ki_pos);
	r->off = flags & REQ_F_CUR_POS ? -1ULL : (u64)pos;
	READ(ioprio, rw->kiocb.ki_ioprio);
	r->ioprio = ioprio >> 13 ? ioprio : 0;
	READ(r->addr, rw->addr);
	READ(r->len, rw->len);
	READ(r->op_flags, rw->flags);
	if (r->opcode == OP_READ_MULTISHOT)
		r->addr = r->len = 0;
	if (!async)
		return;
	READ(done, ((struct io_async_rw *)async)->bytes_done);
	r->done = done;
	if (HAS(((struct io_async_rw___more *)0)->buf_group) && (flags & REQ_F_BUFFER_SELECT)) {
		READ(group, ((struct io_async_rw___more *)async)->buf_group);
		r->buffer = group;
	}
	if ((r->opcode == OP_READV || r->opcode == OP_WRITEV) && !(flags & REQ_F_BUFFER_SELECT)) {
		if (HAS(((struct io_async_rw___more *)0)->s))
			read_iter(r, &((struct io_async_rw___more *)async)->s.iter);
		else
			read_iter(r, &((struct io_async_rw *)async)->iter);
	}
}

#define RECV_MULTISHOT 2

static __attribute__((always_inline)) void read_message(struct request *r, struct io_kiocb *req, u64 flags, struct io_async_msghdr *kmsg)
{
	struct io_sr_msg *sr = (struct io_sr_msg *)req;
	struct io_sr_msg___more *more = (struct io_sr_msg___more *)req;
	u16 how = 0, group = 0;
	u32 total = 0;
	int len = 0;
	unsigned long size = 0;
	void *addr = 0;

	READ(r->addr, sr->buf);
	READ(r->len, sr->len);
	READ(r->done, sr->done_io);
	READ(r->op_flags, sr->msg_flags);
	READ(how, sr->flags);
	/* The upper ones are the kernel's own, but for IORING_RECVSEND_BUNDLE and what came after it. */
	r->ioprio = how & 0x3f;
	if (flags & REQ_F_BUFFER_SELECT) {
		READ(group, more->buf_group);
		r->buffer = group;
	}
	if (r->opcode == OP_RECV && (how & RECV_MULTISHOT)) {
		r->len = 0;
		if (HAS(more->mshot_len)) {
			READ(r->len, more->mshot_len);
			READ(total, more->mshot_total_len);
			r->file_index = total;	/* sqe->optlen */
		}
	}
	if (r->opcode == OP_SEND) {
		/* Where to, for a datagram. */
		if (HAS(more->addr))
			READ(addr, more->addr);
		else if (kmsg)
			READ(addr, kmsg->msg.msg_name);
		r->name = (u64)addr;
	}
	if (!kmsg || (r->opcode != OP_RECVMSG && r->opcode != OP_SENDMSG))
		return;
	if (flags & REQ_F_BUFFER_SELECT) {
		READ(len, kmsg->namelen);
		READ(size, kmsg->controllen);
	} else {
		read_iter(r, &kmsg->msg.msg_iter);
		READ(len, kmsg->msg.msg_namelen);
		READ(size, kmsg->msg.msg_controllen);
	}
	READ(r->name, kmsg->uaddr);
	READ(r->control, kmsg->msg.msg_control_user);
	r->name_len = len;
	r->control_len = size;
}

/* Of FUTEX_WAITV: addresses, and values and flags in one word, as the kernel has copied them (futex_parse_waitv). */
static __attribute__((always_inline)) void read_waitv(struct request *r, void *async)
{
	struct futex_vector *at = async;

	if (HAS(((struct io_futexv_data *)0)->futexv))
		at = (struct futex_vector *)&((struct io_futexv_data *)async)->futexv;
	r->vectors = r->len;
	for (u32 i = 0; async && i < VECTORS && i < r->len; i++) {
		struct futex_waitv w = { 0 };
		u32 flags;

		bpf_probe_read_kernel(&w, sizeof(w), (char *)at + i * SIZE_OF(struct futex_vector));
		flags = (w.flags & 3) | (w.flags & 0x10 ? 0 : 128) | (w.flags & 0x80 ? 4 : 0);
		r->vector[i].base = w.uaddr;
		r->vector[i].len = (u64)(u32)w.val << 32 | flags;
	}
	if (!async)
		r->known = 0;
}

static __attribute__((always_inline)) void read_opcode(struct request *r, struct io_kiocb *req, struct io_ring_ctx *ctx, u64 flags, void *async)
{
	u64 value = 0, length = 0;
	u8 byte = 0;
	s32 word = 0;

	r->known = 1;
	switch (r->opcode) {
	case OP_NOP:
		break;
	case OP_READV: case OP_WRITEV: case OP_READ_FIXED: case OP_WRITE_FIXED: case OP_READ: case OP_WRITE: case OP_READ_MULTISHOT:
		read_rw(r, req, flags, async);
		break;
	case OP_SENDMSG: case OP_RECVMSG: case OP_SEND: case OP_RECV:
		read_message(r, req, flags, async);
		break;
	case OP_POLL_ADD:
		/* Events the way they are asked for: once is the default, and so is once for each time. */
		READ(r->op_flags, ((struct io_poll *)req)->events);
		r->len = (r->op_flags & (1U << 30) ? 0 : 1) | (r->op_flags & (1U << 31) ? 0 : 8);
		r->op_flags &= ~(3U << 30);
		break;
	case OP_TIMEOUT: case OP_LINK_TIMEOUT:
		read_timeout(r, req, ctx, async);
		break;
	case OP_TIMEOUT_REMOVE:
		READ(r->addr, ((struct io_timeout_rem *)req)->addr);
		READ(r->op_flags, ((struct io_timeout_rem *)req)->flags);
		READ(value, ((struct io_timeout_rem *)req)->ts.tv_sec);
		READ(length, ((struct io_timeout_rem *)req)->ts.tv_nsec);
		r->interval = value * 1000000000 + length;
		break;
	case OP_ACCEPT:
		READ(r->addr, ((struct io_accept *)req)->addr);
		READ(value, ((struct io_accept *)req)->addr_len);
		r->off = value;
		READ(r->op_flags, ((struct io_accept *)req)->flags);
		if (HAS(((struct io_accept *)0)->iou_flags))
			READ(r->ioprio, ((struct io_accept *)req)->iou_flags);
		else
			r->ioprio = !!(flags & REQ_F_APOLL_MULTISHOT_61);	/* IORING_ACCEPT_MULTISHOT */
		READ(r->file_index, ((struct io_accept *)req)->file_slot);
		break;
	case OP_ASYNC_CANCEL:
		READ(r->addr, ((struct io_cancel *)req)->addr);
		READ(r->op_flags, ((struct io_cancel *)req)->flags);
		READ(r->fd, ((struct io_cancel *)req)->fd);
		READ(byte, ((struct io_cancel *)req)->opcode);
		r->len = byte;
		break;
	case OP_EPOLL_CTL:
		READ(r->fd, ((struct io_epoll *)req)->epfd);
		READ(r->len, ((struct io_epoll *)req)->op);
		READ(word, ((struct io_epoll *)req)->fd);
		r->off = word;
		bpf_probe_read_kernel(r->vector, 12, &((struct io_epoll *)req)->event);
		r->vectors = 1;
		break;
	case OP_EPOLL_WAIT:
		if (!HAS(((struct io_epoll_wait *)0)->maxevents))
			break;
		READ(r->len, ((struct io_epoll_wait *)req)->maxevents);
		READ(r->addr, ((struct io_epoll_wait *)req)->events);
		break;
	case OP_MSG_RING:
		READ(r->off, ((struct io_msg *)req)->user_data);
		READ(r->len, ((struct io_msg *)req)->len);
		READ(word, ((struct io_msg *)req)->cmd);
		r->addr = (u32)word;
		READ(word, ((struct io_msg *)req)->src_fd);
		r->addr3 = (u32)word;
		READ(r->file_index, ((struct io_msg *)req)->dst_fd);
		READ(r->op_flags, ((struct io_msg *)req)->flags);
		break;
	case OP_FSYNC:
		READ(r->off, ((struct io_sync *)req)->off);
		READ(length, ((struct io_sync *)req)->len);
		r->len = length;
		READ(r->op_flags, ((struct io_sync *)req)->flags);
		break;
	case OP_CLOSE:
		READ(r->fd, ((struct io_close *)req)->fd);
		READ(r->file_index, ((struct io_close *)req)->file_slot);
		break;
	case OP_SHUTDOWN:
		READ(r->len, ((struct io_shutdown *)req)->how);
		break;
	case OP_WAITID:
		if (!HAS(((struct io_waitid *)0)->which))
			break;
		READ(r->len, ((struct io_waitid *)req)->which);
		READ(r->fd, ((struct io_waitid *)req)->upid);
		READ(r->file_index, ((struct io_waitid *)req)->options);
		READ(value, ((struct io_waitid *)req)->infop);
		r->off = value;
		break;
	case OP_FUTEX_WAIT:
		if (!HAS(((struct io_futex *)0)->uaddr))
			break;
		READ(r->addr, ((struct io_futex *)req)->uaddr);
		READ(r->off, ((struct io_futex *)req)->futex_val);
		READ(r->addr3, ((struct io_futex *)req)->futex_mask);
		READ(word, ((struct io_futex *)req)->futex_flags);
		/* Back to FUTEX2_*: the size, and what is not shared (kernel/futex/futex.h: futex2_to_flags). */
		r->fd = (word & 3) | (word & 0x10 ? 0 : 128) | (word & 0x80 ? 4 : 0);
		break;
	case OP_FUTEX_WAITV:
		if (!HAS(((struct io_futex *)0)->uaddr))
			break;
		READ(r->len, ((struct io_futex *)req)->futex_nr);
		read_waitv(r, async);
		break;
	default:
		r->known = 0;
	}
}

/* For how long the verifier would follow each list is why these are functions of their own. */
static __attribute__((noinline)) long seek_fd(u32 slot, void *unused)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	u64 file = 0;

	(void)unused;
	if (!w)
		return 1;
	bpf_probe_read_kernel(&file, 8, (void *)(w->hbs + slot * 8));
	if (file != w->sought)
		return 0;
	w->found = slot;
	return 1;
}

static __attribute__((noinline)) long seek_slot(u32 slot, void *unused)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	struct io_rsrc_node *node = 0;
	unsigned long file = 0;

	(void)unused;
	if (!w)
		return 1;
	if (HAS(((struct io_file_table *)0)->data)) {
		bpf_probe_read_kernel(&node, 8, (void *)(w->hbs + slot * 8));
		if (node)
			READ(file, node->file_ptr);
	} else {
		READ(file, ((struct io_fixed_file *)(w->hbs + slot * SIZE_OF(struct io_fixed_file)))->file_ptr);
	}
	if ((file & ~7UL) != w->sought)
		return 0;
	w->found = slot;
	return 1;
}

/*
 * The number by which the task still has the file: the kernel forgets the one that was given when an event comes
 * (io_uring/poll.c: __io_poll_execute), and the program may have closed it since. -1: there is none.
 */
static __attribute__((always_inline)) s32 number_of_file(struct walk *w, struct io_kiocb *req, struct task_struct___uring *task, u64 file, u32 fixed)
{
	struct io_ring_ctx *ctx = (struct io_ring_ctx *)w->ctx;
	struct io_ring_ctx___more *more = (struct io_ring_ctx___more *)ctx;
	struct files_struct *files = 0;
	struct fdtable *fdt = 0;
	u64 table = 0, hbs = w->hbs, at = 0;
	s32 fd = 0;
	u32 max = 0;

	READ(fd, req->cqe.fd);
	w->sought = file;
	w->found = ~0ULL;
	if (fixed) {
		if (HAS(((struct io_file_table *)0)->data)) {
			READ(table, ctx->file_table.data.nodes);
			READ(max, ctx->file_table.data.nr);
		} else {
			READ(table, ((struct io_file_table___old *)&ctx->file_table)->files);
			if (MORE(nr_user_files))
				READ(max, more->nr_user_files);
		}
	} else {
		READ(files, task->files);
		READ(fdt, files->fdt);
		READ(table, fdt->fd);
		READ(max, fdt->max_fds);
	}
	w->hbs = table;
	if (fd >= 0 && (u32)fd < max) {
		if (fixed)
			seek_slot(fd, 0);
		else
			seek_fd(fd, 0);
	}
	if (w->found == ~0ULL) {
		if (max > STEPS)
			max = STEPS;
		if (fixed)
			bpf_loop(max, seek_slot, &at, 0);
		else
			bpf_loop(max, seek_fd, &at, 0);
	}
	w->hbs = hbs;
	return w->found == ~0ULL ? -1 : (s32)w->found;
}

static __attribute__((noinline)) long seek_personality(u32 slot, struct request **context)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	struct request *r = bpf_map_lookup_elem(&scratch, &zero);
	struct io_ring_ctx *ctx;
	struct xa_node *node = 0;
	u64 head = 0, creds = 0;

	(void)context;
	if (!w || !r)
		return 1;
	ctx = (struct io_ring_ctx *)w->ctx;
	READ(head, ctx->personalities.xa_head);
	/* include/linux/xarray.h: xa_is_node; one level has 64. */
	if ((head & 3) != 2 || head <= 4096)
		return 1;
	node = (struct xa_node *)(head - 2);
	bpf_probe_read_kernel(&creds, 8, (char *)&node->slots[0] + slot * 8);
	if (creds != w->sought)
		return 0;
	r->personality = slot;
	return 1;
}

static __attribute__((always_inline)) u32 write_request(void *seq, struct walk *w, struct io_kiocb *req)
{
	struct io_ring_ctx *ctx = (struct io_ring_ctx *)w->ctx;
	u32 zero = 0;
	struct request *r = bpf_map_lookup_elem(&scratch, &zero);
	void *async = 0;
	u64 flags, at = 0, creds = 0, own = 0, file = 0;
	struct task_struct___uring *task;
	u8 opcode = 0;
	u16 buffer = 0;

	if (!r)
		return 0;
	__builtin_memset(r, 0, sizeof(*r));
	r->magic = REQUEST;
	r->where = w->where;
	r->address = (u64)req;
	r->behind = w->behind;
	READ(opcode, req->opcode);
	r->opcode = opcode;
	READ(r->user_data, req->cqe.user_data);
	flags = flags_of(req);
	r->sqe_flags = flags & 0x7f;
	r->failed = !!(flags & REQ_F_FAIL);
	r->holds_buffer = !!(flags & REQ_F_BUFFER_SELECTED);
	r->armed = !!(w->where & (TIMEOUT | LINK_TIMEOUT));
	READ(buffer, req->buf_index);
	r->buffer = buffer;
	READ(r->fd, req->cqe.fd);
	task = task_of(req);
	name_task(task, &r->tgid, &r->tid);
	READ(async, req->async_data);
	if (!(flags & REQ_F_ASYNC_DATA) && r->opcode != OP_FUTEX_WAIT && r->opcode != OP_FUTEX_WAITV)
		async = 0;
	READ(file, req->file);
	r->has_file = !!file;
	if (file)
		r->fd = number_of_file(w, req, task, file, flags & 1);
	read_opcode(r, req, ctx, flags, async);
	if (flags & REQ_F_CREDS) {
		READ(creds, req->creds);
		READ(own, task->cred);
		if (creds != own) {
			r->personality = -1;
			w->sought = creds;
			bpf_loop(64, seek_personality, &at, 0);
		}
	}
	bpf_seq_write(seq, r, sizeof(*r));
	return sizeof(*r);
}

/* How many requests a task has in flight (include/linux/percpu_counter.h: percpu_counter_sum). */
static __attribute__((noinline)) long add_cpu(u32 cpu, u64 *sum)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	void *here = bpf_map_lookup_percpu_elem(&cpus, &zero, cpu);
	void *map = &cpus;
	u64 address = 0, mine = 0, there = 0;
	s32 count = 0;

	if (!w || !here)
		return 1;
	/*
	 * A processor's copy of a map, less what all processors know the map by, is where it has its memory. The verifier lets
	 * nobody count with either, so they are read as numbers.
	 */
	bpf_probe_read_kernel(&there, 8, &here);
	bpf_probe_read_kernel(&address, 8, &map);
	bpf_probe_read_kernel(&mine, 8, &((struct bpf_array *)address)->pptrs[0]);
	bpf_probe_read_kernel(&count, 4, (void *)(w->sought + there - mine));
	*sum += (long long)count;
	return 0;
}

static __attribute__((always_inline)) u32 write_task(void *seq, struct walk *w, struct task_struct___uring *task)
{
	struct task_record t = { .magic = TASK };
	struct io_uring_task *tctx = (struct io_uring_task *)w->tctx;
	u64 sum = 0, counters = 0;
	int cached = 0;

	name_task(task, &t.tgid, &t.tid);
	READ(sum, tctx->inflight.count);
	READ(counters, tctx->inflight.counters);
	READ(cached, tctx->cached_refs);
	w->sought = counters;
	bpf_loop(4096, add_cpu, &sum, 0);
	t.inflight = sum - cached;
	bpf_seq_write(seq, &t, sizeof(t));
	return sizeof(t);
}

/* The next list begins. */
static __attribute__((always_inline)) void enter(struct walk *w, u32 phase)
{
	w->phase = phase;
	w->entered = 0;
	w->node = 0;
	w->head = 0;
}

static __attribute__((always_inline)) void begin_circular(struct walk *w, struct list_head *head)
{
	struct list_head *next = 0;

	READ(next, head->next);
	w->head = (u64)head;
	w->node = (u64)next;
}

static __attribute__((always_inline)) void begin_table(struct walk *w, struct io_hash_table *table)
{
	u32 bits = 0;
	u64 hbs = 0;

	READ(bits, table->hash_bits);
	READ(hbs, table->hbs);
	w->hbs = hbs;
	w->bucket = 0;
	w->buckets = hbs && bits < 20 ? 1U << bits : 0;
}

/* One list of one kind: sets where it begins. */
static __attribute__((always_inline)) void begin(struct walk *w)
{
	struct io_ring_ctx *ctx = (struct io_ring_ctx *)w->ctx;
	struct io_ring_ctx___more *more = (struct io_ring_ctx___more *)ctx;
	struct io_uring_task *tctx = (struct io_uring_task *)w->tctx;
	struct io_wq *wq = 0;
	struct io_wqe *wqe = 0;

	w->entered = 1;
	w->buckets = 0;
	w->kind = TASK_WORK;
	switch (w->phase) {
	case HASH:
		w->kind = POLL;
		begin_table(w, &ctx->cancel_table);
		break;
	case HASH_LOCKED:
		w->kind = POLL;
		if (MORE(cancel_table_locked))
			begin_table(w, &more->cancel_table_locked);
		break;
	case TIMEOUTS:
		w->kind = TIMEOUT;
		begin_circular(w, &ctx->timeout_list);
		break;
	case LTIMEOUTS:
		w->kind = LINK_TIMEOUT;
		begin_circular(w, &ctx->ltimeout_list);
		break;
	case DEFERRED:
		w->kind = DEFER;
		begin_circular(w, &ctx->defer_list);
		break;
	case WAITIDS:
		w->kind = WAITID;
		if (MORE(waitid_list))
			READ(w->node, more->waitid_list.first);
		break;
	case FUTEXES:
		w->kind = FUTEX;
		if (MORE(futex_list))
			READ(w->node, more->futex_list.first);
		break;
	case IOPOLLS:
		w->kind = IOPOLL;
		READ(w->node, ctx->iopoll_list.first);
		break;
	case CMDS:
		w->kind = CMD;
		if (MORE(cancelable_uring_cmd))
			READ(w->node, more->cancelable_uring_cmd.first);
		break;
	case WORK:
		READ(w->node, ctx->work_llist.first);
		break;
	case RETRY:
		if (MORE(retry_llist))
			READ(w->node, more->retry_llist.first);
		break;
	case FALLBACK:
		READ(w->node, ctx->fallback_llist.first);
		break;
	case TASK_LIST:
		READ(w->node, tctx->task_list.first);
		break;
	case QUEUE0:
	case QUEUE1:
		w->kind = QUEUED;
		READ(wq, tctx->io_wq);
		if (!wq || HAS(((struct io_wq___oldest *)0)->wqes))
			break;
		READ(w->node, ((struct io_wq_acct *)((char *)&wq->acct[0] + (w->phase == QUEUE1 ? SIZE_OF(struct io_wq_acct) : 0)))->work_list.first);
		break;
	case WORKERS0:
	case WORKERS1:
		w->kind = RUNNING;
		READ(wq, tctx->io_wq);
		if (!wq || HAS(((struct io_wq___oldest *)0)->wqes))
			break;
		if (HAS(((struct io_wq_acct *)0)->all_list))
			begin_circular(w, &((struct io_wq_acct *)((char *)&wq->acct[0] +
								  (w->phase == WORKERS1 ? SIZE_OF(struct io_wq_acct) : 0)))->all_list);
		else if (w->phase == WORKERS0)
			begin_circular(w, &((struct io_wq___old *)wq)->all_list);
		break;
	case WQES:
		w->kind = w->wqe_part < 2 ? QUEUED : RUNNING;
		READ(wq, tctx->io_wq);
		if (!wq || !HAS(((struct io_wq___oldest *)0)->wqes) || w->wqe >= w->nodes)
			break;
		bpf_probe_read_kernel(&wqe, 8, (char *)&((struct io_wq___oldest *)wq)->wqes[0] + w->wqe * 8);
		if (!wqe)
			break;
		if (w->wqe_part < 2)
			READ(w->node, ((struct io_wqe_acct *)((char *)&wqe->acct[0] + w->wqe_part * SIZE_OF(struct io_wqe_acct)))->work_list.first);
		else
			begin_circular(w, &wqe->all_list);
		break;
	}
}

/* The request that the list's entry is of. */
static __attribute__((always_inline)) struct io_kiocb *request_at(struct walk *w, u64 node)
{
	struct io_defer_entry {
		struct list_head list;
		struct io_kiocb *req;
	} __core;
	struct io_kiocb *req = 0;
	struct io_wq_work *work = 0;

	switch (w->phase) {
	case HASH: case HASH_LOCKED: case WAITIDS: case FUTEXES: case CMDS:
		return container_of(node, struct io_kiocb, hash_node);
	case TIMEOUTS: case LTIMEOUTS:
		return (struct io_kiocb *)container_of(node, struct io_timeout, list);
	case DEFERRED:
		READ(req, ((struct io_defer_entry *)node)->req);
		return req;
	case IOPOLLS:
		return container_of(node, struct io_kiocb, comp_list);
	case WORK: case RETRY: case FALLBACK: case TASK_LIST:
		return container_of(node, struct io_kiocb, io_task_work.node);
	case QUEUE0: case QUEUE1:
		return container_of(node, struct io_kiocb, work.list);
	case WQES:
		if (w->wqe_part < 2)
			return container_of(node, struct io_kiocb, work.list);
		/* fallthrough */
	case WORKERS0: case WORKERS1:
		READ(work, container_of(node, struct io_worker, all_list)->cur_work);
		return work ? container_of(work, struct io_kiocb, work) : 0;
	}
	return 0;
}

/* Behind the last of a list. */
static __attribute__((always_inline)) void leave(struct walk *w)
{
	struct io_ring_ctx *ctx = (struct io_ring_ctx *)w->ctx;

	switch (w->phase) {
	case FALLBACK:
		w->tctx_node = 0;
		enter(w, NEXT_TASK);
		break;
	case WORKERS1:
		w->wqe = w->wqe_part = 0;
		enter(w, WQES);
		break;
	case WQES:
		if (++w->wqe_part == 3) {
			w->wqe_part = 0;
			w->wqe++;
		}
		enter(w, w->wqe < w->nodes && HAS(((struct io_wq___oldest *)0)->wqes) ? WQES : NEXT_TASK);
		break;
	default:
		enter(w, w->phase + 1);
	}
	(void)ctx;
}

static __attribute__((always_inline)) void next_task(void *seq, struct walk *w)
{
	struct io_ring_ctx *ctx = (struct io_ring_ctx *)w->ctx;
	struct list_head *next = 0, *end = &ctx->tctx_list;
	struct task_struct___uring *task = 0;
	u64 tctx = 0;

	if (w->tctx_node)
		READ(next, ((struct list_head *)w->tctx_node)->next);
	else
		READ(next, ctx->tctx_list.next);
	w->tctx_node = (u64)next;
	if (!next || next == end) {
		w->phase = END;
		return;
	}
	READ(task, container_of(next, struct io_tctx_node, ctx_node)->task);
	READ(tctx, task->io_uring);
	w->tctx = tctx;
	if (!tctx)
		return;
	if (w->seen++ >= w->skip)
		w->written += write_task(seq, w, task);
	enter(w, TASK_LIST);
}

static __attribute__((always_inline)) void take_step(void *seq, struct walk *w)
{
	struct io_kiocb *req = 0, *link = 0;
	struct hlist_head *bucket;
	struct io_ring_ctx *ctx = 0;
	u64 node = w->node;

	if (w->chain) {
		req = (struct io_kiocb *)w->chain;
		if (w->seen++ >= w->skip)
			w->written += write_request(seq, w, req);
		READ(link, req->link);
		w->behind = w->chain;
		w->chain = (u64)link;
		w->where = LINKED;
		return;
	}
	if (w->phase == NEXT_TASK) {
		next_task(seq, w);
		return;
	}
	if (!w->entered) {
		begin(w);
		return;
	}
	if (!node && w->bucket < w->buckets) {
		bucket = &((struct io_hash_bucket *)(w->hbs + w->bucket++ * SIZE_OF(struct io_hash_bucket)))->list;
		READ(w->node, bucket->first);
		return;
	}
	if (!node || node == w->head) {
		leave(w);
		return;
	}
	/* Every list's entry begins with what is next. */
	bpf_probe_read_kernel(&w->node, 8, (void *)node);
	req = request_at(w, node);
	if (!req)
		return;
	READ(ctx, req->ctx);
	/* A task's lists are of all its rings. */
	if ((u64)ctx != w->ctx)
		return;
	w->chain = (u64)req;
	w->behind = 0;
	w->where = w->kind;
}

static __attribute__((noinline)) long walk_on(u32 round, void **seq)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);

	(void)round;
	if (!w)
		return 1;
	take_step(*seq, w);
	return w->phase == END || w->written >= BUDGET;
}

/* What a ring of whoever reads has in flight, from record `skip` on. Ends in DONE when that was all. */
SEC("iter/task_file.in_flight")
int in_flight(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	u64 done = DONE;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	void *seq = ctx->meta->seq, *ring = 0;
	struct file *file = ctx->file;

	if (!file || !w || ctx->fd != w->fd || is_repeated(ctx->task))
		return 0;
	READ(ring, file->private_data);
	w->ctx = (u64)ring;
	w->seen = w->written = 0;
	w->chain = 0;
	enter(w, HASH);
	bpf_loop(STEPS, walk_on, &seq, 0);
	if (w->phase == END && w->written < BUDGET)
		bpf_seq_write(seq, &done, sizeof(done));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
