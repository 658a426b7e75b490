// SPDX-License-Identifier: GPL-2.0-only
/*
 * X-ray of io_uring: rings of the process that reads (`rings`), where a process has them mapped (`mappings`), and what
 * threads have registered (`threads`). Linux 6.1 to 6.18; what a kernel does not have stays zero.
 *
 * shim/xray/rings.ts reads the records.
 */
#include "bpf.h"

static u64 (*const bpf_get_current_task)(void) = (void *)BPF_FUNC_get_current_task;
static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;

struct bpf_iter_meta {
	void *seq;
} __core;

struct super_block {
	unsigned long s_magic;
} __core;

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
} __core;

#include "anon.h"

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
	unsigned int f_flags;
	long long f_pos;
} __core;

#include "pid.h"

struct mm_struct;

struct list_head {
	struct list_head *next, *prev;
} __core;

struct xarray {
	void *xa_head;
} __core;

struct xa_node {
	unsigned char shift;
	void *slots[64];
} __core;

struct page;

struct io_mapped_region {
	struct page **pages;
	void *ptr;
	unsigned int nr_pages;
	unsigned int flags;
} __core;

struct io_mapped_ubuf {
	u64 ubuf;
	u64 ubuf_end;		/* before Linux 6.11 */
	unsigned int len;
	u8 is_kbuf;
} __core;

struct io_rsrc_node {
	u64 tag;
	unsigned long file_ptr;
	struct io_mapped_ubuf *buf;
} __core;

/* Linux 6.13 */
struct io_rsrc_data {
	unsigned int nr;
	struct io_rsrc_node **nodes;
} __core;

/* Before it. */
struct io_rsrc_data___old {
	u64 **tags;
} __core;

struct io_fixed_file {
	unsigned long file_ptr;
} __core;

struct io_file_table {
	struct io_rsrc_data data;
} __core;

struct io_file_table___old {
	struct io_fixed_file *files;
} __core;

struct io_restriction {
	unsigned long register_op[1];
	unsigned long sqe_op[1];
	u8 sqe_flags_allowed;
	u8 sqe_flags_required;
	u8 registered;
} __core;

struct io_sq_data {
	struct task_struct *thread;
	unsigned int sq_thread_idle;
	int sq_cpu;
} __core;

struct eventfd_ctx;

struct io_ev_fd {
	struct eventfd_ctx *cq_ev_fd;
	unsigned int eventfd_async;
} __core;

struct io_wq_work_node {
	struct io_wq_work_node *next;
} __core;

struct io_submit_state {
	struct io_wq_work_node free_list;
} __core;

struct io_rings;
struct user_struct;

struct io_ring_ctx {
	unsigned int flags;
	struct task_struct *submitter_task;
	struct io_rings *rings;
	int clockid;
	unsigned int sq_thread_idle;
	u32 *sq_array;
	unsigned int cached_sq_head;
	unsigned int sq_entries;
	struct io_file_table file_table;
	struct io_rsrc_data buf_table;
	struct io_submit_state submit_state;
	struct xarray io_bl_xa;
	unsigned int cached_cq_tail;
	unsigned int cq_entries;
	struct io_ev_fd *io_ev_fd;
	struct list_head cq_overflow_list;
	struct io_sq_data *sq_data;
	unsigned int file_alloc_start;
	unsigned int file_alloc_end;
	struct io_restriction restrictions;
	struct xarray zcrx_ctxs;
	u32 pers_next;
	struct xarray personalities;
	struct list_head tctx_list;
	struct user_struct *user;
	struct mm_struct *mm_account;
	u32 iowq_limits[2];
	unsigned int nr_req_allocated;
	long long napi_busy_poll_dt;
	u8 napi_prefer_busy_poll;
	u8 napi_track_mode;
	struct io_mapped_region sq_region;
	struct io_mapped_region ring_region;
	struct io_mapped_region param_region;
	void *cq_wait_arg;
} __core;

/* Linux 6.1, 6.12. */
struct io_ring_ctx___old {
	unsigned int nr_user_files;
	unsigned int nr_user_bufs;
	struct io_buffer_list *io_bl;	/* Linux 6.1: groups below 64, from the first of these on */
	struct io_mapped_ubuf **user_bufs;
	struct io_rsrc_data___old *file_data;
	struct io_rsrc_data___old *buf_data;
	struct io_file_table___old file_table;
	struct list_head io_buffers_cache;
	unsigned short n_ring_pages;
	struct page **ring_pages;
	struct page **sqe_pages;
	unsigned int napi_enabled;
} __core;

enum { RING = 1, BUFFER = 2, FILE = 3, OVERFLOW = 4, GROUP = 5, PROVIDED = 6, MAPPING = 7, THREAD = 8, REQUESTS = 9, DESCRIPTOR = 10, PERSONALITY = 11, USER = 12, PLACE = 13, OPENED = 14 };

