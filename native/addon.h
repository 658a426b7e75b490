/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_ADDON_H
#define CRYOSHIM_ADDON_H

#include <node_api.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Throws an Error with `code` (the errno's name), `errno` and `syscall`, as Node's own do. Returns NULL. */
napi_value throw_errno(napi_env env, int err, const char *syscall_name);

napi_value make_int(napi_env env, int32_t n);

/* An array of so many, each of so many bytes, and its memory; NULL where there is none for it. */
napi_value make_array(napi_env env, napi_typedarray_type type, size_t n, size_t each, void **data);

/* All throw and return false when the caller gave something else. Arrays are lent. */
bool get_args(napi_env env, napi_callback_info info, size_t want, napi_value *args);
bool get_int(napi_env env, napi_value value, int32_t *out);
bool get_u64(napi_env env, napi_value value, uint64_t *out);
bool get_ints(napi_env env, napi_value value, int32_t **ints, size_t *n);
bool get_longs(napi_env env, napi_value value, int64_t **longs, size_t *n);
/* Latin1: each byte a character. */
bool get_path(napi_env env, napi_value value, char *path, size_t size);

/*
 * Does `work` in another network or ipc namespace (`type`: CLONE_NEWNET, CLONE_NEWIPC), given as an nsfd or pidfd; this
 * thread, and no other, is there meanwhile. Returns what `work` does, or -1 with errno when it cannot get there.
 */
long in_namespace(int ns, int type, long (*work)(void *), void *arg);

/* The verbs of the ptrace surgeon (addon_surgeon.c). */
napi_value surgeon_register(napi_env env, napi_value exports);

/* bpf(2) (addon_bpf.c). */
napi_value bpf_call(napi_env env, napi_callback_info info);
napi_value mount_bpffs(napi_env env, napi_callback_info info);
napi_value cgroup_root(napi_env env, napi_callback_info info);

/* POSIX message queues (addon_mqueue.c). */
bool mqueue_register(napi_env env, napi_value exports);

/* Sockets of other processes (addon_socket.c). */
bool socket_register(napi_env env, napi_value exports);

/* The stub-proxy file system's control (addon_spfs.c). */
bool spfs_register(napi_env env, napi_value exports);

/* pidfds (addon_pidfd.c). */
bool pidfd_register(napi_env env, napi_value exports);

/* System calls for many descriptors at once (addon_many.c). */
bool many_register(napi_env env, napi_value exports);

/* Tasks that are operated on (addon_patient.c), and what takes a mount's place (addon_retire.c). */
bool patient_register(napi_env env, napi_value exports);
bool retire_register(napi_env env, napi_value exports);

/* Copies of mounts (addon_mount.c). */
bool mount_register(napi_env env, napi_value exports);

/* io_uring rings (addon_uring.c). */
bool uring_register(napi_env env, napi_value exports);

#endif
