/* SPDX-License-Identifier: GPL-2.0-only */
/* Numbers of processes and threads, as whoever reads an iterator sees them. */
#ifndef CRYOSHIM_BPF_PID_H
#define CRYOSHIM_BPF_PID_H

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
} __core;

struct pid {
	u32 level;
	struct upid numbers[];
} __core;

/* A process or thread as whoever reads numbers it; 0: not seen from there. */
static __attribute__((always_inline)) s32 number_of(struct pid *pid)
{
	struct task_struct *current = (struct task_struct *)bpf_get_current_task();
	struct pid *mine = 0;
	struct upid *upid;
	struct pid_namespace *ns = 0, *their_ns = 0;
	u32 level = 0, their_level = 0;
	s32 number = 0;

	READ(mine, current->thread_pid);
	READ(level, mine->level);
	READ(their_level, pid->level);
	if (level > 32 || their_level < level)
		return 0;
	upid = (struct upid *)((char *)&mine->numbers[0] + level * SIZE_OF(struct upid));
	READ(ns, upid->ns);
	upid = (struct upid *)((char *)&pid->numbers[0] + level * SIZE_OF(struct upid));
	READ(their_ns, upid->ns);
	if (ns == their_ns)
		READ(number, upid->nr);
	return number;
}

#endif