struct ring {
	u32 magic;
	u32 fd;
	u64 file;		/* equal for all descriptors and mappings of a ring */
	u64 mm;			/* of the process that set it up */
	u64 sq_data;		/* equal for rings that share a thread (ATTACH_WQ) */
	u64 eventfd;		/* its context: private_data of the eventfd */
	u64 sq_array;		/* where in the memory of the ring */
	u64 register_op, sqe_op;
	u64 napi_timeout;
	u32 flags, sq_entries, cq_entries, sq_head, cq_tail;
	s32 submitter;		/* thread; 0: any */
	u32 idle;		/* of the SQPOLL thread, in jiffies */
	s32 sq_cpu;
	s32 sq_thread;
	u32 eventfd_async;
	u32 files, buffers;
	u32 restricted;		/* bit 0: there are restrictions; 8..15 flags allowed, 16..23 required */
	u32 napi_prefer, napi_track;
	u32 workers[2];
	s32 clock;
	u32 has;		/* bit 0 overflow, 1 buffer groups, 2 personalities, 3 registered memory, 4 zero copy receive, 5 not privileged */
	u32 alloc_start, alloc_end;
	u32 zero;
	u64 ring_page, sqe_page;/* struct page of user memory (NO_MMAP) */
	u64 region_page;	/* of registered memory (IORING_REGISTER_MEM_REGION): the first, and how many */
	u32 region_pages;
	u32 region;		/* bit 0: it is the program's own, 1: arguments of waits are in it */
};

struct item {
	u32 kind;
	u32 index;
	u64 a, b, c, d;
};

/* What a pass over one ring reads, and where it begins. */
struct cursor {
	u32 kind;
	u32 fd;
	u64 at;
	u64 base;
	u32 written;
	u32 done;
	u64 file;	/* of a ring that is not the descriptor's, but one that nobody has a descriptor of; 0: the descriptor's */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cursor);
} cursor SEC(".maps");

#define MOST 400		/* items of a pass: they fit in the kernel's buffer */

static __attribute__((always_inline)) int is_anon(struct file *file, const char *name, u32 len)
{
	struct inode *inode = 0;
	struct super_block *sb = 0;
	struct dentry *dentry = 0;
	unsigned long magic = 0;

	READ(inode, file->f_inode);
	READ(sb, inode->i_sb);
	READ(magic, sb->s_magic);
	if (magic != ANON_INODE_FS_MAGIC)
		return 0;
	READ(dentry, file->f_path.dentry);
	return is_called(dentry, name, len);
}

static __attribute__((always_inline)) int is_ring(struct file *file)
{
	static const char name[] = "[io_uring]";

	return is_anon(file, name, sizeof(name));
}

static __attribute__((always_inline)) s32 number(struct task_struct *task)
{
	struct pid *pid = 0;

	if (!task)
		return 0;
	READ(pid, task->thread_pid);
	return pid ? number_of(pid) : 0;
}

