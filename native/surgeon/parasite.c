// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * How a task that is operated on survives the death of its surgeon.
 *
 * When a tracer dies the kernel detaches its tasks, and each runs on with the registers that it has at that moment. So a
 * task whose registers are not its own must never be at a place from which it does not find home:
 *
 *	1. Code and the task's registers are written to bytes that nobody uses: the zeros between the end of some
 *	   program text and the end of its page. No register is touched before that is done.
 *	2. From then on the task only ever runs there. The first instruction is a `syscall` for calls that the tracer makes
 *	   one by one; what follows it is the way home. If the tracer is there, it stops the task before that.
 *	3. The loop waits for messages of the tracer and runs the list that came with each. When the tracer is gone,
 *	   the socket says so, and the way home is next.
 *
 * On the way home the task closes the socket, unmaps the room, puts its signal mask back, then its registers, and goes
 * on: with an interrupted system call made again, as the kernel itself would have made it.
 */
#define _GNU_SOURCE
#include "parasite.h"

#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u
#define STACK 8192u
/* How long a list may take: a close on a network file system can wait for its server. */
#define PATIENCE_MS 20000

/* linux/rseq.h: struct rseq_cs */
struct critical_section {
	uint32_t version, flags;
	uint64_t start, length, abort;
};

/* The task's memory for the parasite: what is written at its start, ... */
struct head {
	int32_t pair[2];	/* its sockets; the way home closes what is not -1 */
	uint32_t count, want;	/* calls, and descriptors that must have come along */
	int32_t done;		/* calls that were run; -1: the descriptors did not come */
	uint32_t late;		/* calls from this one on are run when those descriptors have been closed again */
	struct msghdr msg;
	struct iovec iov;
	uint64_t byte;
};

/* ... and all of it. */
struct room {
	struct head h;
	union {
		char space[CMSG_SPACE(sizeof(int) * PARASITE_FDS)];
		struct cmsghdr align;
	} control;
	struct parasite_call calls[PARASITE_CALLS];
	uint64_t space[PARASITE_SPACE / 8];
	uint64_t stack[STACK / 8];
};

/* What the way home reads; lies behind the code, which is written as one piece. Offsets are in the assembly below. */
struct home {
	uint64_t room, room_size, sigmask;
	uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, flags, rsp;
};

extern const uint8_t parasite_begin[], parasite_enter[], parasite_home_data[], parasite_finish[];

/*
 * Position independent, in one section with the loop. The stack is the room's while the loop runs; on the way home it is
 * the task's own below its red zone, where signal handlers may run, too.
 */
__asm__(".pushsection parasite,\"ax\",@progbits\n"
	".globl parasite_begin, parasite_enter, parasite_home_data, parasite_finish\n"
	".hidden parasite_begin, parasite_enter, parasite_home_data, parasite_finish\n"
	"parasite_begin:\n"
	"	syscall\n"
	"parasite_go_home:\n"
	"	movq	parasite_home_data+160(%rip), %rsp\n"
	"	leaq	-256(%rsp), %rsp\n"
	"	movq	parasite_home_data(%rip), %rbx\n"
	"	testq	%rbx, %rbx\n"
	"	jz	3f\n"
	"	movl	(%rbx), %edi\n"
	"	testl	%edi, %edi\n"
	"	js	1f\n"
	"	movl	$3, %eax\n"		/* close */
	"	syscall\n"
	"1:	movl	4(%rbx), %edi\n"
	"	testl	%edi, %edi\n"
	"	js	2f\n"
	"	movl	$3, %eax\n"
	"	syscall\n"
	"2:	movq	%rbx, %rdi\n"
	"	movq	parasite_home_data+8(%rip), %rsi\n"
	"	movl	$11, %eax\n"		/* munmap */
	"	syscall\n"
	"3:	movl	$14, %eax\n"		/* rt_sigprocmask */
	"	movl	$2, %edi\n"		/* SIG_SETMASK */
	"	leaq	parasite_home_data+16(%rip), %rsi\n"
	"	xorl	%edx, %edx\n"
	"	movl	$8, %r10d\n"
	"	syscall\n"
	"	movq	parasite_home_data+24(%rip), %r15\n"
	"	movq	parasite_home_data+32(%rip), %r14\n"
	"	movq	parasite_home_data+40(%rip), %r13\n"
	"	movq	parasite_home_data+48(%rip), %r12\n"
	"	movq	parasite_home_data+56(%rip), %rbp\n"
	"	movq	parasite_home_data+64(%rip), %rbx\n"
	"	movq	parasite_home_data+72(%rip), %r11\n"
	"	movq	parasite_home_data+80(%rip), %r10\n"
	"	movq	parasite_home_data+88(%rip), %r9\n"
	"	movq	parasite_home_data+96(%rip), %r8\n"
	"	movq	parasite_home_data+104(%rip), %rax\n"
	"	movq	parasite_home_data+112(%rip), %rcx\n"
	"	movq	parasite_home_data+120(%rip), %rdx\n"
	"	movq	parasite_home_data+128(%rip), %rsi\n"
	"	movq	parasite_home_data+136(%rip), %rdi\n"
	"	pushq	parasite_home_data+152(%rip)\n"
	"	popfq\n"
	"	movq	parasite_home_data+160(%rip), %rsp\n"
	"	jmp	*parasite_home_data+144(%rip)\n"
	"parasite_enter:\n"
	"	call	parasite_loop\n"
	"	jmp	parasite_go_home\n"
	".popsection\n");

