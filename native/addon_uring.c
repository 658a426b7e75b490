// SPDX-License-Identifier: Apache-2.0
/* io_uring rings of other processes, by a descriptor of ours: their shared memory, and bringing their counters on. */
#define _GNU_SOURCE
#include "addon.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What older headers do not have (include/uapi/linux/io_uring.h). */
#define SETUP_SQPOLL (1u << 1)
#define SETUP_NO_MMAP (1u << 14)
#define SQE_SKIP_SUCCESS (1u << 6)
#define OP_MSG_RING 40
#define MSG_RING_FLAGS_PASS (1u << 1)

static bool get_wide(napi_env env, napi_value value, uint64_t *out)
{
	bool lossless;

	if (napi_get_value_bigint_uint64(env, value, out, &lossless) == napi_ok)
		return true;
	napi_throw_type_error(env, "ERR_ARGS", "a bigint was expected");
	return false;
}

static long enter(int fd, unsigned submit, unsigned wait, unsigned flags)
{
	long ret;

	do
		ret = syscall(SYS_io_uring_enter, fd, submit, wait, flags, NULL, 0);
	while (ret < 0 && errno == EINTR);
	return ret;
}

/* uringRead(fd, offset, length): Buffer — a copy of the ring's memory, as mmap(2) has it at this offset */
static napi_value uring_read(napi_env env, napi_callback_info info)
{
	napi_value args[3], buffer;
	uint64_t offset;
	int32_t fd, len;
	void *from;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &fd) || !get_wide(env, args[1], &offset) ||
	    !get_int(env, args[2], &len))
		return NULL;
	from = mmap(NULL, (size_t)len, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	if (from == MAP_FAILED)
		return throw_errno(env, errno, "mmap of a ring");
	if (napi_create_buffer_copy(env, (size_t)len, from, NULL, &buffer) != napi_ok)
		buffer = NULL;
	munmap(from, (size_t)len);
	return buffer;
}

/* uringWrite(fd, offset, at, data) — puts bytes into the memory that is mapped at this offset */
static napi_value uring_write(napi_env env, napi_callback_info info)
{
	napi_value args[4], undefined = NULL;
	uint64_t offset;
	int32_t fd, at;
	size_t len;
	void *data;
	char *to;

	if (!get_args(env, info, 4, args) || !get_int(env, args[0], &fd) || !get_wide(env, args[1], &offset) ||
	    !get_int(env, args[2], &at))
		return NULL;
	if (at < 0 || napi_get_buffer_info(env, args[3], &data, &len) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a Buffer was expected");
		return NULL;
	}
	to = mmap(NULL, (size_t)at + len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
	if (to == MAP_FAILED)
		return throw_errno(env, errno, "mmap of a ring");
	memcpy(to + at, data, len);
	munmap(to, (size_t)at + len);
	napi_get_undefined(env, &undefined);
	return undefined;
}

/* struct io_uring_params, lent. */
static bool get_params(napi_env env, napi_value value, struct io_uring_params **params)
{
	size_t len;
	void *data;

	if (napi_get_buffer_info(env, value, &data, &len) == napi_ok && len == sizeof(**params)) {
		*params = data;
		return true;
	}
	napi_throw_type_error(env, "ERR_ARGS", "a Buffer with struct io_uring_params was expected");
	return false;
}

/* uringSetup(entries, params): number — a ring of ours; params (struct io_uring_params) are filled in */
static napi_value uring_setup(napi_env env, napi_callback_info info)
{
	struct io_uring_params *params;
	napi_value args[2], result;
	int32_t entries;
	long fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &entries) || !get_params(env, args[1], &params))
		return NULL;
	fd = syscall(SYS_io_uring_setup, (unsigned)entries, params);
	if (fd < 0)
		return throw_errno(env, errno, "io_uring_setup");
	return napi_create_int32(env, (int32_t)fd, &result) == napi_ok ? result : NULL;
}

struct setup_for {
	unsigned entries;
	struct io_uring_params *params;
	uid_t uid;
	long fd;
	int err;
	const char *step;
};

/*
 * By a thread that ends with it: credentials are a thread's own, and only libc makes them the process's. The effective ids
 * stay, so nobody else may look at this process meanwhile.
 */
