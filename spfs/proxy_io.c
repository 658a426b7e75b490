// SPDX-License-Identifier: Apache-2.0
/*
 * The proxy: open files. Where the kernel can, reads and writes do not come here at all (FUSE_PASSTHROUGH, Linux 6.9): the open
 * is answered with a backing file. The kernel refuses to mix that with the page cache on one inode (fs/fuse/iomode.c), so an
 * inode that has a handle of the other kind, as those of RESTORE are, stays with it until that is closed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proxy.h"

/*
 * What is passed through is done with the credentials of who asks for it here. Without CAP_FSETID, so that a write takes away the
 * bits that give rights to who runs the file: the kernel leaves that to this server, which does not hear of it.
 */
static int32_t backing_open(int fd)
{
	struct __user_cap_header_struct thread = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct had[_LINUX_CAPABILITY_U32S_3], have[_LINUX_CAPABILITY_U32S_3];
	struct backing_map map = { .fd = fd };
	int32_t id;

	if (syscall(SYS_capget, &thread, had))
		return -1;
	memcpy(have, had, sizeof(have));
	have[CAP_TO_INDEX(CAP_FSETID)].effective &= ~CAP_TO_MASK(CAP_FSETID);
	if (syscall(SYS_capset, &thread, have))
		return -1;
	id = ioctl(S->fuse, DEV_IOC_BACKING_OPEN, &map);
	if (syscall(SYS_capset, &thread, had))
		say("cannot be what it was: %s", strerror(errno));
	return id;
}

/*
 * The kernel's number for the file to read and write through; 0: none. As long as one open file of an inode is passed through, all
 * must be, and to the same file (fs/fuse/iomode.c): so one of an earlier backend is kept until the last is closed.
 */
static int32_t backing(uint32_t n, int fd, bool in_use)
{
	int32_t id = nodes[n].backing;

	if (id && (in_use || nodes[n].backing_session == S->session))
		return id;
	node_unback(n);
	id = backing_open(fd);
	if (id > 0) {
		nodes[n].backing_session = S->session;
		nodes[n].backing = id;
	}
	return id > 0 ? id : 0;
}

/* A handle of the kind that its inode can have now; fills the answer. The tree is locked. */
static uint32_t handle_fit(struct request *r, uint32_t n, uint32_t flags, int fd, struct open_out *out)
{
	uint32_t kind = HANDLE_CACHED, h;
	int32_t id = 0;

	out->open_flags = 0;
	if (S_ISDIR(nodes[n].a.mode)) {
		kind = HANDLE_DIR;
	} else if (S->passthrough && (!S->no_passthrough || node_passed_through(n)) && S_ISREG(nodes[n].a.mode) && !node_cached(n) &&
		   (id = backing(n, fd, node_passed_through(n)))) {
		kind = HANDLE_PASSTHROUGH;
		out->open_flags = OPEN_PASSTHROUGH;
		out->backing_id = id;
	}
	/* Closing what was only read tells nothing. */
	if ((flags & O_ACCMODE) == O_RDONLY)
		out->open_flags |= FOPEN_NOFLUSH;
	h = handle_new(n, kind, flags, fd);
	if (h == NONE)
		return NONE;
	handles[h].uid = r->in->uid;
	handles[h].gid = r->in->gid;
	r->journal->handle = h;
	out->fh = handle_number(h);
	return h;
}

int proxy_open(struct request *r)
{
	const struct fuse_open_in *in = argument(r, sizeof(*in));
	struct open_out out = { 0 };
	uint32_t n, h;
	int fd, error;

	if (!in)
		return 0;
	pthread_mutex_lock(&tree);
	n = node_of(r->in->nodeid);
	pthread_mutex_unlock(&tree);
	if (n == NONE)
		return ESTALE;
	become(r);
	fd = node_open(n, in->flags);
	come_back();
	if ((fd == -EACCES || fd == -EPERM) && r->in->uid)
		fd = node_open(n, in->flags);
	if (fd < 0)
		return -fd;
	error = in->open_flags & FUSE_OPEN_KILL_SUIDGID ? kill_rights(fd) : 0;
	if (error) {
		close(fd);
		return error;
	}
	pthread_mutex_lock(&tree);
	h = r->session == S->session ? handle_fit(r, n, in->flags, fd, &out) : NONE;
	pthread_mutex_unlock(&tree);
	if (h == NONE) {
		close(fd);
		return ENFILE;
	}
	reply(r, 0, &out, sizeof(out));
	return 0;
}