static __attribute__((always_inline)) int write_ring(void *seq, struct file *file, u32 fd)
{
	struct io_ring_ctx *ctx = 0;
	struct io_ring_ctx___old *old;
	struct ring r = { .magic = RING, .fd = fd, .file = (u64)file };
	struct task_struct *task = 0;
	struct io_sq_data *sqd = 0;
	struct io_ev_fd *ev = 0;
	struct eventfd_ctx *eventfd = 0;
	struct mm_struct *mm = 0;
	struct user_struct *user = 0;
	struct list_head *next = 0;
	struct page **pages = 0;
	void *head = 0, *ptr = 0;
	u32 *sq_array = 0;
	char *rings = 0;
	u8 byte = 0;
	unsigned long word = 0;

	READ(ctx, file->private_data);
	if (!ctx)
		return 0;
	old = (struct io_ring_ctx___old *)ctx;
	READ(r.flags, ctx->flags);
	READ(r.sq_entries, ctx->sq_entries);
	READ(r.cq_entries, ctx->cq_entries);
	READ(r.sq_head, ctx->cached_sq_head);
	READ(r.cq_tail, ctx->cached_cq_tail);
	READ(mm, ctx->mm_account);
	r.mm = (u64)mm;
	READ(user, ctx->user);
	if (user)
		r.has |= 32;
	if (HAS(old->io_bl)) {
		struct io_buffer_list *array = 0;

		READ(array, old->io_bl);
		if (array)
			r.has |= 2;
	}
	READ(task, ctx->submitter_task);
	r.submitter = number(task);
	READ(r.idle, ctx->sq_thread_idle);
	READ(sqd, ctx->sq_data);
	r.sq_data = (u64)sqd;
	r.sq_cpu = -1;
	if (sqd) {
		READ(r.sq_cpu, sqd->sq_cpu);
		READ(task, sqd->thread);
		r.sq_thread = number(task);
	}
	READ(sq_array, ctx->sq_array);
	READ(rings, ctx->rings);
	if (sq_array)
		r.sq_array = (u64)sq_array - (u64)rings;
	READ(ev, ctx->io_ev_fd);
	if (ev) {
		READ(eventfd, ev->cq_ev_fd);
		READ(r.eventfd_async, ev->eventfd_async);
		r.eventfd_async &= 1;
		r.eventfd = (u64)eventfd;
	}
	if (HAS(ctx->buf_table)) {
		READ(r.buffers, ctx->buf_table.nr);
		READ(r.files, ctx->file_table.data.nr);
	} else {
		READ(r.buffers, old->nr_user_bufs);
		READ(r.files, old->nr_user_files);
	}
	READ(byte, ctx->restrictions.registered);
	r.restricted = byte & 1;
	READ(byte, ctx->restrictions.sqe_flags_allowed);
	r.restricted |= byte << 8;
	READ(byte, ctx->restrictions.sqe_flags_required);
	r.restricted |= byte << 16;
	READ(word, ctx->restrictions.register_op[0]);
	r.register_op = word;
	READ(word, ctx->restrictions.sqe_op[0]);
	r.sqe_op = word;
	if (HAS(ctx->napi_busy_poll_dt)) {
		READ(r.napi_timeout, ctx->napi_busy_poll_dt);
		READ(byte, ctx->napi_prefer_busy_poll);
		r.napi_prefer = byte;
	}
	if (HAS(ctx->napi_track_mode)) {
		READ(byte, ctx->napi_track_mode);
		r.napi_track = byte;
	}
	READ(r.workers[0], ctx->iowq_limits[0]);
	READ(r.workers[1], ctx->iowq_limits[1]);
	r.clock = 1;
	if (HAS(ctx->clockid))
		READ(r.clock, ctx->clockid);
	READ(next, ctx->cq_overflow_list.next);
	if (next != &ctx->cq_overflow_list)
		r.has |= 1;
	READ(head, ctx->io_bl_xa.xa_head);
	if (head)
		r.has |= 2;
	READ(head, ctx->personalities.xa_head);
	if (head)
		r.has |= 4;
	if (HAS(ctx->param_region)) {
		READ(pages, ctx->param_region.pages);
		READ(r.region_pages, ctx->param_region.nr_pages);
		if (pages) {
			r.has |= 8;
			bpf_probe_read_kernel(&r.region_page, 8, pages);
		}
		READ(byte, ctx->param_region.flags);
		r.region = (byte & 2) >> 1;
		READ(ptr, ctx->cq_wait_arg);
		r.region |= ptr ? 2 : 0;
	}
	if (HAS(ctx->zcrx_ctxs)) {
		READ(head, ctx->zcrx_ctxs.xa_head);
		if (head)
			r.has |= 16;
	}
	READ(r.alloc_start, ctx->file_alloc_start);
	READ(r.alloc_end, ctx->file_alloc_end);
	if (HAS(ctx->ring_region)) {
		READ(pages, ctx->ring_region.pages);
		if (pages)
			bpf_probe_read_kernel(&r.ring_page, 8, pages);
		READ(pages, ctx->sq_region.pages);
		if (pages)
			bpf_probe_read_kernel(&r.sqe_page, 8, pages);
	} else if (HAS(old->ring_pages)) {
		READ(pages, old->ring_pages);
		if (pages)
			bpf_probe_read_kernel(&r.ring_page, 8, pages);
		READ(pages, old->sqe_pages);
		if (pages)
			bpf_probe_read_kernel(&r.sqe_page, 8, pages);
	}
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}

struct task_struct___uring {
	struct io_uring_task *io_uring;
	struct mm_struct *mm;
	u32 flags;
} __core;

struct io_wq_acct {
	unsigned int max_workers;
} __core;

struct cpumask {
	unsigned long bits[1];
} __core;

struct io_wq {
	struct io_wq_acct acct[2];
	struct cpumask cpu_mask[1];
} __core;

/* With CONFIG_CPUMASK_OFFSTACK. */
struct io_wq___apart {
	struct cpumask *cpu_mask;
} __core;

struct io_uring_task {
	struct io_wq *io_wq;
	struct file *registered_rings[16];
} __core;

struct walk {
	void *seq;
	struct io_ring_ctx *ctx;
};

struct io_uring_cqe {
	u64 user_data;
	s32 res;
	u32 flags;
	u64 big_cqe[];
} __core;

struct io_overflow_cqe {
	struct list_head list;
	struct io_uring_cqe cqe;
} __core;

struct io_buffer_list {
	struct list_head buf_list;
	u16 nr_entries, head, mask, flags;
	u32 min_left_sub_one;	/* not in every 6.18 */
	struct io_mapped_region region;
} __core;

struct io_buffer_list___old {
	u16 buf_nr_pages;
	struct page **buf_pages;
	u8 is_mapped;
	u8 is_mmap;
	u8 is_buf_ring;
} __core;

struct io_buffer {
	struct list_head list;
	u64 addr;
	u32 len;
	u16 bid;
} __core;

