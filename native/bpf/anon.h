/* SPDX-License-Identifier: GPL-2.0-only */
/* Files of the kernel's own, which have an inode in common and are told apart by the names of their dentries. */
#ifndef CRYOSHIM_ANON_H
#define CRYOSHIM_ANON_H

#define ANON_INODE_FS_MAGIC 0x09041934

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct qstr d_name;
} __core;

struct path {
	struct dentry *dentry;
} __core;

static long (*const bpf_probe_read_kernel_str)(void *dst, u32 size, const void *src) = (void *)BPF_FUNC_probe_read_kernel_str;

/* `len` of a name of at most 15 characters, with the NUL behind it. */
static inline __attribute__((always_inline)) int is_called(struct dentry *dentry, const char *name, u32 len)
{
	const unsigned char *at = 0;
	char have[16] = { 0 };

	READ(at, dentry->d_name.name);
	bpf_probe_read_kernel_str(have, sizeof(have), at);
	for (u32 i = 0; i < len; i++)
		if (have[i] != name[i])
			return 0;
	return 1;
}

#endif
