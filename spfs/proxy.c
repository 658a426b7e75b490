// SPDX-License-Identifier: Apache-2.0
/* The proxy: names and attributes. What changes them is done as the caller, who may not be root to the backend. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "proxy.h"
#include "stub.h"
#include "switch.h"

static int node_asked(struct request *r, uint32_t *n)
{
	pthread_mutex_lock(&tree);
	*n = node_of(r->in->nodeid);
	pthread_mutex_unlock(&tree);
	return *n == NONE ? ESTALE : 0;
}

/* Does something as the caller; who is refused there may still be one who has been let through here (a capability). */
#define AS_CALLER(r, result, call)                                                                 \
	do {                                                                                       \
		become(r);                                                                         \
		(result) = (call);                                                                 \
		come_back();                                                                       \
		if ((result) < 0 && (errno == EACCES || errno == EPERM) && (r)->in->uid)           \
			(result) = (call);                                                         \
	} while (0)

static int reply_entry(struct request *r, uint32_t parent, int dir, const char *name)
{
	struct fuse_entry_out out;
	struct stat st;
	int error;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
		return errno;
	error = entry(parent, name, &st, &out);
	if (!error)
		reply(r, 0, &out, sizeof(out));
	return error;
}

static int lookup(struct request *r)
{
	const char *name = argument_name(r, 0);
	struct ref dir;
	uint32_t n;
	int error;

	if (!name)
		return 0;
	error = node_asked(r, &n);
	if (!error)
		error = node_ref(n, &dir);
	if (error)
		return error;
	error = reply_entry(r, n, dir.fd, name);
	ref_put(&dir);
	return error;
}

static int reply_attr(struct request *r, uint32_t n)
{
	struct fuse_attr_out out = { 0 };
	struct attr a;
	uint64_t ttl;
	int error = node_stat(n, &a);

	if (error)
		return error;
	ttl = attr_ttl(a.mode, TTL_MS);
	out.attr_valid = ttl / 1000;
	out.attr_valid_nsec = (uint32_t)(ttl % 1000) * 1000000;
	fill_attr(&out.attr, &a);
	reply(r, 0, &out, sizeof(out));
	return 0;
}

static int getattr(struct request *r)
{
	uint32_t n;
	int error = node_asked(r, &n);

	return error ? error : reply_attr(r, n);
}

static struct timespec when(const struct fuse_setattr_in *in, bool atime)
{
	uint32_t set = atime ? FATTR_ATIME : FATTR_MTIME, now = atime ? FATTR_ATIME_NOW : FATTR_MTIME_NOW;

