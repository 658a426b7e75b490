// SPDX-License-Identifier: GPL-2.0-only
/*
 * A file that no task has a descriptor of, by its address: what CRIU would ask a socket, with what waits in its queues, a pipe or an eventfd.
 * shim/xray/direct-files.ts reads the records.
 */
#include "bpf.h"

static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;

struct super_block {
	unsigned long s_magic;
} __core;

struct pipe_inode_info {
	unsigned int head, tail, max_usage;
} __core;

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
	struct pipe_inode_info *i_pipe;
} __core;

#include "anon.h"

struct eventfd_ctx {
	u64 count;
	unsigned int flags;
} __core;

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right, *rb_left;
} __core;

struct rb_root {
	struct rb_node *rb_node;
} __core;

#include "socket.h"

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
	unsigned int f_flags;
} __core;

struct bpf_iter_meta {
	void *seq;
} __core;

struct sk_buff___tcp {
	struct rb_node rbnode;
	char cb[48];
} __core;

struct ns_common {
	unsigned int inum;
} __core;

struct net {
	struct ns_common ns;
} __core;

struct possible_net {
	struct net *net;
} __core;

struct in6_addr {
	u8 bytes[16];
};

struct sock_common___inet {
	u16 skc_family;
	u8 skc_state;
	u8 skc_reuse : 4;
	u8 skc_reuseport : 1;
	u8 skc_ipv6only : 1;
	int skc_bound_dev_if;
	struct possible_net skc_net;
	u32 skc_daddr, skc_rcv_saddr;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
	u16 skc_dport, skc_num;
	unsigned long skc_flags;
} __core;

struct sock___inet {
	struct sock_common___inet __sk_common;
	u16 sk_type;
	u16 sk_protocol;
	u8 sk_no_check_tx : 1;
	u8 sk_shutdown;
	u8 sk_userlocks;
	int sk_sndbuf, sk_rcvbuf, sk_rcvlowat;
	u32 sk_priority, sk_mark, sk_ack_backlog, sk_max_ack_backlog;
	long sk_sndtimeo, sk_rcvtimeo;
	unsigned long sk_lingertime;
	void *sk_filter;
	struct rb_root tcp_rtx_queue;
} __core;

struct inet_sock {
	u8 tos;
	s16 uc_ttl;
	unsigned long inet_flags;	/* Linux 6.6 */
} __core;

struct inet_connection_sock {
	void *icsk_ulp_ops;
} __core;

struct tcp_options_received {
	u32 rcv_tsecr;
	u16 mss_clamp;
} __core;

struct tcp_sock {
	u32 rcv_nxt, copied_seq, rcv_wup, snd_nxt, snd_una, snd_wl1, snd_wnd, max_window, rcv_wnd, write_seq, tsoffset;
	u8 nonagle : 4;
	u8 repair : 1;
	u8 tcp_usec_ts : 1;		/* Linux 6.7 */
	struct tcp_options_received rx_opt;
	unsigned int keepalive_time, keepalive_intvl;
	u8 keepalive_probes;
} __core;

enum { IPPROTO_TCP_ = 6 };
enum { S_IFIFO_ = 0010000 };
enum { SOCKET = 0x54434b53, PART = 0x54524150, OTHER = 0x5245484f };
enum { PIPE = 1, EVENTFD = 2 };
#define PIPEFS_MAGIC 0x50495045

struct record {
	u32 magic;		/* SOCKET */
	u32 family, type, protocol, state, inode, netns, file_flags;
	u32 local_port, remote_port;
	u8 local[16], remote[16];
	u32 device;		/* it is bound to */
	u32 waiting, backlog;	/* connections to be accepted, and how many may wait */
	u32 sndbuf, rcvbuf, locked, rcvlowat, priority, mark, shutdown;
	u32 reuse, reuseport, v6only;
	u32 odd;		/* bit 0: it has a filter, 1: its bytes are not the connection's (TLS), 2: it is being repaired, 3: finer timestamps, 4: corked, 5: no checksums */
	u64 flags, linger;	/* SOCK_*; jiffies */
	u64 sndtimeo, rcvtimeo;
	u64 inet_flags;
	u32 tos;
	s32 ttl;
	u32 rcv_nxt, copied_seq, rcv_wup, snd_nxt, snd_una, snd_wl1, snd_wnd, max_window, rcv_wnd, write_seq;
	u32 timestamp, options, mss_clamp, nonagle;
	u32 keepalive_time, keepalive_intvl, keepalive_probes, zero;
};

/* `len` bytes of a queue; `seq`: of the first of them. */
struct part {
	u32 magic;		/* PART */
	u32 len;
	u32 seq;
	u32 sends;		/* they were written, else received */
};