/* The section's last part; a section of its own name could be put anywhere by the linker. */
__asm__(".pushsection parasite,\"ax\",@progbits\n"
	".subsection 1\n"
	".balign 8\n"
	"parasite_home_data:\n"
	"	.zero	168\n"
	"parasite_finish:\n"
	".popsection\n");

_Static_assert(sizeof(struct home) == 168 && offsetof(struct home, rsp) == 160 && offsetof(struct home, rip) == 144,
	       "the assembly knows the offsets");

/* In the task: nothing of the C library, no registers of the FPU, no address but those it is given. */
#define INSIDE                                                                                                         \
	__attribute__((used, noinline, section("parasite"), target("general-regs-only"), no_sanitize("address"),      \
		       no_sanitize("undefined"),                                                                       \
		       optimize("O2", "no-jump-tables", "no-tree-loop-distribute-patterns", "no-stack-protector")))

/* Not a function: one without the attributes of its caller is not inlined there. */
#define KERNEL(nr, a, b, c, d, e, f)                                                                                   \
	({                                                                                                             \
		register uint64_t r10_ __asm__("r10") = (uint64_t)(d), r8_ __asm__("r8") = (uint64_t)(e),             \
				  r9_ __asm__("r9") = (uint64_t)(f);                                                   \
		int64_t ret_;                                                                                          \
		__asm__ volatile("syscall"                                                                             \
				 : "=a"(ret_)                                                                          \
				 : "a"((uint64_t)(nr)), "D"((uint64_t)(a)), "S"((uint64_t)(b)), "d"((uint64_t)(c)),    \
				   "r"(r10_), "r"(r8_), "r"(r9_)                                                       \
				 : "rcx", "r11", "memory");                                                            \
		ret_;                                                                                                  \
	})