/* The entry of an xarray at *index or the next after it; *index is where it is. 0 with *index ~0: there is none. */
static __attribute__((always_inline)) u64 xa_next(struct xarray *xa, u64 *index)
{
	unsigned char shift = 0;
	void *entry = 0;
	u64 at = *index, slot;

	READ(entry, xa->xa_head);
	if (((u64)entry & 3) != 2 || (u64)entry <= 4096) {
		*index = at || !entry ? ~0ULL : 0;
		return at ? 0 : (u64)entry;
	}
	for (int level = 0; level < 4; level++) {
		struct xa_node *node = (struct xa_node *)((u64)entry & ~3ULL);

		READ(shift, node->shift);
		if (shift > 18)
			return 0;
		slot = at >> shift;
		if (!level && slot > 63) {
			*index = ~0ULL;
			return 0;
		}
		slot &= 63;
		bpf_probe_read_kernel(&entry, sizeof(entry), (char *)&node->slots[0] + slot * 8);
		/* Small ones are no nodes, but marks of the array's own (XA_ZERO_ENTRY). */
		if ((u64)entry <= 4096) {
			/* Nothing below here: on with the next slot. */
			*index = ((at >> shift) + 1) << shift;
			return 0;
		}
		if (!shift) {
			*index = at;
			return (u64)entry;
		}
	}
	return 0;
}

static __attribute__((always_inline)) void put(void *seq, struct cursor *c, u32 index, u64 a, u64 b, u64 x, u64 d)
{
	struct item i = { .kind = c->kind, .index = index, .a = a, .b = b, .c = x, .d = d };

	bpf_seq_write(seq, &i, sizeof(i));
	c->written++;
}

static __attribute__((always_inline)) void next_buffer(struct walk *w, struct cursor *c)
{
	struct io_ring_ctx *ctx = w->ctx;
	struct io_ring_ctx___old *old = (struct io_ring_ctx___old *)ctx;
	struct io_rsrc_node **nodes = 0, *node = 0;
	struct io_mapped_ubuf **bufs = 0, *buf = 0;
	u64 addr = 0, end = 0, tag = 0;
	u32 nr = 0, len = 0;
	u8 is_kbuf = 0;

	if (HAS(ctx->buf_table)) {
		READ(nr, ctx->buf_table.nr);
		if (c->at >= nr) {
			c->done = 1;
			return;
		}
		READ(nodes, ctx->buf_table.nodes);
		bpf_probe_read_kernel(&node, sizeof(node), nodes + c->at);
		if (node) {
			READ(tag, node->tag);
			READ(buf, node->buf);
		}
	} else {
		READ(nr, old->nr_user_bufs);
		if (c->at >= nr) {
			c->done = 1;
			return;
		}
		READ(bufs, old->user_bufs);
		bpf_probe_read_kernel(&buf, sizeof(buf), bufs + c->at);
		if (HAS(old->buf_data)) {
			struct io_rsrc_data___old *data = 0;
			u64 **tags = 0, *table = 0;

			READ(data, old->buf_data);
			READ(tags, data->tags);
			bpf_probe_read_kernel(&table, sizeof(table), tags + (c->at >> 9));
			bpf_probe_read_kernel(&tag, sizeof(tag), table + (c->at & 511));
		}
	}
	if (buf) {
		READ(addr, buf->ubuf);
		if (HAS(buf->len)) {
			READ(len, buf->len);
		} else {
			READ(end, buf->ubuf_end);
			len = (u32)(end - addr);
		}
		if (HAS(buf->is_kbuf))
			READ(is_kbuf, buf->is_kbuf);
	}
	/* Before Linux 6.13 empty slots have one that nobody can use (io_uring/rsrc.c: dummy_ubuf). */
	if (addr == ~0ULL)
		addr = len = 0;
	if (addr || len || tag)
		put(w->seq, c, (u32)c->at, addr, len, tag, is_kbuf);
	c->at++;
}

static __attribute__((always_inline)) void next_file(struct walk *w, struct cursor *c)
{
	struct io_ring_ctx *ctx = w->ctx;
	struct io_ring_ctx___old *old = (struct io_ring_ctx___old *)ctx;
	struct io_rsrc_node **nodes = 0, *node = 0;
	struct io_fixed_file *files = 0;
	unsigned long file = 0;
	u64 tag = 0;
	u32 nr = 0;

	if (HAS(ctx->buf_table)) {
		READ(nr, ctx->file_table.data.nr);
		if (c->at >= nr) {
			c->done = 1;
			return;
		}
		READ(nodes, ctx->file_table.data.nodes);
		bpf_probe_read_kernel(&node, sizeof(node), nodes + c->at);
		if (node) {
			READ(tag, node->tag);
			READ(file, node->file_ptr);
		}
	} else {
		READ(nr, old->nr_user_files);
		if (c->at >= nr) {
			c->done = 1;
			return;
		}
		READ(files, old->file_table.files);
		bpf_probe_read_kernel(&file, sizeof(file), files + c->at);
		if (HAS(old->file_data)) {
			struct io_rsrc_data___old *data = 0;
			u64 **tags = 0, *table = 0;

			READ(data, old->file_data);
			READ(tags, data->tags);
			bpf_probe_read_kernel(&table, sizeof(table), tags + (c->at >> 9));
			bpf_probe_read_kernel(&tag, sizeof(tag), table + (c->at & 511));
		}
	}
	/* The lowest bits say what the file can (io_uring/filetable.h). */
	file &= ~7UL;
	if (c->kind == OPENED && file) {
		struct inode *inode = 0;
		unsigned int flags = 0;
		unsigned short mode = 0;
		long long pos = 0;

		READ(inode, ((struct file *)file)->f_inode);
		READ(flags, ((struct file *)file)->f_flags);
		READ(pos, ((struct file *)file)->f_pos);
		READ(mode, inode->i_mode);
		put(w->seq, c, (u32)c->at, file, (u64)inode, (u64)flags | (u64)mode << 32, (u64)pos);
	} else if (c->kind == FILE && (file || tag)) {
		put(w->seq, c, (u32)c->at, file, tag, 0, 0);
	}
	c->at++;
}

