// SPDX-License-Identifier: GPL-2.0-only
/*
 * The requests of an io_uring ring that are in flight: every list of the kernel's on which one can be (io_uring/ of Linux
 * 6.1, 6.12 and 6.18), and of each request what the program had asked for. Nothing is changed. shim/xray/uring-inflight.ts
 * reads the records.
 */
#include "uring-inflight/request.h"

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
	if (w->file)
		file = (struct file *)w->file;
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