INSIDE static void parasite_loop(struct room *r)
{
	int32_t other = r->h.pair[1];

	/* With the other end open here, too, the end of the tracer's would not be seen. */
	r->h.pair[1] = -1;
	KERNEL(SYS_close, other, 0, 0, 0, 0, 0);
	for (;;) {
		volatile int *got = (volatile int *)(r->control.space + CMSG_LEN(0));
		uint64_t n = 0;
		int64_t ret;

		r->h.msg.msg_controllen = sizeof(r->control);
		ret = KERNEL(SYS_recvmsg, r->h.pair[0], &r->h.msg, MSG_CMSG_CLOEXEC, 0, 0, 0);
		if (ret == -EINTR)
			continue;
		if (ret <= 0)
			return;
		if (r->h.msg.msg_controllen >= CMSG_LEN(sizeof(int)))
			n = (r->control.align.cmsg_len - CMSG_LEN(0)) / sizeof(int);
		r->h.done = n == r->h.want ? 0 : -1;
		for (;;) {
			struct parasite_call *c = &r->calls[r->h.done];
			uint64_t a[6];

			if (n && (r->h.done < 0 || (uint32_t)r->h.done >= r->h.late)) {
				for (uint64_t i = 0; i < n; i++)
					KERNEL(SYS_close, got[i], 0, 0, 0, 0, 0);
				n = 0;
			}
			if (r->h.done < 0 || (uint32_t)r->h.done >= r->h.count)
				break;
			if (c->with && r->calls[c->with - 1].ret < 0) {
				c->ret = -ECANCELED;
				r->h.done++;
				continue;
			}
#pragma GCC unroll 6
			for (int i = 0; i < 6; i++)
				a[i] = c->load & 1u << i ? (uint64_t)(int64_t)*(volatile int *)c->arg[i] : c->arg[i];
			c->ret = KERNEL(c->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
			r->h.done++;
			if ((c->ret < 0 && c->ret >= -4095 && c->go_on != PARASITE_MAY_FAIL) ||
			    (c->ret == 0 && c->go_on == PARASITE_MUST_GIVE)) {
				/* What follows is not run, but the descriptors are closed. */
				r->h.count = (uint32_t)r->h.done;
				r->h.late = 0;
			}
		}
		KERNEL(SYS_sendto, r->h.pair[0], &r->h.byte, 1, MSG_NOSIGNAL, 0, 0);
	}
}

static int fail(struct surgeon_error *err, const char *step, int e)
{
	err->step = step;
	err->err = e;
	return -1;
}

static size_t code_size(void)
{
	return (size_t)(parasite_finish - parasite_begin);
}

/* Those at work. Several may be in one address space: in threads that do not share their descriptors. */
static struct parasite *at_work;

static bool is_taken(pid_t tid, uint64_t at)
{
	for (struct parasite *p = at_work; p; p = p->next)
		if (p->code == at && syscall(SYS_kcmp, p->s.tid, tid, KCMP_VM, 0, 0) == 0)
			return true;
	return false;
}

static void forget(struct parasite *gone)
{
	struct parasite **at = &at_work;

	while (*at && *at != gone)
		at = &(*at)->next;
	if (*at)
		*at = gone->next;
}

/* Whether what lies there is free: zeros, or the code that a surgeon who was killed has left. */
static bool is_free(const uint8_t *at, size_t len)
{
	size_t code = (size_t)(parasite_home_data - parasite_begin);

	if (memcmp(at, parasite_begin, code) == 0)
		return true;
	for (size_t i = 0; i < len; i++)
		if (at[i])
			return false;
	return true;
}

/*
 * The end of some private text of a file, else of the vdso. What is written there is the process's own copy; the file, and
 * other processes, never see it.
 */
static int find_slack(pid_t tid, uint64_t avoid, uint64_t *at, struct surgeon_error *err)
{
	size_t need = (code_size() + 15) & ~(size_t)15;
	unsigned int major, minor;
	char path[64], line[4608], perms[5];
	unsigned long long from, to, offset, ino;
	uint8_t tail[PAGE];
	FILE *maps;
	int pass;

	snprintf(path, sizeof(path), "/proc/%d/maps", tid);
	*at = 0;
	for (pass = 0; pass < 2 && !*at; pass++) {
		maps = fopen(path, "re");
		if (!maps)
			return fail(err, "read /proc/PID/maps", errno);
		while (!*at && fgets(line, sizeof(line), maps)) {
			bool vdso = strstr(line, "[vdso]") != NULL;
			struct surgeon_error ignored;

			if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &from, &to, perms, &offset, &major, &minor, &ino) != 7)
				continue;
			if (perms[2] != 'x' || perms[1] == 'w' || perms[0] != 'r' || perms[3] != 'p' || to - from < PAGE)
				continue;
			if (pass == 0 ? !ino || (avoid && makedev(major, minor) == avoid) : !vdso && !ino)
				continue;
			if (surgeon_read(tid, to - PAGE, tail, PAGE, &ignored))
				continue;
			for (size_t end = PAGE; !*at && end >= need && is_free(tail + end - need, need); end -= need)
				if (!is_taken(tid, to - PAGE + end - need))
					*at = to - PAGE + end - need;
		}
		fclose(maps);
	}
	return 0;
}

