// SPDX-License-Identifier: GPL-2.0-only
/* Finds where the kernel has its pages: in a file of its own, because a program is loaded with all functions beside it. */
#include "bpf.h"

struct inode {
	u16 i_mode;
} __core;

struct file {
	struct inode *f_inode;
} __core;

#include "socket.h"

#define GIB (1ULL << 30)
/* In both directions, a GiB each. */
#define CANDIDATES (2 * 8192)
#define PATTERN 64

/* What is looked for, and what is found. */
struct search {
	u64 pattern;		/* eight times the same byte */
	u64 page, near;
	u32 offset;
	u32 fd;
	u64 shift;
	u32 found, zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct search);
} search SEC(".maps");

/* The bases are multiples of a GiB (arch/x86/mm/kaslr.c), so an address is known but for a multiple of it. */
static __attribute__((noinline)) long try_one(u32 round, void *context)
{
	u32 zero = 0, i;
	struct search *s = bpf_map_lookup_elem(&search, &zero);
	u64 bytes[PATTERN / 8], at, address;

	(void)context;
	if (!s)
		return 1;
	address = page_address_of(s->page, 0);
	at = (s->near & ~(GIB - 1)) + (address & (GIB - 1));
	at += (round & 1 ? -1ULL : 1ULL) * ((round + 1) / 2) * GIB;
	if (bpf_probe_read_kernel(bytes, sizeof(bytes), (void *)(at + s->offset)))
		return 0;
	for (i = 0; i < PATTERN / 8; i++)
		if (bytes[i] != s->pattern)
			return 0;
	s->shift = at - address;
	s->found = 1;
	return 1;
}

/* Socket s->fd of this process has received a page that is full of the pattern. */
SEC("iter/task_file.calibrate")
int calibrate(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0, end = 0;
	struct search *s = bpf_map_lookup_elem(&search, &zero);
	struct file *file = ctx->file;
	struct skb_shared_info *shared;
	struct sk_buff *skb = 0;
	struct sock *sk = 0;
	struct frag frag = { 0 };
	unsigned char *head = 0;

	if (!file || is_repeated(ctx->task) || !s || ctx->fd != s->fd || (file->f_inode->i_mode & S_IFMT__) != S_IFSOCK_)
		return 0;
	READ(sk, container_of(file->f_inode, struct socket_alloc, vfs_inode)->socket.sk);
	READ(skb, sk->sk_receive_queue.next);
	READ(head, skb->head);
	READ(end, skb->end);
	shared = (struct skb_shared_info *)(head + end);
	bpf_probe_read_kernel(&frag, sizeof(frag), &shared->frags[0]);
	s->page = frag.page;
	s->offset = frag.offset;
	s->near = (u64)head;
	if (frag.page && frag.len >= PATTERN)
		bpf_loop(CANDIDATES, try_one, 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
