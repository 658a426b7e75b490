// SPDX-License-Identifier: GPL-2.0-only
/*
 * X-ray: reads, while tasks stand still, what the kernel has no interface for. `find` names the open files that CRIU
 * refuses; the others read one kind of object. Nothing is changed, nothing is kept between two passes but `cursor`.
 *
 * shim/xray/ reads the records.
 */
#include "bpf.h"

static u64 (*const bpf_get_current_task)(void) = (void *)BPF_FUNC_get_current_task;
static long (*const bpf_seq_write)(void *seq, const void *data, u32 len) = (void *)BPF_FUNC_seq_write;

struct super_block {
	unsigned long s_magic;
	u32 s_dev;
} __core;

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
} __core;

#include "socket.h"

struct vfsmount;
struct mnt_namespace;

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
} __core;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} __core;

struct file {
	u32 f_flags;
	u32 f_mode;
	struct path f_path;
	struct inode *f_inode;
} __core;

/* fs/file_table.c: what overlayfs maps is a file of a layer, on a mount of its own; here is the one that the task sees. */
struct backing_file {
	struct file file;
	struct path user_path;
} __core;
/* FMODE_BACKING: bit 25 before Linux 6.14, 24 since. */
#define MAY_BE_BACKING (3 << 24)
#define OVERLAY_MAGIC 0x794c7630

struct vfsmount {
	struct super_block *mnt_sb;
	int mnt_flags;
} __core;

struct mount {
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns;
	int mnt_id;
} __core;

#include "pid.h"

/* enum pid_type */
enum { PIDTYPE_TGID_ = 1 };

struct signal_struct {
	struct pid *pids[4];
} __core;

struct bpf_iter_meta {
	void *seq;
} __core;

enum { S_IFMT_ = 0170000, S_IFREG_ = 0100000 };
#define MQUEUE_MAGIC 0x19800202
#define ANON_INODE_FS_MAGIC 0x09041934

/* shim/xray/find.ts has the same. */
enum kind { MQUEUE = 1, DETACHED = 2, CORKED = 3, URING = 4, BOUND = 5 };

struct found {
	u32 kind;
	s32 tgid;
	s32 pid;
	u32 fd;
	s32 mnt_id;
	u32 dev;
	u32 flags;
	u32 mode;
	u64 ino;
	u64 file;		/* equal for descriptors that share one open file */
	u32 mnt_flags;
	u32 zero;
};

/*
 * On a lazily unmounted mount: it is in no namespace. The kernel's own mounts (of pipes, sockets, queues) have an error
 * number there (fs/mount.h, MNT_NS_INTERNAL).
 */
static __attribute__((always_inline)) u32 kind_of(const struct super_block *sb, const struct mnt_namespace *ns, u32 mode)
{
	if (sb->s_magic == MQUEUE_MAGIC && (mode & S_IFMT_) == S_IFREG_)
		return MQUEUE;
	return ns ? 0 : DETACHED;
}

/* Files without an inode of their own have only their name (fs/anon_inodes.c). */
static __attribute__((always_inline)) int is_ring(struct file *file)
{
	static const char name[] = "[io_uring]";
	const unsigned char *at = 0;
	struct dentry *dentry = 0;
	char have[sizeof(name)] = { 0 };

	READ(dentry, file->f_path.dentry);
	READ(at, dentry->d_name.name);
	bpf_probe_read_kernel(have, sizeof(have), at);
	for (u32 i = 0; i < sizeof(name); i++)
		if (have[i] != name[i])
			return 0;
	return 1;
}

struct unix_sock {
	struct path path;
} __core;

