// SPDX-License-Identifier: Apache-2.0
/* pidfds as programs may have them: of threads, not waiting, of what has ended. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <node_api.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "addon.h"

/* pidfdOpenAs(pid, flags): number: PIDFD_NONBLOCK (Linux 5.10), PIDFD_THREAD (6.9) */
static napi_value pidfd_open_as(napi_env env, napi_callback_info info)
{
	int32_t pid, flags;
	napi_value args[2];
	long fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &pid) || !get_int(env, args[1], &flags))
		return NULL;
	fd = syscall(SYS_pidfd_open, pid, flags);
	return fd < 0 ? throw_errno(env, errno, "pidfd_open") : make_int(env, (int32_t)fd);
}

/* uapi/linux/sched.h, struct clone_args up to Linux 5.5 */
struct clone_args_5 {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size;
};

/* A child with a number that no restored task will want at the same moment. */
static pid_t fork_high(void)
{
	int pid_max = 32768, tid;
	FILE *f = fopen("/proc/sys/kernel/pid_max", "re");

	if (f) {
		if (fscanf(f, "%d", &pid_max) != 1)
			pid_max = 32768;
		fclose(f);
	}
	for (tid = pid_max - 1; tid > pid_max - 64; tid--) {
		struct clone_args_5 args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&tid, .set_tid_size = 1 };
		long pid = syscall(SYS_clone3, &args, sizeof(args));

		if (pid >= 0)
			return (pid_t)pid;
		if (errno != EEXIST)
			break;
	}
	return fork();
}

/* deadPidfd(flags, task): number: of a process that has ended, in the pid namespace of a task, given as a pidfd */
static napi_value dead_pidfd(napi_env env, napi_callback_info info)
{
	int32_t flags, task;
	int err, home, status;
	napi_value args[2];
	pid_t pid;
	long fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &flags) || !get_int(env, args[1], &task))
		return NULL;
	home = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (home < 0)
		return throw_errno(env, errno, "open");
	/* For children alone: this process stays where it is. */
	if (setns(task, CLONE_NEWPID)) {
		err = errno;
		close(home);
		return throw_errno(env, err, "setns");
	}
	pid = fork_high();
	if (pid == 0)
		_exit(0);
	err = errno;
	if (setns(home, CLONE_NEWPID))
		abort(); /* every later child would be in a foreign namespace */
	close(home);
	if (pid < 0)
		return throw_errno(env, err, "fork");
	fd = syscall(SYS_pidfd_open, pid, flags);
	err = errno;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return fd < 0 ? throw_errno(env, err, "pidfd_open") : make_int(env, (int32_t)fd);
}

/* sameFile(pid, fd, ours): boolean: whether two descriptors share one open file (kcmp(2)) */
static napi_value same_file(napi_env env, napi_callback_info info)
{
	int32_t pid, fd, ours;
	napi_value args[3], result;
	long order;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &pid) || !get_int(env, args[1], &fd) ||
	    !get_int(env, args[2], &ours))
		return NULL;
	order = syscall(SYS_kcmp, pid, getpid(), KCMP_FILE, fd, ours);
	if (order < 0)
		return throw_errno(env, errno, "kcmp");
	return napi_get_boolean(env, order == 0, &result) == napi_ok ? result : NULL;
}

bool pidfd_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
		{ "pidfdOpenAs", NULL, pidfd_open_as, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "deadPidfd", NULL, dead_pidfd, NULL, NULL, NULL, napi_default_jsproperty, NULL },
		{ "sameFile", NULL, same_file, NULL, NULL, NULL, napi_default_jsproperty, NULL },
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
