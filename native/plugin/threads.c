// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads of the kernel's own that stand in /proc/PID/task beside a task's (iou-sqp-*, iou-wrk-*: io_uring's). They run no
 * code of the task's; ptrace takes them, and CRIU then waits for ever for its parasite in them. CRIU reads directories
 * by readdir(3) of the C library: its reference to that is made ours, and leaves them out.
 *
 * Where CRIU freezes a cgroup it seizes what is on the cgroup's list of threads as well (criu/seize.c:seize_cgroup_tree, 4.2), and
 * io_uring's would stand still with the requests that they are to end. It passes over what it has seized already, which it finds
 * out by PTRACE_INTERRUPT: for these the answer is yes.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <ctype.h>
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <unistd.h>

#define PF_IO_WORKER 0x10

/* Whether the directory is /proc/PID/task. */
static bool is_task_dir(int fd)
{
	char link[64], path[256];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 5)
		return false;
	path[n] = '\0';
	return !strcmp(path + n - 5, "/task");
}

static ssize_t read_file(int dir, const char *tid, const char *name, char *text, size_t size)
{
	char path[288];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", tid, name);
	fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, size - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	return n;
}

/* Whether it is io_uring's (include/linux/sched.h, PF_IO_WORKER): a task's own thread may call itself anything. */
static bool is_kernel_thread(int dir, const char *tid)
{
	char text[512], *end;
	unsigned int flags;

	if (read_file(dir, tid, "comm", text, sizeof(text)) <= 0 || strncmp(text, "iou-", 4))
		return false;
	if (read_file(dir, tid, "stat", text, sizeof(text)) <= 0)
		return false;
	end = strrchr(text, ')');
	return end && sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & PF_IO_WORKER);
}

static struct dirent *readdir_without(DIR *dir)
{
	struct dirent *d;

	do
		d = readdir(dir);
	while (d && isdigit((unsigned char)d->d_name[0]) && is_task_dir(dirfd(dir)) && is_kernel_thread(dirfd(dir), d->d_name));
	return d;
}

/* ptrace(2) takes as many arguments as its request has; four at most. */
static long ptrace_without(long request, pid_t pid, void *addr, void *data)
{
	char tid[16];

	if (request == PTRACE_INTERRUPT) {
		int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), saved = errno;
		bool is = false;

		if (proc >= 0) {
			snprintf(tid, sizeof(tid), "%d", pid);
			is = is_kernel_thread(proc, tid);
			close(proc);
		}
		errno = saved;
		if (is)
			return 0;
	}
	return ptrace((enum __ptrace_request)request, pid, addr, data);
}

/* What CRIU calls, and what it gets instead. */
static const struct {
	const char *name;
	void *ours;
} calls[] = {
	{ "readdir", (void *)(uintptr_t)readdir_without },
	{ "readdir64", (void *)(uintptr_t)readdir_without },
	{ "ptrace", (void *)(uintptr_t)ptrace_without },
};

/* The program's own dynamic section, by its type. */
static ElfW(Addr) dynamic_entry(const ElfW(Dyn) *dynamic, ElfW(Sxword) tag)
{
	for (; dynamic->d_tag != DT_NULL; dynamic++)
		if (dynamic->d_tag == tag)
			return dynamic->d_un.d_ptr;
	return 0;
}

/* What the loader has made read-only when it was done. */
struct relro {
	uintptr_t from, to;
};

static bool put(uintptr_t slot, void *value, const struct relro *relro)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *from = (void *)(slot & ~(page - 1));
	bool closed = relro->from <= slot && slot < relro->to;

	if (closed && mprotect(from, page, PROT_READ | PROT_WRITE))
		return false;
	*(void **)slot = value;
	return !closed || mprotect(from, page, PROT_READ) == 0;
}

/* Tells which of the calls it has redirected, a bit each. */
static unsigned int redirect(uintptr_t base, const struct relro *relro, const ElfW(Rela) *rela, size_t size, const ElfW(Sym) *symbols, const char *names)
{
	unsigned int done = 0;

	for (size_t i = 0; i < size / sizeof(*rela); i++) {
		const char *name = names + symbols[ELF64_R_SYM(rela[i].r_info)].st_name;
		uint64_t type = ELF64_R_TYPE(rela[i].r_info);

		if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT)
			continue;
		for (unsigned int j = 0; j < sizeof(calls) / sizeof(calls[0]); j++)
			if (!strcmp(name, calls[j].name) && put(base + rela[i].r_offset, calls[j].ours, relro))
				done |= 1u << j;
	}
	return done;
}

static int in_program(struct dl_phdr_info *info, size_t size, void *done)
{
	const ElfW(Dyn) *dynamic = NULL;
	struct relro relro = { 0, 0 };
	const ElfW(Sym) *symbols;
	const char *names;

	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];

		if (p->p_type == PT_DYNAMIC)
			dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + p->p_vaddr);
		else if (p->p_type == PT_GNU_RELRO)
			relro = (struct relro){ info->dlpi_addr + p->p_vaddr, info->dlpi_addr + p->p_vaddr + p->p_memsz };
	}
	if (dynamic) {
		symbols = (const ElfW(Sym) *)dynamic_entry(dynamic, DT_SYMTAB);
		names = (const char *)dynamic_entry(dynamic, DT_STRTAB);
		if (symbols && names) {
			*(unsigned int *)done |= redirect(info->dlpi_addr, &relro, (const ElfW(Rela) *)dynamic_entry(dynamic, DT_RELA),
						  dynamic_entry(dynamic, DT_RELASZ), symbols, names);
			*(unsigned int *)done |= redirect(info->dlpi_addr, &relro, (const ElfW(Rela) *)dynamic_entry(dynamic, DT_JMPREL),
						  dynamic_entry(dynamic, DT_PLTRELSZ), symbols, names);
		}
	}
	/* The first is the program itself. */
	return 1;
}

bool hide_kernel_threads(void)
{
	unsigned int done = 0;

	(void)dl_iterate_phdr(in_program, &done);
	return (done & 3) && (done & 4);
}
