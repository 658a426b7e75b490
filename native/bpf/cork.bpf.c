// SPDX-License-Identifier: GPL-2.0-only
/*
 * Corked UDP sockets: an iterator that reads the datagrams that wait in them, and a program that lets getsockopt(2)
 * answer that they are not corked, for the sockets in `hidden` alone. shim/xray/corks.ts reads the records.
 */
#include "bpf.h"

static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, u64 flags) = (void *)BPF_FUNC_sk_storage_get;

struct inode {
	u16 i_mode;
} __core;

#include "socket.h"

struct file {
	struct inode *f_inode;
} __core;

struct bpf_iter_meta {
	void *seq;
} __core;

struct ip_options {
	unsigned char optlen;
	unsigned char srr;
	unsigned char __data[];
} __core;

struct inet_cork {
	u32 flags;
	struct ip_options *opt;
	u8 ttl;
	s16 tos;
	u16 gso_size;
} __core;

struct in6_addr {
	u8 bytes[16];
};

struct flowi_common {
	int flowic_oif;
} __core;

struct flowi_ports {
	u16 dport, sport;
};

union flowi_uli {
	struct flowi_ports ports;
} __core;

struct flowi4 {
	struct flowi_common __fl_common;
	u32 saddr, daddr;
	union flowi_uli uli;
} __core;

struct flowi6 {
	struct flowi_common __fl_common;
	struct in6_addr daddr, saddr;
	u32 flowlabel;
	union flowi_uli uli;
} __core;

union flowi_u {
	struct flowi4 ip4;
	struct flowi6 ip6;
} __core;

struct flowi {
	union flowi_u u;
} __core;

struct inet_cork_full {
	struct inet_cork base;
	struct flowi fl;
} __core;

struct inet6_cork {
	void *opt;
	u8 hop_limit;
	u8 tclass;
} __core;

struct ipv6_pinfo {
	struct inet6_cork cork;
} __core;

struct inet_sock {
	struct ipv6_pinfo *pinet6;
	struct inet_cork_full cork;
} __core;

#define IPCORK_OPT 1
#define OPTIONS 40

enum { CORK = 0x4b524f43, PART = 0x54524150 };

/* Stands before a datagram's bytes. */
struct cork {
	u32 magic;		/* CORK */
	u32 fd;
	u32 pending;		/* AF_INET, AF_INET6, or nothing */
	u32 corked;		/* UDP_CORK is set */
	u32 len;		/* of the payload */
	u32 gso_size;
	s32 tos;		/* IPv4: -1: the socket's own */
	u32 ttl;		/* IPv4: 0: the socket's own */
	u32 hop_limit, tclass, flowlabel;	/* IPv6 */
	s32 oif;
	u16 dport, sport;	/* network order */
	u32 optlen, srr, v6_options;
	u8 saddr[16], daddr[16];
	u8 options[OPTIONS];
};

/* `len` bytes of the datagram before it. */
struct part {
	u32 magic;		/* PART */
	u32 len;
	u32 at;			/* in the datagram: another socket's pass may have come less far */
};

#define STEPS (1 << 16)

/* `from`: how much of each datagram earlier passes have read. `shift`: see page_address_of(). */
struct walk {
	u64 from;
	u64 shift;
	u64 queue, skb;
	u64 position, written;
	u32 first, piece, offset, done;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} walk SEC(".maps");

#include "chunk.h"

/* The sockets that say they are not corked. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} hidden SEC(".maps");

/* Where piece `w->piece` of a buffer lies: 0 is its linear part, behind the headers, then its pages. */
static __attribute__((always_inline)) u64 piece_at(struct walk *w, u32 *size)
{
	struct sk_buff *skb = (struct sk_buff *)w->skb;
	u32 len = 0, data_len = 0, end = 0, skip;
	unsigned char *head = 0, *data = 0;
	struct skb_shared_info *shared;
	struct frag frag = { 0 };
	u16 transport = 0;
	u8 nr = 0;

	READ(head, skb->head);
	if (!w->piece) {
		READ(len, skb->len);
		READ(data_len, skb->data_len);
		READ(data, skb->data);
		READ(transport, skb->transport_header);
		/* The first has room for UDP's header, too (net/ipv4/ip_output.c:__ip_append_data). */
		skip = transport - (u32)(data - head) + (w->first ? 8 : 0);
		*size = len - data_len > skip ? len - data_len - skip : 0;
		return (u64)data + skip;
	}
	READ(end, skb->end);
	shared = (struct skb_shared_info *)(head + end);
	READ(nr, shared->nr_frags);
	if (w->piece > nr)
		return 0;
	bpf_probe_read_kernel(&frag, sizeof(frag), (char *)&shared->frags[0] + (w->piece - 1) * sizeof(frag));
	*size = frag.len;
	return page_address_of(frag.page, w->shift) + frag.offset;
}

