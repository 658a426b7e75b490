// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Mappings of files in a task, those that take no address as well. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#ifndef MAP_ABOVE4G
#define MAP_ABOVE4G 0x80
#endif
/*
 * What grows downwards keeps 256 pages below it free (mm/mmap.c: stack_guard_gap): mapped here it has the kernel find
 * nothing at the bottom of the space, where a task without CAP_SYS_RAWIO can fill nothing. MAP_ABOVE4G would have it look
 * above that, but only since Linux 6.6.
 */
#define GUARDED ((1 + 256) * (uint64_t)PAGE)

/* The end of what a task can map. */
#define HIGHEST ((1ULL << 47) - PAGE)

/* Where a task may map something; the kernel looks for room from the first page on, and may then refuse what it has found. */
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

/* Keeps a range in mind, before anything is there: whoever undoes this empties it twice rather than not. */
static int add_range(struct surgeon *s, uint64_t from, uint64_t to, struct surgeon_error *err)
{
	if (s->n_filled == s->cap_filled) {
		size_t cap = s->cap_filled ? s->cap_filled * 2 : 16;
		struct surgeon_range *more = realloc(s->filled, cap * sizeof(*more));

		if (!more)
			return fail(err, "malloc", ENOMEM);
		s->filled = more;
		s->cap_filled = cap;
	}
	s->filled[s->n_filled++] = (struct surgeon_range){ from, to };
	surgeon_note_filled(s, s->n_filled - 1);
	return 0;
}

/* What is not accessible counts all the same (mm/mmap.c: may_expand_vm, mlock_future_ok for who has called mlockall(MCL_FUTURE)). */
static const int limits[2] = { RLIMIT_AS, RLIMIT_MEMLOCK };

/* Returns whether one is lifted now that was not before: as far as it goes without CAP_SYS_RESOURCE. */
static bool lift_limits(struct surgeon *s)
{
	const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
	uint32_t before = s->lifted;
	struct rlimit most;

	for (int i = 0; i < 2; i++) {
		if (s->lifted & 1u << i || prlimit(s->tid, limits[i], NULL, &s->limits[i]) || s->limits[i].rlim_cur == RLIM_INFINITY)
			continue;
		s->lifted |= 1u << i;
		surgeon_note_limits(s);
		most = (struct rlimit){ s->limits[i].rlim_max, s->limits[i].rlim_max };
		if (prlimit(s->tid, limits[i], &none, NULL) && prlimit(s->tid, limits[i], &most, NULL))
			s->lifted &= ~(1u << i);
	}
	surgeon_note_limits(s);
	return s->lifted != before;
}

static int put_limits_back(struct surgeon *s, int ret, struct surgeon_error *err)
{
	for (int i = 0; i < 2; i++)
		if (s->lifted & 1u << i && prlimit(s->tid, limits[i], &s->limits[i], NULL) && !ret)
			ret = fail(err, "set the task's limits back", errno);
	s->lifted = 0;
	surgeon_note_limits(s);
	return ret;
}

static int fill(struct surgeon *s, uint64_t from, uint64_t to, int flags, struct surgeon_error *err)
{
	int64_t r;

	if (add_range(s, from, to, err))
		return -1;
	do {
		if (!run(s, "fill a hole of the task's memory", &r, err, SYS_mmap, from, to - from, PROT_NONE,
			 (uint64_t)(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags), (uint64_t)-1, 0))
			return 0;
	} while ((err->err == ENOMEM || err->err == EAGAIN) && lift_limits(s));
	surgeon_note_filled(s, --s->n_filled);
	return -1;
}

/* Every hole of the task's address space. */
static int find_holes(const struct surgeon *s, uint64_t first, struct surgeon_range **holes, size_t *n, struct surgeon_error *err)
{
	unsigned long long from = 0, to = 0;
	char path[64], line[4608];
	uint64_t last = first;
	bool more = true;
	size_t cap = 0;
	FILE *maps;
	int ret = 0;

	*holes = NULL;
	*n = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", s->tid);
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
		if (from > last && *n == cap) {
			struct surgeon_range *grown = realloc(*holes, (cap = cap ? cap * 2 : 16) * sizeof(*grown));

			if (!grown) {
				ret = fail(err, "malloc", ENOMEM);
				break;
			}
			*holes = grown;
		}
		if (from > last)
			(*holes)[(*n)++] = (struct surgeon_range){ last, from };
		if (to > last)
			last = to;
	}
	fclose(maps);
	return ret;
}

/* Fills every hole in which so much finds room, and keeps the others in mind. */
static int fill_holes(struct surgeon *s, uint64_t len, struct surgeon_error *err)
{
	uint64_t first = lowest();
	size_t n = 0;
	int ret;

	free(s->small);
	s->n_small = 0;
	ret = find_holes(s, first, &s->small, &n, err);
	for (size_t i = 0; !ret && i < n; i++) {
		struct surgeon_range hole = s->small[i];
		bool bottom = hole.from == first && hole.to > GUARDED && first < GUARDED;

		if (hole.to - (hole.from == first ? PAGE : hole.from) < len)
			s->small[s->n_small++] = hole;
		else
			ret = fill(s, bottom ? GUARDED : hole.from, hole.to, MAP_FIXED_NOREPLACE | (bottom ? MAP_GROWSDOWN : 0), err);
	}
	return ret;
}

