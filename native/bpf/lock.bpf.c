// SPDX-License-Identifier: GPL-2.0-only
/*
 * The network lock: netfilter programs (Linux 6.4) that drop what a checkpointed container would answer wrongly while
 * it cannot answer, and an iterator that finds its sockets. Loaded before the freeze, attached in it; see
 * shim/netlock/.
 */
#include "bpf.h"

static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static void *(*const bpf_sock_from_file)(void *file) = (void *)BPF_FUNC_sock_from_file;

/* CRIU marks its own packets with it (criu/include/net.h, SOCCR_MARK). */
#define CRIU_MARK 0xC114

enum { AF_INET_ = 2, AF_INET6_ = 10, TCP = 6, UDP = 17, ICMPV6 = 58, UDPLITE = 136 };
enum { LOCAL_IN = 1, FORWARD = 2, LOCAL_OUT = 3 };
enum { DROP = 0, ACCEPT = 1 };
enum { TCP_CLOSE_ = 7, TCP_LISTEN_ = 10 };

struct sk_buff {
	u32 mark;
	unsigned char *head;
	u16 network_header;
} __core;

struct nf_hook_state {
	u8 hook;
	u8 pf;
} __core;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} __core;

struct in6_addr {
	u8 bytes[16];
};

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __core;

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
	u16 sk_type;
} __core;

struct socket {
	struct sock *sk;
} __core;

/*
 * One end of a connection as the container sees it; IPv4 as v4-mapped IPv6, so that one key serves both families.
 * A socket without a peer has zeros there, one bound to no address zeros there.
 */
struct flow {
	u8 local[16];
	u8 remote[16];
	u16 local_port;		/* both in network order */
	u16 remote_port;
	u16 protocol;
	u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow);
	__type(value, u32);
} flows SEC(".maps");

/* Packets dropped, by hook. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} dropped SEC(".maps");

/*
 * Zero while the lock lets everything pass. So the links can be attached before the freeze and detached after it, and
 * in it locking and unlocking are one store each.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} armed SEC(".maps");

static __attribute__((always_inline)) int is_armed(void)
{
	u32 key = 0, *value = bpf_map_lookup_elem(&armed, &key);

	return value && *value;
}

static __attribute__((always_inline)) int drop(u32 hook)
{
	u32 key = hook & 7;
	u64 *count = bpf_map_lookup_elem(&dropped, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	return DROP;
}

/* Neighbour solicitation and advertisement: as ARP, the kernel's own affair, and without it peers see a dead host. */
static __attribute__((always_inline)) int is_neighbour_discovery(struct bpf_nf_ctx *ctx)
{
	const unsigned char *head = ctx->skb->head;
	u8 ip[41];

	if (ctx->state->pf != AF_INET6_ || bpf_probe_read_kernel(ip, sizeof(ip), head + ctx->skb->network_header))
		return 0;
	return ip[6] == ICMPV6 && (ip[40] == 135 || ip[40] == 136);
}

/* Nothing enters or leaves the network namespace but CRIU's own packets. */
SEC("netfilter/all")
int lock_all(struct bpf_nf_ctx *ctx)
{
	if (!is_armed() || ctx->skb->mark == CRIU_MARK || is_neighbour_discovery(ctx))
		return ACCEPT;
	return drop(ctx->state->hook);
}

static __attribute__((always_inline)) void map_v4(u8 to[16], const u8 *from)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, from, 4);
}

static __attribute__((always_inline)) int is_locked(struct flow *f)
{
	if (bpf_map_lookup_elem(&flows, f))
		return 1;
	/* A listener, or a datagram socket without a peer, bound to this address or to all. */
	__builtin_memset(f->remote, 0, sizeof(f->remote));
	f->remote_port = 0;
	if (bpf_map_lookup_elem(&flows, f))
		return 1;
	__builtin_memset(f->local, 0, sizeof(f->local));
	return bpf_map_lookup_elem(&flows, f) != 0;
}