static void *setup_for(void *data)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];
	struct setup_for *s = data;

	s->step = "setresuid";
	s->fd = syscall(SYS_setresuid, s->uid, (uid_t)-1, (uid_t)-1);
	if (!s->fd) {
		s->step = "capset";
		s->fd = syscall(SYS_capget, &head, caps);
	}
	if (!s->fd) {
		caps[0].effective &= ~(1u << CAP_IPC_LOCK);
		s->fd = syscall(SYS_capset, &head, caps);
	}
	if (!s->fd) {
		s->step = "io_uring_setup";
		s->fd = syscall(SYS_io_uring_setup, s->entries, s->params);
	}
	s->err = s->fd < 0 ? errno : 0;
	return NULL;
}

/*
 * uringSetupFor(entries, params, uid): number — as uringSetup(), but memory that is registered with the ring is charged to
 * a user, as if a process of his without CAP_IPC_LOCK had set it up (io_uring/io_uring.c: io_uring_create)
 */
static napi_value uring_setup_for(napi_env env, napi_callback_info info)
{
	struct setup_for s = { 0 };
	napi_value args[3], result;
	pthread_t thread;
	int32_t entries;
	int err;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &entries) || !get_params(env, args[1], &s.params))
		return NULL;
	if (napi_get_value_uint32(env, args[2], &s.uid) != napi_ok) {
		napi_throw_type_error(env, "ERR_ARGS", "a user was expected");
		return NULL;
	}
	s.entries = (unsigned)entries;
	err = pthread_create(&thread, NULL, setup_for, &s);
	if (!err)
		err = pthread_join(thread, NULL);
	if (err)
		return throw_errno(env, err, "run a thread");
	if (s.err)
		return throw_errno(env, s.err, s.step);
	return napi_create_int32(env, (int32_t)s.fd, &result) == napi_ok ? result : NULL;
}

/* shim/carriers/uring-registered.ts fills it in. */
struct credentials {
	uint32_t uid[4], gid[4];	/* real, effective, saved, file system's */
	uint64_t inheritable, permitted, effective, bounding, ambient;
	uint32_t n_groups, zero;
	uint32_t groups[32];
};

struct register_as {
	int fd;
	const struct credentials *who;
	long id;
	int err;
	const char *step;
};

static long try(struct register_as *r, const char *step, long ret)
{
	r->step = step;
	return ret;
}

/* Becomes somebody else, with the rights to do that until all is done; what it may do then is set last. */
static long become(struct register_as *r)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	const struct credentials *c = r->who;
	struct __user_cap_data_struct caps[2] = {
		{ (uint32_t)c->effective, (uint32_t)c->permitted, (uint32_t)c->inheritable },
		{ (uint32_t)(c->effective >> 32), (uint32_t)(c->permitted >> 32), (uint32_t)(c->inheritable >> 32) },
	};

	if (try(r, "PR_SET_SECUREBITS", prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)) ||
	    try(r, "setgroups", syscall(SYS_setgroups, c->n_groups, c->groups)) ||
	    try(r, "setresgid", syscall(SYS_setresgid, c->gid[0], c->gid[1], c->gid[2])) ||
	    try(r, "setresuid", syscall(SYS_setresuid, c->uid[0], c->uid[1], c->uid[2])))
		return -1;
	/* These tell what was before, and nothing else. */
	(void)syscall(SYS_setfsgid, c->gid[3]);
	(void)syscall(SYS_setfsuid, c->uid[3]);
	for (unsigned long cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(c->bounding >> cap & 1) && try(r, "PR_CAPBSET_DROP", prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)))
			return -1;
	if (try(r, "PR_CAP_AMBIENT", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) ||
	    try(r, "PR_SET_SECUREBITS", prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)) || try(r, "capset", syscall(SYS_capset, &head, caps)))
		return -1;
	for (unsigned long cap = 0; cap < 64; cap++)
		if (c->ambient >> cap & 1 && try(r, "PR_CAP_AMBIENT", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0)))
			return -1;
	return 0;
}

/* By a thread of its own, see setup_for; a keyring of ours is not given away. */
static void *register_as(void *data)
{
	struct register_as *r = data;

	/* No keys in this kernel: none to be given away. */
	r->id = try(r, "KEYCTL_JOIN_SESSION_KEYRING", syscall(SYS_keyctl, 1, NULL)) < 0 && errno != ENOSYS ? -1 : 0;
	if (!r->id)
		r->id = become(r);
	if (!r->id)
		r->id = try(r, "IORING_REGISTER_PERSONALITY", syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_PERSONALITY, NULL, 0));
	r->err = r->id < 0 ? errno : 0;
	return NULL;
}