/* CREATE, TMPFILE */
int proxy_create(struct request *r)
{
	const struct fuse_create_in *in = argument(r, sizeof(*in));
	struct {
		struct fuse_entry_out entry;
		struct open_out open;
	} out = { 0 };
	bool named = r->in->opcode == FUSE_CREATE;
	const char *name = named && in ? argument_name(r, sizeof(*in)) : ".";
	int fd, error = 0, flags;
	struct attr a;
	struct stat st;
	struct ref dir;
	uint32_t n, h;

	if (!in || !name)
		return 0;
	pthread_mutex_lock(&tree);
	n = node_of(r->in->nodeid);
	pthread_mutex_unlock(&tree);
	if (n == NONE)
		return ESTALE;
	error = node_ref(n, &dir);
	if (error)
		return error;
	flags = (int)(in->flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_NOATIME));
	flags |= named ? O_CREAT | O_NOFOLLOW | (int)(in->flags & (O_EXCL | O_TRUNC)) : O_TMPFILE | (int)(in->flags & O_EXCL);
	if (r->again)
		flags &= named ? ~O_EXCL : ~0;
	umask(in->umask & 0777);
	become(r);
	fd = openat(dir.fd, name, flags, in->mode & 07777);
	come_back();
	if (fd < 0 && (errno == EACCES || errno == EPERM) && r->in->uid)
		fd = openat(dir.fd, name, flags, in->mode & 07777);
	error = fd < 0 ? errno : in->open_flags & FUSE_OPEN_KILL_SUIDGID ? kill_rights(fd) : 0;
	if (!error && fstat(fd, &st))
		error = errno;
	umask(0);
	ref_put(&dir);
	if (!error && named)
		error = entry(n, name, &st, &out.entry);
	if (error)
		goto out;
	pthread_mutex_lock(&tree);
	if (r->session != S->session) {
		n = NONE;
	} else if (named) {
		n = (uint32_t)(out.entry.nodeid - 1);
	} else {
		attr_from(&a, &st);
		n = node_new(&a, 0);
		if (n != NONE) {
			node_learn(n, &st);
			fill_entry(&out.entry, n, TTL_MS);
		}
	}
	h = n == NONE ? NONE : handle_fit(r, n, in->flags & ~(uint32_t)(O_CREAT | O_EXCL | O_TRUNC), fd, &out.open);
	pthread_mutex_unlock(&tree);
	error = h == NONE ? ENFILE : 0;
	if (!error)
		reply(r, 0, &out, sizeof(out));
out:
	if (error && fd >= 0)
		close(fd);
	return error;
}

int proxy_release(struct request *r)
{
	const struct fuse_release_in *in = argument(r, sizeof(*in));
	struct handle *h;
	int fd = -1;

	if (!in)
		return 0;
	pthread_mutex_lock(&tree);
	h = handle_of(in->fh);
	if (h)
		fd = handle_free(h);
	pthread_mutex_unlock(&tree);
	reply(r, 0, NULL, 0);
	if (fd >= 0)
		close(fd);
	return 0;
}

/* What close(2) tells of writing (NFS writes back then) comes by closing a copy. */
int proxy_flush(struct request *r)
{
	const struct fuse_flush_in *in = argument(r, sizeof(*in));
	struct handle *h = in ? handle_of(in->fh) : NULL;
	int error = 0, fd;

	if (!in)
		return 0;
	if (h && h->fd >= 0 && (h->open_flags & O_ACCMODE) != O_RDONLY) {
		fd = dup(h->fd);
		if (fd >= 0 && close(fd))
			error = errno;
	}
	if (!error)
		reply(r, 0, NULL, 0);
	return error;
}

/* The descriptor of a request's handle; an error is negative. */
static int asked_fd(uint64_t fh)
{
	struct handle *h = handle_of(fh);

	return h ? handle_fd(h) : -EBADF;
}