/* Registers for the way home: as the kernel would let the task go on. */
static int set_home(struct parasite *p, struct home *home, struct surgeon_error *err)
{
	struct user_regs_struct *regs = &p->s.regs;
	struct critical_section cs;

	/* A task that is preempted in a restartable sequence goes on at its abort handler; so it does after us. */
	if (p->s.rseq_cs_at && surgeon_read(p->s.tid, p->s.rseq_cs_at, &p->s.rseq_cs, sizeof(p->s.rseq_cs), err))
		return -1;
	if (p->s.rseq_cs) {
		if (surgeon_read(p->s.tid, p->s.rseq_cs, &cs, sizeof(cs), err))
			return -1;
		if (regs->rip - cs.start < cs.length)
			regs->rip = cs.abort;
		p->s.rseq_cs = 0;
	}
	*home = (struct home){ .sigmask = p->s.sigmask, .r15 = regs->r15, .r14 = regs->r14, .r13 = regs->r13,
			       .r12 = regs->r12, .rbp = regs->rbp, .rbx = regs->rbx, .r11 = regs->r11, .r10 = regs->r10,
			       .r9 = regs->r9, .r8 = regs->r8, .rax = regs->rax, .rcx = regs->rcx, .rdx = regs->rdx,
			       .rsi = regs->rsi, .rdi = regs->rdi, .rip = regs->rip, .flags = regs->eflags,
			       .rsp = regs->rsp, .room_size = sizeof(struct room) };
	/* arch/x86/kernel/signal.c, arch_do_signal_or_restart(): "Did we come from a system call?" */
	if ((int64_t)regs->orig_rax < 0)
		return 0;
	switch ((int64_t)regs->rax) {
	case -512: /* ERESTARTSYS */
	case -513: /* ERESTARTNOINTR */
	case -514: /* ERESTARTNOHAND */
		home->rax = regs->orig_rax;
		home->rip -= 2;
		break;
	case -516: /* ERESTART_RESTARTBLOCK */
		home->rax = SYS_restart_syscall;
		home->rip -= 2;
		break;
	}
	return 0;
}

static int write_code(struct parasite *p, const struct home *home, struct surgeon_error *err)
{
	uint8_t code[PAGE];
	size_t size = code_size();

	if (size > sizeof(code))
		return fail(err, "place the parasite", E2BIG);
	memcpy(code, parasite_begin, size);
	memcpy(code + (parasite_home_data - parasite_begin), home, sizeof(*home));
	return surgeon_write(p->s.tid, p->code, code, size, err);
}

static int run_one(struct parasite *p, const char *step, int64_t *ret, struct surgeon_error *err, uint64_t nr, uint64_t a,
		   uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	uint64_t call[7] = { nr, a, b, c, d, e, f };

	if (surgeon_syscall(&p->s, call, ret, err))
		return -1;
	if (*ret < 0 && *ret >= -4095)
		return fail(err, step, (int)-*ret);
	return 0;
}

/* No program text has room: a page of its own, whose making is the one moment in which our death would be felt. */
static int map_code(struct parasite *p, struct surgeon_error *err)
{
	struct surgeon_error end_err;
	struct surgeon s;
	int64_t ret = 0;
	const uint64_t call[7] = { SYS_mmap, 0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0 };
	int failed;

	if (surgeon_begin(&s, p->s.tid, err))
		return -1;
	failed = surgeon_syscall(&s, call, &ret, err);
	if (surgeon_end(&s, &end_err) && !failed) {
		*err = end_err;
		failed = -1;
	}
	if (failed)
		return -1;
	if (ret < 0 && ret >= -4095)
		return fail(err, "mmap in the task", (int)-ret);
	p->code = (uint64_t)ret;
	p->own_code = 1;
	return 0;
}

static int take_end(pid_t tid, int fd, int *ours, struct surgeon_error *err)
{
	int pidfd = (int)syscall(SYS_pidfd_open, tid, 0);

	/* Not the leader of its process: PIDFD_THREAD, Linux 6.9. */
	if (pidfd < 0)
		pidfd = (int)syscall(SYS_pidfd_open, tid, O_EXCL);
	if (pidfd < 0)
		return fail(err, "pidfd_open", errno);
	*ours = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	return *ours < 0 ? fail(err, "pidfd_getfd", errno) : 0;
}

/* What is needed now and then, with arguments as they will be. */
static const uint64_t sometimes[][7] = {
	{ SYS_fchdir, 3 },
	{ SYS_chroot, PAGE },
	{ SYS_epoll_ctl, 3, 1, 4, PAGE },
	{ SYS_mremap, PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, 2 * PAGE },
	{ SYS_madvise, PAGE, PAGE, MADV_RANDOM },
	{ SYS_mlock2, PAGE, PAGE, 0 },
	{ SYS_pkey_mprotect, PAGE, PAGE, PROT_READ, 1 },
	{ SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, PAGE },
	{ SYS_brk, 0 },
};
#define N_SOMETIMES (sizeof(sometimes) / sizeof(sometimes[0]))

