/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_PARASITE_H
#define CRYOSHIM_PARASITE_H

/*
 * A parasite: a few hundred bytes of code in a stopped task that run lists of system calls for us, without a stop of the
 * task for each of them, and that find their way home by themselves. If the tracer is killed, at whatever moment, the
 * code finishes its list, sees the end of its socket, closes and unmaps what it had, and puts signal mask and registers
 * back as the task had them: the task goes on where it was stopped. See parasite.c. x86-64.
 */
#include "surgeon.h"

/* What a message may carry: SCM_MAX_FD (net/scm.h). */
#define PARASITE_FDS 253
/* The longest list. */
#define PARASITE_CALLS 1024
/* Memory of the task's for what calls point to. */
#define PARASITE_SPACE 65536u

/* One call. It ends the list when it fails, unless `go_on` says otherwise: it may, or it must give more than 0. */
enum { PARASITE_MUST_NOT_FAIL, PARASITE_MAY_FAIL, PARASITE_MUST_GIVE };
struct parasite_call {
	uint64_t nr, arg[6];
	int64_t ret;
	uint16_t load;		/* bit i: arg[i] is the address of an int, whose value is meant */
	uint16_t go_on;
	uint32_t with;		/* i + 1: left out (ECANCELED) if the i-th call of the list has failed */
};

struct parasite {
	struct surgeon s;
	uint64_t code;		/* where the code lies, and the bytes that were there are zeros */
	int own_code;		/* ... in a mapping of its own, as no other place was found */
	uint64_t room;		/* its memory: struct room of parasite.c */
	int sock;		/* our end of its socket, -1: none */
	unsigned int forbidden;	/* of what is needed now and then: parasite_allows() */
	struct parasite *next;	/* all that are at work */
	int running;		/* under us: its loop waits or works */
};

/*
 * Starts it in a thread that surgeon_seize() has stopped, all others of its process being stopped, too. `avoid` is the
 * device (as in /proc/PID/maps) of mappings in which the code had better not lie, 0: none.
 */
int parasite_start(struct parasite *p, pid_t tid, uint64_t avoid, struct surgeon_error *err);

/* Ends it. The thread stands where it was seized, whatever failed before. */
int parasite_cure(struct parasite *p, struct surgeon_error *err);

/*
 * Runs a list; `fds` are handed to the task for its time, parasite_fd(p, i) is the address of the i-th one's number
 * there. Gives each call's result; *done tells how many ran. -1: the list was not run, or its end is not known.
 */
int parasite_run(struct parasite *p, struct parasite_call *calls, unsigned int n, const int *fds, unsigned int nfds,
		 unsigned int *done, struct surgeon_error *err);

/*
 * The same; calls from `late` on are run when the descriptors have been closed in the task again: each close of a file takes
 * the process's POSIX locks on it along.
 */
int parasite_run_late(struct parasite *p, struct parasite_call *calls, unsigned int n, unsigned int late, const int *fds,
		      unsigned int nfds, unsigned int *done, struct surgeon_error *err);

/* parasite_run_late() in two: several tasks can work at once. */
int parasite_send(struct parasite *p, const struct parasite_call *calls, unsigned int n, unsigned int late, const int *fds,
		  unsigned int nfds, struct surgeon_error *err);
int parasite_await(struct parasite *p, struct parasite_call *calls, unsigned int n, unsigned int *done,
		   struct surgeon_error *err);

/*
 * The first two calls of a list that several tasks are to begin at the same moment, or none of them: it says that it is
 * there, and waits for a byte in the socket that came as the i-th descriptor. At the end of that socket the list ends.
 */
void parasite_gate(const struct parasite *p, struct parasite_call calls[2], unsigned int i);
/* Whether it has come to the gate. -1: it never will. */
int parasite_await_gate(struct parasite *p, struct surgeon_error *err);

/*
 * Whether the task's seccomp filters let a call of this number be made, also if we are killed meanwhile and they are in
 * force again. Those that every list needs have been looked at by parasite_start().
 */
int parasite_allows(const struct parasite *p, uint64_t nr);

/* The address of a descriptor's number, for parasite_call.load. */
uint64_t parasite_fd(const struct parasite *p, unsigned int i);
/* The address of what an earlier call of the list has returned, for parasite_call.load. */
uint64_t parasite_result(const struct parasite *p, unsigned int i);
/* The address of PARASITE_SPACE bytes. */
uint64_t parasite_space(const struct parasite *p);

#endif
