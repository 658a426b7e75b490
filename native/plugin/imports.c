// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "imports.h"

#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

static bool is_wanted(const char *name, const char *const *wanted)
{
	while (*wanted && strcmp(*wanted, name))
		wanted++;
	return *wanted != NULL;
}

struct order {
	const char *const *wanted;
	void *replacement;
	bool done;
};

static bool redirect(const struct order *order, uintptr_t base, const struct relro *relro, const ElfW(Rela) *rela, size_t size,
		     const ElfW(Sym) *symbols, const char *names)
{
	bool done = false;

	for (size_t i = 0; i < size / sizeof(*rela); i++) {
		const char *name = names + symbols[ELF64_R_SYM(rela[i].r_info)].st_name;
		uint64_t type = ELF64_R_TYPE(rela[i].r_info);

		if ((type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT) || !is_wanted(name, order->wanted))
			continue;
		done = put(base + rela[i].r_offset, order->replacement, relro) || done;
	}
	return done;
}

static int in_program(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct order *order = arg;
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
			order->done |= redirect(order, info->dlpi_addr, &relro, (const ElfW(Rela) *)dynamic_entry(dynamic, DT_RELA),
						  dynamic_entry(dynamic, DT_RELASZ), symbols, names);
			order->done |= redirect(order, info->dlpi_addr, &relro, (const ElfW(Rela) *)dynamic_entry(dynamic, DT_JMPREL),
						  dynamic_entry(dynamic, DT_PLTRELSZ), symbols, names);
		}
	}
	/* The first is the program itself. */
	return 1;
}

bool redirect_import(const char *const *names, void *replacement)
{
	struct order order = { names, replacement, false };

	(void)dl_iterate_phdr(in_program, &order);
	return order.done;
}
