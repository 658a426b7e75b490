// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "exitkill.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/types.h>

#include "imports.h"

/* PTRACE_SEIZE takes the options at once; PTRACE_SETOPTIONS sets all of them anew. ptrace(2) itself is variadic, in the C library alone. */
static long ptrace_exitkill(enum __ptrace_request request, pid_t pid, void *addr, void *data)
{
	if (request == PTRACE_SEIZE || request == PTRACE_SETOPTIONS)
		data = (void *)((uintptr_t)data | PTRACE_O_EXITKILL);
	return ptrace(request, pid, addr, data);
}

bool end_with_engine(void)
{
	return redirect_import((const char *const[]){ "ptrace", NULL }, (void *)(uintptr_t)ptrace_exitkill);
}