/* uringRegisterAs(fd, credentials): number — registers a personality that is not ours; its number */
static napi_value uring_register_as(napi_env env, napi_callback_info info)
{
	struct register_as r = { 0 };
	struct credentials who;
	napi_value args[2], result;
	pthread_t thread;
	void *data;
	size_t n;
	int err;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &r.fd))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &n) != napi_ok || n != sizeof(who)) {
		napi_throw_type_error(env, "ERR_ARGS", "a Buffer with credentials was expected");
		return NULL;
	}
	memcpy(&who, data, sizeof(who));
	if (who.n_groups > sizeof(who.groups) / sizeof(who.groups[0])) {
		napi_throw_type_error(env, "ERR_ARGS", "no more than 32 groups were expected");
		return NULL;
	}
	r.who = &who;
	err = pthread_create(&thread, NULL, register_as, &r);
	if (!err)
		err = pthread_join(thread, NULL);
	if (err)
		return throw_errno(env, err, "run a thread");
	if (r.err)
		return throw_errno(env, r.err, r.step);
	return napi_create_int32(env, (int32_t)r.id, &result) == napi_ok ? result : NULL;
}

/* A ring's shared memory: mapped in this process, or memory of the program's own (IORING_SETUP_NO_MMAP), which cannot be. */
struct ring {
	int fd;
	unsigned flags, sq_entries, cq_entries;
	struct io_sqring_offsets sq;
	struct io_cqring_offsets cq;
	pid_t pid;		/* whose own memory it is; 0: it is mapped */
	uint64_t rings_at, sqes_at;	/* in its memory */
	char *rings;
	size_t rings_len;
	char *sqes;		/* of a ring that is not mapped: a draft of them */
	size_t sqes_len, sqe_size;
	uint32_t unread;	/* completions that are to stay */
	int err;		/* of the first access that failed: nothing is got or set any more */
	const _Atomic uint32_t *stop;	/* not 0: what it is done for is over */
};

static int copy(pid_t pid, uint64_t at, void *bytes, size_t len, bool out)
{
	struct iovec here = { bytes, len }, there = { (void *)(uintptr_t)at, len };
	ssize_t n = out ? process_vm_writev(pid, &here, 1, &there, 1, 0) : process_vm_readv(pid, &here, 1, &there, 1, 0);

	if (n >= 0 && (size_t)n != len)
		errno = EFAULT;
	return n == (ssize_t)len ? 0 : -1;
}

static bool is_stopped(const struct ring *r)
{
	if (!atomic_load(r->stop))
		return false;
	errno = ECANCELED;
	return true;
}

static _Atomic uint32_t *word(const struct ring *r, uint32_t offset)
{
	return (_Atomic uint32_t *)(void *)(r->rings + offset);
}

static uint32_t get(struct ring *r, uint32_t offset)
{
	uint32_t value = 0;

	if (!r->pid)
		return atomic_load(word(r, offset));
	if (!r->err && copy(r->pid, r->rings_at + offset, &value, sizeof(value), false))
		r->err = errno;
	return value;
}

static void set(struct ring *r, uint32_t offset, uint32_t value)
{
	if (!r->pid)
		atomic_store(word(r, offset), value);
	else if (!r->err && copy(r->pid, r->rings_at + offset, &value, sizeof(value), true))
		r->err = errno;
}

static int failed(const struct ring *r)
{
	if (r->err)
		errno = r->err;
	return r->err ? -1 : 0;
}

