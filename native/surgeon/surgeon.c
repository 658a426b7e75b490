// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#define _GNU_SOURCE
#include "surgeon.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MAP_ABOVE4G
#define MAP_ABOVE4G 0x80
#endif
#ifndef SYS_io_uring_enter
#define SYS_io_uring_enter 426
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#define PAGE 4096u
#define MAX_WATCHES 64

/* uapi/linux/ptrace.h, struct ptrace_rseq_configuration */
struct rseq_configuration {
	uint64_t rseq_abi_pointer;
	uint32_t rseq_abi_size;
	uint32_t signature;
	uint32_t flags;
	uint32_t pad;
};

/* uapi/linux/rseq.h: struct rseq { cpu_id_start, cpu_id, rseq_cs, ... } */
#define RSEQ_CS_OFFSET 8

static int fail(struct surgeon_error *err, const char *step, int e)
{
	err->step = step;
	err->err = e;
	return -1;
}

static struct surgeon_record *record;

void surgeon_keep(struct surgeon_record *kept)
{
	record = kept;
}

/* Before the first thing is done to a task: in this order for who reads it when we are dead. */
static void write_down(const struct surgeon *s)
{
	if (!record)
		return;
	record->patient = *s;
	for (size_t i = 0; i < sizeof(record->fds) / sizeof(record->fds[0]); i++)
		record->fds[i] = -1;
	__atomic_store_n(&record->open, 1, __ATOMIC_RELEASE);
}

static void strike_out(void)
{
	if (record)
		__atomic_store_n(&record->open, 0, __ATOMIC_RELEASE);
}

/* A descriptor that is the task's for the moment, in place of -1, or -1 in its place. */
static void write_down_fd(int from, int to)
{
	if (!record)
		return;
	for (size_t i = 0; i < sizeof(record->fds) / sizeof(record->fds[0]); i++)
		if (record->fds[i] == from) {
			record->fds[i] = to;
			return;
		}
}

static int wait_stop(pid_t tid, int *status, struct surgeon_error *err)
{
	pid_t got;

	do
		got = waitpid(tid, status, __WALL);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return fail(err, "waitpid", errno);
	if (!WIFSTOPPED(*status))
		return fail(err, "the task ended", ESRCH);
	return 0;
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

/*
 * Waits for the stop that a task under our ptrace was asked for. Signals on the way are given to the task as if we
 * had not been there; the trap comes first in get_signal() (kernel/signal.c), so the task runs no handler meanwhile.
 */
static int wait_event(pid_t tid, bool cont, struct surgeon_error *err)
{
	int status, sig = 0;

	for (;;) {
		if (cont && ptrace(PTRACE_CONT, tid, 0, sig))
			return fail(err, "PTRACE_CONT", errno);
		if (wait_stop(tid, &status, err))
			return -1;
		if (is_event_stop(status))
			return 0;
		sig = WSTOPSIG(status) & 0x7f;
		if (sig == SIGTRAP)
			sig = 0;
		cont = true;
	}
}

int surgeon_interrupt(pid_t tid, bool cont, struct surgeon_error *err)
{
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0))
		return fail(err, "PTRACE_INTERRUPT", errno);
	return wait_event(tid, cont, err);
}

static int seize(pid_t tid, struct surgeon_error *err)
{
	/* Without CONFIG_CHECKPOINT_RESTORE or privilege seccomp stays on: the injected call may then be refused. */
	if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP) &&
	    ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD))
		return fail(err, "PTRACE_SEIZE", errno);
	return 0;
}

int surgeon_seize(pid_t tid, struct surgeon_error *err)
{
	if (seize(tid, err))
		return -1;
	if (surgeon_interrupt(tid, false, err)) {
		(void)ptrace(PTRACE_DETACH, tid, 0, 0);
		return -1;
	}
	return 0;
}

int surgeon_ask_to_stop(pid_t tid, struct surgeon_error *err)
{
	if (seize(tid, err))
		return -1;
	return ptrace(PTRACE_INTERRUPT, tid, 0, 0) ? fail(err, "PTRACE_INTERRUPT", errno) : 0;
}

int surgeon_wait_stopped(pid_t tid, struct surgeon_error *err)
{
	return wait_event(tid, false, err);
}

int surgeon_release(pid_t tid, struct surgeon_error *err)
{
	if (ptrace(PTRACE_DETACH, tid, 0, 0))
		return fail(err, "PTRACE_DETACH", errno);
	return 0;
}