/* An answer that is too short is the end of the file to the kernel: it forgets what is behind it. So all of it is read, or it fails. */
int proxy_read(struct request *r)
{
	const struct fuse_read_in *in = argument(r, sizeof(*in));
	size_t size = in && in->size < SPFS_MAX_WRITE ? in->size : SPFS_MAX_WRITE, done = 0;
	ssize_t n = 0;
	int fd;

	if (!in)
		return 0;
	fd = asked_fd(in->fh);
	if (fd < 0)
		return -fd;
	if (spliced_read(r, in, fd, size, &done))
		return 0;
	while (done < size) {
		n = pread(fd, r->buffer + done, size - done, (off_t)(in->offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (!n)
			break;
		done += (size_t)n;
	}
	reply(r, 0, r->buffer, done);
	return 0;
}

/*
 * Where a write goes. The kernel gives the offset to O_APPEND as well, but the end that it knows may not be the end any more: others
 * have grown the file. A direct one is cut into requests that come side by side: they stay beside each other.
 */
static int write_at(struct request *r, const struct fuse_write_in *in, int fd)
{
	struct stat st;

	if (r->journal->before != UINT64_MAX)
		return 0; /* done again after a crash, it is the same bytes */
	if ((in->flags & (O_APPEND | O_DIRECT)) != O_APPEND || in->write_flags & FUSE_WRITE_CACHE) {
		r->journal->before = in->offset;
		return 0;
	}
	if (fstat(fd, &st))
		return errno;
	r->journal->before = (uint64_t)st.st_size;
	return 0;
}

int proxy_write(struct request *r)
{
	const struct fuse_write_in *in = argument(r, sizeof(*in));
	struct fuse_write_out out = { 0 };
	const uint8_t *data = (const void *)(in + 1);
	ssize_t n = 0;
	int fd, error;

	if (!in)
		return 0;
	r->written = 0;
	if (r->len < sizeof(*in) + in->size)
		return EIO;
	fd = asked_fd(in->fh);
	if (fd < 0)
		return -fd;
	error = write_at(r, in, fd);
	if (!error && in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		error = kill_rights(fd);
	if (error)
		return error;
	while (out.size < in->size) {
		n = pwrite(fd, data + out.size, in->size - out.size, (off_t)(r->journal->before + out.size));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		out.size += (uint32_t)n;
	}
	if (n < 0) {
		/* Of pages that are written back the kernel hears no number: it takes them for written. */
		r->written = in->write_flags & FUSE_WRITE_CACHE ? 0 : out.size;
		return errno;
	}
	reply(r, 0, &out, sizeof(out));
	return 0;
}

int proxy_fsync(struct request *r)
{
	const struct fuse_fsync_in *in = argument(r, sizeof(*in));
	int fd;

	if (!in)
		return 0;
	fd = asked_fd(in->fh);
	if (fd < 0)
		return -fd;
	if (in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(fd) : fsync(fd))
		return errno;
	reply(r, 0, NULL, 0);
	return 0;
}

int proxy_fallocate(struct request *r)
{
	const struct fuse_fallocate_in *in = argument(r, sizeof(*in));
	int fd, result;

	if (!in)
		return 0;
	fd = asked_fd(in->fh);
	if (fd < 0)
		return -fd;
	/* As the caller: whether bits that give rights stay is judged by who does it. */
	become(r);
	result = fallocate(fd, (int)in->mode, (off_t)in->offset, (off_t)in->length);
	come_back();
	if (result)
		return errno;
	reply(r, 0, NULL, 0);
	return 0;
}

int proxy_lseek(struct request *r)
{
	const struct fuse_lseek_in *in = argument(r, sizeof(*in));
	struct fuse_lseek_out out;
	off_t at;
	int fd;

	if (!in)
		return 0;
	fd = asked_fd(in->fh);
	if (fd < 0)
		return -fd;
	at = lseek(fd, (off_t)in->offset, (int)in->whence);
	if (at < 0)
		return errno;
	out.offset = (uint64_t)at;
	reply(r, 0, &out, sizeof(out));
	return 0;
}

int proxy_copy(struct request *r)
{
	const struct fuse_copy_file_range_in *in = argument(r, sizeof(*in));
	int from, to;
	off_t off_in, off_out;
	ssize_t n;

	if (!in)
		return 0;
	from = asked_fd(in->fh_in);
	to = asked_fd(in->fh_out);
	if (from < 0 || to < 0)
		return from < 0 ? -from : -to;
	off_in = (off_t)in->off_in;
	off_out = (off_t)in->off_out;
	become(r);
	n = copy_file_range(from, &off_in, to, &off_out, in->len > 1u << 30 ? 1u << 30 : in->len, (unsigned int)in->flags);
	come_back();
	if (n < 0)
		return errno == EXDEV || errno == EINVAL ? EOPNOTSUPP : errno;
	if (r->in->opcode == OP_COPY_FILE_RANGE_64) {
		struct copy_out out = { (uint64_t)n };

		reply(r, 0, &out, sizeof(out));
	} else {
		struct fuse_write_out out = { .size = (uint32_t)n };

		reply(r, 0, &out, sizeof(out));
	}
	return 0;
}
