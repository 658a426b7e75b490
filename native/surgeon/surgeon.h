/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_SURGEON_H
#define CRYOSHIM_SURGEON_H

/*
 * Surgery on stopped tasks: one kernel thing each, no policy. The caller is the tracer: CRIU's own thread (the engine
 * plugin), or the shim after surgeon_seize(). x86-64.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/user.h>

/* What failed: a step that a person can look up, and its errno. */
struct surgeon_error {
	const char *step;
	int err;
};

struct surgeon_range {
	uint64_t from, to;
};

/* An open patient: registers, signal mask and rseq state as they will be put back. */
struct surgeon {
	pid_t tid;
	struct user_regs_struct regs;
	uint64_t sigmask;
	uint64_t syscall_insn;
	uint64_t rseq_cs_at;	/* address of the rseq_cs field, 0: none registered */
	uint64_t rseq_cs;
	uint64_t scratch;	/* a page of the task's while a descriptor is swapped */
	bool keeps;		/* more than one swap: what the next one can use stays until the end */
	int lent, lent_seen;	/* a descriptor of ours that the task has, -1: none, and its number there */
	pid_t holder;		/* a child from which the task takes what cannot be sent */
	int holder_alive, holder_seen;	/* it ends with this, -1: there is none; its pidfd in the task */
	int *epolls, n_epolls;	/* the task's, -1: not looked for */
	struct surgeon_range *filled;	/* holes of its memory that are closed */
	size_t n_filled, cap_filled;
	uint64_t filled_for;	/* all in which so much finds room */
	struct surgeon_range *small;	/* the others */
	size_t n_small;
	struct rlimit limits[2];	/* the task's, where they are less than what its holes take */
	uint32_t lifted;	/* bits of those that are lifted */
};

/*
 * For who comes after a surgeon that dies in the middle: what an open patient was before, in memory that both see. Declared to the surgeon once, or
 * not at all. A descriptor that an injected call has just made, and that is not written down yet, stays in the task.
 */
struct surgeon_record {
	uint32_t open;
	int32_t fds[8];		/* the task's for the moment; -1: none */
	struct surgeon patient;
	uint64_t n_filled;	/* holes of its memory that are closed; of more than fit here the rest is not known */
	struct surgeon_range filled[1 << 14];
	int32_t masked;		/* a thread whose signals a hold lets through or keeps out as it needs (hold.h); 0: none */
	uint64_t mask, meanwhile;	/* its own, and the hold's */
};
void surgeon_keep(struct surgeon_record *record);
/* Whether the record is of this thread: then its registers, mask and memory become what they were. The caller traces it, and it stands. */
bool surgeon_close(const struct surgeon_record *record, pid_t tid, struct surgeon_error *err);

/* Seizes and stops one thread; its seccomp filters do not see what is injected. Not for iou-* kernel threads. */
int surgeon_seize(pid_t tid, struct surgeon_error *err);
/*
 * The same in two steps: a thread in a frozen cgroup is seized at once, and comes to its stop when it is thawed, before
 * it runs an instruction (v1: in its refrigerator; v2: the trap comes before the freezer's, kernel/signal.c).
 */
int surgeon_ask_to_stop(pid_t tid, struct surgeon_error *err);
int surgeon_wait_stopped(pid_t tid, struct surgeon_error *err);
/* Lets it go on where it was. */
int surgeon_release(pid_t tid, struct surgeon_error *err);

/* Between begin and end the task's registers are ours; end leaves it in the stop in which begin found it. */
int surgeon_begin(struct surgeon *s, pid_t tid, struct surgeon_error *err);
int surgeon_end(struct surgeon *s, struct surgeon_error *err);

/* Runs one system call in the task; *ret is its result (-errno), the return value only tells whether it ran. */
int surgeon_syscall(struct surgeon *s, const uint64_t call[7], int64_t *ret, struct surgeon_error *err);

/*
 * Where the stop has made system call nr fail with EINTR, it begins again when the task goes on, unless a signal with a handler comes
 * first: as the kernel itself does it with calls that it starts again. *ret: 1 where that was so.
 */
int surgeon_restart(pid_t tid, uint64_t nr, int64_t *ret, struct surgeon_error *err);

int surgeon_read(pid_t tid, uint64_t addr, void *buf, size_t len, struct surgeon_error *err);
int surgeon_write(pid_t tid, uint64_t addr, const void *buf, size_t len, struct surgeon_error *err);

/* A duplicate of the task's descriptor fd, for us. */
int surgeon_take_fd(pid_t tid, int fd, int *ours, struct surgeon_error *err);

/* Puts our descriptor new_fd at number fd of the task (close-on-exec as cloexec says); nothing else stays in the task. */
int surgeon_swap_fd(pid_t tid, int fd, int new_fd, int cloexec, struct surgeon_error *err);
/* The same in an open patient. */
int surgeon_swap_fd_in(struct surgeon *s, int fd, int new_fd, int cloexec, struct surgeon_error *err);

/* Lets the task change its working directory to `to`; first to `now`, where it is, which shows that it may come back. */
int surgeon_swap_cwd(pid_t tid, int now, int to, struct surgeon_error *err);
/* The same for its root, with CAP_SYS_CHROOT of the task's own; its working directory stays. */
int surgeon_swap_root(pid_t tid, int now, int to, struct surgeon_error *err);

/* What such a file maps beyond the range, and is unmapped again: it is mapped as a whole or not at all. */
struct surgeon_cut {
	uint64_t before, after;
};

/*
 * Maps our descriptor new_fd over [addr, addr + len) of the task; prot, flags and offset as for mmap(2), or the task's
 * own own_fd, or -1 twice for MAP_ANONYMOUS. Files that refuse a given address (io_uring's rings) get it by being left no other.
 */
int surgeon_swap_mapping(pid_t tid, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
			 uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err);
/* The same in an open patient. */
int surgeon_swap_mapping_in(struct surgeon *s, uint64_t addr, uint64_t len, int prot, int flags, int new_fd, int own_fd,
			    uint64_t offset, struct surgeon_cut cut, struct surgeon_error *err);

/* For who keeps the task elsewhere for longer (parasite.c): registers, mask and where rseq keeps its state. */
int surgeon_look(struct surgeon *s, struct surgeon_error *err);
int surgeon_set_regs(pid_t tid, struct user_regs_struct *regs, struct surgeon_error *err);
/* Stops a task that runs under us (or, `cont`, is to leave a stop first); signals on the way reach it. */
int surgeon_interrupt(pid_t tid, bool cont, struct surgeon_error *err);

/* The memory of an io_uring as far as it takes to submit: its length, and where in it are tails and heads. */
struct surgeon_queue {
	uint64_t len;
	uint32_t sq_tail, cq_head, cq_tail;
};

/*
 * Lets a thread of process pid submit `each` entries of a ring of its own, `times` times: they are in the queue, complete by themselves, and
 * their completions are thrown away. A ring may belong to one thread alone.
 */
int surgeon_submit(pid_t pid, pid_t tid, int fd, const struct surgeon_queue *queue, uint32_t each, uint64_t times,
		   struct surgeon_error *err);

#endif