static __attribute__((always_inline)) void next_overflow(struct walk *w, struct cursor *c)
{
	struct list_head *at = (struct list_head *)c->at, *next = 0;
	struct io_uring_cqe *cqe;
	u64 user_data = 0, extra[2] = { 0 };
	u32 flags = 0, setup = 0;
	s32 res = 0;

	if (!at)
		READ(at, w->ctx->cq_overflow_list.next);
	if (at == &w->ctx->cq_overflow_list) {
		c->done = 1;
		return;
	}
	cqe = &((struct io_overflow_cqe *)at)->cqe;
	READ(user_data, cqe->user_data);
	READ(res, cqe->res);
	READ(flags, cqe->flags);
	READ(setup, w->ctx->flags);
	if (setup & (1 << 11))
		bpf_probe_read_kernel(extra, sizeof(extra), (char *)cqe + 16);
	put(w->seq, c, 0, user_data, (u64)(u32)res | (u64)flags << 32, extra[0], extra[1]);
	READ(next, at->next);
	c->at = (u64)next;
}

/* io_uring/kbuf.c, BGID_ARRAY */
#define LOW_GROUPS 64

static __attribute__((always_inline)) void next_group(struct walk *w, struct cursor *c)
{
	struct io_ring_ctx___old *ctx = (struct io_ring_ctx___old *)w->ctx;
	struct io_buffer_list *list = 0, *low = 0;
	struct io_buffer_list___old *old;
	u64 index = c->at;
	u16 entries = 0, head = 0, mask = 0, flags = 0;
	struct page **pages = 0;
	struct list_head *first = 0;
	u64 page = 0;
	u32 min_left = 0;
	u8 byte = 0;

	if (HAS(ctx->io_bl) && index < LOW_GROUPS)
		READ(low, ctx->io_bl);
	if (low)
		list = (struct io_buffer_list *)((u64)low + index * SIZE_OF(struct io_buffer_list));
	else
		list = (struct io_buffer_list *)xa_next(&w->ctx->io_bl_xa, &index);
	if (index == ~0ULL) {
		c->done = 1;
		return;
	}
	c->at = index;
	if (!list)
		return;
	c->at++;
	old = (struct io_buffer_list___old *)list;
	READ(entries, list->nr_entries);
	READ(head, list->head);
	READ(mask, list->mask);
	if (HAS(list->region)) {
		/* Linux 6.13: IO_REGION_F_USER_PROVIDED, or the kernel's own memory. */
		u32 region = 0;

		READ(flags, list->flags);
		READ(region, list->region.flags);
		flags = (flags & 3) | (flags & 1 && !(region & 2) ? 0x100 : 0);
	} else if (HAS(list->flags)) {
		/* Linux 6.12: IOBL_BUF_RING, IOBL_MMAP, IOBL_INC. */
		READ(flags, list->flags);
		flags = (flags & 1) | (flags & 2 ? 0x100 : 0) | (flags & 4 ? 2 : 0);
	} else {
		/* Linux 6.1: with pages it is a ring of user memory. */
		u16 nr = 0;

		READ(nr, old->buf_nr_pages);
		if (HAS(old->is_buf_ring)) {
			READ(byte, old->is_buf_ring);
			nr = byte;
		} else if (HAS(old->is_mapped)) {
			READ(byte, old->is_mapped);
			nr = byte;
		}
		flags = nr ? 1 : 0;
		if (HAS(old->is_mmap)) {
			READ(byte, old->is_mmap);
			flags |= byte ? 0x100 : 0;
		}
	}
	if (HAS(list->region)) {
		READ(pages, list->region.pages);
	} else if (flags & 1)
		READ(pages, old->buf_pages);
	if (pages && (flags & 1))
		bpf_probe_read_kernel(&page, sizeof(page), pages);
	READ(first, list->buf_list.next);
	/* One that was never used. */
	if (low && !(flags & 1) && first == &list->buf_list)
		return;
	if (HAS(list->min_left_sub_one))
		READ(min_left, list->min_left_sub_one);
	put(w->seq, c, (u32)index, (u64)entries | (u64)head << 16 | (u64)mask << 32 | (u64)flags << 48, page,
	    (u64)&list->buf_list, flags & 1 ? min_left : (u64)first);
}

/* Buffers of IORING_OP_PROVIDE_BUFFERS, from c->at to the list's own head. */
static __attribute__((always_inline)) void next_provided(struct walk *w, struct cursor *c)
{
	struct io_buffer *at = (struct io_buffer *)c->at;
	struct list_head *next = 0;
	u64 addr = 0;
	u32 len = 0;
	u16 bid = 0;

	if (c->at == c->base || !c->at) {
		c->done = 1;
		return;
	}
	READ(addr, at->addr);
	READ(len, at->len);
	READ(bid, at->bid);
	put(w->seq, c, bid, addr, len, 0, 0);
	READ(next, at->list.next);
	c->at = (u64)next;
}

