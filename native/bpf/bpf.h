/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs here have in common, in place of libbpf's headers. Types name only what is read; the kernel
 * relocates them to its own (CO-RE).
 */
#ifndef CRYOSHIM_BPF_H
#define CRYOSHIM_BPF_H

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __core __attribute__((preserve_access_index))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __s16 s16;
typedef __u64 u64;
typedef __u8 u8;

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)BPF_FUNC_probe_read_kernel;

#define container_of(ptr, type, member) \
	((type *)((char *)(ptr) - __builtin_preserve_field_info(((type *)0)->member, 0 /* byte offset */)))
/*
 * Where it is read from is worked out here and nowhere before: clang would do so for both sides of a HAS(), ahead of it, and
 * a field that the kernel does not have must not be named on the way.
 */
#define READ(to, from) \
	({ \
		const void *at__ = &(from); \
		asm volatile("" : "+r"(at__)); \
		bpf_probe_read_kernel(&(to), sizeof(to), at__); \
	})
#define PAGE 4096
/* The kernel's buffer for one file is 8 pages; what is written beyond it fails the pass. */
#define BUDGET (6 * PAGE)
#define SIZE_OF(type) __builtin_preserve_type_info(*(type *)0, 1 /* size */)
#define HAS(field) __builtin_preserve_field_info(field, 2 /* exists */)
static long (*const bpf_loop)(u32 rounds, void *callback, void *context, u64 flags) = (void *)BPF_FUNC_loop;

struct file;
struct bpf_iter_meta;

struct pid;
struct signal_struct;
struct files_struct;
struct fs_struct;
struct mm_struct;

struct task_struct {
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct files_struct *files;
	struct fs_struct *fs;
	struct mm_struct *mm;
} __core;

/* What a program of iter/task_file is called with. */
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
} __core;

/* Linux 6.1 shows the files of one process once for each of its threads. */
static inline __attribute__((always_inline)) int is_repeated(struct task_struct *task)
{
	struct files_struct *files = 0, *leaders = 0;
	struct task_struct *leader = 0;

	if (!task)
		return 1;
	READ(leader, task->group_leader);
	if (leader == task)
		return 0;
	READ(files, task->files);
	READ(leaders, leader->files);
	return files == leaders;
}

#endif