/* What the task does for us on its own, if we are killed, must not be its end. */
static int check_filters(struct parasite *p, struct surgeon_error *err)
{
	static const uint64_t always[][7] = {
		{ SYS_getpid },
		{ SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1 },
		{ SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC },
		{ SYS_recvmsg, 3, 0, MSG_CMSG_CLOEXEC },
		{ SYS_sendto, 3, 0, 1, MSG_NOSIGNAL },
		{ SYS_recvfrom, 3, PAGE, 1, MSG_PEEK },
		{ SYS_dup3, 3, 4, 0 },
		{ SYS_fcntl, 3, F_GETFD },
		{ SYS_fcntl, 3, F_SETFD, FD_CLOEXEC },
		{ SYS_close, 3 },
		{ SYS_munmap, PAGE, PAGE },
		{ SYS_restart_syscall },
	};
	static const uint64_t mask[7] = { SYS_rt_sigprocmask, SIG_SETMASK, PAGE, 0, 8 };
	pid_t tid = p->s.tid;
	int ret = filter_forbids_or_fails(tid, mask, err);

	for (size_t i = 0; !ret && i < sizeof(always) / sizeof(always[0]); i++)
		ret = filter_forbids(tid, always[i], err);
	if (ret > 0)
		return fail(err, "its seccomp filter would end it for a call that it makes for us, if we were killed", EACCES);
	for (size_t i = 0; !ret && i < N_SOMETIMES; i++) {
		ret = filter_forbids(tid, sometimes[i], err);
		if (ret > 0)
			p->forbidden |= 1u << i;
		ret = ret < 0 ? -1 : 0;
	}
	return ret;
}

int parasite_allows(const struct parasite *p, uint64_t nr)
{
	for (size_t i = 0; i < N_SOMETIMES; i++)
		if (sometimes[i][0] == nr)
			return !(p->forbidden & 1u << i);
	return 1;
}

int parasite_start(struct parasite *p, pid_t tid, uint64_t avoid, struct surgeon_error *err)
{
	uint64_t blocked = ~0ULL, at;
	struct surgeon_error ignored;
	struct user_regs_struct regs;
	int32_t pair[2] = { -1, -1 };
	struct head first;
	struct home home;
	int64_t ret;

	memset(p, 0, sizeof(*p));
	p->sock = -1;
	p->s.tid = tid;
	if (surgeon_look(&p->s, err) || check_filters(p, err) || find_slack(tid, avoid, &p->code, err))
		return -1;
	if (!p->code && map_code(p, err))
		return -1;
	p->next = at_work;
	at_work = p;
	if (set_home(p, &home, err) || write_code(p, &home, err)) {
		forget(p);
		return -1;
	}
	p->s.syscall_insn = p->code;
	/* Registers first, then the mask: whoever dies in between leaves a task that comes home with its own. */
	regs = p->s.regs;
	regs.rip = p->code;
	regs.rax = SYS_getpid;
	regs.orig_rax = ~0ULL;
	if (surgeon_set_regs(tid, &regs, err)) {
		forget(p);
		return -1;
	}
	if (ptrace(PTRACE_SETSIGMASK, tid, sizeof(blocked), &blocked)) {
		fail(err, "PTRACE_SETSIGMASK", errno);
		goto failed;
	}
	if (run_one(p, "mmap in the task", &ret, err, SYS_mmap, 0, sizeof(struct room), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0))
		goto failed;
	p->room = (uint64_t)ret;
	memset(&first, 0, sizeof(first));
	memcpy(first.pair, pair, sizeof(pair));
	at = p->room;
	first.msg = (struct msghdr){ .msg_iov = (void *)(uintptr_t)(at + offsetof(struct room, h.iov)), .msg_iovlen = 1,
				     .msg_control = (void *)(uintptr_t)(at + offsetof(struct room, control)) };
	first.iov = (struct iovec){ (void *)(uintptr_t)(at + offsetof(struct room, h.byte)), 1 };
	if (surgeon_write(tid, at, &first, sizeof(first), err) ||
	    surgeon_write(tid, p->code + (uint64_t)(parasite_home_data - parasite_begin), &at, sizeof(at), err))
		goto failed;
	if (run_one(p, "socketpair in the task", &ret, err, SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
		    at + offsetof(struct room, h.pair), 0, 0) ||
	    surgeon_read(tid, at, pair, sizeof(pair), err) || take_end(tid, pair[1], &p->sock, err))
		goto failed;
	regs = p->s.regs;
	regs.rip = p->code + (uint64_t)(parasite_enter - parasite_begin);
	regs.rdi = at;
	regs.rsp = (at + offsetof(struct room, stack) + STACK) & ~15ULL;
	regs.orig_rax = ~0ULL;
	regs.eflags &= ~0x400ULL; /* the direction flag: C wants it clear */
	if (surgeon_set_regs(tid, &regs, err))
		goto failed;
	if (ptrace(PTRACE_CONT, tid, 0, 0)) {
		fail(err, "PTRACE_CONT", errno);
		goto failed;
	}
	p->running = 1;
	return 0;
failed:
	(void)parasite_cure(p, &ignored);
	return -1;
}