/* `with_array`: indices instead of the entries' own order (no IORING_SETUP_NO_SQARRAY); pid: of a program with IORING_SETUP_NO_MMAP. */
static int map_ring(struct ring *r, int fd, const struct io_uring_params *p, bool with_array, pid_t pid)
{
	size_t cqes = p->cq_off.cqes + (size_t)p->cq_entries * (p->flags & (1u << 11) ? 32 : 16);
	size_t array = with_array ? p->sq_off.array + (size_t)p->sq_entries * 4 : 0;

	*r = (struct ring){ .fd = fd, .flags = p->flags, .sq_entries = p->sq_entries, .cq_entries = p->cq_entries,
			    .sq = p->sq_off, .cq = p->cq_off, .sqe_size = p->flags & (1u << 10) ? 128 : 64 };
	r->rings_len = cqes > array ? cqes : array;
	r->sqes_len = r->sqe_size * p->sq_entries;
	if (p->flags & SETUP_NO_MMAP) {
		r->pid = pid;
		/* The last member of both, which older headers do not name: user_addr. */
		memcpy(&r->rings_at, (const char *)&p->cq_off + 32, sizeof(r->rings_at));
		memcpy(&r->sqes_at, (const char *)&p->sq_off + 32, sizeof(r->sqes_at));
		r->sqes = malloc(r->sqes_len);
		return r->sqes ? 0 : -1;
	}
	r->rings = mmap(NULL, r->rings_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	if (r->rings == MAP_FAILED)
		return -1;
	r->sqes = mmap(NULL, r->sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)IORING_OFF_SQES);
	if (r->sqes == MAP_FAILED) {
		munmap(r->rings, r->rings_len);
		return -1;
	}
	return 0;
}

static void unmap_ring(struct ring *r)
{
	if (r->pid) {
		free(r->sqes);
		return;
	}
	munmap(r->rings, r->rings_len);
	munmap(r->sqes, r->sqes_len);
}

/* Each entry becomes a NOP, with or without a completion. */
static void fill_nops(struct ring *r, bool with_array, bool skip)
{
	for (unsigned i = 0; i < r->sq_entries; i++) {
		struct io_uring_sqe *sqe = (struct io_uring_sqe *)(void *)(r->sqes + i * r->sqe_size);

		memset(sqe, 0, r->sqe_size);
		sqe->flags = skip ? SQE_SKIP_SUCCESS : 0;
		if (with_array)
			set(r, r->sq.array + 4 * i, 0);
	}
	if (r->pid && !r->err && copy(r->pid, r->sqes_at, r->sqes, r->sqes_len, true))
		r->err = errno;
}

/* Submits n, at most as many as both queues take, and empties the completion queue. */
static int submit_nops(struct ring *r, unsigned n)
{
	uint32_t tail = get(r, r->sq.tail) + n;
	set(r, r->sq.tail, tail);
	if (!(r->flags & SETUP_SQPOLL)) {
		long done = enter(r->fd, n, 0, 0);

		if (done != (long)n) {
			errno = done < 0 ? errno : EAGAIN;
			return -1;
		}
	}
	while (get(r, r->sq.head) != tail && !r->err) {
		if ((get(r, r->sq.flags) & IORING_SQ_NEED_WAKEUP) && enter(r->fd, 0, 0, IORING_ENTER_SQ_WAKEUP) < 0)
			return -1;
		(void)sched_yield();
	}
	return failed(r);
}

/*
 * Empties the completion queue as far as the program will have read it, `left` completions from now. The kernel may look at
 * the head only when it runs out of room that it knows of: it must never have seen one beyond where it will be.
 */
static void drain(struct ring *r, uint32_t left)
{
	uint32_t stays = r->unread > left ? r->unread - left : 0;

	set(r, r->cq.head, get(r, r->cq.tail) - stays);
}

/* How many completions there is room for. */
static uint32_t room(struct ring *r)
{
	return r->cq_entries - (get(r, r->cq.tail) - get(r, r->cq.head));
}

static int advance_by_nops(struct ring *r, bool with_array, uint32_t steps, bool skip, uint32_t *left)
{
	/* Few enough to stay in the processor's cache. */
	unsigned most = r->sq_entries < r->cq_entries ? r->sq_entries : r->cq_entries, n;

	if (most > 64)
		most = 64;
	fill_nops(r, with_array, skip);
	for (; steps > 0; steps -= n) {
		uint32_t tail = get(r, r->cq.tail);

		n = steps < most ? steps : most;
		if (!skip && n > room(r))
			n = room(r);
		if (is_stopped(r) || submit_nops(r, n))
			return -1;
		/* An SQPOLL thread posts after it has taken. */
		if (r->flags & SETUP_SQPOLL && !skip) {
			uint32_t want = tail + n;

			while (get(r, r->cq.tail) != want && !r->err)
				(void)sched_yield();
		}
		if (!skip) {
			*left -= n;
			drain(r, *left);
		}
	}
	return failed(r);
}

