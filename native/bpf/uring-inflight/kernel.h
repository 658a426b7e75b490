/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel has of requests and of where they are, as far as it is read (io_uring/ of Linux 6.1, 6.12 and 6.18). */
#ifndef CRYOSHIM_BPF_URING_INFLIGHT_KERNEL_H
#define CRYOSHIM_BPF_URING_INFLIGHT_KERNEL_H

#include "../bpf.h"

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

#include "../pid.h"

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
struct io_poll_update {
	u64 old_user_data, new_user_data;
	u32 events;
	u8 update_events, update_user_data;
} __core;

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
	OP_NOP = 0, OP_READV = 1, OP_WRITEV = 2, OP_FSYNC = 3, OP_READ_FIXED = 4, OP_WRITE_FIXED = 5, OP_POLL_ADD = 6, OP_POLL_REMOVE = 7, OP_SENDMSG = 9,
	OP_RECVMSG = 10, OP_TIMEOUT = 11, OP_TIMEOUT_REMOVE = 12, OP_ACCEPT = 13, OP_ASYNC_CANCEL = 14, OP_LINK_TIMEOUT = 15,
	OP_CLOSE = 19, OP_READ = 22, OP_WRITE = 23, OP_SEND = 26, OP_RECV = 27, OP_EPOLL_CTL = 29, OP_SHUTDOWN = 34, OP_MSG_RING = 40,
	OP_READ_MULTISHOT = 49, OP_WAITID = 50, OP_FUTEX_WAIT = 51, OP_FUTEX_WAITV = 53, OP_EPOLL_WAIT = 59,
};

#define MORE(field) HAS(((struct io_ring_ctx___more *)0)->field)

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

#endif
