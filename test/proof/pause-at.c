// SPDX-License-Identifier: Apache-2.0
/*
 * Runs a program and halts it in the middle: after so many of its io_uring system calls. The thread that has made the last one
 * then waits in pause(2) in its place; everything else runs on, the kernel's workers too, as it would under a checkpoint.
 *
 *	pause-at N COUNT REGISTERS PROGRAM [ARG...]
 *	pause-at --resume TID REGISTERS
 *
 * Writes how many calls there were, and the exit code, to the file COUNT when the program ends before the Nth. Otherwise says its
 * process id, which is that of its session, and the thread's, and ends. --resume lets the thread go on from where it was.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_TASKS 4096
#define OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)

static pid_t tasks[MAX_TASKS];
static int ntasks;

static void know(pid_t tid)
{
	for (int i = 0; i < ntasks; i++)
		if (tasks[i] == tid)
			return;
	if (ntasks < MAX_TASKS)
		tasks[ntasks++] = tid;
}

static void forget(pid_t tid)
{
	for (int i = 0; i < ntasks; i++)
		if (tasks[i] == tid)
			tasks[i--] = tasks[--ntasks];
}

static int get_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = { regs, sizeof(*regs) };

	return (int)ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov);
}

static int set_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = { regs, sizeof(*regs) };

	return (int)ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov);
}

static int is_ring_call(pid_t tid)
{
	struct user_regs_struct regs;

	if (get_registers(tid, &regs))
		return 0;
	return regs.orig_rax >= SYS_io_uring_setup && regs.orig_rax <= SYS_io_uring_register &&
	       regs.rax != (unsigned long long)-ENOSYS;
}

/* At the end of a call: the thread makes another one in its place, and nobody is traced any more. */
static void leave(pid_t root, pid_t here, const char *file)
{
	struct user_regs_struct regs;
	int status;
	FILE *f = fopen(file, "w");

	if (!f || get_registers(here, &regs) || fwrite(&regs, sizeof(regs), 1, f) != 1 || fclose(f))
		exit(4);
	regs.rax = SYS_pause;
	regs.orig_rax = (unsigned long long)-1;
	regs.rip -= 2;
	if (set_registers(here, &regs))
		exit(5);
	ptrace(PTRACE_DETACH, here, NULL, NULL);
	forget(here);
	for (int i = 0; i < ntasks; i++)
		ptrace(PTRACE_INTERRUPT, tasks[i], NULL, NULL);
	while (ntasks > 0) {
		pid_t tid = waitpid(-1, &status, __WALL);
		int signal_stop = tid > 0 && WIFSTOPPED(status) && !(status >> 16) && WSTOPSIG(status) != (SIGTRAP | 0x80);

		if (tid < 0)
			break;
		if (WIFSTOPPED(status))
			ptrace(PTRACE_DETACH, tid, NULL, (void *)(long)(signal_stop ? WSTOPSIG(status) : 0));
		forget(tid);
	}
	printf("%d %d\n", root, here);
	exit(0);
}

static int resume(pid_t tid, const char *file)
{
	struct user_regs_struct regs;
	FILE *f = fopen(file, "r");
	int status;

	if (!f || fread(&regs, sizeof(regs), 1, f) != 1)
		return 4;
	fclose(f);
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) || ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) ||
	    waitpid(tid, &status, __WALL) != tid)
		return 3;
	/* It returns from what it was in: nothing to start again. */
	regs.orig_rax = (unsigned long long)-1;
	if (set_registers(tid, &regs))
		return 5;
	return ptrace(PTRACE_DETACH, tid, NULL, NULL) ? 6 : 0;
}

int main(int argc, char **argv)
{
	long stop_at = argc > 4 ? atol(argv[1]) : 0, calls = 0;
	int status, code = 0;
	pid_t root;
	FILE *f;

	if (argc == 4 && !strcmp(argv[1], "--resume"))
		return resume(atoi(argv[2]), argv[3]);
	if (argc < 5)
		return 2;
	root = fork();
	if (root == 0) {
		/* Whoever waits for the end of our output need not wait for the program's. */
		int null = open("/dev/null", O_RDWR);

		for (int fd = 0; fd < 3; fd++)
			dup2(null, fd);
		setsid();
		raise(SIGSTOP);
		execvp(argv[4], argv + 4);
		_exit(127);
	}
	waitpid(root, &status, WUNTRACED);
	if (ptrace(PTRACE_SEIZE, root, NULL, OPTIONS))
		return 3;
	know(root);
	kill(root, SIGCONT);
	ptrace(PTRACE_INTERRUPT, root, NULL, NULL);
	for (;;) {
		pid_t tid = waitpid(-1, &status, __WALL);
		int event = status >> 16, sig = 0;

		if (tid < 0)
			break;
		if (!WIFSTOPPED(status)) {
			forget(tid);
			if (tid == root)
				code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			continue;
		}
		know(tid);
		if (event == PTRACE_EVENT_STOP) {
			/* A group stop stays one. */
			if (WSTOPSIG(status) == SIGSTOP || WSTOPSIG(status) == SIGTSTP || WSTOPSIG(status) == SIGTTIN) {
				ptrace(PTRACE_LISTEN, tid, NULL, NULL);
				continue;
			}
		} else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			/* Both ends of a call come by; its result is there at the second. */
			if (is_ring_call(tid) && ++calls == stop_at)
				leave(root, tid, argv[3]);
		} else if (!event) {
			sig = WSTOPSIG(status);
		}
		ptrace(PTRACE_SYSCALL, tid, NULL, (void *)(long)sig);
	}
	f = fopen(argv[2], "w");
	if (f) {
		fprintf(f, "%ld %d\n", calls, code);
		fclose(f);
	}
	return code;
}