/* Holes beside a range, which together with it are a larger one. */
static int fill_beside(struct surgeon *s, uint64_t from, uint64_t to, struct surgeon_error *err)
{
	for (size_t i = 0; i < s->n_small; i++) {
		struct surgeon_range hole = s->small[i];

		if (hole.to < from || to < hole.from)
			continue;
		s->small[i--] = s->small[--s->n_small];
		if (fill(s, hole.from, hole.to, MAP_FIXED_NOREPLACE, err))
			return -1;
	}
	return 0;
}

/* What was filled is free again. */
int surgeon_empty_holes(struct surgeon *s, struct surgeon_error *err)
{
	struct surgeon_error unused;
	int ret = 0;
	int64_t r;

	for (; s->n_filled > 0; surgeon_note_filled(s, --s->n_filled)) {
		const struct surgeon_range *one = &s->filled[s->n_filled - 1];

		if (one->from < one->to &&
		    run(s, "munmap in the task", &r, ret ? &unused : err, SYS_munmap, one->from, one->to - one->from, 0, 0, 0, 0))
			ret = -1;
	}
	free(s->filled);
	free(s->small);
	s->filled = s->small = NULL;
	s->cap_filled = s->n_small = 0;
	s->filled_for = 0;
	return put_limits_back(s, ret, err);
}

/* What of a range was filled is free again; one that is left empty stays in the list, where the others are by their number. */
static int punch(struct surgeon *s, uint64_t from, uint64_t to, struct surgeon_error *err)
{
	int64_t r;

	for (size_t i = 0, n = s->n_filled; i < n; i++) {
		struct surgeon_range whole = s->filled[i];
		uint64_t first = whole.from < from ? from : whole.from, end = whole.to < to ? whole.to : to;

		if (first >= end)
			continue;
		if (whole.from < first && end < whole.to && add_range(s, end, whole.to, err))
			return -1;
		if (run(s, "munmap in the task", &r, err, SYS_munmap, first, end - first, 0, 0, 0, 0))
			return -1;
		if (whole.from < first)
			s->filled[i].to = first;
		else
			s->filled[i].from = end;
		surgeon_note_filled(s, i);
	}
	return 0;
}

/*
 * For a file whose mmap takes no address: every hole is filled, so that the kernel has no choice. It chooses from the top
 * of the space for mappings downwards; after a restore that top may be below the address, which the kernel then
 * looks at only when nothing else is left.
 */
static int map_at(struct surgeon *s, uint64_t addr, uint64_t len, int prot, int flags, int theirs, uint64_t offset,
		  struct surgeon_cut cut, struct surgeon_error *err)
{
	uint64_t from = addr - cut.before, whole = cut.before + len + cut.after;
	struct surgeon_error unused;
	int64_t r;

	/* There is no room for it later. */
	if (surgeon_scratch(s, err))
		return -1;
	if (s->filled_for == 0 || s->filled_for > whole) {
		if (surgeon_empty_holes(s, err))
			return -1;
		s->filled_for = whole;
		if (fill_holes(s, whole, err))
			return -1;
	}
	/* Only what is to be replaced: of the program's nothing else is in the way, or the kernel finds no room. */
	if (fill_beside(s, from, from + whole, err) || punch(s, from, from + whole, err) ||
	    run(s, "munmap in the task", &r, err, SYS_munmap, addr, len, 0, 0, 0, 0) ||
	    run(s, "mmap in the task", &r, err, SYS_mmap, 0, whole, (uint64_t)prot, (uint64_t)(flags | MAP_ABOVE4G),
		(uint64_t)theirs, offset))
		return -1;
	if ((uint64_t)r != from) {
		(void)run(s, "munmap in the task", &r, &unused, SYS_munmap, (uint64_t)r, whole, 0, 0, 0, 0);
		return fail(err, "map at the old address", EADDRINUSE);
	}
	/* What is to be free again is until then in nobody's way. */
	if (cut.before && fill(s, from, addr, MAP_FIXED, err))
		return -1;
	return cut.after ? fill(s, addr + len, addr + len + cut.after, MAP_FIXED, err) : 0;
}

int surgeon_swap_mapping_in(struct surgeon *s, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
			    uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err)
{
	int theirs = own_fd, ret;
	int64_t r;

	if (new_fd >= 0 && surgeon_give_fd(s, new_fd, &theirs, err))
		return -1;
	ret = run(s, "mmap in the task", &r, err, SYS_mmap, addr, len, (uint64_t)prot, (uint64_t)(flags | MAP_FIXED),
		  (uint64_t)(int64_t)theirs, offset);
	/* Refused before anything was unmapped. */
	if (ret && err->err == EINVAL && theirs >= 0)
		ret = map_at(s, addr, len, prot, flags & ~MAP_FIXED, theirs, offset, cut, err);
	return new_fd >= 0 ? surgeon_drop_fd(s, theirs, ret, err) : ret;
}

int surgeon_swap_mapping(pid_t tid, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
			 uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err)
{
	struct surgeon s;

	if (surgeon_begin(&s, tid, err))
		return -1;
	return finish(&s, surgeon_swap_mapping_in(&s, addr, len, prot, flags, new_fd, own_fd, offset, cut, err), err);
}