	if (!(in->valid & set))
		return (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (in->valid & now)
		return (struct timespec){ .tv_nsec = UTIME_NOW };
	return atime ? (struct timespec){ (time_t)in->atime, in->atimensec } :
		       (struct timespec){ (time_t)in->mtime, in->mtimensec };
}

static int change(struct request *r, const struct fuse_setattr_in *in, int fd, int writable)
{
	const struct timespec times[2] = { when(in, true), when(in, false) };
	char path[PROC_PATH];
	int result = 0, error;

	proc_path(fd, path);
	if (in->valid & (FATTR_UID | FATTR_GID))
		AS_CALLER(r, result, chown(path, in->valid & FATTR_UID ? in->uid : (uid_t)-1,
					   in->valid & FATTR_GID ? in->gid : (gid_t)-1));
	error = !result && in->valid & FATTR_KILL_SUIDGID ? kill_rights(fd) : 0;
	if (error)
		return error;
	if (!result && in->valid & FATTR_MODE)
		AS_CALLER(r, result, chmod(path, in->mode & 07777));
	if (!result && in->valid & FATTR_SIZE) {
		if (writable >= 0)
			result = ftruncate(writable, (off_t)in->size);
		else
			AS_CALLER(r, result, truncate(path, (off_t)in->size));
	}
	if (!result && in->valid & (FATTR_ATIME | FATTR_MTIME))
		AS_CALLER(r, result, utimensat(AT_FDCWD, path, times, 0));
	return result ? errno : 0;
}

static int setattr(struct request *r)
{
	const struct fuse_setattr_in *in = argument(r, sizeof(*in));
	int error, writable = -1;
	struct handle *h;
	struct ref ref;
	uint32_t n;

	if (!in)
		return 0;
	error = node_asked(r, &n);
	if (!error)
		error = node_ref(n, &ref);
	if (error)
		return error;
	if (in->valid & FATTR_FH && (h = handle_of(in->fh)))
		writable = handle_fd(h);
	error = change(r, in, ref.fd, writable);
	ref_put(&ref);
	return error ? error : reply_attr(r, n);
}

static int readlink_(struct request *r)
{
	struct ref ref;
	uint32_t n;
	ssize_t len;
	int error = node_asked(r, &n);

	if (!error)
		error = node_ref(n, &ref);
	if (error)
		return error;
	len = readlinkat(ref.fd, "", (char *)r->buffer, 4095);
	error = len < 0 ? errno : 0;
	ref_put(&ref);
	if (!error)
		reply(r, 0, r->buffer, (size_t)len);
	return error;
}

/* MKNOD, MKDIR, SYMLINK */
static int make(struct request *r)
{
	const struct fuse_mknod_in *mknod = (const void *)r->arg;
	const struct fuse_mkdir_in *mkdir = (const void *)r->arg;
	size_t head = r->in->opcode == FUSE_MKNOD ? sizeof(*mknod) : r->in->opcode == FUSE_MKDIR ? sizeof(*mkdir) : 0;
	const char *name, *target = NULL;
	struct ref dir;
	uint32_t n;
	int error, result;

	if (!argument(r, head) || !(name = argument_name(r, head)))
		return 0;
	error = node_asked(r, &n);
	if (!error)
		error = node_ref(n, &dir);
	if (error)
		return error;
	if (r->in->opcode == FUSE_MKDIR) {
		umask(mkdir->umask & 0777);
		AS_CALLER(r, result, mkdirat(dir.fd, name, mkdir->mode & 07777));
	} else if (r->in->opcode == FUSE_MKNOD) {
		umask(mknod->umask & 0777);
		AS_CALLER(r, result, mknodat(dir.fd, name, mknod->mode,
					     makedev((mknod->rdev >> 8) & 0xfff, (mknod->rdev & 0xff) | ((mknod->rdev >> 12) & 0xfff00))));
	} else {
		target = name + strlen(name) + 1;
		if (target >= (const char *)r->arg + r->len || !memchr(target, 0, r->len - (size_t)(target - (const char *)r->arg))) {
			ref_put(&dir);
			return EINVAL;
		}
		AS_CALLER(r, result, symlinkat(target, dir.fd, name));
	}
	error = result && !(r->again && errno == EEXIST) ? errno : 0;
	umask(0);
	if (!error)
		error = reply_entry(r, n, dir.fd, name);
	ref_put(&dir);
	return error;
}

static int unlink_(struct request *r)
{
	const char *name = argument_name(r, 0);
	struct ref dir;
	uint32_t n, at, child = NONE;
	int error, result;

	if (!name)
		return 0;
	error = node_asked(r, &n);
	if (!error)
		error = node_ref(n, &dir);
	if (error)
		return error;
	pthread_mutex_lock(&tree);
	at = name_find(n, name, strlen(name));
	child = at == NONE ? NONE : names[at].node;
	pthread_mutex_unlock(&tree);
	if (child != NONE)
		node_keep(child);
	AS_CALLER(r, result, unlinkat(dir.fd, name, r->in->opcode == FUSE_RMDIR ? AT_REMOVEDIR : 0));
	error = result ? errno : 0;
	ref_put(&dir);
	if (error && !(r->again && error == ENOENT))
		return error;
	pthread_mutex_lock(&tree);
	at = name_find(n, name, strlen(name));
	if (at != NONE) {
		child = names[at].node;
		name_free(at);
		node_settle(child);
	}
	pthread_mutex_unlock(&tree);
	reply(r, 0, NULL, 0);
	return 0;
}

/* The backend has renamed: the names here follow. */
static void renamed(uint32_t from, const char *name, uint32_t to, const char *other, uint32_t flags)
{
	uint32_t at, over, n, old = NONE;

	pthread_mutex_lock(&tree);
	at = name_find(from, name, strlen(name));
	over = name_find(to, other, strlen(other));
	n = at == NONE ? NONE : names[at].node;
	if (over != NONE) {
		old = names[over].node;
		name_free(over);
	}
	if (at != NONE && at != over)
		name_free(at);
	if (n != NONE && name_new(to, n, other, strlen(other), 0) == NONE)
		say("no room for a name");
	if (old != NONE && flags & RENAME_EXCHANGE && name_new(from, old, name, strlen(name), 0) == NONE)
		say("no room for a name");
	if (old != NONE)
		node_settle(old);
	pthread_mutex_unlock(&tree);
}

static int rename_(struct request *r)
{
	const struct fuse_rename2_in *in;
	size_t head = r->in->opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(*in);
	const char *name, *other;
	uint32_t n, to, over, flags;
	struct ref dir, dir2;
	int error, result;

	in = argument(r, head);
	if (!in || !(name = argument_name(r, head)) || !(other = argument_name(r, head + strlen(name) + 1)))
		return 0;
	flags = r->in->opcode == FUSE_RENAME ? 0 : in->flags;
	error = node_asked(r, &n);
	pthread_mutex_lock(&tree);
	to = node_of(in->newdir);
	over = to == NONE ? NONE : name_find(to, other, strlen(other));
	over = over == NONE ? NONE : names[over].node;
	pthread_mutex_unlock(&tree);
	if (error || to == NONE)
		return ESTALE;
	error = node_ref(n, &dir);
	if (error)
		return error;
	error = node_ref(to, &dir2);
	if (error) {
		ref_put(&dir);
		return error;
	}
	if (over != NONE && !(flags & RENAME_EXCHANGE))
		node_keep(over);
	AS_CALLER(r, result, (int)syscall(SYS_renameat2, dir.fd, name, dir2.fd, other, flags));
	error = result ? errno : 0;
	ref_put(&dir);
	ref_put(&dir2);
	if (error && !(r->again && error == ENOENT))
		return error;
	renamed(n, name, to, other, flags);
	reply(r, 0, NULL, 0);
	return 0;
}

static int link_(struct request *r)
{
	const struct fuse_link_in *in = argument(r, sizeof(*in));
	const char *name;
	struct ref dir, old;
	char path[PROC_PATH];
	uint32_t n, from;
	int error, result;

	if (!in || !(name = argument_name(r, sizeof(*in))))
		return 0;
	error = node_asked(r, &n);
	pthread_mutex_lock(&tree);
	from = node_of(in->oldnodeid);
	pthread_mutex_unlock(&tree);
	if (error || from == NONE)
		return ESTALE;
	error = node_ref(n, &dir);
	if (error)
		return error;
	error = node_ref(from, &old);
	if (error) {
		ref_put(&dir);
		return error;
	}
	/* What is linked by its descriptor is what was meant, whatever has its name by now. */
	AS_CALLER(r, result, linkat(AT_FDCWD, proc_path(old.fd, path), dir.fd, name, AT_SYMLINK_FOLLOW));
	error = result && !(r->again && errno == EEXIST) ? errno : 0;
	if (!error)
		error = reply_entry(r, n, dir.fd, name);
	ref_put(&dir);
	ref_put(&old);
	return error;
}

static int statfs_(struct request *r)
{
	struct fuse_statfs_out out = { 0 };
	struct statfs st;

	if (fstatfs(S->backend, &st))
		return errno;
	out.st = (struct fuse_kstatfs){
		.blocks = st.f_blocks, .bfree = st.f_bfree, .bavail = st.f_bavail, .files = st.f_files,
		.ffree = st.f_ffree, .bsize = (uint32_t)st.f_bsize, .namelen = (uint32_t)st.f_namelen,
		.frsize = (uint32_t)st.f_frsize,
	};
	reply(r, 0, &out, sizeof(out));
	return 0;
}

static int dispatch(struct request *r)
{
	switch (r->in->opcode) {
	case FUSE_LOOKUP:
		return lookup(r);
	case FUSE_GETATTR:
		return getattr(r);
	case FUSE_SETATTR:
		return setattr(r);
	case FUSE_READLINK:
		return readlink_(r);
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
		return make(r);
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		return unlink_(r);
	case FUSE_RENAME:
	case FUSE_RENAME2:
		return rename_(r);
	case FUSE_LINK:
		return link_(r);
	case FUSE_STATFS:
		return statfs_(r);
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		return proxy_open(r);
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		return proxy_create(r);
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		return proxy_release(r);
	case FUSE_FLUSH:
		return proxy_flush(r);
	case FUSE_READ:
		return proxy_read(r);
	case FUSE_WRITE:
		return proxy_write(r);
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		return proxy_fsync(r);
	case FUSE_FALLOCATE:
		return proxy_fallocate(r);
	case FUSE_LSEEK:
		return proxy_lseek(r);
	case FUSE_COPY_FILE_RANGE:
	case OP_COPY_FILE_RANGE_64:
		return proxy_copy(r);
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		return proxy_readdir(r);
	case FUSE_SETXATTR:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_REMOVEXATTR:
		return proxy_xattr(r);
	case FUSE_ACCESS:
		reply(r, 0, NULL, 0);
		return 0;
	default:
		return ENOSYS;
	}
}

void proxy_serve(struct request *r)
{
	bool local, gone;
	uint32_t n;
	int error;

	pthread_mutex_lock(&tree);
	n = node_of(r->in->nodeid);
	local = n != NONE && nodes[n].flags & NODE_LOCAL;
	gone = n != NONE && nodes[n].flags & NODE_GONE && r->in->opcode != FUSE_RELEASE &&
	       r->in->opcode != FUSE_RELEASEDIR && r->in->opcode != FUSE_FLUSH;
	pthread_mutex_unlock(&tree);
	if (local) {
		restore_serve(r);
		return;
	}
	if (gone && S->gone_waits) {
		stub_hold(r);
		return;
	}
	work_in(r->session);
	if (changes(r->in->opcode))
		journal_begin(r);
	error = gone ? ESTALE : dispatch(r);
	if (!error || r->answered)
		return;
	if (!gone && (r->session != S->session || S->phase != SPFS_PHASE_PROXY || (S->on_loss_stub && backend_lost(error)))) {
		switch_lost(r->session);
		serve(r); /* waits, or goes to the backend that has come meanwhile */
		return;
	}
	if (r->written)
		reply(r, 0, &(struct fuse_write_out){ .size = r->written }, sizeof(struct fuse_write_out));
	else
		reply(r, error, NULL, 0);
}