/* /proc/PID/mem: it also reaches pages that the task itself may not write, as a debugger must. */
static int proc_mem(pid_t tid, uint64_t addr, void *in, const void *out, size_t len, struct surgeon_error *err)
{
	const char *step = out ? "write to the task's memory" : "read the task's memory";
	size_t done = 0;
	char path[64];
	int fd, ret = 0;

	snprintf(path, sizeof(path), "/proc/%d/mem", tid);
	fd = open(path, (out ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
	if (fd < 0)
		return fail(err, step, errno);
	while (done < len) {
		ssize_t n = out ? pwrite(fd, (const char *)out + done, len - done, (off_t)(addr + done)) :
				  pread(fd, (char *)in + done, len - done, (off_t)(addr + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			ret = fail(err, step, n < 0 ? errno : EFAULT);
			break;
		}
		done += (size_t)n;
	}
	close(fd);
	return ret;
}

int surgeon_read(pid_t tid, uint64_t addr, void *buf, size_t len, struct surgeon_error *err)
{
	struct iovec local = { buf, len }, remote = { (void *)(uintptr_t)addr, len };

	if (process_vm_readv(tid, &local, 1, &remote, 1, 0) == (ssize_t)len)
		return 0;
	return proc_mem(tid, addr, buf, NULL, len, err);
}

int surgeon_write(pid_t tid, uint64_t addr, const void *buf, size_t len, struct surgeon_error *err)
{
	struct iovec local = { (void *)(uintptr_t)buf, len }, remote = { (void *)(uintptr_t)addr, len };

	if (process_vm_writev(tid, &local, 1, &remote, 1, 0) == (ssize_t)len)
		return 0;
	return proc_mem(tid, addr, NULL, buf, len, err);
}

/* A `syscall` instruction in an executable mapping: the vdso has one, and is looked at last to first. */
static int find_syscall(pid_t tid, uint64_t *at, struct surgeon_error *err)
{
	static const uint8_t insn[2] = { 0x0f, 0x05 };
	char path[64], line[4608], perms[5];
	unsigned long long from, to;
	uint8_t *buf;
	FILE *maps;
	int pass;

	buf = malloc(1 << 20);
	if (!buf)
		return fail(err, "malloc", ENOMEM);
	snprintf(path, sizeof(path), "/proc/%d/maps", tid);
	*at = 0;
	for (pass = 0; pass < 2 && !*at; pass++) {
		maps = fopen(path, "re");
		if (!maps) {
			free(buf);
			return fail(err, "read /proc/PID/maps", errno);
		}
		while (!*at && fgets(line, sizeof(line), maps)) {
			struct surgeon_error ignored;
			size_t len;
			uint8_t *hit;

			if (sscanf(line, "%llx-%llx %4s", &from, &to, perms) != 3 || perms[2] != 'x')
				continue;
			/* vsyscall cannot be run as code on current kernels. */
			if (strstr(line, "[vsyscall]") || (pass == 0) != (strstr(line, "[vdso]") != NULL))
				continue;
			len = to - from < 1 << 20 ? to - from : 1 << 20;
			if (surgeon_read(tid, from, buf, len, &ignored))
				continue;
			hit = memmem(buf, len, insn, sizeof(insn));
			if (hit)
				*at = from + (uint64_t)(hit - buf);
		}
		fclose(maps);
	}
	free(buf);
	return *at ? 0 : fail(err, "find a syscall instruction", ENOENT);
}

int surgeon_set_regs(pid_t tid, struct user_regs_struct *regs, struct surgeon_error *err)
{
	struct iovec iov = { regs, sizeof(*regs) };

	if (ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov))
		return fail(err, "PTRACE_SETREGSET", errno);
	return 0;
}

static int get_regs(pid_t tid, struct user_regs_struct *regs, struct surgeon_error *err)
{
	struct iovec iov = { regs, sizeof(*regs) };

	if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov))
		return fail(err, "PTRACE_GETREGSET", errno);
	/* A 32-bit task answers with a smaller set. */
	if (iov.iov_len != sizeof(*regs))
		return fail(err, "a task that is not x86-64", ENOTSUP);
	return 0;
}

int surgeon_look(struct surgeon *s, struct surgeon_error *err)
{
	struct rseq_configuration rseq = { 0 };

	if (get_regs(s->tid, &s->regs, err))
		return -1;
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, s->tid, sizeof(rseq), &rseq) == (long)sizeof(rseq) && rseq.rseq_abi_pointer)
		s->rseq_cs_at = rseq.rseq_abi_pointer + RSEQ_CS_OFFSET;
	if (ptrace(PTRACE_GETSIGMASK, s->tid, sizeof(s->sigmask), &s->sigmask))
		return fail(err, "PTRACE_GETSIGMASK", errno);
	return 0;
}

