// SPDX-License-Identifier: Apache-2.0
/* Tasks that are operated on with a parasite in them, for spfs/retire-patient.ts. A patient is named by its thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/syscall.h>

#include "addon.h"
#include "surgeon/freeze.h"
#include "surgeon/patient.h"

static struct patient {
	struct patient *next;
	struct parasite p;
} *patients;

static napi_value undefined(napi_env env)
{
	napi_value v = NULL;

	napi_get_undefined(env, &v);
	return v;
}

static napi_value done_or_throw(napi_env env, int failed, const struct surgeon_error *err)
{
	return failed ? throw_errno(env, err->err, err->step) : undefined(env);
}

/* The patient that the first argument names. */
static struct parasite *get_patient(napi_env env, napi_value value)
{
	struct patient *each;
	int32_t tid;

	if (!get_int(env, value, &tid))
		return NULL;
	for (each = patients; each; each = each->next)
		if (each->p.s.tid == tid)
			return &each->p;
	throw_errno(env, ESRCH, "find the patient");
	return NULL;
}

/* freeze(tids, patience): Int32Array of statuses (surgeon/freeze.h); patience in milliseconds */
static napi_value freeze(napi_env env, napi_callback_info info)
{
	napi_value args[2], buffer, result;
	int32_t *tids, patience;
	void *status;
	size_t n;

	if (!get_args(env, info, 2, args) || !get_ints(env, args[0], &tids, &n) || !get_int(env, args[1], &patience))
		return NULL;
	if (napi_create_arraybuffer(env, n * sizeof(int), &status, &buffer) != napi_ok ||
	    napi_create_typedarray(env, napi_int32_array, n, buffer, 0, &result) != napi_ok)
		return throw_errno(env, ENOMEM, "freeze");
	surgeon_freeze(tids, (unsigned int)n, patience, status);
	return result;
}

/* thaw(tids) */
static napi_value thaw(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int32_t *tids;
	size_t n;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &tids, &n))
		return NULL;
	surgeon_thaw(tids, (unsigned int)n);
	return undefined(env);
}

/* thawLate(): number: lets those go that stopped too late; how many have not stopped yet */
static napi_value thaw_late(napi_env env, napi_callback_info info)
{
	napi_value result;

	(void)info;
	return napi_create_uint32(env, surgeon_thaw_late(), &result) == napi_ok ? result : NULL;
}

/* patientStart(tid, avoid) */
static napi_value patient_start(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	struct patient *patient;
	napi_value args[2];
	uint64_t avoid;
	int32_t tid;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &tid) || !get_u64(env, args[1], &avoid))
		return NULL;
	patient = malloc(sizeof(*patient));
	if (!patient)
		return throw_errno(env, ENOMEM, "patientStart");
	if (parasite_start(&patient->p, tid, avoid, &err)) {
		free(patient);
		return throw_errno(env, err.err, err.step);
	}
	patient->next = patients;
	patients = patient;
	return undefined(env);
}

/* patientEnd(tid) */
static napi_value patient_end(napi_env env, napi_callback_info info)
{
	struct patient **at, *patient;
	struct surgeon_error err;
	struct parasite *p;
	napi_value args[1];
	int failed;

	if (!get_args(env, info, 1, args) || !(p = get_patient(env, args[0])))
		return NULL;
	failed = parasite_cure(p, &err);
	for (at = &patients; &(*at)->p != p; at = &(*at)->next)
		;
	patient = *at;
	*at = patient->next;
	free(patient);
	return done_or_throw(env, failed, &err);
}

/*
 * patientSwapFds(Int32Array [tid, fd, ours, locks, watches]..., BigInt64Array [kind, type, start, length]...,
 * BigInt64Array [epfd, events, data, always, result]...): [errno, step, ...done]; 0 and "" when all were; rows of one task are
 * together, and `done` is one number a task; `result` is written
 */