/* Waits for the answer; stops on the way (SIGSTOP cannot be blocked) hold the task up no longer than to be seen. */
static int wait_answer(struct parasite *p, struct surgeon_error *err)
{
	struct pollfd pfd = { .fd = p->sock, .events = POLLIN };
	int waited, status, n;
	char byte;

	for (waited = 0; waited < PATIENCE_MS; waited += 5) {
		n = poll(&pfd, 1, 5);
		if (n < 0 && errno != EINTR)
			return fail(err, "poll", errno);
		if (n > 0) {
			if (recv(p->sock, &byte, 1, MSG_DONTWAIT) == 1)
				return 0;
			return fail(err, "the task ended", ESRCH);
		}
		if (waitpid(p->s.tid, &status, __WALL | WNOHANG) != p->s.tid)
			continue;
		if (!WIFSTOPPED(status)) {
			p->running = 0;
			return fail(err, "the task ended", ESRCH);
		}
		if (ptrace(PTRACE_CONT, p->s.tid, 0, status >> 16 ? 0 : WSTOPSIG(status)))
			return fail(err, "PTRACE_CONT", errno);
	}
	return fail(err, "wait for the task's system calls", ETIMEDOUT);
}

static int send_fds(int sock, const int *fds, unsigned int n, struct surgeon_error *err)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * PARASITE_FDS)];
		struct cmsghdr align;
	} control = { .space = "" };
	char byte = 'g';
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
		control.align = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
						  .cmsg_len = CMSG_LEN(sizeof(int) * n) };
		memcpy(control.space + CMSG_LEN(0), fds, sizeof(int) * n);
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) != 1)
		return fail(err, "sendmsg to the task", errno);
	return 0;
}

int parasite_run(struct parasite *p, struct parasite_call *calls, unsigned int n, const int *fds, unsigned int nfds,
		 unsigned int *done, struct surgeon_error *err)
{
	return parasite_run_late(p, calls, n, n, fds, nfds, done, err);
}

int parasite_send(struct parasite *p, const struct parasite_call *calls, unsigned int n, unsigned int late, const int *fds,
		  unsigned int nfds, struct surgeon_error *err)
{
	uint32_t numbers[2] = { n, nfds };
	pid_t tid = p->s.tid;

	if (n > PARASITE_CALLS || nfds > PARASITE_FDS)
		return fail(err, "run system calls in the task", E2BIG);
	if (surgeon_write(tid, p->room + offsetof(struct room, calls), calls, n * sizeof(*calls), err) ||
	    surgeon_write(tid, p->room + offsetof(struct room, h.count), numbers, sizeof(numbers), err) ||
	    surgeon_write(tid, p->room + offsetof(struct room, h.late), &late, sizeof(late), err))
		return -1;
	return send_fds(p->sock, fds, nfds, err);
}

static int read_done(struct parasite *p, int32_t *ran, struct surgeon_error *err)
{
	if (surgeon_read(p->s.tid, p->room + offsetof(struct room, h.done), ran, sizeof(*ran), err))
		return -1;
	/* Under its RLIMIT_NOFILE the task has no number free for what we sent. */
	return *ran < 0 ? fail(err, "hand descriptors to the task", EMFILE) : 0;
}

int parasite_await(struct parasite *p, struct parasite_call *calls, unsigned int n, unsigned int *done,
		   struct surgeon_error *err)
{
	int32_t ran;

	*done = 0;
	if (wait_answer(p, err) || read_done(p, &ran, err))
		return -1;
	*done = (unsigned int)ran;
	return surgeon_read(p->s.tid, p->room + offsetof(struct room, calls), calls, n * sizeof(*calls), err);
}

