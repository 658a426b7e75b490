/* SPDX-License-Identifier: GPL-2.0-only */
/* What the program had asked for, opcode by opcode. */
#ifndef CRYOSHIM_BPF_URING_INFLIGHT_OPCODES_H
#define CRYOSHIM_BPF_URING_INFLIGHT_OPCODES_H

#include "records.h"

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
	/* It takes no priority, and the one that it has is its task's. */
	if (r->opcode == OP_READ_MULTISHOT)
		r->addr = r->len = r->ioprio = 0;
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
	case OP_POLL_REMOVE:
		READ(r->addr, ((struct io_poll_update *)req)->old_user_data);
		READ(r->off, ((struct io_poll_update *)req)->new_user_data);
		READ(byte, ((struct io_poll_update *)req)->update_user_data);
		r->len = byte ? 4 : 0;
		READ(byte, ((struct io_poll_update *)req)->update_events);
		if (byte) {
			READ(r->op_flags, ((struct io_poll_update *)req)->events);
			r->len |= 2 | (r->op_flags & (1U << 30) ? 0 : 1) | (r->op_flags & (1U << 31) ? 0 : 8);
			r->op_flags &= ~(3U << 30);
		}
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

#endif
