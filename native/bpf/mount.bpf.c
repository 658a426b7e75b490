// SPDX-License-Identifier: GPL-2.0-only
/* What part of its file system a mount shows: the names from its root up to that of the file system. */
#include "bpf.h"

static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;
static long (*const bpf_probe_read_kernel_str)(void *dst, u32 size, const void *src) =
	(void *)BPF_FUNC_probe_read_kernel_str;

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
} __core;

struct vfsmount {
	struct dentry *mnt_root;
} __core;

struct path {
	struct vfsmount *mnt;
} __core;

struct file {
	struct path f_path;
} __core;

struct bpf_iter_meta {
	void *seq;
} __core;

#define DEPTH 96
#define NAME 256

/* `fd`: of which file of this process; `dentry`: where the walk is. */
struct climb {
	u64 dentry;
	u32 fd;
	s32 len;		/* of the name, with its NUL */
	u8 name[NAME];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct climb);
} climb SEC(".maps");

static __attribute__((noinline)) long climb_on(u32 round, void **seq)
{
	u32 zero = 0;
	struct climb *c = bpf_map_lookup_elem(&climb, &zero);
	const unsigned char *name = 0;
	struct dentry *parent = 0;

	(void)round;
	if (!c)
		return 1;
	READ(parent, ((struct dentry *)c->dentry)->d_parent);
	if (!parent || (u64)parent == c->dentry)
		return 1;
	READ(name, ((struct dentry *)c->dentry)->d_name.name);
	c->len = bpf_probe_read_kernel_str(c->name, NAME, name);
	bpf_seq_write(*seq, &c->len, sizeof(c->len) + NAME);
	c->dentry = (u64)parent;
	return 0;
}

SEC("iter/task_file.root_of")
int root_of(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0;
	struct climb *c = bpf_map_lookup_elem(&climb, &zero);
	struct file *file = ctx->file;
	void *seq = ctx->meta->seq;
	struct dentry *root = 0;

	if (!file || is_repeated(ctx->task) || !c || ctx->fd != c->fd)
		return 0;
	READ(root, file->f_path.mnt->mnt_root);
	c->dentry = (u64)root;
	bpf_loop(DEPTH, climb_on, &seq, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
