/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_NODES_H
#define SPFS_NODES_H

/* The tree as this worker finds it: its indexes over the shared arrays. All of it is guarded by `tree`, held for moments only. */
#include <pthread.h>

#include "state.h"

#define ROOT 0u /* the kernel's nodeid is one more */

extern pthread_mutex_t tree;

/* Makes the indexes from the arrays; in a new worker, before its threads. */
int nodes_index(void);

/* A node's number, or NONE when there is no more room. */
uint32_t node_new(const struct attr *a, uint32_t flags);
void node_target(uint32_t node, const char *target, uint32_t len);
/* The node of a request, or NONE. */
uint32_t node_of(uint64_t nodeid);
uint32_t node_by_id(uint64_t dev, uint64_t ino);
void node_identify(uint32_t node, uint64_t dev, uint64_t ino);
/* Frees a node that nothing knows any more. */
void node_settle(uint32_t node);
/* Whether it has handles that keep its inode in the page cache's mode. */
bool node_cached(uint32_t node);
bool node_passed_through(uint32_t node);
/* Gives back its number for passthrough. */
void node_unback(uint32_t node);
uint32_t nodes_count(void);

uint32_t name_new(uint32_t parent, uint32_t node, const char *name, size_t len, uint32_t flags);
/* The name that is to be seen, or NONE. */
uint32_t name_find(uint32_t parent, const char *name, size_t len);
uint32_t name_first(uint32_t node);
uint32_t name_next(uint32_t name);
void name_free(uint32_t name);
bool node_has_children(uint32_t node);

uint32_t handle_new(uint32_t node, uint32_t flags, uint32_t open_flags, int fd);
/* The handle of a request, or NULL. */
struct handle *handle_of(uint64_t fh);
uint64_t handle_number(uint32_t handle);
/* Any handle of a node, or NULL; handle_next walks on. */
struct handle *handle_first(uint32_t node);
struct handle *handle_next(struct handle *h);
/* Forgets a handle; returns its descriptor, for the caller to close. */
int handle_free(struct handle *h);
uint32_t handles_count(void);


/* Its path below the mount, "" for the root; false: it has none, or too long a one. */
bool node_path(uint32_t node, char *path, size_t size);

#endif