/* What is no socket. */
struct other {
	u32 magic;		/* OTHER */
	u32 kind;
	u32 inode, file_flags;
	u64 count;		/* of an eventfd */
	u32 flags;		/* of an eventfd: EFD_* */
	u32 used, size;		/* of a pipe: pages */
	u32 zero;
};

#define STEPS (1 << 18)

enum { RECEIVED, SENT, WRITTEN, NONE };
enum { DESCEND, VISIT, CLIMB };

/* `fd`: of the process that reads, for it to be done once. What is behind `queues` is where the next pass goes on, if there is more. */
struct walk {
	u64 file;
	u64 shift;		/* see page_address_of() */
	u32 fd;
	u32 queues;		/* they are wanted, too */
	u64 sk, at;		/* a buffer of a list, or a node of the tree of what was sent */
	u32 queue, turn, piece, offset, skipped, written, done, more;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} walk SEC(".maps");

#include "chunk.h"

/* Of a field of bits. */
#define BITS(from, field) \
	({ \
		u64 word__ = 0; \
		bpf_probe_read_kernel(&word__, __builtin_preserve_field_info((from)->field, 1 /* byte size */), \
				      (const char *)(from) + __builtin_preserve_field_info((from)->field, 0 /* byte offset */)); \
		word__ << __builtin_preserve_field_info((from)->field, 4 /* left shift */) >> \
			__builtin_preserve_field_info((from)->field, 5 /* right shift */); \
	})

static __attribute__((always_inline)) u64 queue_of(struct walk *w)
{
	struct sock *sk = (struct sock *)w->sk;

	return w->queue == RECEIVED ? (u64)&sk->sk_receive_queue : (u64)&sk->sk_write_queue;
}

static __attribute__((always_inline)) void enter(struct walk *w, u32 queue)
{
	struct sk_buff *skb = 0;
	struct rb_node *node = 0;

	w->queue = queue;
	w->piece = w->offset = w->skipped = 0;
	w->turn = DESCEND;
	if (queue == SENT) {
		READ(node, ((struct sock___inet *)w->sk)->tcp_rtx_queue.rb_node);
		w->at = (u64)node;
	} else if (queue == RECEIVED || queue == WRITTEN) {
		READ(skb, ((struct sk_buff_head *)queue_of(w))->next);
		w->at = (u64)skb;
	} else {
		w->done = 1;
	}
}

/* The next buffer of the queue, or, in the tree, one step towards it. */
static __attribute__((always_inline)) void go_on(struct walk *w)
{
	struct rb_node *node = (struct rb_node *)w->at, *next = 0;
	unsigned long parent = 0;
	struct sk_buff *skb = 0;

	w->piece = w->offset = w->skipped = 0;
	if (w->queue != SENT) {
		READ(skb, ((struct sk_buff *)w->at)->next);
		w->at = (u64)skb;
		return;
	}
	if (w->turn == VISIT) {
		READ(next, node->rb_right);
		w->turn = next ? DESCEND : CLIMB;
		if (next)
			w->at = (u64)next;
		return;
	}
	READ(parent, node->__rb_parent_color);
	parent &= ~3UL;
	w->at = parent;
	if (!parent)
		return;
	READ(next, ((struct rb_node *)parent)->rb_right);
	if (next != node)
		w->turn = VISIT;
}

/* Where piece `w->piece` of a buffer lies: 0 is its linear part, then its pages. */
static __attribute__((always_inline)) u64 piece_at(struct walk *w, u32 *size)
{
	struct sk_buff *skb = (struct sk_buff *)w->at;
	struct skb_shared_info *shared;
	unsigned char *head = 0, *data = 0;
	u32 len = 0, data_len = 0, end = 0;
	struct frag frag = { 0 };
	u8 nr = 0;

	if (!w->piece) {
		READ(len, skb->len);
		READ(data_len, skb->data_len);
		READ(data, skb->data);
		*size = len - data_len;
		return (u64)data;
	}
	READ(head, skb->head);
	READ(end, skb->end);
	shared = (struct skb_shared_info *)(head + end);
	READ(nr, shared->nr_frags);
	if (w->piece > nr)
		return 0;
	bpf_probe_read_kernel(&frag, sizeof(frag), (char *)&shared->frags[0] + (w->piece - 1) * sizeof(frag));
	*size = frag.len;
	return page_address_of(frag.page, w->shift) + frag.offset;
}

