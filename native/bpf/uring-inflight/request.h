/* SPDX-License-Identifier: GPL-2.0-only */
/* A request as a record: its opcode, and numbers in the place of the kernel's addresses. */
#ifndef CRYOSHIM_BPF_URING_INFLIGHT_REQUEST_H
#define CRYOSHIM_BPF_URING_INFLIGHT_REQUEST_H

#include "opcodes.h"

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

#endif
