// SPDX-License-Identifier: GPL-2.0-only
/*
 * The engine plugin: CRIU loads it (CRIU_LIBS_DIR) and calls it while the tasks stand still. It is the hand of the
 * shim: it reports each hook that the shim asked for, does what the shim says in the meantime, and keeps an undo
 * record of every swap, so that it can put the tasks right by itself when the shim is gone.
 *
 * Without CRYOSHIM_CONTROL_FD in the environment it does nothing at all. A hook that nobody claims answers -ENOTSUP:
 * CRIU then asks the next plugin (criu/include/plugin.h:run_plugins), so the distribution's go on working.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../control.h"
#include "../surgeon/surgeon.h"
#include "../surgeon/hold.h"
#include "../surgeon/swap.h"
#include "bound.h"
#include "exitkill.h"
#include "guarded.h"
#include "intercept.h"
#include "lock.h"
#include "pipes.h"
#include "threads.h"

/* criu/include/criu-plugin.h (4.1.1, 4.2.1): version 0.2.0; 4.1.1 takes at most 13 hooks. */
#define PLUGIN_VERSION (2u << 8)
#define MAX_HOOKS 12
enum {
	HOOK_DUMP_EXT_FILE = 2,
	HOOK_RESTORE_EXT_FILE = 3,
	HOOK_DUMP_EXT_MOUNT = 4,
	HOOK_RESTORE_EXT_MOUNT = 5,
	HOOK_RESUME_DEVICES_LATE = 9,
	HOOK_CHECKPOINT_DEVICES = 11,
};
enum { STAGE_DUMP, STAGE_PRE_DUMP, STAGE_RESTORE };
enum { LOG_ERROR = 1, LOG_WARN = 2, LOG_INFO = 3 };

struct plugin_desc {
	const char *name;
	int (*init)(int stage);
	void (*exit)(int stage, int ret);
	unsigned int version;
	unsigned int max_hooks;
	void *hooks[MAX_HOOKS];
};

static struct {
	int fd;			/* -1: no shim */
	ino_t ino;		/* of the socket: in a restoring task its number may be another file's */
	bool stored;		/* CRIU keeps the socket for tasks: its close_old_fds() takes ours away from them */
	struct plugin_lock *lock;	/* shared: restoring tasks speak over one socket */
	uint64_t hooks;
	bool hides_threads;	/* io_uring's, from CRIU */
	uint64_t once;		/* hooks that are wanted for the first task alone */
	bool needed;		/* without the shim the dump is not complete */
	bool later;		/* it is complete when END is answered */
	pid_t ends;		/* the process that asks for that at its end */
	bool gone;		/* it has died */
	bool resumes;		/* without the shim no restored task may run */
	struct swap *undo;
	size_t n_undo, cap_undo;
	pid_t *held;		/* processes that are stopped while something is swapped in them */
	size_t n_held;
	void (*print)(unsigned int level, const char *format, ...);
} shim = { .fd = -1 };

/* Under which it does, as a descriptor to inherit: CRIU 4.1.1 has no store yet (criu/fdstore.c) when plugins begin. */
static char stored_as[] = "cryoshim control";

__attribute__((format(printf, 2, 3))) static void say(unsigned int level, const char *format, ...)
{
	char text[512];
	va_list args;

	if (!shim.print)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	shim.print(level, "%scryoshim: %s\n", level == LOG_ERROR ? "Error (cryoshim): " : "", text);
}

