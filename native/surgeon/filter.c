// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Seccomp filters of another task, read by ptrace and run here: classic BPF over struct seccomp_data. */
#define _GNU_SOURCE
#include "filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/ptrace.h>

#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif

static int fail(struct surgeon_error *err, const char *step, int e)
{
	err->step = step;
	err->err = e;
	return -1;
}

static uint32_t alu(uint16_t op, uint32_t a, uint32_t b)
{
	switch (op) {
	case BPF_ADD:
		return a + b;
	case BPF_SUB:
		return a - b;
	case BPF_MUL:
		return a * b;
	case BPF_DIV:
		return b ? a / b : 0;
	case BPF_OR:
		return a | b;
	case BPF_AND:
		return a & b;
	case BPF_LSH:
		return b < 32 ? a << b : 0;
	case BPF_RSH:
		return b < 32 ? a >> b : 0;
	case BPF_XOR:
		return a ^ b;
	default:
		return -a;
	}
}

static bool jumps(uint16_t op, uint32_t a, uint32_t b)
{
	switch (op) {
	case BPF_JEQ:
		return a == b;
	case BPF_JGT:
		return a > b;
	case BPF_JGE:
		return a >= b;
	default:
		return a & b;
	}
}

/* The kernel has checked the program (net/core/filter.c, kernel/seccomp.c): it ends, and reads words of `data` only. */
static uint32_t run(const struct sock_filter *f, int n, const struct seccomp_data *data)
{
	uint32_t a = 0, x = 0, mem[BPF_MEMWORDS] = { 0 }, k;

	for (int pc = 0; pc < n; pc++) {
		k = f[pc].k;
		switch (BPF_CLASS(f[pc].code)) {
		case BPF_LD:
		case BPF_LDX: {
			uint32_t value = k;

			if (BPF_MODE(f[pc].code) == BPF_ABS && k <= sizeof(*data) - 4)
				memcpy(&value, (const char *)data + k, 4);
			else if (BPF_MODE(f[pc].code) == BPF_LEN)
				value = sizeof(*data);
			else if (BPF_MODE(f[pc].code) == BPF_MEM)
				value = mem[k % BPF_MEMWORDS];
			if (BPF_CLASS(f[pc].code) == BPF_LD)
				a = value;
			else
				x = value;
			break;
		}
		case BPF_ST:
			mem[k % BPF_MEMWORDS] = a;
			break;
		case BPF_STX:
			mem[k % BPF_MEMWORDS] = x;
			break;
		case BPF_ALU:
			a = alu(BPF_OP(f[pc].code), a, BPF_SRC(f[pc].code) == BPF_X ? x : k);
			break;
		case BPF_JMP:
			if (BPF_OP(f[pc].code) == BPF_JA)
				pc += (int)k;
			else
				pc += jumps(BPF_OP(f[pc].code), a, BPF_SRC(f[pc].code) == BPF_X ? x : k) ? f[pc].jt : f[pc].jf;
			break;
		case BPF_RET:
			return BPF_RVAL(f[pc].code) == BPF_A ? a : k;
		default: /* BPF_MISC */
			if (BPF_MISCOP(f[pc].code) == BPF_TAX)
				x = a;
			else
				a = x;
		}
	}
	return SECCOMP_RET_KILL_PROCESS;
}

static int look(pid_t tid, const uint64_t call[7], bool may_fail, struct surgeon_error *err)
{
	struct seccomp_data data = { .nr = (int)call[0], .arch = AUDIT_ARCH_X86_64 };
	struct sock_filter program[BPF_MAXINSNS];

	memcpy(data.args, call + 1, sizeof(data.args));
	for (unsigned long i = 0;; i++) {
		long n = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, i, NULL);

		/* No filter; no further one. */
		if (n < 0 && (errno == EINVAL || errno == ENOENT))
			return 0;
		if (n < 0 || n > BPF_MAXINSNS || ptrace(PTRACE_SECCOMP_GET_FILTER, tid, i, program) != n)
			return fail(err, "PTRACE_SECCOMP_GET_FILTER", errno);
		switch (run(program, (int)n, &data) & SECCOMP_RET_ACTION_FULL) {
		case SECCOMP_RET_ALLOW:
		case SECCOMP_RET_LOG:
			break;
		case SECCOMP_RET_ERRNO:
			if (may_fail)
				break;
			return 1;
		default:
			return 1;
		}
	}
}

int filter_forbids(pid_t tid, const uint64_t call[7], struct surgeon_error *err)
{
	return look(tid, call, true, err);
}

int filter_forbids_or_fails(pid_t tid, const uint64_t call[7], struct surgeon_error *err)
{
	return look(tid, call, false, err);
}