int surgeon_begin(struct surgeon *s, pid_t tid, struct surgeon_error *err)
{
	struct rseq_configuration rseq = { 0 };
	uint64_t blocked = ~0ULL, none = 0;

	memset(s, 0, sizeof(*s));
	s->tid = tid;
	if (get_regs(tid, &s->regs, err) || find_syscall(tid, &s->syscall_insn, err))
		return -1;
	/*
	 * On the way to user mode with another rip the kernel clears rseq_cs (kernel/rseq.c): a task stopped inside a
	 * restartable sequence would then go on in it unprotected. Linux 5.13; before, nothing can be read or saved.
	 */
	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(rseq), &rseq) == (long)sizeof(rseq) && rseq.rseq_abi_pointer) {
		s->rseq_cs_at = rseq.rseq_abi_pointer + RSEQ_CS_OFFSET;
		if (surgeon_read(tid, s->rseq_cs_at, &s->rseq_cs, sizeof(s->rseq_cs), err))
			return -1;
	}
	if (ptrace(PTRACE_GETSIGMASK, tid, sizeof(s->sigmask), &s->sigmask))
		return fail(err, "PTRACE_GETSIGMASK", errno);
	write_down(s);
	if (s->rseq_cs && surgeon_write(tid, s->rseq_cs_at, &none, sizeof(none), err))
		goto unchanged;
	if (!ptrace(PTRACE_SETSIGMASK, tid, sizeof(blocked), &blocked))
		return 0;
	fail(err, "PTRACE_SETSIGMASK", errno);
unchanged:
	strike_out();
	return -1;
}

static int put_back(struct surgeon *s, struct surgeon_error *err)
{
	if (surgeon_set_regs(s->tid, &s->regs, err))
		return -1;
	if (ptrace(PTRACE_SETSIGMASK, s->tid, sizeof(s->sigmask), &s->sigmask))
		return fail(err, "PTRACE_SETSIGMASK", errno);
	return s->rseq_cs ? surgeon_write(s->tid, s->rseq_cs_at, &s->rseq_cs, sizeof(s->rseq_cs), err) : 0;
}

bool surgeon_close(const struct surgeon_record *left, pid_t tid, struct surgeon_error *err)
{
	struct surgeon s = left->patient;
	int64_t ignored;

	*err = (struct surgeon_error){ "", 0 };
	if (!left->open || s.tid != tid)
		return false;
	/* What it has for the moment goes with the page. */
	if (put_back(&s, err) || surgeon_begin(&s, tid, err))
		return true;
	for (size_t i = 0; i < sizeof(left->fds) / sizeof(left->fds[0]); i++) {
		const uint64_t call[7] = { SYS_close, (uint64_t)left->fds[i] };

		if (left->fds[i] >= 0)
			(void)surgeon_syscall(&s, call, &ignored, err);
	}
	s.scratch = left->patient.scratch;
	(void)surgeon_end(&s, err);
	return true;
}

int surgeon_end(struct surgeon *s, struct surgeon_error *err)
{
	int ret = 0;

	if (s->scratch) {
		uint64_t call[7] = { SYS_munmap, s->scratch, PAGE };
		int64_t r;

		s->scratch = 0;
		ret = surgeon_syscall(s, call, &r, err);
	}
	/* Whatever failed before: registers and mask go back, or the task would run somewhere else. */
	if (put_back(s, err))
		return -1;
	/*
	 * The task is in a system call's exit stop now. From there an interrupted call (rax = -ERESTART*) would return
	 * to the program as it is: only the way through get_signal() restarts it (arch/x86/kernel/signal.c). So lead the
	 * task into the trap again in which it was seized.
	 */
	if (surgeon_interrupt(s->tid, true, err))
		return -1;
	strike_out();
	return ret;
}

int surgeon_syscall(struct surgeon *s, const uint64_t call[7], int64_t *ret, struct surgeon_error *err)
{
	struct user_regs_struct regs = s->regs;
	bool entered = false;
	int status, pass;

	regs.rip = s->syscall_insn;
	regs.rax = call[0];
	regs.rdi = call[1];
	regs.rsi = call[2];
	regs.rdx = call[3];
	regs.r10 = call[4];
	regs.r8 = call[5];
	regs.r9 = call[6];
	/* Not "in a system call": else the kernel might restart what the task was doing before. */
	regs.orig_rax = ~0ULL;
	if (surgeon_set_regs(s->tid, &regs, err))
		return -1;
	/* Each turn is a stop on the way to the entry or to the exit; a handful come from traps that were pending. */
	for (pass = 0; pass < 64; pass++) {
		if (ptrace(PTRACE_SYSCALL, s->tid, 0, 0))
			return fail(err, "PTRACE_SYSCALL", errno);
		if (wait_stop(s->tid, &status, err))
			return -1;
		if (status >> 16 || (WSTOPSIG(status) & 0x7f) != SIGTRAP)
			continue;
		if (!entered) {
			entered = true;
			continue;
		}
		if (get_regs(s->tid, &regs, err))
			return -1;
		*ret = (int64_t)regs.rax;
		return 0;
	}
	return fail(err, "run the injected system call", EAGAIN);
}