static napi_value swap_fds(napi_env env, napi_callback_info info)
{
	napi_value args[3], result = NULL, element;
	struct surgeon_error err = { "", 0 };
	struct patient_part *parts = NULL;
	struct patient_swap *swaps = NULL;
	struct patient_watch *watches = NULL;
	const struct patient_lock *lock;
	size_t n, n_locks, n_watches, i, watch = 0;
	int64_t *locks, *told;
	unsigned int count = 0;
	int32_t *rows;

	if (!get_args(env, info, 3, args) || !get_ints(env, args[0], &rows, &n) || !get_longs(env, args[1], &locks, &n_locks) ||
	    !get_longs(env, args[2], &told, &n_watches))
		return NULL;
	n /= 5;
	n_watches /= 5;
	lock = (const void *)locks;
	parts = calloc(n + 1, sizeof(*parts));
	swaps = calloc(n + 1, sizeof(*swaps));
	watches = calloc(n_watches + 1, sizeof(*watches));
	if (!parts || !swaps || !watches) {
		throw_errno(env, ENOMEM, "patientSwapFds");
		goto out;
	}
	for (i = 0; i < n_watches; i++)
		watches[i] = (struct patient_watch){ .epfd = (int32_t)told[i * 5], .events = (uint32_t)told[i * 5 + 1],
						     .data = (uint64_t)told[i * 5 + 2], .always = told[i * 5 + 3] != 0,
						     .result = ENOENT };
	for (i = 0; i < n; i++, rows += 5) {
		struct patient_part *part = count ? &parts[count - 1] : NULL;

		if (!part || part->p->s.tid != rows[0]) {
			struct patient *each = patients;

			while (each && each->p.s.tid != rows[0])
				each = each->next;
			if (!each) {
				throw_errno(env, ESRCH, "find the patient");
				goto out;
			}
			part = &parts[count++];
			part->p = &each->p;
			part->swaps = &swaps[i];
			part->locks = lock;
			part->watches = &watches[watch];
		}
		swaps[i] = (struct patient_swap){ rows[1], rows[2], rows[3], rows[4] };
		part->n++;
		if (rows[3] < 0 || lock + rows[3] > (struct patient_lock *)locks + n_locks / 4 || rows[4] < 0 ||
		    watch + (size_t)rows[4] > n_watches) {
			throw_errno(env, EINVAL, "patientSwapFds");
			goto out;
		}
		part->n_locks += (unsigned int)rows[3];
		lock += rows[3];
		part->n_watches += (unsigned int)rows[4];
		watch += (size_t)rows[4];
	}
	if (!count || !patient_swap_fds(parts, count, &err))
		err = (struct surgeon_error){ "", 0 };
	for (i = 0; i < n_watches; i++)
		told[i * 5 + 4] = watches[i].result;
	if (napi_create_array_with_length(env, 2 + count, &result) != napi_ok ||
	    napi_create_int32(env, err.err, &element) != napi_ok || napi_set_element(env, result, 0, element) != napi_ok ||
	    napi_create_string_utf8(env, err.step, NAPI_AUTO_LENGTH, &element) != napi_ok ||
	    napi_set_element(env, result, 1, element) != napi_ok)
		goto out;
	for (i = 0; i < count; i++)
		if (napi_create_uint32(env, parts[i].done, &element) != napi_ok ||
		    napi_set_element(env, result, 2 + (uint32_t)i, element) != napi_ok)
			break;
out:
	free(parts);
	free(swaps);
	free(watches);
	return result;
}

/* patientChdir(tid, root, cwd) */
static napi_value chdir_patient(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	struct parasite *p;
	napi_value args[3];
	int32_t root, cwd;

	if (!get_args(env, info, 3, args) || !(p = get_patient(env, args[0])) || !get_int(env, args[1], &root) ||
	    !get_int(env, args[2], &cwd))
		return NULL;
	return done_or_throw(env, patient_chdir(p, root, cwd, &err), &err);
}

/* patientRemap(tid, ours, addr, length, offset, Int32Array [prot, flags, pkey, locked, ...advice]) */
static napi_value remap(napi_env env, napi_callback_info info)
{
	struct patient_mapping map = { 0 };
	struct surgeon_error err;
	struct parasite *p;
	napi_value args[6];
	int32_t ours, *how;
	size_t n;

	if (!get_args(env, info, 6, args) || !(p = get_patient(env, args[0])) || !get_int(env, args[1], &ours) ||
	    !get_u64(env, args[2], &map.addr) || !get_u64(env, args[3], &map.len) || !get_u64(env, args[4], &map.offset) ||
	    !get_ints(env, args[5], &how, &n))
		return NULL;
	if (n < 4)
		return throw_errno(env, EINVAL, "patientRemap");
	map.prot = how[0];
	map.flags = how[1];
	map.pkey = how[2];
	map.locked = how[3];
	map.advice = how + 4;
	map.advices = (unsigned int)n - 4;
	return done_or_throw(env, patient_remap(p, &map, ours, &err), &err);
}

/* patientExe(tid, ours) */
static napi_value exe(napi_env env, napi_callback_info info)
{
	struct surgeon_error err;
	struct parasite *p;
	napi_value args[2];
	int32_t ours;

	if (!get_args(env, info, 2, args) || !(p = get_patient(env, args[0])) || !get_int(env, args[1], &ours))
		return NULL;
	return done_or_throw(env, patient_exe(p, ours, &err), &err);
}

/* kcmp(pid1, pid2, type, a, b): number, 0 when they are the same, 1 and 2 order them */
static napi_value kcmp_call(napi_env env, napi_callback_info info)
{
	int32_t pid[2], type, at[2];
	napi_value args[5], result;
	long ret;

	if (!get_args(env, info, 5, args) || !get_int(env, args[0], &pid[0]) || !get_int(env, args[1], &pid[1]) ||
	    !get_int(env, args[2], &type) || !get_int(env, args[3], &at[0]) || !get_int(env, args[4], &at[1]))
		return NULL;
	ret = syscall(SYS_kcmp, pid[0], pid[1], type, (unsigned long)at[0], (unsigned long)at[1]);
	if (ret < 0)
		return throw_errno(env, errno, "kcmp");
	return napi_create_int32(env, (int32_t)ret, &result) == napi_ok ? result : NULL;
}