struct id {
	u32 val;
};

struct user_namespace;

struct cred {
	struct id uid, gid, suid, sgid, euid, egid, fsuid, fsgid;
	unsigned int securebits;
	struct id cap_inheritable, cap_permitted, cap_effective, cap_bset, cap_ambient;
	struct group_info *group_info;
	struct user_namespace *user_ns;
} __core;

struct task_struct___cred {
	const struct cred *cred;
} __core;

struct group_info {
	int ngroups;
	struct id gid[];
} __core;

static __attribute__((always_inline)) void next_personality(struct walk *w, struct cursor *c)
{
	u64 index = c->at;
	struct cred *cred = (struct cred *)xa_next(&w->ctx->personalities, &index);
	u32 uid[2] = { 0 }, gid[2] = { 0 }, fs[2] = { 0 }, saved[2] = { 0 }, bits = 0, sum = 0;
	u64 caps = 0, more[4] = { 0 };
	struct user_namespace *ns = 0, *own_ns = 0;
	struct group_info *groups = 0;
	const struct cred *own = 0;
	int n = 0;

	if (index == ~0ULL) {
		c->done = 1;
		return;
	}
	c->at = index;
	if (!cred)
		return;
	c->at++;
	bpf_probe_read_kernel(&uid[0], 4, &cred->uid);
	bpf_probe_read_kernel(&uid[1], 4, &cred->euid);
	bpf_probe_read_kernel(&gid[0], 4, &cred->gid);
	bpf_probe_read_kernel(&gid[1], 4, &cred->egid);
	bpf_probe_read_kernel(&fs[0], 4, &cred->fsuid);
	bpf_probe_read_kernel(&fs[1], 4, &cred->fsgid);
	bpf_probe_read_kernel(&caps, 8, &cred->cap_effective);
	put(w->seq, c, (u32)index, uid[0] | (u64)uid[1] << 32, gid[0] | (u64)gid[1] << 32, fs[0] | (u64)fs[1] << 32, caps);
	bpf_probe_read_kernel(&saved[0], 4, &cred->suid);
	bpf_probe_read_kernel(&saved[1], 4, &cred->sgid);
	bpf_probe_read_kernel(&bits, 4, &cred->securebits);
	bpf_probe_read_kernel(&more[0], 8, &cred->cap_inheritable);
	bpf_probe_read_kernel(&more[1], 8, &cred->cap_permitted);
	bpf_probe_read_kernel(&more[2], 8, &cred->cap_bset);
	bpf_probe_read_kernel(&more[3], 8, &cred->cap_ambient);
	READ(groups, cred->group_info);
	READ(n, groups->ngroups);
	for (int i = 0; i < 64 && i < n; i++) {
		u32 gid_ = 0;

		bpf_probe_read_kernel(&gid_, 4, (char *)&groups->gid[0] + i * 4);
		sum = sum * 31 + gid_;
	}
	put(w->seq, c, (u32)index | 1 << 16, saved[0] | (u64)saved[1] << 32, more[0], more[1], more[2]);
	/* Bit 32: they are of the namespace in which the numbers are read. */
	READ(own, ((struct task_struct___cred *)bpf_get_current_task())->cred);
	READ(ns, cred->user_ns);
	READ(own_ns, own->user_ns);
	put(w->seq, c, (u32)index | 2 << 16, more[3], bits | (u64)(ns == own_ns) << 32, (u32)n, sum);
	/* The first 32 of its groups. */
	for (u32 part = 0; part < 4 && (int)part * 8 < n; part++) {
		bpf_probe_read_kernel(more, sizeof(more), (char *)&groups->gid[0] + part * 32);
		put(w->seq, c, (u32)index | (3 + part) << 16, more[0], more[1], more[2], more[3]);
	}
}

struct io_tctx_node {
	struct list_head ctx_node;
	struct task_struct *task;
} __core;

static __attribute__((always_inline)) void put_user(struct walk *w, struct cursor *c, struct task_struct *task, u32 tid)
{
	struct io_uring_task *tctx = 0;
	struct cpumask *set = 0;
	struct io_wq *wq = 0;
	u32 limits[2] = { 0 };
	u64 cpus[2] = { 0 };

	READ(tctx, ((struct task_struct___uring *)task)->io_uring);
	if (tctx)
		READ(wq, tctx->io_wq);
	/* Before Linux 6.4 they are elsewhere: then those of the ring are all that is known. */
	if (wq && HAS(wq->acct)) {
		READ(limits[0], wq->acct[0].max_workers);
		bpf_probe_read_kernel(&limits[1], 4, (char *)&wq->acct[0].max_workers + SIZE_OF(struct io_wq_acct));
	}
	/* The first 128 processors. */
	if (wq && HAS(wq->cpu_mask))
		set = (struct cpumask *)&wq->cpu_mask;
	else if (wq && HAS(((struct io_wq___apart *)wq)->cpu_mask))
		READ(set, ((struct io_wq___apart *)wq)->cpu_mask);
	if (set)
		bpf_probe_read_kernel(&cpus[0], 8, set);
	if (set && SIZE_OF(struct cpumask) > 8)
		bpf_probe_read_kernel(&cpus[1], 8, (char *)set + 8);
	put(w->seq, c, tid, limits[0], limits[1], cpus[0], cpus[1]);
}