/* The lazily unmounted mount on which a unix socket has its name; 0: it has none there. */
static __attribute__((always_inline)) struct mount *bound_on(struct inode *inode)
{
	struct mnt_namespace *ns = 0;
	struct vfsmount *vfs = 0;
	struct sock *sk = 0;
	struct mount *mnt;
	u16 family = 0;

	READ(sk, container_of(inode, struct socket_alloc, vfs_inode)->socket.sk);
	if (!sk)
		return 0;
	READ(family, sk->__sk_common.skc_family);
	if (family != AF_UNIX_)
		return 0;
	READ(vfs, ((struct unix_sock *)sk)->path.mnt);
	if (!vfs)
		return 0;
	mnt = container_of(vfs, struct mount, mnt);
	READ(ns, mnt->mnt_ns);
	return ns ? 0 : mnt;
}

SEC("iter/task_file")
int find(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct task_struct *task = ctx->task;
	struct mnt_namespace *ns = 0;
	struct found f = { 0 };
	u32 pending = 0, corked = 0;
	struct signal_struct *signal = 0;
	struct pid *pid = 0;
	struct inode *inode;
	struct sock *sk;
	struct mount *mnt, *bound = 0;

	if (!file || !task || is_repeated(task))
		return 0;
	inode = file->f_inode;
	mnt = container_of(file->f_path.mnt, struct mount, mnt);
	READ(ns, mnt->mnt_ns);
	f.mode = inode->i_mode;
	sk = udp_socket(inode, f.mode);
	if (sk)
		f.kind = is_corked(sk, &pending, &corked) ? CORKED : 0;
	else if (inode->i_sb->s_magic == ANON_INODE_FS_MAGIC)
		f.kind = is_ring(file) ? URING : 0;
	else if ((f.mode & S_IFMT_) == S_IFSOCK_ && (bound = bound_on(inode)))
		f.kind = BOUND;
	else
		f.kind = kind_of(inode->i_sb, ns, f.mode);
	if (!f.kind)
		return 0;
	if (bound)
		mnt = bound;
	READ(f.mnt_id, mnt->mnt_id);
	READ(f.mnt_flags, mnt->mnt.mnt_flags);
	/* Read, not followed: Linux 6.1 lets nobody count from a pointer that it knows. */
	READ(signal, task->signal);
	READ(pid, signal->pids[PIDTYPE_TGID_]);
	f.tgid = number_of(pid);
	READ(pid, task->thread_pid);
	f.pid = number_of(pid);
	if (!f.tgid)
		return 0;
	f.fd = ctx->fd;
	if (bound) {
		struct super_block *sb = 0;

		READ(sb, bound->mnt.mnt_sb);
		READ(f.dev, sb->s_dev);
	} else
		f.dev = inode->i_sb->s_dev;
	f.flags = file->f_flags;
	f.ino = inode->i_ino;
	f.file = (u64)file;
	bpf_seq_write(ctx->meta->seq, &f, sizeof(f));
	return 0;
}

struct fs_struct {
	struct path root, pwd;
} __core;

struct mm_struct {
	struct file *exe_file;
} __core;

struct vm_area_struct {
	unsigned long vm_start, vm_end;
	struct file *vm_file;
} __core;

/* What a program of iter/task, of iter/task_vma is called with. */
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __core;

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
} __core;

/* shim/xray/uses.ts has the same. */
enum use_kind { CWD = 1, ROOT = 2, EXE = 3, MAPPING = 4 };

/* Something on a lazily unmounted mount that a process has otherwise than by a descriptor. */
struct use {
	u32 kind;
	s32 tgid;
	s32 mnt_id;
	u32 dev;
	u32 mnt_flags;
	u32 zero;
	u64 start, end;		/* of a mapping */
};

static __attribute__((always_inline)) void write_use(void *seq, struct task_struct *task, struct path *path, u32 kind,
						     u64 start, u64 end)
{
	struct use u = { .kind = kind, .start = start, .end = end };
	struct signal_struct *signal = 0;
	struct mnt_namespace *ns = 0;
	struct dentry *dentry = 0;
	struct vfsmount *vfs = 0;
	struct inode *inode = 0;
	struct super_block *sb = 0;
	struct pid *pid = 0;
	struct mount *mnt;

	READ(vfs, path->mnt);
	if (!vfs)
		return;
	mnt = container_of(vfs, struct mount, mnt);
	READ(ns, mnt->mnt_ns);
	if (ns)
		return;
	READ(signal, task->signal);
	READ(pid, signal->pids[PIDTYPE_TGID_]);
	u.tgid = number_of(pid);
	if (!u.tgid)
		return;
	READ(u.mnt_id, mnt->mnt_id);
	READ(u.mnt_flags, mnt->mnt.mnt_flags);
	READ(dentry, path->dentry);
	READ(inode, dentry->d_inode);
	READ(sb, inode->i_sb);
	READ(u.dev, sb->s_dev);
	bpf_seq_write(seq, &u, sizeof(u));
}