int parasite_run_late(struct parasite *p, struct parasite_call *calls, unsigned int n, unsigned int late, const int *fds,
		      unsigned int nfds, unsigned int *done, struct surgeon_error *err)
{
	*done = 0;
	return parasite_send(p, calls, n, late, fds, nfds, err) || parasite_await(p, calls, n, done, err) ? -1 : 0;
}

void parasite_gate(const struct parasite *p, struct parasite_call calls[2], unsigned int i)
{
	calls[0] = (struct parasite_call){ .nr = SYS_sendto, .load = 1,
					   .arg = { p->room + offsetof(struct room, h.pair), p->room + offsetof(struct room, h.byte),
						    1, MSG_NOSIGNAL } };
	/* Peeked at: the one byte is for all of them. */
	calls[1] = (struct parasite_call){ .nr = SYS_recvfrom, .load = 1, .go_on = PARASITE_MUST_GIVE,
					   .arg = { parasite_fd(p, i), p->room + offsetof(struct room, h.byte), 1, MSG_PEEK } };
}

int parasite_await_gate(struct parasite *p, struct surgeon_error *err)
{
	int32_t ran;

	return wait_answer(p, err) || read_done(p, &ran, err) ? -1 : 0;
}

int parasite_cure(struct parasite *p, struct surgeon_error *err)
{
	static const uint8_t zeros[PAGE];
	int32_t pair[2] = { -1, -1 };
	struct surgeon_error first = { NULL, 0 };
	int64_t ret;
	int i;

	forget(p);
	if (p->running && surgeon_interrupt(p->s.tid, false, err)) {
		/* The task has ended, or does not come out of a call: it finds home by the end of its socket. */
		close(p->sock);
		p->sock = -1;
		return -1;
	}
	p->running = 0;
	/* Whatever fails here: mask and registers are put back below. */
	if (p->room) {
		/* First forgotten, then closed: the way home must not close a number that is somebody else's by then. */
		if (surgeon_read(p->s.tid, p->room, pair, sizeof(pair), &first) == 0) {
			int32_t none[2] = { -1, -1 };

			(void)surgeon_write(p->s.tid, p->room, none, sizeof(none), &first);
			for (i = 0; i < 2; i++)
				if (pair[i] >= 0)
					(void)run_one(p, "close in the task", &ret, &first, SYS_close, (uint64_t)pair[i], 0,
						      0, 0, 0, 0);
		}
		uint64_t none = 0;

		(void)surgeon_write(p->s.tid, p->code + (uint64_t)(parasite_home_data - parasite_begin), &none, sizeof(none),
				    &first);
		(void)run_one(p, "munmap in the task", &ret, &first, SYS_munmap, p->room, sizeof(struct room), 0, 0, 0, 0);
	}
	if (p->sock >= 0)
		close(p->sock);
	p->sock = -1;
	if (ptrace(PTRACE_SETSIGMASK, p->s.tid, sizeof(p->s.sigmask), &p->s.sigmask))
		return fail(err, "PTRACE_SETSIGMASK", errno);
	if (surgeon_set_regs(p->s.tid, &p->s.regs, err))
		return -1;
	/* As surgeon_end(): into the trap again from which an interrupted call is made anew. */
	if (surgeon_interrupt(p->s.tid, true, err))
		return -1;
	if (p->own_code) {
		const uint64_t call[7] = { SYS_munmap, p->code, PAGE };
		struct surgeon s;

		if (surgeon_begin(&s, p->s.tid, err))
			return -1;
		(void)surgeon_syscall(&s, call, &ret, err);
		return surgeon_end(&s, err);
	}
	if (p->code && surgeon_write(p->s.tid, p->code, zeros, code_size(), err))
		return -1;
	if (first.step) {
		*err = first;
		return -1;
	}
	return 0;
}

uint64_t parasite_fd(const struct parasite *p, unsigned int i)
{
	return p->room + offsetof(struct room, control) + CMSG_LEN(0) + i * sizeof(int);
}

uint64_t parasite_space(const struct parasite *p)
{
	return p->room + offsetof(struct room, space);
}

uint64_t parasite_result(const struct parasite *p, unsigned int i)
{
	return p->room + offsetof(struct room, calls) + i * sizeof(struct parasite_call) + offsetof(struct parasite_call, ret);
}