/* Completions for another ring, from one of ours (IORING_OP_MSG_RING, Linux 5.18; with flags 6.3). */
static int post(int own, struct ring *from, int to, const struct io_uring_cqe *cqes, unsigned n)
{
	unsigned done = 0;

	while (done < n) {
		unsigned batch = n - done < from->sq_entries ? n - done : from->sq_entries;
		uint32_t tail = get(from, from->sq.tail), head;

		for (unsigned i = 0; i < batch; i++) {
			unsigned slot = (tail + i) & (from->sq_entries - 1);
			struct io_uring_sqe *sqe = (struct io_uring_sqe *)(void *)(from->sqes + slot * from->sqe_size);
			const struct io_uring_cqe *cqe = cqes ? &cqes[done + i] : NULL;

			memset(sqe, 0, sizeof(*sqe));
			sqe->opcode = OP_MSG_RING;
			sqe->fd = to;
			if (cqe) {
				sqe->off = cqe->user_data;
				sqe->len = (uint32_t)cqe->res;
				if (cqe->flags) {
					sqe->rw_flags = (int)MSG_RING_FLAGS_PASS;
					sqe->file_index = cqe->flags;
				}
			}
			set(from, from->sq.array + 4 * slot, slot);
		}
		set(from, from->sq.tail, tail + batch);
		if (enter(own, batch, batch, IORING_ENTER_GETEVENTS) != (long)batch)
			return -1;
		head = get(from, from->cq.head);
		for (unsigned i = 0; i < batch; i++) {
			const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)(void *)(from->rings + from->cq.cqes);

			cqe += (head + i) & (from->cq_entries - 1);
			if (cqe->res < 0) {
				errno = -cqe->res;
				return -1;
			}
		}
		drain(from, 0);
		done += batch;
	}
	return 0;
}

static int own_ring(struct ring *r)
{
	struct io_uring_params p = { 0 };
	int fd = (int)syscall(SYS_io_uring_setup, 64, &p);

	if (fd < 0)
		return -1;
	if (map_ring(r, fd, &p, true, 0)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* uringPost(fd, cqes: Buffer) — gives a ring completions (struct io_uring_cqe), in this order */
static napi_value uring_post(napi_env env, napi_callback_info info)
{
	napi_value args[2], undefined = NULL;
	struct ring own;
	int32_t fd;
	int own_fd, failed, err;
	size_t len;
	void *data;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd))
		return NULL;
	if (napi_get_buffer_info(env, args[1], &data, &len) != napi_ok || len % 16) {
		napi_throw_type_error(env, "ERR_ARGS", "a Buffer with completions was expected");
		return NULL;
	}
	own_fd = own_ring(&own);
	if (own_fd < 0)
		return throw_errno(env, errno, "io_uring_setup");
	failed = post(own_fd, &own, fd, data, (unsigned)(len / 16));
	err = errno;
	unmap_ring(&own);
	close(own_fd);
	if (failed)
		return throw_errno(env, err, "IORING_OP_MSG_RING");
	napi_get_undefined(env, &undefined);
	return undefined;
}

struct advance {
	napi_async_work work;
	napi_deferred deferred;
	struct io_uring_params params;
	int fd;			/* a duplicate of ours */
	pid_t pid;		/* whose ring it is */
	bool with_array;
	uint32_t sq, cq, unread;
	napi_ref stop_ref;
	const _Atomic uint32_t *stop;
	int err;
};

static int advance(struct advance *a)
{
	uint32_t both = a->sq < a->cq ? a->sq : a->cq;
	uint32_t rest = a->cq - both, left = a->cq;
	struct ring r, own;
	int ret = -1, own_fd;

	if (map_ring(&r, a->fd, &a->params, a->with_array, a->pid))
		return -1;
	r.unread = a->unread;
	r.stop = a->stop;
	if (advance_by_nops(&r, a->with_array, both, false, &left) || advance_by_nops(&r, a->with_array, a->sq - both, true, &left))
		goto out;
	if (rest) {
		own_fd = own_ring(&own);
		if (own_fd < 0)
			goto out;
		ret = 0;
		while (!ret && rest > 0) {
			unsigned n = rest < room(&r) ? rest : room(&r);

			ret = is_stopped(&r) ? -1 : post(own_fd, &own, a->fd, NULL, n);
			rest -= n;
			drain(&r, rest);
			if (!ret)
				ret = failed(&r);
		}
		unmap_ring(&own);
		close(own_fd);
	} else
		ret = 0;
out:
	unmap_ring(&r);
	return ret;
}