/* What belongs to sockets of the container is dropped; its neighbours in the namespace go on. */
SEC("netfilter/flows")
int lock_flows(struct bpf_nf_ctx *ctx)
{
	u32 hook = ctx->state->hook;
	const unsigned char *head = ctx->skb->head, *network;
	struct flow f = { 0 };
	u8 ip[40], ports[4], protocol;
	u32 offset;

	if (!is_armed() || ctx->skb->mark == CRIU_MARK)
		return ACCEPT;
	network = head + ctx->skb->network_header;
	if (ctx->state->pf == AF_INET_) {
		if (bpf_probe_read_kernel(ip, 20, network))
			return ACCEPT;
		/* A later fragment has no ports; those that come in are put together before LOCAL_IN. */
		if ((ip[6] & 0x1f) || ip[7])
			return ACCEPT;
		offset = (ip[0] & 15) * 4;
		protocol = ip[9];
		map_v4(hook == LOCAL_OUT ? f.local : f.remote, ip + 12);
		map_v4(hook == LOCAL_OUT ? f.remote : f.local, ip + 16);
	} else if (ctx->state->pf == AF_INET6_) {
		if (bpf_probe_read_kernel(ip, 40, network))
			return ACCEPT;
		offset = 40;
		protocol = ip[6];
		__builtin_memcpy(hook == LOCAL_OUT ? f.local : f.remote, ip + 8, 16);
		__builtin_memcpy(hook == LOCAL_OUT ? f.remote : f.local, ip + 24, 16);
#pragma unroll
		for (int i = 0; i < 4; i++) {
			/* Hop-by-hop, routing and destination options stand before the transport header. */
			if (protocol != 0 && protocol != 43 && protocol != 60)
				break;
			if (bpf_probe_read_kernel(ports, 2, network + offset))
				return ACCEPT;
			protocol = ports[0];
			offset += (ports[1] + 1) * 8;
		}
	} else {
		return ACCEPT;
	}
	if (protocol != TCP && protocol != UDP && protocol != UDPLITE)
		return ACCEPT;
	if (bpf_probe_read_kernel(ports, 4, network + offset))
		return ACCEPT;
	__builtin_memcpy(hook == LOCAL_OUT ? &f.local_port : &f.remote_port, ports, 2);
	__builtin_memcpy(hook == LOCAL_OUT ? &f.remote_port : &f.local_port, ports + 2, 2);
	f.protocol = protocol;
	return is_locked(&f) ? drop(hook) : ACCEPT;
}

static __attribute__((always_inline)) u16 swap16(u16 n)
{
	return (u16)(n << 8 | n >> 8);
}

/* Enters the internet sockets of a process's open files into flows; run for each process of the container. */
SEC("iter/task_file")
int collect(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *sock;
	struct sock *sk;
	struct flow f = { 0 };
	u32 one = 1, v4;
	u16 family, port;
	u8 state;

	if (!file)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	sk = sock->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if (family != AF_INET_ && family != AF_INET6_)
		return 0;
	f.protocol = sk->sk_protocol;
	if (f.protocol != TCP && f.protocol != UDP && f.protocol != UDPLITE)
		return 0;
	state = sk->__sk_common.skc_state;
	port = sk->__sk_common.skc_num;
	if (!port || (f.protocol == TCP && state == TCP_CLOSE_))
		return 0;
	f.local_port = swap16(port);
	f.remote_port = sk->__sk_common.skc_dport;
	if (family == AF_INET_) {
		v4 = sk->__sk_common.skc_rcv_saddr;
		if (v4)
			map_v4(f.local, (u8 *)&v4);
		v4 = sk->__sk_common.skc_daddr;
		if (v4)
			map_v4(f.remote, (u8 *)&v4);
	} else {
		bpf_probe_read_kernel(f.local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(f.remote, 16, &sk->__sk_common.skc_v6_daddr);
	}
	bpf_map_update_elem(&flows, &f, &one, BPF_ANY);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