static int send_msg(int sk, struct control_msg *m, const void *data, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov[2] = { { m, sizeof(*m) }, { (void *)(uintptr_t)data, m->data_len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = m->data_len ? 2 : 1 };
	ssize_t n;

	m->magic = CONTROL_MAGIC;
	if (fd >= 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do
		n = sendmsg(sk, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -1 : 0;
}

struct command {
	struct control_msg m;
	char data[CONTROL_MAX_DATA];
	int fds[4];
	int n_fds;
};

static void close_fds(struct command *c)
{
	while (c->n_fds > 0)
		if (c->fds[--c->n_fds] >= 0)
			close(c->fds[c->n_fds]);
}

/* The next message of the shim; -1 when it is gone or not to be understood. */
static int receive(int sk, struct command *c)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * 4)];
		struct cmsghdr align;
	} control;
	struct iovec iov[2] = { { &c->m, sizeof(c->m) }, { c->data, sizeof(c->data) } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t n;

	c->n_fds = 0;
	do
		n = recvmsg(sk, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return -1;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		c->n_fds = (int)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(c->fds, CMSG_DATA(h), (size_t)c->n_fds * sizeof(int));
	}
	if ((size_t)n < sizeof(c->m) || c->m.magic != CONTROL_MAGIC || (size_t)n - sizeof(c->m) != c->m.data_len ||
	    (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		say(LOG_ERROR, "the shim sent a message that is none (%zd bytes)", n);
		close_fds(c);
		return -1;
	}
	return 0;
}

static int remember(const struct swap *swap)
{
	if (shim.n_undo == shim.cap_undo) {
		size_t cap = shim.cap_undo ? shim.cap_undo * 2 : 16;
		struct swap *grown = realloc(shim.undo, cap * sizeof(*grown));

		if (!grown)
			return -1;
		shim.undo = grown;
		shim.cap_undo = cap;
	}
	shim.undo[shim.n_undo++] = *swap;
	return 0;
}

static int hold(pid_t pid, struct surgeon_error *err)
{
	pid_t *more = realloc(shim.held, (shim.n_held + 1) * sizeof(*more));
	struct surgeon_error unused;

	if (!more) {
		*err = (struct surgeon_error){ "keep a record", ENOMEM };
		return -1;
	}
	shim.held = more;
	if (surgeon_hold(pid, err)) {
		/* It may be half done. */
		(void)surgeon_unhold(pid, &unused);
		return -1;
	}
	shim.held[shim.n_held++] = pid;
	return 0;
}

static void unhold_all(void)
{
	struct surgeon_error err;

	while (shim.n_held > 0) {
		pid_t pid = shim.held[--shim.n_held];

		if (surgeon_unhold(pid, &err))
			say(LOG_ERROR, "cannot let task %d go on: %s: %s; SIGCONT does", pid, err.step, strerror(err.err));
	}
}

static void forget(void)
{
	unhold_all();
	while (shim.n_undo > 0)
		swap_close(&shim.undo[--shim.n_undo]);
}

/* The task of the last swap: open as long as the shim's next order is there already. */
static struct swap_visit visit;

static int leave(struct surgeon_error *err)
{
	pid_t pid = visit.patient.tid;

	if (!swap_leave(&visit, err))
		return 0;
	say(LOG_ERROR, "cannot leave task %d as it was: %s: %s", pid, err->step, strerror(err->err));
	return -1;
}

/* Newest first. What cannot be undone is said and passed over: the rest must still be put right. */
static int roll_back(void)
{
	struct surgeon_error err = { 0 };
	int failed = 0;

	while (shim.n_undo > 0) {
		struct swap *s = &shim.undo[--shim.n_undo];

		if (swap_undo(&visit, s, &err)) {
			say(LOG_ERROR, "cannot undo a swap in task %d: %s: %s", s->order.pid, err.step, strerror(err.err));
			failed++;
		}
		swap_close(s);
	}
	if (leave(&err))
		failed++;
	unhold_all();
	return failed;
}

/* The record first: there is no moment at which something is swapped and nobody knows. */
static int swap(struct command *c, struct surgeon_error *err)
{
	struct surgeon_error unused;
	struct swap s;

	if (swap_read(&s, &c->m, c->fds, c->n_fds, err))
		goto out;
	if (remember(&s)) {
		*err = (struct surgeon_error){ "keep an undo record", ENOMEM };
		goto out;
	}
	if (!swap_make(&visit, &s, err))
		return 0;
	/* It may have failed half way. */
	shim.n_undo--;
	if (swap_in_place(&s))
		(void)swap_undo(&visit, &s, &unused);
out:
	swap_close(&s);
	return -1;
}

static int give(struct command *c, struct surgeon_error *err)
{
	int fd, failed;

	if (surgeon_take_fd((pid_t)c->m.a0, (int)c->m.a1, &fd, err))
		return -1;
	failed = surgeon_swap_fd(c->m.pid, c->m.fd, fd, c->m.flags & 1, err);
	close(fd);
	return failed;
}

static int inject(struct command *c, int64_t *ret, struct surgeon_error *err)
{
	const uint64_t call[7] = { c->m.a0, c->m.a1, c->m.a2, c->m.a3, c->m.a4, c->m.a5, c->m.a6 };
	struct surgeon_error end_err;
	struct surgeon s;
	int failed;

	if (surgeon_begin(&s, c->m.pid, err))
		return -1;
	failed = surgeon_syscall(&s, call, ret, err);
	if (surgeon_end(&s, &end_err) && !failed) {
		*err = end_err;
		failed = -1;
	}
	return failed;
}

/* What CRIU exports for its own plugins' sake can be called by name (it is linked with --export-dynamic). */
static void *engine_symbol(const char *name, struct surgeon_error *err)
{
	void *symbol = dlsym(RTLD_DEFAULT, name);

	if (!symbol)
		*err = (struct surgeon_error){ "this CRIU does not export what is needed", ENOSYS };
	return symbol;
}

/* criu/include/external.h: the list is consulted for each file that is dumped. */
static int add_external(char *key, struct surgeon_error *err)
{
	int (*add)(char *) = (int (*)(char *))(uintptr_t)engine_symbol("add_external", err);

	if (!add)
		return -1;
	if (!add(key))
		return 0;
	*err = (struct surgeon_error){ "add_external", ENOMEM };
	return -1;
}

/* criu/include/files.h: CRIU keeps the number, and duplicates it for its tasks. */
static int add_inherit(char *key, int fd, struct surgeon_error *err)
{
	int (*add)(int, char *) = (int (*)(int, char *))(uintptr_t)engine_symbol("inherit_fd_add", err);
	int kept;

	if (!add)
		return -1;
	kept = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (kept >= 0 && !add(kept, key))
		return 0;
	*err = (struct surgeon_error){ "inherit_fd_add", kept < 0 ? EBADF : ENOMEM };
	if (kept >= 0)
		close(kept);
	return -1;
}

/* The head of criu/include/filesystems.h's struct fstype (4.1.1, 4.2.1). */
struct fstype {
	const char *name;
	int code;
	int (*dump)(void *mount);
};

static int no_fs_dump(const char *name, struct surgeon_error *err)
{
	struct fstype *(*find)(const char *) = (struct fstype *(*)(const char *))(uintptr_t)engine_symbol("find_fstype_by_name", err);
	struct fstype *found;

	if (!find)
		return -1;
	found = find(name);
	/* What is not as we know it is not touched. */
	if (!found || strcmp(found->name, name)) {
		*err = (struct surgeon_error){ "find_fstype_by_name", ENOENT };
		return -1;
	}
	found->dump = NULL;
	return 0;
}

static int ask_about(enum control_known kind, int lfd, uint32_t id);
static int ask_bound(int sk, const char *name, size_t len, int *fd);

/* The data as a string. */
static char *text_of(struct command *c)
{
	size_t end = c->m.data_len < sizeof(c->data) ? c->m.data_len : sizeof(c->data) - 1;

	c->data[end] = '\0';
	return c->data;
}

/* One command. *data: what its RESULT has, beside what is in `r`. */
static int carry_out(struct command *c, int64_t *ret, const void **data, struct control_msg *r, struct surgeon_error *err)
{
	int failed = 0;

	switch (c->m.type) {
	case CONTROL_INJECT:
		failed = inject(c, ret, err);
		break;
	case CONTROL_READ:
		if (c->m.len > sizeof(c->data)) {
			*err = (struct surgeon_error){ "read at most 64 KiB at once", EMSGSIZE };
			failed = -1;
			break;
		}
		failed = surgeon_read(c->m.pid, c->m.addr, c->data, c->m.len, err);
		*data = c->data;
		r->data_len = (uint32_t)c->m.len;
		break;
	case CONTROL_WRITE:
		failed = surgeon_write(c->m.pid, c->m.addr, c->data, c->m.data_len, err);
		break;
	case CONTROL_SWAP_FD:
	case CONTROL_SWAP_MAPPING:
	case CONTROL_SWAP_CWD:
	case CONTROL_SWAP_ROOT:
		failed = swap(c, err);
		break;
	case CONTROL_HOLD:
		if (c->m.a0)
			failed = hold(c->m.pid, err);
		else
			*ret = surgeon_may_hold(c->m.pid);
		break;
	case CONTROL_MAP:
		failed = swap_map(&visit, c->m.pid, c->m.addr, c->m.len, (int)c->m.a0, (int)c->m.a1, -1, c->m.fd, c->m.a2,
				  (struct surgeon_cut){ c->m.a3, c->m.a4 }, err);
		break;
	case CONTROL_GIVE:
		failed = give(c, err);
		break;
	case CONTROL_SUBMIT:
		failed = surgeon_submit((pid_t)c->m.a5, c->m.pid, c->m.fd,
					&(const struct surgeon_queue){ c->m.len, (uint32_t)c->m.a2, (uint32_t)c->m.a3, (uint32_t)c->m.a4 },
					(uint32_t)c->m.a0, c->m.a1, err);
		break;
	case CONTROL_RESTART:
		failed = surgeon_restart(c->m.pid, c->m.a0, ret, err);
		break;
	case CONTROL_ROLLBACK:
		*ret = roll_back();
		break;
	case CONTROL_FORGET:
		forget();
		break;
	case CONTROL_LOG:
		say(c->m.flags, "%.*s", (int)c->m.data_len, c->data);
		break;
	case CONTROL_EXTERNAL:
		(void)text_of(c);
		for (size_t at = 0; !failed && at < c->m.data_len; at += strlen(c->data + at) + 1)
			failed = add_external(c->data + at, err);
		break;
	case CONTROL_INHERIT:
		failed = add_inherit(text_of(c), c->n_fds > 0 ? c->fds[0] : -1, err);
		break;
	case CONTROL_INTERCEPT:
		failed = intercept((enum control_known)c->m.a0, ask_about, err);
		break;
	case CONTROL_BOUND:
		failed = c->m.data_len ? let_names_be_any((const uint64_t *)(const void *)c->data, c->m.data_len / sizeof(uint64_t), err) :
					 let_names_be_ours(ask_bound, err);
		break;
	case CONTROL_NO_FS_DUMP:
		failed = no_fs_dump(text_of(c), err);
		break;
	default:
		*err = (struct surgeon_error){ "a command of another version", ENOSYS };
		failed = -1;
	}
	return failed;
}

/* Whether the shim's next message is there. */
static bool is_waiting(int sk)
{
	struct pollfd p = { .fd = sk, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

/* A command, and its RESULT. Returns -1 when the shim cannot be told. */
static int obey(int sk, struct command *c)
{
	bool swaps = c->m.type == CONTROL_SWAP_FD || c->m.type == CONTROL_SWAP_MAPPING || c->m.type == CONTROL_MAP;
	struct control_msg r = { .type = CONTROL_RESULT, .seq = c->m.seq };
	struct surgeon_error err = { "", 0 }, unused;
	const void *data = NULL;
	int64_t ret = 0;
	int failed = 0;

	if (!swaps && c->m.type != CONTROL_ROLLBACK)
		failed = leave(&err);
	if (!failed)
		failed = carry_out(c, &ret, &data, &r, &err);
	/* Nothing more to do at once: the task is left, and the answer says whether it is as it was. */
	if (swaps && !is_waiting(sk) && leave(failed ? &unused : &err))
		failed = -1;
	close_fds(c);
	r.ret = ret;
	if (failed) {
		r.err = err.err ? err.err : EIO;
		data = err.step;
		r.data_len = (uint32_t)strlen(err.step);
	}
	return send_msg(sk, &r, data, -1);
}

static bool is_ours(void)
{
	struct stat st;

	return fstat(shim.fd, &st) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == shim.ino;
}

/* The socket, in whichever process of CRIU's this is. *borrowed: close it afterwards. */
static int socket_here(bool *borrowed)
{
	int (*get)(char *);

	*borrowed = false;
	if (shim.fd < 0 || is_ours())
		return shim.fd;
	get = (int (*)(char *))(uintptr_t)dlsym(RTLD_DEFAULT, "inherit_fd_lookup_id");
	*borrowed = true;
	return shim.stored && get ? get(stored_as) : -1;
}

/* The shim is gone while tasks stand still: put them right, and let nobody wait for it again. */
static int shim_is_gone(void)
{
	bool swapped = shim.n_undo > 0;

	say(swapped ? LOG_ERROR : LOG_WARN, "the shim is gone%s", swapped ? ": undoing what was swapped" : "");
	(void)roll_back();
	if (shim.fd >= 0 && is_ours()) {
		close(shim.fd);
		shim.fd = -1;
	}
	shim.hooks = shim.once = 0;
	shim.gone = true;
	return swapped ? -1 : -ENOTSUP;
}

/*
 * Tells the shim and serves its commands until it is done. Returns what the hook shall return; a descriptor that came
 * with DONE goes to *fd.
 */
static int64_t transact(struct control_msg *m, const void *data, int send_fd, int *fd)
{
	static struct command c;
	int64_t ret = -ENOTSUP;
	bool borrowed;
	int sk;

	lock_take(shim.lock);
	sk = socket_here(&borrowed);
	if (sk < 0)
		goto unlock;
	m->seq = lock_count(shim.lock);
	if (send_msg(sk, m, data, send_fd)) {
		ret = shim_is_gone();
		goto unlock;
	}
	for (;;) {
		if (receive(sk, &c)) {
			ret = shim_is_gone();
			break;
		}
		if (c.m.type == CONTROL_DONE && c.m.seq != m->seq) {
			/* For a task that was killed while it waited. */
			close_fds(&c);
			continue;
		}
		if (c.m.type == CONTROL_DONE) {
			struct surgeon_error err;

			ret = leave(&err) ? -1 : c.m.ret;
			shim.needed = c.m.flags & CONTROL_NEEDED;
			shim.later = c.m.flags & CONTROL_LATER;
			if (m->type == CONTROL_HELLO)
				shim.hooks = c.m.a0, shim.once = c.m.a1, shim.hides_threads = c.m.a2 & 1;
			if (m->type == CONTROL_HELLO && m->hook == STAGE_RESTORE)
				shim.resumes = shim.hooks & (1ULL << HOOK_RESUME_DEVICES_LATE);
			if (fd && c.n_fds > 0) {
				*fd = c.fds[0];
				c.fds[0] = -1;
			}
			close_fds(&c);
			break;
		}
		if (obey(sk, &c)) {
			ret = shim_is_gone();
			break;
		}
	}
unlock:
	if (borrowed && sk >= 0)
		close(sk);
	lock_give(shim.lock);
	return ret;
}

static bool wanted(unsigned int hook)
{
	uint64_t bit = 1ULL << hook;

	if (shim.once & bit) {
		shim.once &= ~bit;
		return true;
	}
	return shim.hooks & bit;
}

static int on_task(unsigned int hook, int pid)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = (uint16_t)hook, .pid = pid };
	int64_t ret;

	if (!wanted(hook))
		return -ENOTSUP;
	ret = transact(&m, NULL, -1, NULL);
	/* Never claimed: a task may also have a GPU. */
	return ret < 0 && ret != -ENOTSUP ? -1 : -ENOTSUP;
}

static int checkpoint_devices(int pid)
{
	return on_task(HOOK_CHECKPOINT_DEVICES, pid);
}

/*
 * CRIU lets a task run whatever this hook returns (criu/cr-restore.c:restore_root_task, 4.2). One whose objects could not be
 * put back must not: it is killed while it stands, and CRIU's restore fails for it.
 */
static int resume_devices_late(int pid)
{
	int ret = shim.gone ? -ENOTSUP : on_task(HOOK_RESUME_DEVICES_LATE, pid);

	/* Also when it has died over this one: then the task is half done. */
	if (shim.gone && shim.resumes)
		ret = -1;
	if (ret < 0 && ret != -ENOTSUP) {
		say(LOG_ERROR, "task %d cannot be restored: it is killed", pid);
		if (end_restored(pid))
			say(LOG_ERROR, "cannot kill task %d: %s", pid, strerror(errno));
	}
	return ret;
}

static int ask_about(enum control_known kind, int lfd, uint32_t id)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = CONTROL_HOOK_KNOWN, .fd = (int)id, .a0 = kind };

	return (int)transact(&m, NULL, lfd, NULL);
}