/* Threads that use the ring, with the limits of their workers; last, as number 0, the one of an SQPOLL ring's own. */
static __attribute__((always_inline)) void next_user(struct walk *w, struct cursor *c)
{
	struct list_head *at = (struct list_head *)c->at, *next = 0;
	struct task_struct *task = 0;
	struct io_sq_data *sqd = 0;

	if (!at)
		READ(at, w->ctx->tctx_list.next);
	if (at == &w->ctx->tctx_list) {
		READ(sqd, w->ctx->sq_data);
		if (sqd)
			READ(task, sqd->thread);
		if (task)
			put_user(w, c, task, 0);
		c->done = 1;
		return;
	}
	READ(task, container_of(at, struct io_tctx_node, ctx_node)->task);
	put_user(w, c, task, (u32)number(task));
	READ(next, at->next);
	c->at = (u64)next;
}

/* Counts requests that wait to be used again: the others are in flight. */
static __attribute__((always_inline)) void next_free(struct walk *w, struct cursor *c)
{
	struct io_ring_ctx *ctx = w->ctx;
	struct io_wq_work_node *at = (struct io_wq_work_node *)c->at, *next = 0;
	u32 all = 0;

	if (!HAS(ctx->nr_req_allocated)) {
		c->done = 1;
		return;
	}
	if (!c->base) {
		READ(at, ctx->submit_state.free_list.next);
		c->base = 1;
	}
	if (!at) {
		READ(all, ctx->nr_req_allocated);
		put(w->seq, c, 0, all, c->base - 1, 0, 0);
		c->done = 1;
		return;
	}
	READ(next, at->next);
	c->at = (u64)next;
	if (!next) {
		READ(all, ctx->nr_req_allocated);
		put(w->seq, c, 0, all, c->base, 0, 0);
		c->done = 1;
		return;
	}
	c->base++;
}

static __attribute__((noinline)) long take(u32 round, struct walk *w)
{
	u32 zero = 0;
	struct cursor *c = bpf_map_lookup_elem(&cursor, &zero);

	(void)round;
	if (!c)
		return 1;
	switch (c->kind) {
	case BUFFER:
		next_buffer(w, c);
		break;
	case FILE:
	case OPENED:
		next_file(w, c);
		break;
	case OVERFLOW:
		next_overflow(w, c);
		break;
	case GROUP:
		next_group(w, c);
		break;
	case PROVIDED:
		next_provided(w, c);
		break;
	case REQUESTS:
		next_free(w, c);
		break;
	case PERSONALITY:
		next_personality(w, c);
		break;
	case USER:
		next_user(w, c);
		break;
	default:
		return 1;
	}
	return c->done || c->written >= MOST;
}

/* A part of the ring that the cursor names: what of it, and where it begins. */
SEC("iter/task_file.parts")
int parts(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	struct cursor *c = bpf_map_lookup_elem(&cursor, &zero);
	struct file *file = ctx->file;
	struct walk w = { .seq = ctx->meta->seq };

	if (!file || !c || is_repeated(ctx->task) || c->fd != ctx->fd)
		return 0;
	if (c->file)
		file = (struct file *)c->file;
	if (!is_ring(file))
		return 0;
	READ(w.ctx, file->private_data);
	c->written = 0;
	bpf_loop(1 << 20, take, &w, 0);
	return 0;
}

/* All, or the one that the cursor has. */
SEC("iter/task_file.rings")
int rings(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	struct cursor *c = bpf_map_lookup_elem(&cursor, &zero);
	struct file *file = ctx->file;

	if (file && c && c->file)
		file = c->fd == ctx->fd ? (struct file *)c->file : 0;
	if (file && !is_repeated(ctx->task) && is_ring(file))
		write_ring(ctx->meta->seq, file, ctx->fd);
	return 0;
}

struct descriptor {
	u32 kind;
	u32 fd;
	u64 file;
	u64 eventfd;		/* what rings know it by */
	u64 pos;
	u64 inode;
	s32 tgid;
	u32 flags;
};

/* Every descriptor of a process: registered files and eventfds are found again among them. */
SEC("iter/task_file.descriptors")
int descriptors(struct bpf_iter__task_file *ctx)
{
	static const char name[] = "[eventfd]";
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task, *leader = 0;
	struct descriptor d = { .kind = DESCRIPTOR, .fd = ctx->fd };
	struct inode *inode = 0;
	void *private = 0;

	if (!file || !task || is_repeated(task))
		return 0;
	READ(leader, task->group_leader);
	d.tgid = number(leader);
	d.file = (u64)file;
	READ(d.flags, file->f_flags);
	READ(d.pos, file->f_pos);
	READ(inode, file->f_inode);
	d.inode = (u64)inode;
	if (is_anon(file, name, sizeof(name))) {
		READ(private, file->private_data);
		d.eventfd = (u64)private;
	}
	bpf_seq_write(ctx->meta->seq, &d, sizeof(d));
	return 0;
}

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
} __core;

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
} __core;