/* The compiler must not count from a pointer before it has been found to be one: the verifier refuses that. */
#define after_check(pointer) asm volatile("" : "+r"(pointer))

static __attribute__((always_inline)) struct path *path_of(struct file *file)
{
	struct path *user = &((struct backing_file *)file)->user_path;
	struct dentry *dentry = 0;
	struct inode *inode = 0;
	struct super_block *sb = 0;
	unsigned long magic = 0;
	u32 mode = 0;

	READ(mode, file->f_mode);
	if (!(mode & MAY_BE_BACKING) || !HAS(((struct backing_file *)0)->user_path))
		return &file->f_path;
	/* Either bit has meant something else as well: then there is no such path. */
	READ(dentry, user->dentry);
	READ(inode, dentry->d_inode);
	READ(sb, inode->i_sb);
	READ(magic, sb->s_magic);
	return magic == OVERLAY_MAGIC ? user : &file->f_path;
}

SEC("iter/task.uses")
int uses(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader = 0;
	void *seq = ctx->meta->seq;
	struct fs_struct *fs = 0;
	struct mm_struct *mm = 0;
	struct file *exe = 0;

	if (!task)
		return 0;
	after_check(task);
	READ(leader, task->group_leader);
	READ(mm, task->mm);
	READ(fs, task->fs);
	if (leader != task || !mm || !fs)
		return 0;
	write_use(seq, task, &fs->pwd, CWD, 0, 0);
	write_use(seq, task, &fs->root, ROOT, 0, 0);
	READ(exe, mm->exe_file);
	if (exe)
		write_use(seq, task, &exe->f_path, EXE, 0, 0);
	return 0;
}

SEC("iter/task_vma.mappings")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *vma = ctx->vma;
	struct task_struct *task = ctx->task;
	unsigned long start = 0, end = 0;
	struct file *file = 0;

	if (!task || !vma)
		return 0;
	after_check(task);
	after_check(vma);
	READ(file, vma->vm_file);
	if (!file)
		return 0;
	READ(start, vma->vm_start);
	READ(end, vma->vm_end);
	write_use(ctx->meta->seq, task, path_of(file), MAPPING, start, end);
	return 0;
}

/* ipc/mqueue.c */
struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right;
	struct rb_node *rb_left;
} __core;

struct list_head {
	struct list_head *next, *prev;
} __core;

struct posix_msg_tree_node {
	struct rb_node rb_node;
	struct list_head msg_list;
	int priority;
} __core;

struct msg_msgseg {
	struct msg_msgseg *next;
} __core;

struct msg_msg {
	struct list_head m_list;
	long m_type;
	unsigned long m_ts;
	struct msg_msgseg *next;
	void *security;
} __core;

struct mq_attr {
	long mq_flags, mq_maxmsg, mq_msgsize, mq_curmsgs;
} __core;

typedef union sigval {
	int sival_int;
	void *sival_ptr;
} sigval_t;

struct sigevent {
	sigval_t sigev_value;
	int sigev_signo;
	int sigev_notify;
} __core;

struct mqueue_inode_info {
	struct inode vfs_inode;
	struct rb_node *msg_tree_rightmost;
	struct mq_attr attr;
	struct sigevent notify;
	struct pid *notify_owner;
	struct sock *notify_sock;
	struct sk_buff *notify_cookie;
	unsigned long qsize;
} __core;