static __attribute__((always_inline)) void take_piece(void *seq, struct walk *w)
{
	u32 zero = 0, size = 0, len, first = 0;
	struct chunk *out = bpf_map_lookup_elem(&scratch, &zero);
	u64 at;

	if (!out) {
		w->done = 1;
		return;
	}
	at = piece_at(w, &size);
	if (!at) {
		go_on(w);
		return;
	}
	if (w->offset >= size) {
		w->piece++;
		w->skipped += size;
		w->offset = 0;
		return;
	}
	len = size - w->offset;
	if (len > PAGE)
		len = PAGE;
	/* struct tcp_skb_cb begins with it. */
	bpf_probe_read_kernel(&first, sizeof(first), &((struct sk_buff___tcp *)w->at)->cb[0]);
	out->head.magic = PART;
	out->head.len = len;
	out->head.seq = first + w->skipped + w->offset;
	out->head.sends = w->queue != RECEIVED;
	/* For the verifier, which does not know any more what the number can be. */
	if (len > PAGE || bpf_probe_read_kernel(out->bytes, len, (void *)(at + w->offset))) {
		w->done = 1;
		return;
	}
	bpf_seq_write(seq, out, sizeof(out->head) + len);
	w->written += sizeof(out->head) + len;
	w->offset += len;
}

static __attribute__((noinline)) long walk_on(u32 round, void **seq)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	struct rb_node *left = 0;

	(void)round;
	if (!w)
		return 1;
	if (!w->at || (w->queue != SENT && w->at == queue_of(w))) {
		enter(w, w->queue + 1);
	} else if (w->queue == SENT && w->turn == DESCEND) {
		READ(left, ((struct rb_node *)w->at)->rb_left);
		if (left)
			w->at = (u64)left;
		else
			w->turn = VISIT;
	} else if (w->queue == SENT && w->turn == CLIMB) {
		go_on(w);
	} else {
		take_piece(*seq, w);
	}
	w->more = !w->done && w->written >= BUDGET;
	return w->done || w->more;
}

static __attribute__((always_inline)) void read_tcp(struct record *r, struct tcp_sock *tp)
{
	void *ulp = 0;
	u32 word = 0;
	u16 half = 0;
	u8 byte = 0;

	READ(r->rcv_nxt, tp->rcv_nxt);
	READ(r->copied_seq, tp->copied_seq);
	READ(r->rcv_wup, tp->rcv_wup);
	READ(r->snd_nxt, tp->snd_nxt);
	READ(r->snd_una, tp->snd_una);
	READ(r->snd_wl1, tp->snd_wl1);
	READ(r->snd_wnd, tp->snd_wnd);
	READ(r->max_window, tp->max_window);
	READ(r->rcv_wnd, tp->rcv_wnd);
	READ(r->write_seq, tp->write_seq);
	READ(word, tp->tsoffset);
	r->timestamp = (u32)(bpf_ktime_get_ns() / 1000000) + word;
	/* struct tcp_options_received: bit 1 tstamp_ok, 3 wscale_ok, 4 sack_ok, 8 snd_wscale, 12 rcv_wscale */
	bpf_probe_read_kernel(&half, sizeof(half), (char *)&tp->rx_opt.rcv_tsecr + 4);
	r->options = half;
	READ(half, tp->rx_opt.mss_clamp);
	r->mss_clamp = half;
	r->nonagle = BITS(tp, nonagle);
	if (BITS(tp, repair))
		r->odd |= 4;
	if (HAS(tp->tcp_usec_ts) && BITS(tp, tcp_usec_ts))
		r->odd |= 8;
	READ(r->keepalive_time, tp->keepalive_time);
	READ(r->keepalive_intvl, tp->keepalive_intvl);
	READ(byte, tp->keepalive_probes);
	r->keepalive_probes = byte;
	READ(ulp, ((struct inet_connection_sock *)tp)->icsk_ulp_ops);
	if (ulp)
		r->odd |= 2;
}