static void advance_execute(napi_env env, void *data)
{
	struct advance *a = data;

	(void)env;
	errno = 0;
	if (advance(a))
		a->err = errno ? errno : EIO;
}

static void advance_complete(napi_env env, napi_status status, void *data)
{
	struct advance *a = data;
	napi_value value = NULL;

	(void)status;
	if (a->err) {
		(void)throw_errno(env, a->err, "bring a ring's counters on");
		napi_get_and_clear_last_exception(env, &value);
		napi_reject_deferred(env, a->deferred, value);
	} else {
		napi_get_undefined(env, &value);
		napi_resolve_deferred(env, a->deferred, value);
	}
	napi_delete_async_work(env, a->work);
	napi_delete_reference(env, a->stop_ref);
	close(a->fd);
	free(a);
}

/*
 * uringAdvance(fd, pid, params, sq, cq, unread, stop): Promise — brings the counters of a process's ring that any thread may
 * submit to on by so many submissions and completions, the last `unread` of which stay in the queue; its memory is overwritten.
 * In another thread; ends with ECANCELED when the four bytes of `stop` are not 0 any more.
 */
static napi_value uring_advance(napi_env env, napi_callback_info info)
{
	napi_value args[7], promise, name;
	struct io_uring_params *params;
	uint32_t sq, cq, unread;
	struct advance *a;
	int32_t fd, pid;
	size_t len;
	void *stop;

	if (!get_args(env, info, 7, args) || !get_int(env, args[0], &fd) || !get_int(env, args[1], &pid) ||
	    !get_params(env, args[2], &params))
		return NULL;
	if (napi_get_value_uint32(env, args[3], &sq) != napi_ok || napi_get_value_uint32(env, args[4], &cq) != napi_ok ||
	    napi_get_value_uint32(env, args[5], &unread) != napi_ok || napi_get_buffer_info(env, args[6], &stop, &len) != napi_ok ||
	    len != 4 || (uintptr_t)stop % 4) {
		napi_throw_type_error(env, "ERR_ARGS", "three counts and a Buffer of four bytes were expected");
		return NULL;
	}
	a = calloc(1, sizeof(*a));
	if (!a)
		return throw_errno(env, ENOMEM, "malloc");
	*a = (struct advance){ .params = *params, .pid = pid, .sq = sq, .cq = cq, .unread = unread, .stop = stop };
	a->with_array = !(a->params.flags & (1u << 16));
	a->fd = dup(fd);
	if (a->fd < 0 || napi_create_promise(env, &a->deferred, &promise) != napi_ok ||
	    napi_create_string_utf8(env, "uringAdvance", NAPI_AUTO_LENGTH, &name) != napi_ok ||
	    napi_create_reference(env, args[6], 1, &a->stop_ref) != napi_ok ||
	    napi_create_async_work(env, NULL, name, advance_execute, advance_complete, a, &a->work) != napi_ok ||
	    napi_queue_async_work(env, a->work) != napi_ok) {
		if (a->stop_ref)
			napi_delete_reference(env, a->stop_ref);
		if (a->fd >= 0)
			close(a->fd);
		free(a);
		return throw_errno(env, ENOMEM, "start a thread");
	}
	return promise;
}

/* eventfd(count): number — close-on-exec */
static napi_value make_eventfd(napi_env env, napi_callback_info info)
{
	napi_value args[1], result;
	int32_t count;
	int fd;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &count))
		return NULL;
	fd = eventfd((unsigned)count, EFD_CLOEXEC);
	if (fd < 0)
		return throw_errno(env, errno, "eventfd");
	return napi_create_int32(env, fd, &result) == napi_ok ? result : NULL;
}

bool uring_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
#define VERB(name, fn) { name, NULL, fn, NULL, NULL, NULL, napi_default_jsproperty, NULL }
		VERB("uringRead", uring_read), VERB("uringWrite", uring_write), VERB("uringSetup", uring_setup),
		VERB("uringSetupFor", uring_setup_for), VERB("uringRegisterAs", uring_register_as),
		VERB("uringPost", uring_post), VERB("eventfd", make_eventfd), VERB("uringAdvance", uring_advance),
#undef VERB
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