#define COOKIE 32		/* NOTIFY_COOKIE_LEN */

/* Stands before a queue's messages. */
struct queue {
	u32 magic;		/* QUEUE */
	u32 fd;
	u64 ino;
	u64 maxmsg, msgsize, curmsgs, qsize;
	s32 owner;		/* the process whose mq_notify(3) waits; 0: none */
	s32 notify, signo;
	u32 zero;
	u64 value;
	u64 sock;		/* inode of the socket that SIGEV_THREAD writes to */
	u8 cookie[COOKIE];
};

/* A part of a message, with `len` bytes behind it. */
struct part {
	u32 magic;		/* PART */
	u32 priority;
	u32 size;		/* of the whole message */
	u32 len;
};

/* Where the next pass goes on. */
struct cursor {
	u32 magic;		/* CURSOR where a queue is gone on with; 0: all are read from their beginning */
	u32 fd;
	u64 step;
	u64 node, msg, seg;
	u64 left;		/* of the message at msg */
	u64 written;		/* in this pass */
};

enum { QUEUE = 0x51455551, PART = 0x54524150, CURSOR = 0x53525543 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cursor);
} cursor SEC(".maps");

#define STEPS (1 << 20)

#include "chunk.h"

/* From the highest priority to the lowest, by the tree's nodes; each message's pages one by one. */
enum step { VISIT, MESSAGE, SEGMENT, LOWER, RIGHTMOST, CLIMB, DONE };

/* Writes a piece of the message at c->msg; returns the bytes written to the record. */
static __attribute__((always_inline)) u32 write_piece(void *seq, struct cursor *c, u64 from, u64 room)
{
	u32 zero = 0, len = c->left < room ? c->left : room;
	struct chunk *out = bpf_map_lookup_elem(&scratch, &zero);
	struct msg_msg *m = (struct msg_msg *)c->msg;
	unsigned long size = 0;
	long type = 0;

	if (!out || len > PAGE)
		return 0;
	READ(size, m->m_ts);
	READ(type, m->m_type);
	out->head.magic = PART;
	out->head.priority = type;
	out->head.size = size;
	out->head.len = len;
	if (len && bpf_probe_read_kernel(out->bytes, len, (void *)from))
		return 0;
	bpf_seq_write(seq, out, sizeof(out->head) + len);
	c->left -= len;
	return sizeof(out->head) + len;
}

static __attribute__((always_inline)) u32 take_step(void *seq, struct cursor *c)
{
	struct posix_msg_tree_node *node = (struct posix_msg_tree_node *)c->node;
	struct rb_node *rb = (struct rb_node *)c->node, *next = 0;
	unsigned long color = 0;
	struct list_head *list = 0;
	struct msg_msgseg *seg = 0;
	u32 written = 0;

	switch (c->step) {
	case VISIT:
		READ(list, node->msg_list.next);
		c->msg = (u64)list;
		c->step = MESSAGE;
		break;
	case MESSAGE:
		if (c->msg == (u64)&node->msg_list || !c->msg) {
			c->step = LOWER;
			break;
		}
		READ(c->left, ((struct msg_msg *)c->msg)->m_ts);
		written = write_piece(seq, c, c->msg + SIZE_OF(struct msg_msg), PAGE - SIZE_OF(struct msg_msg));
		READ(seg, ((struct msg_msg *)c->msg)->next);
		c->seg = (u64)seg;
		c->step = SEGMENT;
		break;
	case SEGMENT:
		if (!c->left || !c->seg) {
			READ(list, ((struct msg_msg *)c->msg)->m_list.next);
			c->msg = (u64)list;
			c->step = MESSAGE;
			break;
		}
		written = write_piece(seq, c, c->seg + SIZE_OF(struct msg_msgseg), PAGE - SIZE_OF(struct msg_msgseg));
		READ(seg, ((struct msg_msgseg *)c->seg)->next);
		c->seg = (u64)seg;
		break;
	case LOWER:
		READ(next, rb->rb_left);
		if (next)
			c->node = (u64)next;
		c->step = next ? RIGHTMOST : CLIMB;
		break;
	case RIGHTMOST:
		READ(next, rb->rb_right);
		if (next)
			c->node = (u64)next;
		else
			c->step = VISIT;
		break;
	case CLIMB:
		READ(color, rb->__rb_parent_color);
		c->node = color & ~3UL;
		if (!c->node) {
			c->step = DONE;
			break;
		}
		READ(next, ((struct rb_node *)c->node)->rb_right);
		if (next == rb)
			c->step = VISIT;
		break;
	}
	return written;
}