static __attribute__((always_inline)) void take_step(void *seq, struct walk *w)
{
	struct sk_buff *next = 0;
	u32 zero = 0, size = 0, len;
	struct chunk *out = bpf_map_lookup_elem(&scratch, &zero);
	u64 at;

	if (!out || w->skb == w->queue || !w->skb) {
		w->done = 1;
		return;
	}
	at = piece_at(w, &size);
	if (!at) {
		READ(next, ((struct sk_buff *)w->skb)->next);
		w->skb = (u64)next;
		w->first = w->piece = w->offset = 0;
		return;
	}
	if (w->offset >= size) {
		w->piece++;
		w->offset = 0;
		return;
	}
	len = size - w->offset;
	if (len > PAGE)
		len = PAGE;
	if (w->position >= w->from) {
		out->head.magic = PART;
		out->head.len = len;
		out->head.at = w->position;
		/* For the verifier, which does not know any more what the number can be. */
		if (len > PAGE || bpf_probe_read_kernel(out->bytes, len, (void *)(at + w->offset))) {
			w->done = 1;
			return;
		}
		bpf_seq_write(seq, out, sizeof(out->head) + len);
		w->written += sizeof(out->head) + len;
	}
	w->position += len;
	w->offset += len;
}

static __attribute__((noinline)) long walk_on(u32 round, void **seq)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);

	(void)round;
	if (!w)
		return 1;
	take_step(*seq, w);
	return w->done || w->written >= BUDGET;
}

static __attribute__((always_inline)) void read_cork(struct cork *c, struct inet_sock *inet)
{
	struct inet_cork_full *cork = &inet->cork;
	struct ipv6_pinfo *pinet6 = 0;
	struct ip_options *opt = 0;
	u16 gso_size = 0;
	u8 byte = 0;
	s16 tos = 0;
	u32 flags = 0;
	void *v6_opt = 0;

	READ(gso_size, cork->base.gso_size);
	c->gso_size = gso_size;
	READ(c->oif, cork->fl.u.ip4.__fl_common.flowic_oif);
	if (c->pending == AF_INET_) {
		READ(tos, cork->base.tos);
		c->tos = tos;
		READ(byte, cork->base.ttl);
		c->ttl = byte;
		bpf_probe_read_kernel(c->saddr, 4, &cork->fl.u.ip4.saddr);
		bpf_probe_read_kernel(c->daddr, 4, &cork->fl.u.ip4.daddr);
		READ(c->dport, cork->fl.u.ip4.uli.ports.dport);
		READ(c->sport, cork->fl.u.ip4.uli.ports.sport);
		READ(flags, cork->base.flags);
		READ(opt, cork->base.opt);
		if (!(flags & IPCORK_OPT) || !opt)
			return;
		READ(byte, opt->optlen);
		c->optlen = byte;
		READ(byte, opt->srr);
		c->srr = byte;
		if (c->optlen <= OPTIONS)
			bpf_probe_read_kernel(c->options, OPTIONS, &opt->__data[0]);
		return;
	}
	bpf_probe_read_kernel(c->saddr, 16, &cork->fl.u.ip6.saddr);
	bpf_probe_read_kernel(c->daddr, 16, &cork->fl.u.ip6.daddr);
	READ(c->dport, cork->fl.u.ip6.uli.ports.dport);
	READ(c->sport, cork->fl.u.ip6.uli.ports.sport);
	READ(c->flowlabel, cork->fl.u.ip6.flowlabel);
	READ(pinet6, inet->pinet6);
	READ(byte, pinet6->cork.hop_limit);
	c->hop_limit = byte;
	READ(byte, pinet6->cork.tclass);
	c->tclass = byte;
	READ(v6_opt, pinet6->cork.opt);
	c->v6_options = !!v6_opt;
}

/* The corked sockets that a process has open, with what waits in them from byte `from` on. */
SEC("iter/task_file.corks")
int corks(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walk, &zero);
	void *seq = ctx->meta->seq;
	struct cork c = { .magic = CORK, .fd = ctx->fd };
	struct file *file = ctx->file;
	struct sk_buff *skb = 0;
	struct sock *sk;
	u16 len = 0;

	if (!file || is_repeated(ctx->task) || !w)
		return 0;
	sk = udp_socket(file->f_inode, file->f_inode->i_mode);
	if (!sk || !is_corked(sk, &c.pending, &c.corked))
		return 0;
	if (c.pending) {
		READ(len, ((struct udp_sock *)sk)->len);
		c.len = len - 8;
		read_cork(&c, (struct inet_sock *)sk);
	}
	bpf_seq_write(seq, &c, sizeof(c));
	if (!c.pending)
		return 0;
	w->queue = (u64)&sk->sk_write_queue;
	READ(skb, sk->sk_write_queue.next);
	w->skb = (u64)skb;
	w->first = 1;
	w->piece = w->offset = w->done = 0;
	w->position = w->written = 0;
	bpf_loop(STEPS, walk_on, &seq, 0);
	return 0;
}

enum { SOL_UDP_ = 17, UDP_CORK_ = 1 };

/* The engine plugin asks for it (native/plugin/intercept.c). */
#define UDP_HIDDEN 0x43525900

SEC("cgroup/getsockopt")
int uncork(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;

	if (ctx->level != SOL_UDP_ || !ctx->sk || (void *)(value + 1) > ctx->optval_end)
		return 1;
	if (ctx->optname != UDP_CORK_ && ctx->optname != UDP_HIDDEN)
		return 1;
	if (!bpf_sk_storage_get(&hidden, ctx->sk, 0, 0))
		return 1;
	*value = 0;
	/* An option that the kernel does not have: only these sockets answer to it. */
	if (ctx->optname == UDP_HIDDEN)
		ctx->retval = 0;
	return 1;
}

char LICENSE[] SEC("license") = "GPL";
