/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SPFS_BACKEND_H
#define SPFS_BACKEND_H

/* Nodes as files of the backend. Functions that return int give 0 or an errno. */
#include "server.h"

#define TTL_MS 1000 /* for how long the kernel may trust attributes and names: this is how changes at the backend are noticed */
#define PROC_PATH 32

/*
 * Of which backend what this thread finds is: what comes from one that has been let go of meanwhile is not remembered (ESTALE), for
 * numbers of files are another's by then.
 */
void work_in(uint32_t session);

/* A descriptor that is used for a moment. */
struct ref {
	int fd;
	bool ours;	/* to be closed */
};
void ref_put(struct ref *r);

/* O_PATH of a node; of directories it is kept. */
int node_ref(uint32_t node, struct ref *out);
/* The directory of one of its names, and that name (256 bytes); ESTALE when it has none. */
int node_parent(uint32_t node, struct ref *dir, char *name);
/* Asks for its attributes, and remembers them; `a` is what was told now. */
int node_stat(uint32_t node, struct attr *a);
/* Opens it; of `flags` what open(2) makes new is left out. Returns a descriptor or -errno. */
int node_open(uint32_t node, uint32_t flags);
/* Before its last name goes: something to reach it by. */
void node_keep(uint32_t node);
/* /proc/self/fd/N */
const char *proc_path(int fd, char *path);

/* The node that the backend has under a name. `st` is what it says. Locks the tree; refers to it for the kernel. */
int entry(uint32_t parent, const char *name, const struct stat *st, struct fuse_entry_out *out);
void node_learn(uint32_t node, const struct stat *st);

/* A handle's descriptor, opened if it must be; or -errno. */
int handle_fd(struct handle *h);

/* As the caller, for what is made or judged by who does it; become() is undone by come_back(). */
void become(const struct request *r);
void come_back(void);

/*
 * Takes away the bits that give rights to who runs a file, as the kernel does when it is changed. Where even root may not (an NFS
 * server that takes him for nobody) the server takes them away itself. Returns an errno.
 */
int kill_rights(int fd);

/* Whether an error says that the backend is gone. */
bool backend_lost(int error);

#endif