/* The process, or on Linux 6.9 the thread. */
static int open_task(pid_t tid)
{
	int fd = (int)syscall(SYS_pidfd_open, tid, 0);

	return fd < 0 ? (int)syscall(SYS_pidfd_open, tid, O_EXCL) : fd;
}

#define KIND_OF_OPEN (O_ACCMODE | O_PATH)

/* Gives ours the position and the flags that a program may change; the access must be the same. */
static int copy_one(int old, int ours, bool position)
{
	int flags = fcntl(old, F_GETFL), now = fcntl(ours, F_GETFL);
	off_t at;

	if (flags < 0 || now < 0)
		return errno;
	if ((flags & KIND_OF_OPEN) != (now & KIND_OF_OPEN))
		return EBADF;
	if (flags & O_PATH)
		return 0;
	if (flags != now && fcntl(ours, F_SETFL, flags))
		return errno;
	if (!position)
		return 0;
	at = lseek(old, 0, SEEK_CUR);
	return at < 0 || lseek(ours, at, SEEK_SET) == at ? 0 : errno;
}

/*
 * copyState(Int32Array [tid, fd, ours, position]...): Int32Array of our descriptors for what the tasks have there, or -errno.
 * Each of ours becomes as that: its flags and, where it is asked for, its position. -EBADF: it is open for something else.
 */
static napi_value copy_state(napi_env env, napi_callback_info info)
{
	napi_value args[1], buffer, result;
	int task = -1, of = 0;
	int32_t *in, *out;
	size_t n, i;
	void *data;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &in, &n))
		return NULL;
	n /= 4;
	if (napi_create_arraybuffer(env, n * sizeof(*out), &data, &buffer) != napi_ok ||
	    napi_create_typedarray(env, napi_int32_array, n, buffer, 0, &result) != napi_ok)
		return throw_errno(env, ENOMEM, "copyState");
	out = data;
	for (i = 0; i < n; i++, in += 4) {
		int err;

		if (of != in[0]) {
			if (task >= 0)
				close(task);
			task = open_task(in[0]);
			of = in[0];
		}
		out[i] = (int)syscall(SYS_pidfd_getfd, task, in[1], 0);
		if (out[i] < 0) {
			out[i] = -errno;
			continue;
		}
		err = in[2] < 0 ? 0 : copy_one(out[i], in[2], in[3]);
		if (err) {
			close(out[i]);
			out[i] = -err;
		}
	}
	if (task >= 0)
		close(task);
	return result;
}

struct closing {
	const int32_t *fds;
	size_t n;
	atomic_size_t next;
};

static void *close_some(void *of)
{
	struct closing *c = of;

	for (size_t i; (i = atomic_fetch_add(&c->next, 1)) < c->n;)
		if (c->fds[i] >= 0)
			close(c->fds[i]);
	return NULL;
}

/* closeAll(Int32Array): by several threads, for a FUSE server is asked at each (FLUSH), and waited for */
static napi_value close_all(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	struct closing c = { 0 };
	pthread_t threads[7];
	size_t started = 0;
	int32_t *fds;

	if (!get_args(env, info, 1, args) || !get_ints(env, args[0], &fds, &c.n))
		return NULL;
	c.fds = fds;
	/* Where there is no thread to be had it takes longer. */
	while (started < sizeof(threads) / sizeof(*threads) && (started + 1) * 16 < c.n &&
	       !pthread_create(&threads[started], NULL, close_some, &c))
		started++;
	close_some(&c);
	while (started > 0)
		pthread_join(threads[--started], NULL);
	return undefined(env);
}

/* position(fd): bigint — of a directory's stream it is any number */
static napi_value position(napi_env env, napi_callback_info info)
{
	napi_value args[1], result;
	int32_t fd;
	off_t at;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	at = lseek(fd, 0, SEEK_CUR);
	if (at < 0)
		return throw_errno(env, errno, "lseek");
	return napi_create_bigint_int64(env, at, &result) == napi_ok ? result : NULL;
}

/* setPosition(fd, position) */
static napi_value set_position(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	uint64_t at;
	int32_t fd;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &fd) || !get_u64(env, args[1], &at))
		return NULL;
	return lseek(fd, (off_t)at, SEEK_SET) < 0 ? throw_errno(env, errno, "lseek") : undefined(env);
}

bool patient_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
#define VERB(name, fn) { name, NULL, fn, NULL, NULL, NULL, napi_enumerable, NULL }
		VERB("freeze", freeze), VERB("thaw", thaw), VERB("thawLate", thaw_late), VERB("patientStart", patient_start),
		VERB("patientEnd", patient_end), VERB("patientSwapFds", swap_fds),
		VERB("patientChdir", chdir_patient), VERB("patientRemap", remap),
		VERB("patientExe", exe), VERB("kcmp", kcmp_call), VERB("copyState", copy_state),
		VERB("closeAll", close_all),
		VERB("position", position), VERB("setPosition", set_position),
#undef VERB
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