static int ask_bound(int sk, const char *name, size_t len, int *fd)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = sk < 0 ? CONTROL_HOOK_CONNECT : CONTROL_HOOK_BIND, .fd = sk,
				 .pid = getpid(), .data_len = (uint32_t)len };
	int task = (int)syscall(SYS_pidfd_open, getpid(), 0);
	int64_t ret;

	if (task < 0)
		say(LOG_WARN, "pidfd_open: %s", strerror(errno));
	ret = transact(&m, name, task, fd);
	if (task >= 0)
		close(task);
	return ret < 0 ? -1 : 0;
}

static int dump_ext_file(int fd, int id)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = HOOK_DUMP_EXT_FILE, .fd = id };

	if (intercept_has(id))
		return 0;
	return wanted(HOOK_DUMP_EXT_FILE) ? (int)transact(&m, NULL, fd, NULL) : -ENOTSUP;
}

/* Up to CRIU 4.2; what comes after it gives a second argument, for a retry, and must be told "no" there. */
static int restore_ext_file(int id)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = HOOK_RESTORE_EXT_FILE, .fd = id, .pid = getpid() };
	int fd = -1, task;
	int64_t ret;

	if (!wanted(HOOK_RESTORE_EXT_FILE))
		return -ENOTSUP;
	/* Our number is that of a namespace which the shim may not see: it gets the task itself, and with it namespaces. */
	task = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (task < 0)
		say(LOG_WARN, "pidfd_open: %s", strerror(errno));
	ret = transact(&m, NULL, task, &fd);
	if (task >= 0)
		close(task);
	return ret < 0 ? (int)ret : fd >= 0 ? fd : -ENOTSUP;
}

