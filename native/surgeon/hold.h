/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#ifndef CRYOSHIM_HOLD_H
#define CRYOSHIM_HOLD_H

/*
 * A process in which something is swapped must not run when its tracer dies, but the kernel lets the tasks of a dead tracer go at once. So it
 * is stopped as by SIGSTOP first: a group stop outlives the tracer, and does not keep the tracer from running its threads
 * (kernel/ptrace.c:__ptrace_unlink, Linux 6.18). CRIU does the same with processes that were stopped when it came. All threads of
 * the process are traced by the caller and stand in a PTRACE_EVENT_STOP.
 */
#include <stdbool.h>
#include <sys/types.h>

#include "surgeon.h"

/*
 * Whether it may be held. Not where that would be seen: by a shell outside that has it as a job, to whom it would seem suspended, or
 * because of signals that wait and that SIGSTOP or SIGCONT take back. Who is stopped already needs no hold.
 */
bool surgeon_may_hold(pid_t pid);

/*
 * Its parent's SIGCHLD for the stop, and the one for going on, are taken back where the parent is traced by the caller as well. Afterwards
 * all threads stand as before, for a hold also where the process has none. Returns -1 and says why where it could not be done.
 */
int surgeon_hold(pid_t pid, struct surgeon_error *err);
int surgeon_unhold(pid_t pid, struct surgeon_error *err);
/*
 * The signal mask of a thread whose tracer died in the middle of either, by the tracer's record (surgeon_keep); not where the thread has
 * another by now. The caller traces it, and it stands.
 */
int surgeon_unmask(const struct surgeon_record *record, struct surgeon_error *err);
/* Whether a process whose threads are traced by the caller, and stand, is stopped as a group, or will be as soon as it runs: who held it has died. */
bool surgeon_is_held(pid_t pid);

#endif
