// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include "lock.h"

#include <linux/futex.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct plugin_lock {
	struct robust_list entry;
	uint32_t word;		/* the holder's thread id in its own pid namespace, FUTEX_WAITERS, FUTEX_OWNER_DIED */
	uint32_t count;
};

/* Of this process: after a fork at the same address in the child, which has its own. */
static struct robust_list_head head = {
	.list = { &head.list },
	.futex_offset = offsetof(struct plugin_lock, word),
};
static struct robust_list_head *before;
static size_t before_len;

struct plugin_lock *lock_make(void)
{
	struct plugin_lock *lock = mmap(NULL, sizeof(*lock), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return lock == MAP_FAILED ? NULL : lock;
}

static long futex(uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

void lock_take(struct plugin_lock *lock)
{
	uint32_t self = (uint32_t)syscall(SYS_gettid), waiters = 0;

	if (syscall(SYS_get_robust_list, 0, &before, &before_len))
		before = NULL;
	head.list.next = &head.list;
	/* From here on the kernel looks whether the word says that it was ours (kernel/futex/core.c:handle_futex_death). */
	head.list_op_pending = &lock->entry;
	(void)syscall(SYS_set_robust_list, &head, sizeof(head));
	for (;;) {
		uint32_t seen = __atomic_load_n(&lock->word, __ATOMIC_ACQUIRE);

		if ((seen & FUTEX_TID_MASK) == 0) {
			/* Free, or its holder has died; whoever else waits must be woken by us. */
			if (__atomic_compare_exchange_n(&lock->word, &seen, self | (seen & FUTEX_WAITERS) | waiters, 0,
							__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
				break;
			continue;
		}
		if (!(seen & FUTEX_WAITERS) &&
		    !__atomic_compare_exchange_n(&lock->word, &seen, seen | FUTEX_WAITERS, 0, __ATOMIC_ACQ_REL,
						 __ATOMIC_ACQUIRE))
			continue;
		(void)futex(&lock->word, FUTEX_WAIT, seen | FUTEX_WAITERS);
		waiters = FUTEX_WAITERS;
	}
	lock->entry.next = &head.list;
	head.list.next = &lock->entry;
	head.list_op_pending = NULL;
}

void lock_give(struct plugin_lock *lock)
{
	uint32_t held;

	head.list_op_pending = &lock->entry;
	head.list.next = &head.list;
	held = __atomic_exchange_n(&lock->word, 0, __ATOMIC_ACQ_REL);
	if (held & FUTEX_WAITERS)
		(void)futex(&lock->word, FUTEX_WAKE, 1);
	head.list_op_pending = NULL;
	(void)syscall(SYS_set_robust_list, before, before_len);
}

uint32_t lock_count(struct plugin_lock *lock)
{
	return ++lock->count;
}