/* include/linux/errno.h: arch/x86/kernel/signal.c starts such a call again, and so does CRIU (compel's get_task_regs). */
#define ERESTARTNOHAND 514

int surgeon_restart(pid_t tid, uint64_t nr, int64_t *ret, struct surgeon_error *err)
{
	struct user_regs_struct regs;

	*ret = 0;
	if (get_regs(tid, &regs, err))
		return -1;
	if (regs.orig_rax != nr || (int64_t)regs.rax != -EINTR)
		return 0;
	regs.rax = (uint64_t)-(int64_t)ERESTARTNOHAND;
	if (surgeon_set_regs(tid, &regs, err))
		return -1;
	*ret = 1;
	return 0;
}

/* A call whose failure ends the operation. */
static int run(struct surgeon *s, const char *step, int64_t *ret, struct surgeon_error *err, uint64_t nr, uint64_t a,
	       uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	uint64_t call[7] = { nr, a, b, c, d, e, f };

	if (surgeon_syscall(s, call, ret, err))
		return -1;
	if (*ret < 0 && *ret >= -4095)
		return fail(err, step, (int)-*ret);
	return 0;
}

int surgeon_take_fd(pid_t tid, int fd, int *ours, struct surgeon_error *err)
{
	int pidfd = (int)syscall(SYS_pidfd_open, tid, 0);

	if (pidfd < 0)
		return fail(err, "pidfd_open", errno);
	*ours = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	return *ours < 0 ? fail(err, "pidfd_getfd", errno) : 0;
}

/* struct msghdr and its parts as they lie in the task's scratch page. */
struct parcel {
	struct msghdr msg;
	struct iovec iov;
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	int pair[2];
	char byte;
};

static int send_fd(int sk, int fd, struct surgeon_error *err)
{
	struct parcel p = { .byte = 'f' };
	struct cmsghdr *c;

	p.iov = (struct iovec){ &p.byte, 1 };
	p.msg = (struct msghdr){ .msg_iov = &p.iov, .msg_iovlen = 1, .msg_control = &p.control,
				 .msg_controllen = sizeof(p.control) };
	c = CMSG_FIRSTHDR(&p.msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(sk, &p.msg, MSG_NOSIGNAL) != 1)
		return fail(err, "sendmsg", errno);
	return 0;
}

/*
 * Brings a descriptor of ours into the task, at a number of the kernel's choice: a socket pair that is made inside,
 * whose one end we take, so that no path and no namespace matters.
 */
static int send_to_task(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	uint64_t at, page;
	int ours = -1, ret = -1, pair[2];
	struct parcel p = { 0 };
	struct cmsghdr *c;
	int64_t r, ignored;

	if (!s->scratch) {
		if (run(s, "mmap a page in the task", &r, err, SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0))
			return -1;
		s->scratch = (uint64_t)r;
		if (record)
			record->patient.scratch = s->scratch;
	}
	page = s->scratch;
	at = page + offsetof(struct parcel, pair);
	if (run(s, "socketpair in the task", &r, err, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, at, 0, 0))
		return -1;
	if (surgeon_read(s->tid, at, pair, sizeof(pair), err))
		return -1;
	write_down_fd(-1, pair[0]);
	write_down_fd(-1, pair[1]);
	if (surgeon_take_fd(s->tid, pair[1], &ours, err) || send_fd(ours, fd, err))
		goto close_pair;
	p.iov = (struct iovec){ (void *)(uintptr_t)(page + offsetof(struct parcel, byte)), 1 };
	p.msg = (struct msghdr){ .msg_iov = (void *)(uintptr_t)(page + offsetof(struct parcel, iov)), .msg_iovlen = 1,
				 .msg_control = (void *)(uintptr_t)(page + offsetof(struct parcel, control)),
				 .msg_controllen = sizeof(p.control) };
	if (surgeon_write(s->tid, page, &p, sizeof(p), err) ||
	    run(s, "recvmsg in the task", &r, err, SYS_recvmsg, (uint64_t)pair[0], page, MSG_CMSG_CLOEXEC, 0, 0, 0) ||
	    surgeon_read(s->tid, page, &p, sizeof(p), err))
		goto close_pair;
	c = &p.control.align;
	if (p.msg.msg_controllen < CMSG_LEN(sizeof(int)) || c->cmsg_type != SCM_RIGHTS) {
		/* The task has no descriptor left under its RLIMIT_NOFILE. */
		fail(err, "hand a descriptor to the task", EMFILE);
		goto close_pair;
	}
	memcpy(theirs, CMSG_DATA(c), sizeof(int));
	write_down_fd(-1, *theirs);
	ret = 0;
close_pair:
	for (int i = 0; i < 2; i++) {
		uint64_t call[7] = { SYS_close, (uint64_t)pair[i] };
		struct surgeon_error unused;

		(void)surgeon_syscall(s, call, &ignored, ret ? &unused : err);
		write_down_fd(pair[i], -1);
	}
	if (ours >= 0)
		close(ours);
	return ret;
}

