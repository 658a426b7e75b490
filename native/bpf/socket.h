/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs here read of sockets. Whoever includes it has said what he reads of an inode. */
#ifndef CRYOSHIM_SOCKET_H
#define CRYOSHIM_SOCKET_H


enum { AF_UNIX_ = 1, AF_INET_ = 2, AF_INET6_ = 10, IPPROTO_UDP_ = 17, IPPROTO_UDPLITE_ = 136 };
enum { S_IFMT__ = 0170000, S_IFSOCK_ = 0140000 };

struct sk_buff {
	struct sk_buff *next;
	u32 len, data_len, end;
	u16 transport_header;
	unsigned char *head, *data;
} __core;

/* skb_frag_t: a page, its length and the offset in it, under names that changed (Linux 6.9). */
struct frag {
	u64 page;
	u32 len, offset;
};

struct skb_shared_info {
	u8 nr_frags;
	struct frag frags[17];
} __core;

struct page {
	unsigned long flags;
} __core;

/*
 * page_address() of x86-64: page_offset_base + (page - vmemmap_base) / sizeof(struct page) * PAGE_SIZE. The two bases are
 * shifted at random and need not be among the symbols, but they are one number here; `calibrate` finds it.
 */
static inline __attribute__((always_inline)) u64 page_address_of(u64 page, u64 shift)
{
	return shift + page * (PAGE / SIZE_OF(struct page));
}

struct sk_buff_head {
	struct sk_buff *next;
} __core;

struct sock_common {
	u16 skc_family;
} __core;

struct socket;

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
	struct sk_buff_head sk_receive_queue, sk_write_queue;
	struct socket *sk_socket;
} __core;

struct file;

struct socket {
	struct file *file;
	struct sock *sk;
} __core;

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
} __core;

struct udp_sock {
	unsigned long udp_flags;	/* Linux 6.7: UDP_FLAGS_CORK is bit 0 */
	int pending;
	u16 len;
} __core;

/* Before Linux 6.7. */
struct udp_sock___old {
	u32 corkflag;
} __core;

/* The UDP socket of an inode; 0: it is none. */
static inline __attribute__((always_inline)) struct sock *udp_socket(struct inode *inode, u32 mode)
{
	struct sock *sk = 0;
	u16 family = 0, protocol = 0;

	if ((mode & S_IFMT__) != S_IFSOCK_)
		return 0;
	READ(sk, container_of(inode, struct socket_alloc, vfs_inode)->socket.sk);
	if (!sk)
		return 0;
	READ(family, sk->__sk_common.skc_family);
	READ(protocol, sk->sk_protocol);
	if ((family != AF_INET_ && family != AF_INET6_) || (protocol != IPPROTO_UDP_ && protocol != IPPROTO_UDPLITE_))
		return 0;
	return sk;
}

/* `pending`: the family of a datagram that waits to be completed, or 0. `corked`: UDP_CORK is set. */
static inline __attribute__((always_inline)) int is_corked(struct sock *sk, u32 *pending, u32 *corked)
{
	unsigned long flags = 0;
	int family = 0;

	READ(family, ((struct udp_sock *)sk)->pending);
	if (HAS(((struct udp_sock *)0)->udp_flags)) {
		READ(flags, ((struct udp_sock *)sk)->udp_flags);
		*corked = flags & 1;
	} else {
		READ(*corked, ((struct udp_sock___old *)sk)->corkflag);
	}
	*pending = family;
	return *pending || *corked;
}

#endif