struct mapping {
	u32 kind;
	s32 tgid;
	u64 file;
	u64 start, end, offset, flags;
};

SEC("iter/task_vma.mappings")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task, *leader = 0;
	struct vm_area_struct *vma = ctx->vma;
	struct mapping m = { .kind = MAPPING };
	unsigned long word = 0;
	struct file *file = 0;

	if (!vma || !task)
		return 0;
	READ(leader, task->group_leader);
	if (leader != task)
		return 0;
	READ(file, vma->vm_file);
	if (!file || !is_ring(file))
		return 0;
	m.tgid = number(task);
	m.file = (u64)file;
	READ(word, vma->vm_start);
	m.start = word;
	READ(word, vma->vm_end);
	m.end = word;
	READ(word, vma->vm_pgoff);
	m.offset = word << 12;
	READ(word, vma->vm_flags);
	m.flags = word;
	bpf_seq_write(ctx->meta->seq, &m, sizeof(m));
	return 0;
}

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __core;

struct thread {
	u32 kind;
	s32 tgid, tid;
	u32 zero;
	u64 mm;
	u64 wq;
	u64 rings[16];
};

/* Threads that have used a ring. */
SEC("iter/task.threads")
int threads(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader = 0;
	struct task_struct___uring *t = (struct task_struct___uring *)task;
	struct io_uring_task *tctx = 0;
	struct thread r = { .kind = THREAD };
	struct mm_struct *mm = 0;
	struct io_wq *wq = 0;
	struct file *file = 0;

	if (!task)
		return 0;
	READ(tctx, t->io_uring);
	if (!tctx)
		return 0;
	READ(leader, task->group_leader);
	r.tgid = number(leader);
	r.tid = number(task);
	if (!r.tgid)
		return 0;
	READ(mm, t->mm);
	r.mm = (u64)mm;
	READ(wq, tctx->io_wq);
	r.wq = (u64)wq;
	for (int i = 0; i < 16; i++) {
		READ(file, tctx->registered_rings[i]);
		r.rings[i] = (u64)file;
	}
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

/* A page of a process's memory, and where it may have it. */
struct wanted {
	u64 page;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct wanted);
} wanted SEC(".maps");

struct address_space;
struct anon_vma {
	struct anon_vma *root;
} __core;

struct page {
	struct address_space *mapping;
	unsigned long __folio_index;	/* Linux 6.15 */
	unsigned long compound_head;
} __core;

struct page___old {
	unsigned long index;
} __core;

struct file___mapped {
	struct address_space *f_mapping;
} __core;

struct vm_area_struct___anon {
	struct anon_vma *anon_vma;
} __core;

SEC("iter/task_vma.places")
int places(struct bpf_iter__task_vma *ctx)
{
	u32 zero = 0;
	struct wanted *w = bpf_map_lookup_elem(&wanted, &zero);
	struct task_struct *task = ctx->task, *leader = 0;
	struct vm_area_struct *vma = ctx->vma;
	struct mapping m = { .kind = PLACE };
	struct page *page, *head;
	unsigned long compound = 0, index = 0, pgoff = 0, start = 0, end = 0;
	struct address_space *mapping = 0, *of_file = 0;
	struct anon_vma *anon = 0, *root = 0, *root2 = 0;
	struct file *file = 0;

	if (!vma || !task || !w)
		return 0;
	READ(leader, task->group_leader);
	if (leader != task)
		return 0;
	page = (struct page *)w->page;
	READ(compound, page->compound_head);
	head = compound & 1 ? (struct page *)(compound - 1) : page;
	READ(mapping, head->mapping);
	if (HAS(head->__folio_index))
		READ(index, head->__folio_index);
	else
		READ(index, ((struct page___old *)head)->index);
	index += ((u64)page - (u64)head) / SIZE_OF(struct page);
	if ((u64)mapping & 1) {
		READ(anon, ((struct vm_area_struct___anon *)vma)->anon_vma);
		if (!anon)
			return 0;
		READ(root, anon->root);
		READ(root2, ((struct anon_vma *)((u64)mapping & ~3ULL))->root);
		if (root != root2)
			return 0;
	} else {
		READ(file, vma->vm_file);
		if (!file)
			return 0;
		READ(of_file, ((struct file___mapped *)file)->f_mapping);
		if (of_file != mapping)
			return 0;
	}
	READ(pgoff, vma->vm_pgoff);
	READ(start, vma->vm_start);
	READ(end, vma->vm_end);
	if (index < pgoff || index - pgoff >= (end - start) >> 12)
		return 0;
	m.tgid = number(task);
	m.start = start + ((index - pgoff) << 12);
	m.end = end;
	bpf_seq_write(ctx->meta->seq, &m, sizeof(m));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