/* The first of the numbers behind a name in /proc/PID/status. */
static bool status_number(const char *status, const char *name, unsigned long *number)
{
	const char *line = strstr(status, name);

	return line && sscanf(line + strlen(name), " %lu", number) == 1;
}

/* Becomes a process that the task may look at: its user namespace and ids, no capabilities. */
static bool dress_as(pid_t tid)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };
	unsigned long uid, gid;
	struct stat mine, their;
	char path[64], status[4096];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", tid);
	if (stat("/proc/self/ns/user", &mine) || stat(path, &their))
		return false;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (mine.st_ino != their.st_ino) {
		char ns[64];

		snprintf(ns, sizeof(ns), "/proc/%d/ns/user", tid);
		fd = open(ns, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWUSER))
			return false;
		close(fd);
	}
	/* Opened here: the kernel shows ids as the namespace of who opens it has them. */
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, status, sizeof(status) - 1);
	if (n <= 0)
		return false;
	status[n] = '\0';
	return status_number(status, "\nUid:", &uid) && status_number(status, "\nGid:", &gid) &&
	       syscall(SYS_setresgid, gid, gid, gid) == 0 && syscall(SYS_setresuid, uid, uid, uid) == 0 &&
	       syscall(SYS_capset, &head, none) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0 &&
	       /* Yama: not only those above it. Without Yama there is no such call. */
	       (prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0) == 0 || errno == EINVAL);
}

/*
 * A child that holds what we hold, and waits. By clone(2) without a signal at its end: the caller may be CRIU, which
 * counts its children.
 */
static pid_t start_holder(pid_t tid, int *alive, struct surgeon_error *err)
{
	int pair[2];
	char ready;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return fail(err, "socketpair", errno);
	pid = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
	if (pid == 0) {
		close(pair[0]);
		if (dress_as(tid) && write(pair[1], "r", 1) == 1)
			while (read(pair[1], &ready, 1) > 0)
				;
		_exit(0);
	}
	close(pair[1]);
	if (pid > 0 && read(pair[0], &ready, 1) == 1) {
		*alive = pair[0];
		return pid;
	}
	close(pair[0]);
	if (pid < 0)
		return fail(err, "clone", errno);
	(void)waitpid(pid, NULL, __WALL);
	return fail(err, "become a process that the task may look at", EPERM);
}

/*
 * A ring of io_uring can be sent over no socket: the task takes it, by a call of its own, from a child of ours that it
 * may look at (pidfd_getfd(2), Linux 5.6).
 */
static int let_take(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	int alive, pidfd = -1, seen = -1, ret = -1;
	struct surgeon_error unused;
	pid_t holder;
	int64_t r;

	holder = start_holder(s->tid, &alive, err);
	if (holder < 0)
		return -1;
	pidfd = (int)syscall(SYS_pidfd_open, holder, 0);
	if (pidfd < 0) {
		fail(err, "pidfd_open", errno);
		goto out;
	}
	if (send_to_task(s, pidfd, &seen, err))
		goto out;
	ret = run(s, "pidfd_getfd in the task", &r, err, SYS_pidfd_getfd, (uint64_t)seen, (uint64_t)fd, 0, 0, 0, 0);
	*theirs = (int)r;
	if (!ret)
		write_down_fd(-1, *theirs);
	(void)run(s, "close in the task", &r, &unused, SYS_close, (uint64_t)seen, 0, 0, 0, 0, 0);
	write_down_fd(seen, -1);
out:
	if (pidfd >= 0)
		close(pidfd);
	close(alive);
	(void)waitpid(holder, NULL, __WALL);
	return ret;
}

static int give_fd(struct surgeon *s, int fd, int *theirs, struct surgeon_error *err)
{
	if (!send_to_task(s, fd, theirs, err))
		return 0;
	if (err->err != EINVAL || strcmp(err->step, "sendmsg"))
		return -1;
	return let_take(s, fd, theirs, err);
}