static __attribute__((noinline)) long walk_on(u32 round, void **seq)
{
	u32 zero = 0;
	struct cursor *c = bpf_map_lookup_elem(&cursor, &zero);

	(void)round;
	if (!c)
		return 1;
	c->written += take_step(*seq, c);
	return c->step == DONE || c->written >= BUDGET;
}

static __attribute__((always_inline)) void write_head(void *seq, struct mqueue_inode_info *info, u32 fd)
{
	struct queue q = { .magic = QUEUE, .fd = fd };
	struct pid *owner = 0;
	struct sock *sock = 0;
	struct socket *socket = 0;
	struct file *file = 0;
	struct inode *inode = 0;
	struct sk_buff *skb = 0;
	unsigned char *data = 0;
	unsigned long ino = 0;

	READ(ino, info->vfs_inode.i_ino);
	q.ino = ino;
	READ(q.maxmsg, info->attr.mq_maxmsg);
	READ(q.msgsize, info->attr.mq_msgsize);
	READ(q.curmsgs, info->attr.mq_curmsgs);
	READ(q.qsize, info->qsize);
	READ(owner, info->notify_owner);
	if (owner) {
		q.owner = number_of(owner);
		READ(q.notify, info->notify.sigev_notify);
		READ(q.signo, info->notify.sigev_signo);
		READ(q.value, info->notify.sigev_value);
		READ(sock, info->notify_sock);
		READ(skb, info->notify_cookie);
		if (sock) {
			READ(socket, sock->sk_socket);
			READ(file, socket->file);
			READ(inode, file->f_inode);
			READ(ino, inode->i_ino);
			q.sock = ino;
		}
		if (skb) {
			READ(data, skb->data);
			bpf_probe_read_kernel(q.cookie, COOKIE, data);
		}
	}
	bpf_seq_write(seq, &q, sizeof(q));
}

/*
 * The queues that a process has open, with their messages. One that is too large for a pass ends in a cursor: written
 * back into the map, the next pass goes on with that queue alone.
 */
SEC("iter/task_file.queues")
int queues(struct bpf_iter__task_file *ctx)
{
	u32 zero = 0, magic;
	/* The state is in the map and not on the stack, where the verifier would follow each of its values. */
	struct cursor *c = bpf_map_lookup_elem(&cursor, &zero);
	void *seq = ctx->meta->seq;
	struct file *file = ctx->file;
	struct mqueue_inode_info *info;
	struct rb_node *rightmost = 0;

	if (!file || !c || is_repeated(ctx->task) || file->f_inode->i_sb->s_magic != MQUEUE_MAGIC ||
	    (file->f_inode->i_mode & S_IFMT_) != S_IFREG_)
		return 0;
	if (c->magic) {
		if (c->fd != ctx->fd)
			return 0;
	} else {
		info = container_of(file->f_inode, struct mqueue_inode_info, vfs_inode);
		write_head(seq, info, ctx->fd);
		READ(rightmost, info->msg_tree_rightmost);
		c->node = (u64)rightmost;
		c->step = rightmost ? VISIT : DONE;
	}
	c->written = 0;
	if (c->step != DONE)
		bpf_loop(STEPS, walk_on, &seq, 0);
	if (c->step == DONE)
		return 0;
	c->fd = ctx->fd;
	magic = c->magic;
	c->magic = CURSOR;
	bpf_seq_write(seq, c, sizeof(*c));
	c->magic = magic;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