static int ext_mount(unsigned int hook, const char *mountpoint, int id)
{
	struct control_msg m = { .type = CONTROL_HOOK, .hook = (uint16_t)hook, .fd = id, .pid = getpid(),
				 .data_len = (uint32_t)strlen(mountpoint) };

	return wanted(hook) ? (int)transact(&m, mountpoint, -1, NULL) : -ENOTSUP;
}

static int dump_ext_mount(char *mountpoint, int id)
{
	return ext_mount(HOOK_DUMP_EXT_MOUNT, mountpoint, id);
}

static int restore_ext_mount(int id, char *mountpoint, char *old_root, int *is_file)
{
	(void)old_root;
	(void)is_file;
	return ext_mount(HOOK_RESTORE_EXT_MOUNT, mountpoint, id);
}

static int plugin_init(int stage)
{
	struct control_msg m = { .type = CONTROL_HELLO, .hook = (uint16_t)stage, .pid = getpid(), .a0 = CONTROL_VERSION };
	const char *number = getenv("CRYOSHIM_CONTROL_FD");
	struct surgeon_error err;
	int type;
	socklen_t len = sizeof(type);
	int guards = -1;
	struct stat st;
	int64_t ret;

	/* What an earlier request of this process has left. */
	shim.hooks = shim.once = 0;
	shim.needed = shim.later = shim.gone = shim.resumes = shim.hides_threads = false;
	shim.stored = false;
	shim.print = (void (*)(unsigned int, const char *, ...))(uintptr_t)dlsym(RTLD_DEFAULT, "print_on_level");
	shim.fd = number ? atoi(number) : -1;
	/* CRIU hands its environment to scripts and to what they start: the number alone proves nothing. */
	if (shim.fd < 0 || getsockopt(shim.fd, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_SEQPACKET ||
	    fstat(shim.fd, &st)) {
		shim.fd = -1;
		return 0;
	}
	shim.ino = st.st_ino;
	shim.lock = lock_make();
	if (!shim.lock) {
		say(LOG_WARN, "cannot make the lock of the control socket: working without the shim");
		shim.fd = -1;
		return 0;
	}
	if (stage == STAGE_RESTORE) {
		shim.stored = !add_inherit(stored_as, shim.fd, &err);
		if (!shim.stored)
			say(LOG_WARN, "restored tasks cannot ask the shim: %s: %s", err.step, strerror(err.err));
	}
	if (stage == STAGE_DUMP)
		guards = guarded_open();
	ret = transact(&m, NULL, guards, NULL);
	if (guards >= 0)
		close(guards);
	/* What is half restored must not run one instruction without us. */
	if (stage == STAGE_RESTORE && !end_with_engine())
		say(LOG_WARN, "this CRIU is built otherwise: its sudden death does not end what it restores at once");
	if (shim.hides_threads && !hide_kernel_threads())
		say(LOG_WARN, "this CRIU is built otherwise: threads of io_uring's cannot be kept from it");
	if (stage == STAGE_RESTORE)
		let_pipes_grow();
	/* A dump goes on as if there had been no shim; what a restore needs of it cannot be known here. */
	if (shim.gone && stage == STAGE_RESTORE)
		return -1;
	return ret < 0 && ret != -ENOTSUP ? -1 : 0;
}

static void close_shim(void)
{
	if (shim.fd >= 0 && is_ours())
		close(shim.fd);
	shim.fd = -1;
}

/*
 * The tasks of a dump run again, and CRIU is about to tell its caller that it has succeeded: what of the images needed no task to stand
 * still is written now. This function stays in memory when CRIU unloads the plugin (-z nodelete).
 */
static void at_end(int status, void *unused)
{
	struct control_msg m = { .type = CONTROL_END };
	int64_t ret;

	(void)unused;
	if (shim.ends != getpid() || !shim.later)
		return;
	m.ret = status;
	ret = transact(&m, NULL, -1, NULL);
	close_shim();
	if (status || (ret >= 0 && !shim.gone))
		return;
	say(LOG_ERROR, shim.gone ? "the shim died before the images were complete" : "the images are not complete");
	_exit(1);
}

/* Once for each process: one client may ask CRIU for several dumps. */
static void ask_at_end(void)
{
	if (shim.ends == getpid())
		return;
	/* The caller would take images for complete that are not. */
	if (on_exit(at_end, NULL)) {
		say(LOG_ERROR, "on_exit: out of memory, the engine is stopped");
		raise(SIGKILL);
	}
	shim.ends = getpid();
}

static void plugin_exit(int stage, int ret)
{
	struct control_msg m = { .type = CONTROL_EXIT, .hook = (uint16_t)stage, .ret = ret };

	if (shim.fd >= 0)
		(void)transact(&m, NULL, -1, NULL);
	/* A dump whose tasks go on, or that failed, undoes; what the shim wanted to stay it has said (FORGET). */
	if (shim.n_undo > 0 || shim.n_held > 0)
		(void)roll_back();
	/*
	 * CRIU takes its work for done: it would end the tasks of a dump, and what the shim had to write is not there; or say that a
	 * restore is done, whose tasks the guard is about to kill. An exit hook cannot fail: only its own end keeps CRIU
	 * from it. The guard settles the rest.
	 */
	if (ret == 0 && shim.gone && (stage == STAGE_RESTORE || (stage == STAGE_DUMP && shim.needed))) {
		say(LOG_ERROR, "the shim died before its part of the work was done");
		/* The guard finds the tasks of a restore by their parent, as long as it lives. */
		if (stage == STAGE_RESTORE)
			sleep(2);
		raise(SIGKILL);
	}
	free(shim.undo);
	free(shim.held);
	shim.undo = NULL;
	shim.held = NULL;
	shim.cap_undo = 0;
	if (ret == 0 && shim.fd >= 0 && shim.later)
		ask_at_end();
	else
		close_shim();
}

__attribute__((visibility("default"))) struct plugin_desc CR_PLUGIN_DESC = {
	.name = "cryoshim",
	.init = plugin_init,
	.exit = plugin_exit,
	.version = PLUGIN_VERSION,
	.max_hooks = MAX_HOOKS,
	.hooks = {
		[HOOK_DUMP_EXT_FILE] = dump_ext_file,
		[HOOK_RESTORE_EXT_FILE] = restore_ext_file,
		[HOOK_DUMP_EXT_MOUNT] = dump_ext_mount,
		[HOOK_RESTORE_EXT_MOUNT] = restore_ext_mount,
		[HOOK_RESUME_DEVICES_LATE] = resume_devices_late,
		[HOOK_CHECKPOINT_DEVICES] = checkpoint_devices,
	},
};