/* Closes a descriptor of the task's. A failure counts only where nothing failed before. */
static int drop_fd(struct surgeon *s, int theirs, int ret, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int64_t r;

	if (run(s, "close in the task", &r, ret ? &unused : err, SYS_close, (uint64_t)theirs, 0, 0, 0, 0, 0))
		ret = -1;
	write_down_fd(theirs, -1);
	return ret;
}

/* Ends an operation whose result so far is ret; the first failure is the one that is told. */
static int finish(struct surgeon *s, int ret, struct surgeon_error *err)
{
	struct surgeon_error unused;

	return surgeon_end(s, ret ? &unused : err) ? -1 : ret;
}

/* An epoll of the task's, and what it watches a descriptor for. */
struct watch {
	int epoll;
	struct epoll_event event;
};

/* The kernel's name for it; to ask it of every descriptor is cheap, to have rings describe themselves is not. */
static bool is_epoll(int fds, const char *fd)
{
	static const char name[] = "anon_inode:[eventpoll]";
	char target[sizeof(name)];

	return readlinkat(fds, fd, target, sizeof(target)) == sizeof(name) - 1 && !memcmp(target, name, sizeof(name) - 1);
}

/* The epolls in which a descriptor of the task's is (proc_pid_fdinfo(5)); at most `max`. */
static size_t find_watches(pid_t tid, int fd, struct watch *watches, size_t max)
{
	char path[64], line[256];
	struct dirent *d;
	size_t n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", tid);
	dir = opendir(path);
	while (dir && n < max && (d = readdir(dir))) {
		FILE *f;

		if (!is_epoll(dirfd(dir), d->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", tid, d->d_name);
		f = fopen(path, "re");
		while (f && n < max && fgets(line, sizeof(line), f)) {
			unsigned long long data;
			unsigned int events;
			int target;

			if (sscanf(line, "tfd: %d events: %x data: %llx", &target, &events, &data) == 3 && target == fd)
				watches[n++] = (struct watch){ atoi(d->d_name), { .events = events, .data.u64 = data } };
		}
		if (f)
			fclose(f);
	}
	if (dir)
		closedir(dir);
	return n;
}

static int swap_watched(struct surgeon *s, int fd, int theirs, int cloexec, struct surgeon_error *err)
{
	struct watch watches[MAX_WATCHES];
	size_t n = find_watches(s->tid, fd, watches, MAX_WATCHES), i;
	struct surgeon_error unused;
	int64_t r;
	int ret;

	/* One that is not this file's any more is another process's affair, who shares the epoll. */
	for (i = 0; i < n; i++)
		if (run(s, "epoll_ctl in the task", &r, &unused, SYS_epoll_ctl, (uint64_t)watches[i].epoll, EPOLL_CTL_DEL,
			(uint64_t)fd, 0, 0, 0))
			watches[i].epoll = -1;
	ret = run(s, "dup3 in the task", &r, err, SYS_dup3, (uint64_t)theirs, (uint64_t)fd, cloexec ? O_CLOEXEC : 0, 0, 0, 0);
	for (i = 0; i < n; i++) {
		if (watches[i].epoll < 0)
			continue;
		if (surgeon_write(s->tid, s->scratch, &watches[i].event, sizeof(watches[i].event), ret ? &unused : err) ||
		    run(s, "epoll_ctl in the task", &r, ret ? &unused : err, SYS_epoll_ctl, (uint64_t)watches[i].epoll,
			EPOLL_CTL_ADD, (uint64_t)fd, s->scratch, 0, 0))
			ret = -1;
	}
	return ret;
}

int surgeon_swap_fd(pid_t tid, int fd, int new_fd, int cloexec, struct surgeon_error *err)
{
	int theirs = -1, ret = -1;
	struct surgeon s;

	if (surgeon_begin(&s, tid, err))
		return -1;
	if (give_fd(&s, new_fd, &theirs, err) == 0) {
		ret = swap_watched(&s, fd, theirs, cloexec, err);
		ret = drop_fd(&s, theirs, ret, err);
	}
	return finish(&s, ret, err);
}

/* Goes to a directory of ours. */
static int change_dir(struct surgeon *s, int dir, struct surgeon_error *err)
{
	int theirs, ret;
	int64_t r;

	if (give_fd(s, dir, &theirs, err))
		return -1;
	ret = run(s, "fchdir in the task", &r, err, SYS_fchdir, (uint64_t)theirs, 0, 0, 0, 0, 0);
	return drop_fd(s, theirs, ret, err);
}

int surgeon_swap_cwd(pid_t tid, int now, int to, struct surgeon_error *err)
{
	struct surgeon s;
	int ret;

	if (surgeon_begin(&s, tid, err))
		return -1;
	ret = now >= 0 ? change_dir(&s, now, err) : 0;
	if (!ret)
		ret = change_dir(&s, to, err);
	return finish(&s, ret, err);
}

static int change_root(struct surgeon *s, int dir, struct surgeon_error *err)
{
	int64_t r;

	if (change_dir(s, dir, err) || surgeon_write(s->tid, s->scratch, ".", 2, err))
		return -1;
	return run(s, "chroot in the task", &r, err, SYS_chroot, s->scratch, 0, 0, 0, 0, 0);
}

int surgeon_swap_root(pid_t tid, int now, int to, struct surgeon_error *err)
{
	struct surgeon_error unused;
	struct surgeon s;
	char path[64];
	int cwd, ret;

	snprintf(path, sizeof(path), "/proc/%d/cwd", tid);
	cwd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (cwd < 0)
		return fail(err, "open the task's working directory", errno);
	ret = surgeon_begin(&s, tid, err);
	if (!ret) {
		ret = change_dir(&s, cwd, err);
		if (!ret && now >= 0)
			ret = change_root(&s, now, err);
		if (!ret)
			ret = change_root(&s, to, err);
		if (change_dir(&s, cwd, ret ? &unused : err))
			ret = -1;
		ret = finish(&s, ret, err);
	}
	close(cwd);
	return ret;
}

struct range {
	uint64_t from, to;
};

/* The end of what a task can map. */
#define HIGHEST ((1ULL << 47) - PAGE)

/* Where the kernel begins to look for room. MAP_ABOVE4G would have it begin later, but only since Linux 6.6. */
static uint64_t lowest(void)
{
	unsigned long long at = 0;
	FILE *file = fopen("/proc/sys/vm/mmap_min_addr", "re");

	if (!file)
		return PAGE;
	if (fscanf(file, "%llu", &at) != 1 || at < PAGE)
		at = PAGE;
	fclose(file);
	return (at + PAGE - 1) / PAGE * PAGE;
}

static int add_range(struct range **holes, size_t *n, size_t *cap, uint64_t from, uint64_t to, struct surgeon_error *err)
{
	if (*n == *cap) {
		struct range *more = realloc(*holes, (*cap = *cap ? *cap * 2 : 16) * sizeof(*more));

		if (!more)
			return fail(err, "malloc", ENOMEM);
		*holes = more;
	}
	(*holes)[(*n)++] = (struct range){ from, to };
	return 0;
}

/* The holes of the task's address space in which a mapping finds room, but for [addr, addr + len), which is one. */
static int find_holes(pid_t tid, uint64_t addr, uint64_t len, bool below, struct range **holes, size_t *n,
		      struct surgeon_error *err)
{
	unsigned long long from = 0, to = 0;
	uint64_t last = lowest();
	char path[64], line[4608];
	bool more = true;
	size_t cap = 0;
	FILE *maps;
	int ret = 0;

	*holes = NULL;
	*n = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", tid);
	maps = fopen(path, "re");
	if (!maps)
		return fail(err, "read /proc/PID/maps", errno);
	while (!ret && more) {
		more = fgets(line, sizeof(line), maps) != NULL;
		if (more && sscanf(line, "%llx-%llx ", &from, &to) != 2)
			continue;
		/* The vsyscall page lies beyond what a task can map. */
		if (!more || from >= HIGHEST) {
			from = HIGHEST;
			more = false;
		}
		if (from > last && last <= addr && addr < from) {
			/* The hole that addr is in: the kernel would choose its end, or its beginning. */
			if (below && addr > last)
				ret = add_range(holes, n, &cap, last, addr, err);
			if (!ret && from > addr + len)
				ret = add_range(holes, n, &cap, addr + len, from, err);
		} else if (from > last && from - last >= len && (below || last > addr)) {
			ret = add_range(holes, n, &cap, last, from, err);
		}
		if (to > last)
			last = to;
	}
	fclose(maps);
	return ret;
}

/*
 * For a file whose mmap takes no address: every hole that the kernel would prefer is filled while it chooses. It chooses
 * from the top of the space for mappings downwards; after a restore that top may be below the address, which the
 * kernel then looks at only when nothing else is left.
 */
static int map_by_choice(struct surgeon *s, uint64_t addr, uint64_t len, int prot, int flags, int theirs,
			 uint64_t offset, bool below, struct surgeon_error *err)
{
	struct surgeon_error unused;
	struct range *holes;
	size_t n, filled;
	int64_t r;
	int ret;

	ret = find_holes(s->tid, addr, len, below, &holes, &n, err);
	for (filled = 0; !ret && filled < n; filled++)
		ret = run(s, "fill a hole of the task's memory", &r, err, SYS_mmap, holes[filled].from,
			  holes[filled].to - holes[filled].from, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	if (!ret)
		ret = run(s, "mmap in the task", &r, err, SYS_mmap, 0, len, (uint64_t)prot,
			  (uint64_t)(flags | MAP_ABOVE4G), (uint64_t)theirs, offset);
	if (!ret && (uint64_t)r != addr) {
		(void)run(s, "munmap in the task", &r, &unused, SYS_munmap, (uint64_t)r, len, 0, 0, 0, 0);
		ret = fail(err, "map at the old address", EADDRINUSE);
	}
	while (filled-- > 0)
		if (run(s, "munmap in the task", &r, ret ? &unused : err, SYS_munmap, holes[filled].from,
			holes[filled].to - holes[filled].from, 0, 0, 0, 0))
			ret = -1;
	free(holes);
	return ret;
}

static int map_at(struct surgeon *s, uint64_t addr, uint64_t len, int prot, int flags, int theirs, uint64_t offset,
		  struct surgeon_cut cut, struct surgeon_error *err)
{
	uint64_t from = addr - cut.before, whole = cut.before + len + cut.after;
	int64_t r;

	if (run(s, "munmap in the task", &r, err, SYS_munmap, addr, len, 0, 0, 0, 0))
		return -1;
	if (map_by_choice(s, from, whole, prot, flags, theirs, offset, false, err) &&
	    (err->err != EADDRINUSE || map_by_choice(s, from, whole, prot, flags, theirs, offset, true, err)))
		return -1;
	if (cut.before && run(s, "munmap in the task", &r, err, SYS_munmap, from, cut.before, 0, 0, 0, 0))
		return -1;
	return cut.after ? run(s, "munmap in the task", &r, err, SYS_munmap, addr + len, cut.after, 0, 0, 0, 0) : 0;
}

int surgeon_swap_mapping(pid_t tid, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
			 uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err)
{
	int theirs = own_fd, ret = 0;
	struct surgeon s;
	int64_t r;

	if (surgeon_begin(&s, tid, err))
		return -1;
	if (new_fd >= 0)
		ret = give_fd(&s, new_fd, &theirs, err);
	if (!ret) {
		ret = run(&s, "mmap in the task", &r, err, SYS_mmap, addr, len, (uint64_t)prot,
			  (uint64_t)(flags | MAP_FIXED), (uint64_t)(int64_t)theirs, offset);
		/* Refused before anything was unmapped. */
		if (ret && err->err == EINVAL && theirs >= 0)
			ret = map_at(&s, addr, len, prot, flags & ~MAP_FIXED, theirs, offset, cut, err);
		if (new_fd >= 0)
			ret = drop_fd(&s, theirs, ret, err);
	}
	return finish(&s, ret, err);
}

int surgeon_submit(pid_t pid, pid_t tid, int fd, const struct surgeon_queue *queue, uint32_t each, uint64_t times,
		   struct surgeon_error *err)
{
	uint32_t *sq_tail, *cq_head, *cq_tail;
	int ours = -1, ret = 0;
	struct surgeon s;
	char *memory;
	int64_t r;

	if (queue->len < 4 || queue->sq_tail > queue->len - 4 || queue->cq_head > queue->len - 4 || queue->cq_tail > queue->len - 4)
		return fail(err, "a queue that is none", EINVAL);
	if (surgeon_take_fd(pid, fd, &ours, err))
		return -1;
	memory = mmap(NULL, queue->len, PROT_READ | PROT_WRITE, MAP_SHARED, ours, 0);
	close(ours);
	if (memory == MAP_FAILED)
		return fail(err, "mmap of a ring", errno);
	sq_tail = (uint32_t *)(void *)(memory + queue->sq_tail);
	cq_head = (uint32_t *)(void *)(memory + queue->cq_head);
	cq_tail = (uint32_t *)(void *)(memory + queue->cq_tail);
	if (surgeon_begin(&s, tid, err)) {
		munmap(memory, queue->len);
		return -1;
	}
	for (uint64_t i = 0; !ret && i < times; i++) {
		__atomic_store_n(sq_tail, *sq_tail + each, __ATOMIC_RELEASE);
		ret = run(&s, "io_uring_enter in the task", &r, err, SYS_io_uring_enter, (uint64_t)fd, each, 0, 0, 0, 0);
		if (!ret && r != each)
			ret = fail(err, "submit to a ring", EAGAIN);
		__atomic_store_n(cq_head, __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
	}
	munmap(memory, queue->len);
	return finish(&s, ret, err);
}
