// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#define _GNU_SOURCE
#include "internal.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
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
#ifndef SYS_io_uring_enter
#define SYS_io_uring_enter 426
#endif

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
	record->n_filled = 0;
	__atomic_store_n(&record->open, 1, __ATOMIC_RELEASE);
}

static void strike_out(void)
{
	if (record)
		__atomic_store_n(&record->open, 0, __ATOMIC_RELEASE);
}

void surgeon_note_fd(int from, int to)
{
	if (!record)
		return;
	for (size_t i = 0; i < sizeof(record->fds) / sizeof(record->fds[0]); i++)
		if (record->fds[i] == from) {
			record->fds[i] = to;
			return;
		}
}

/* Each by a single store, or before it counts: at no moment is it a range that was never filled. */
void surgeon_note_filled(const struct surgeon *s, size_t i)
{
	const size_t max = sizeof(record->filled) / sizeof(record->filled[0]);

	if (!record)
		return;
	if (i < max && i < s->n_filled) {
		__atomic_store_n(&record->filled[i].from, s->filled[i].from, __ATOMIC_RELEASE);
		__atomic_store_n(&record->filled[i].to, s->filled[i].to, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&record->n_filled, s->n_filled < max ? s->n_filled : max, __ATOMIC_RELEASE);
}

void surgeon_note_limits(const struct surgeon *s)
{
	if (!record)
		return;
	memcpy(record->patient.limits, s->limits, sizeof(s->limits));
	__atomic_store_n(&record->patient.lifted, s->lifted, __ATOMIC_RELEASE);
}

void surgeon_note_mask(pid_t tid, uint64_t before, uint64_t meanwhile)
{
	if (!record)
		return;
	if (tid) {
		record->mask = before;
		record->meanwhile = meanwhile;
	}
	__atomic_store_n(&record->masked, tid, __ATOMIC_RELEASE);
}

int surgeon_scratch(struct surgeon *s, struct surgeon_error *err)
{
	int64_t r = -1;

	if (s->scratch)
		return 0;
	/* Not where the kernel would choose: that is next to other mappings, perhaps where one of them is to be put back. */
	for (uint64_t at = 1ULL << 32; r < 0 && at < 1ULL << 46; at <<= 1)
		if (run(s, "mmap a page in the task", &r, err, SYS_mmap, at, PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0))
			r = -1;
	if (r < 0 && run(s, "mmap a page in the task", &r, err, SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		(uint64_t)-1, 0))
		return -1;
	s->scratch = (uint64_t)r;
	if (record)
		record->patient.scratch = s->scratch;
	return 0;
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

	*s = (struct surgeon){ .tid = tid, .holder_alive = -1, .lent = -1, .n_epolls = -1 };
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
	for (uint64_t i = 0; i < left->n_filled; i++) {
		const struct surgeon_range *one = &left->filled[i];
		const uint64_t call[7] = { SYS_munmap, one->from, one->to - one->from };

		if (one->from < one->to)
			(void)surgeon_syscall(&s, call, &ignored, err);
	}
	s.scratch = left->patient.scratch;
	s.lifted = left->patient.lifted;
	memcpy(s.limits, left->patient.limits, sizeof(s.limits));
	(void)surgeon_end(&s, err);
	return true;
}

int surgeon_end(struct surgeon *s, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int ret = surgeon_empty_holes(s, err);

	if (surgeon_take_back(s, ret ? &unused : err))
		ret = -1;
	if (s->scratch) {
		uint64_t call[7] = { SYS_munmap, s->scratch, PAGE };
		int64_t r;

		s->scratch = 0;
		if (surgeon_syscall(s, call, &r, ret ? &unused : err))
			ret = -1;
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

int surgeon_take_fd(pid_t tid, int fd, int *ours, struct surgeon_error *err)
{
	int pidfd = (int)syscall(SYS_pidfd_open, tid, 0);

	if (pidfd < 0)
		return fail(err, "pidfd_open", errno);
	*ours = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	return *ours < 0 ? fail(err, "pidfd_getfd", errno) : 0;
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