static __attribute__((always_inline)) void read_socket(struct record *r, struct sock___inet *sk)
{
	struct inet_sock *inet = (struct inet_sock *)sk;
	struct net *net = 0;
	void *filter = 0;
	u32 pending, corked;
	u16 half = 0;
	s16 ttl = 0;
	u8 byte = 0;

	READ(half, sk->__sk_common.skc_family);
	r->family = half;
	READ(half, sk->sk_type);
	r->type = half;
	READ(half, sk->sk_protocol);
	r->protocol = half;
	if (r->family != AF_INET_ && r->family != AF_INET6_)
		return;
	READ(byte, sk->__sk_common.skc_state);
	r->state = byte;
	READ(net, sk->__sk_common.skc_net.net);
	READ(r->netns, net->ns.inum);
	READ(r->device, sk->__sk_common.skc_bound_dev_if);
	READ(half, sk->__sk_common.skc_num);
	r->local_port = half;
	READ(half, sk->__sk_common.skc_dport);
	r->remote_port = (u16)(half << 8 | half >> 8);
	if (r->family == AF_INET_) {
		bpf_probe_read_kernel(r->local, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_probe_read_kernel(r->remote, 4, &sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(r->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(r->remote, 16, &sk->__sk_common.skc_v6_daddr);
	}
	READ(r->waiting, sk->sk_ack_backlog);
	READ(r->backlog, sk->sk_max_ack_backlog);
	READ(r->sndbuf, sk->sk_sndbuf);
	READ(r->rcvbuf, sk->sk_rcvbuf);
	READ(byte, sk->sk_userlocks);
	r->locked = byte;
	READ(r->rcvlowat, sk->sk_rcvlowat);
	READ(r->priority, sk->sk_priority);
	READ(r->mark, sk->sk_mark);
	READ(byte, sk->sk_shutdown);
	r->shutdown = byte;
	r->reuse = BITS(&sk->__sk_common, skc_reuse);
	r->reuseport = BITS(&sk->__sk_common, skc_reuseport);
	r->v6only = BITS(&sk->__sk_common, skc_ipv6only);
	READ(r->flags, sk->__sk_common.skc_flags);
	READ(r->linger, sk->sk_lingertime);
	READ(r->sndtimeo, sk->sk_sndtimeo);
	READ(r->rcvtimeo, sk->sk_rcvtimeo);
	READ(filter, sk->sk_filter);
	if (filter)
		r->odd |= 1;
	if (HAS(inet->inet_flags))
		READ(r->inet_flags, inet->inet_flags);
	READ(byte, inet->tos);
	r->tos = byte;
	READ(ttl, inet->uc_ttl);
	r->ttl = ttl;
	if (BITS(sk, sk_no_check_tx))
		r->odd |= 32;
	if (r->protocol == IPPROTO_TCP_)
		read_tcp(r, (struct tcp_sock *)sk);
	if ((r->protocol == IPPROTO_UDP_ || r->protocol == IPPROTO_UDPLITE_) && is_corked((struct sock *)sk, &pending, &corked))
		r->odd |= 16;
}

static __attribute__((always_inline)) int is_eventfd(struct file *file)
{
	static const char name[] = "[eventfd]";
	struct dentry *dentry = 0;

	READ(dentry, file->f_path.dentry);
	return is_called(dentry, name, sizeof(name));
}

static __attribute__((always_inline)) void write_other(void *seq, struct file *file, struct inode *inode, u32 mode)
{
	struct other o = { .magic = OTHER };
	struct pipe_inode_info *pipe = 0;
	struct super_block *sb = 0;
	unsigned int head = 0, tail = 0;
	unsigned long word = 0;
	void *eventfd = 0;

	READ(sb, inode->i_sb);
	READ(word, sb->s_magic);
	if ((mode & S_IFMT__) == S_IFIFO_ && word == PIPEFS_MAGIC) {
		o.kind = PIPE;
		READ(pipe, inode->i_pipe);
		READ(head, pipe->head);
		READ(tail, pipe->tail);
		READ(o.size, pipe->max_usage);
		o.used = head - tail;
	} else if (word == ANON_INODE_FS_MAGIC && is_eventfd(file)) {
		o.kind = EVENTFD;
		READ(eventfd, file->private_data);
		READ(o.count, ((struct eventfd_ctx *)eventfd)->count);
		READ(o.flags, ((struct eventfd_ctx *)eventfd)->flags);
	} else {
		return;
	}
	READ(word, inode->i_ino);
	o.inode = word;
	READ(o.file_flags, file->f_flags);
	bpf_seq_write(seq, &o, sizeof(o));
}

/* The file that is asked for, and what waits in a connection. */
SEC("iter/task_file.direct")
int direct(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	void *seq = ctx->meta->seq;
	struct record r = { .magic = SOCKET };
	struct inode *inode = 0;
	struct sock *sk = 0;
	unsigned long ino = 0;
	u16 mode = 0;

	if (!ctx->file || !w || is_repeated(ctx->task) || ctx->fd != w->fd)
		return 0;
	READ(inode, ((struct file *)w->file)->f_inode);
	READ(mode, inode->i_mode);
	if ((mode & S_IFMT__) != S_IFSOCK_) {
		write_other(seq, (struct file *)w->file, inode, mode);
		return 0;
	}
	READ(ino, inode->i_ino);
	r.inode = ino;
	READ(r.file_flags, ((struct file *)w->file)->f_flags);
	READ(sk, container_of(inode, struct socket_alloc, vfs_inode)->socket.sk);
	if (!sk)
		return 0;
	read_socket(&r, (struct sock___inet *)sk);
	bpf_seq_write(seq, &r, sizeof(r));
	/* One that is not connected, or listens, has another meaning of the same lists. */
	if (!w->queues || r.protocol != IPPROTO_TCP_ || !r.remote_port)
		return 0;
	if (!w->more) {
		w->sk = (u64)sk;
		w->done = 0;
		enter(w, RECEIVED);
	}
	w->written = 0;
	bpf_loop(STEPS, walk_on, &seq, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
