// SPDX-License-Identifier: Apache-2.0
/*
 * What tasks have of a mount, and mounts that take another's place, in mount namespaces other than ours, for spfs/retire.ts.
 * Whatever looks or works in another namespace does so in a thread of its own, which ends with the call.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <linux/openat2.h>

#include "addon.h"

/* linux/mount.h, which does not go together with sys/mount.h everywhere. */
enum {
	OPEN_TREE_CLONE_ = 1,
	MOVE_F_EMPTY = 0x4,
	MOVE_T_EMPTY = 0x40,
	MOVE_BENEATH = 0x200,
	MNT_DETACH_ = 2,
	UMOUNT_NOFOLLOW_ = 8,
};
struct mount_attr_ {
	uint64_t attr_set, attr_clr, propagation, userns_fd;
};

/* A piece of work in another namespace. */
struct errand {
	int ns, type;		/* ns -1: here */
	int proc;		/* our /proc, which is seen from there, too */
	int (*work)(struct errand *);
	void *arg;
	const char *step;
	int err;
};

static void *run_errand(void *arg)
{
	struct errand *e = arg;

	/* The namespace of mounts is changed only by who shares his working directory with nobody. */
	e->step = "unshare";
	if (unshare(CLONE_FS))
		goto failed;
	e->step = "setns";
	if (e->ns >= 0 && setns(e->ns, e->type))
		goto failed;
	if (e->work(e) == 0)
		return NULL;
failed:
	e->err = errno ? errno : EIO;
	return NULL;
}

static int there(struct errand *e)
{
	pthread_t thread;
	int err;

	e->err = 0;
	e->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (e->proc < 0) {
		e->step = "open /proc";
		e->err = errno;
		return -1;
	}
	err = pthread_create(&thread, NULL, run_errand, e);
	if (err) {
		e->step = "pthread_create";
		e->err = err;
	} else {
		pthread_join(thread, NULL);
	}
	close(e->proc);
	return e->err ? -1 : 0;
}

static napi_value undefined(napi_env env)
{
	napi_value v = NULL;

	napi_get_undefined(env, &v);
	return v;
}

/* What is known of one thing that is open, or otherwise used. */
struct seen {
	int64_t fd, mount, ino, mode, nlink, flags, pos, dev;
	char *path, *note;
};

struct list {
	struct seen *all;
	size_t n, room;
};

static void free_list(struct list *list)
{
	for (size_t i = 0; i < list->n; i++) {
		free(list->all[i].path);
		free(list->all[i].note);
	}
	free(list->all);
}

static struct seen *add(struct list *list)
{
	if (list->n == list->room) {
		size_t room = list->room ? list->room * 2 : 256;
		struct seen *all = realloc(list->all, room * sizeof(*all));

		if (!all)
			return NULL;
		list->all = all;
		list->room = room;
	}
	memset(&list->all[list->n], 0, sizeof(struct seen));
	return &list->all[list->n++];
}

/* No file system is asked anything: what the kernel knows already is enough. */
static int stat_link(int dir, const char *name, struct statx *st)
{
	return statx(dir, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_MNT_ID, st);
}

static int fill(struct seen *s, int dir, const char *name, const struct statx *st)
{
	char path[4097];
	ssize_t len = name ? readlinkat(dir, name, path, sizeof(path) - 1) : 0;

	s->mount = (int64_t)st->stx_mnt_id;
	s->ino = (int64_t)st->stx_ino;
	s->mode = st->stx_mode;
	s->nlink = st->stx_nlink;
	s->dev = (int64_t)makedev(st->stx_dev_major, st->stx_dev_minor);
	path[len > 0 ? len : 0] = 0;
	s->path = strdup(path);
	return s->path ? 0 : -1;
}

/* Flags, position and locks, or what an epoll or the like says of itself. */
static int read_info(struct seen *s, int infos, const char *name, bool whole)
{
	int fd = openat(infos, name, O_RDONLY | O_CLOEXEC);
	char *text, *line, *rest;
	size_t size = whole ? 1 << 20 : 1 << 16, len = 0, noted = 0;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 1 : -1;
	text = malloc(size + 1);
	while (text && len < size && (n = read(fd, text + len, size - len)) > 0)
		len += (size_t)n;
	close(fd);
	if (!text)
		return -1;
	text[len] = 0;
	s->note = malloc(len + 1);
	if (!s->note) {
		free(text);
		return -1;
	}
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (!strncmp(line, "flags:", 6))
			s->flags = (int64_t)strtoull(line + 6, NULL, 8);
		else if (!strncmp(line, "pos:", 4))
			s->pos = strtoll(line + 4, NULL, 10);
		else if (whole || !strncmp(line, "lock:", 5))
			noted += (size_t)sprintf(s->note + noted, "%s\n", line);
	}
	s->note[noted] = 0;
	free(text);
	return 0;
}

/* Not identity alone, but path, flags, position and locks, too; and whatever has no path, with all it says of itself. */
enum { FULL = 1, OTHERS = 2 };

struct search {
	int32_t pid, tid;
	const int32_t *ids, *attached;
	size_t n_ids, n_attached;
	uint64_t dev;
	int32_t how;
	struct list found;
};

static bool has(const int32_t *ids, size_t n, uint64_t id)
{
	for (size_t i = 0; i < n; i++)
		if ((uint64_t)ids[i] == id)
			return true;
	return false;
}

static int search_files(struct errand *e)
{
	struct search *s = e->arg;
	struct dirent *entry;
	char path[64];
	int infos, ret = -1;
	DIR *dir;

	e->step = "open /proc/PID/fd";
	snprintf(path, sizeof(path), "%d/task/%d/fdinfo", s->pid, s->tid);
	infos = openat(e->proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (infos < 0)
		return -1;
	snprintf(path, sizeof(path), "%d/task/%d/fd", s->pid, s->tid);
	int fd = openat(e->proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		goto out;
	e->step = "look at open files";
	while ((entry = readdir(dir))) {
		struct statx st;
		struct seen *seen;
		bool ours = false, odd;

		if (entry->d_name[0] == '.' || stat_link(fd, entry->d_name, &st))
			continue;
		ours = has(s->ids, s->n_ids, st.stx_mnt_id) ||
		       (s->dev && makedev(st.stx_dev_major, st.stx_dev_minor) == s->dev &&
			!has(s->attached, s->n_attached, st.stx_mnt_id));
		/* Anonymous inodes have no type; sockets tell of what is on its way through them; /dev/fuse whom it serves. */
		odd = s->how & OTHERS && (!(st.stx_mode & S_IFMT) || S_ISSOCK(st.stx_mode) ||
					  (S_ISCHR(st.stx_mode) && st.stx_rdev_major == 10 && st.stx_rdev_minor == 229));
		if (!ours && !odd)
			continue;
		seen = add(&s->found);
		if (!seen || fill(seen, fd, !ours || s->how & FULL ? entry->d_name : NULL, &st))
			goto out;
		seen->fd = atoi(entry->d_name);
		if (!ours)
			seen->mount = -1;
		if (ours && !(s->how & FULL))
			continue;
		/* Closed meanwhile. */
		if (read_info(seen, infos, entry->d_name, !ours) == 1) {
			free(seen->path);
			s->found.n--;
		}
	}
	ret = 0;
out:
	if (dir)
		closedir(dir);
	close(infos);
	return ret;
}

static bool set_column(napi_env env, napi_value object, const char *name, const struct list *list, size_t offset)
{
	napi_value buffer, column;
	void *data;

	if (napi_create_arraybuffer(env, list->n * sizeof(int64_t), &data, &buffer) != napi_ok ||
	    napi_create_typedarray(env, napi_bigint64_array, list->n, buffer, 0, &column) != napi_ok)
		return false;
	for (size_t i = 0; i < list->n; i++)
		memcpy((int64_t *)data + i, (char *)&list->all[i] + offset, sizeof(int64_t));
	return napi_set_named_property(env, object, name, column) == napi_ok;
}

/* Texts end with a NUL each. */
static bool set_texts(napi_env env, napi_value object, const char *name, const struct list *list, size_t offset)
{
	napi_value value;
	size_t len = 0, at = 0;
	char *all, *text;
	bool ok;

	for (size_t i = 0; i < list->n; i++) {
		memcpy(&text, (char *)&list->all[i] + offset, sizeof(text));
		len += (text ? strlen(text) : 0) + 1;
	}
	all = malloc(len + 1);
	if (!all)
		return false;
	for (size_t i = 0; i < list->n; i++) {
		memcpy(&text, (char *)&list->all[i] + offset, sizeof(text));
		size_t n = text ? strlen(text) : 0;

		memcpy(all + at, text ? text : "", n + 1);
		at += n + 1;
	}
	ok = napi_create_string_latin1(env, all, len, &value) == napi_ok &&
	     napi_set_named_property(env, object, name, value) == napi_ok;
	free(all);
	return ok;
}

static napi_value columns(napi_env env, const struct list *list)
{
	napi_value result;

	if (napi_create_object(env, &result) != napi_ok)
		return NULL;
#define COLUMN(name) set_column(env, result, #name, list, offsetof(struct seen, name))
	if (!COLUMN(fd) || !COLUMN(mount) || !COLUMN(ino) || !COLUMN(mode) || !COLUMN(nlink) || !COLUMN(flags) ||
	    !COLUMN(pos) || !COLUMN(dev) || !set_texts(env, result, "path", list, offsetof(struct seen, path)) ||
	    !set_texts(env, result, "note", list, offsetof(struct seen, note)))
		return throw_errno(env, ENOMEM, "list what is open");
#undef COLUMN
	return result;
}

/*
 * openFiles(ns, pid, tid, mounts, how, dev, attached): what a task has open on these mounts, or on this device (0n: none) but
 * on no mount of the list `attached`
 */
static napi_value open_files(napi_env env, napi_callback_info info)
{
	struct search s = { 0 };
	struct errand e = { .type = CLONE_NEWNS, .work = search_files, .arg = &s };
	napi_value args[7], result;
	int32_t *ids, *attached;
	bool lossless;

	if (!get_args(env, info, 7, args) || !get_int(env, args[0], &e.ns) || !get_int(env, args[1], &s.pid) ||
	    !get_int(env, args[2], &s.tid) || !get_ints(env, args[3], &ids, &s.n_ids) ||
	    !get_int(env, args[4], &s.how) || napi_get_value_bigint_uint64(env, args[5], &s.dev, &lossless) != napi_ok ||
	    !get_ints(env, args[6], &attached, &s.n_attached))
		return NULL;
	s.ids = ids;
	s.attached = attached;
	result = there(&e) ? throw_errno(env, e.err, e.step) : columns(env, &s.found);
	free_list(&s.found);
	return result;
}

struct looks {
	char *links;		/* below /proc, each ended by a NUL */
	size_t len;
	struct list found;
};

static int look_at_links(struct errand *e)
{
	struct looks *l = e->arg;

	e->step = "look at /proc";
	for (char *link = l->links; link < l->links + l->len; link += strlen(link) + 1) {
		struct seen *seen = add(&l->found);
		struct statx st;

		if (!seen)
			return -1;
		seen->mount = -1;
		if (stat_link(e->proc, link, &st))
			continue;
		if (fill(seen, e->proc, link, &st))
			return -1;
	}
	return 0;
}

/* lookAt(ns, links): what links below /proc lead to, one row each; mount -1: to nothing. `links` are ended by NULs */
static napi_value look_at(napi_env env, napi_callback_info info)
{
	struct looks l = { 0 };
	struct errand e = { .type = CLONE_NEWNS, .work = look_at_links, .arg = &l };
	napi_value args[2], result;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &e.ns))
		return NULL;
	if (napi_get_value_string_latin1(env, args[1], NULL, 0, &l.len) != napi_ok || !(l.links = malloc(l.len + 1)) ||
	    napi_get_value_string_latin1(env, args[1], l.links, l.len + 1, &l.len) != napi_ok) {
		free(l.links);
		return throw_errno(env, EINVAL, "lookAt");
	}
	result = there(&e) ? throw_errno(env, e.err, e.step) : columns(env, &l.found);
	free_list(&l.found);
	free(l.links);
	return result;
}

struct text {
	char *data;
	size_t len;
};

static int read_table(struct errand *e)
{
	struct text *t = e->arg;
	size_t room = 1 << 16;
	ssize_t n;
	int fd;

	e->step = "read mountinfo";
	fd = openat(e->proc, "thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	for (;;) {
		char *more = realloc(t->data, room);

		if (!more) {
			close(fd);
			return -1;
		}
		t->data = more;
		n = read(fd, t->data + t->len, room - t->len);
		if (n <= 0)
			break;
		t->len += (size_t)n;
		if (room - t->len < 8192)
			room *= 2;
	}
	close(fd);
	return n < 0 ? -1 : 0;
}

/* mountTable(ns): mountinfo as it is seen from the namespace's root */
static napi_value mount_table(napi_env env, napi_callback_info info)
{
	struct text t = { 0 };
	struct errand e = { .type = CLONE_NEWNS, .work = read_table, .arg = &t };
	napi_value args[1], result = NULL;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &e.ns))
		return NULL;
	if (there(&e))
		throw_errno(env, e.err, e.step);
	else
		napi_create_string_latin1(env, t.data, t.len, &result);
	free(t.data);
	return result;
}

enum mount_verb { BENEATH, UNMOUNT, ON_TOP, SET };
struct mount_work {
	int32_t verb, expect, fd;
	char path[4098];
	struct mount_attr_ attr;
};

static int work_on_mount(struct errand *e)
{
	struct mount_work *w = e->arg;
	struct statx st;
	int at, ret = -1;

	e->step = "open the mount point";
	at = open(w->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (at < 0)
		return -1;
	/* What stands there now must be what the caller saw. */
	if (statx(at, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &st))
		goto out;
	if ((int64_t)st.stx_mnt_id != w->expect) {
		errno = ESTALE;
		goto out;
	}
	switch (w->verb) {
	case BENEATH:
		e->step = "move_mount beneath";
		ret = (int)syscall(SYS_move_mount, w->fd, "", at, "", MOVE_F_EMPTY | MOVE_T_EMPTY | MOVE_BENEATH);
		break;
	case ON_TOP:
		e->step = "move_mount";
		ret = (int)syscall(SYS_move_mount, w->fd, "", at, "", MOVE_F_EMPTY | MOVE_T_EMPTY);
		break;
	case UNMOUNT:
		e->step = "umount2";
		ret = (int)syscall(SYS_umount2, w->path, MNT_DETACH_ | UMOUNT_NOFOLLOW_);
		break;
	case SET:
		e->step = "mount_setattr";
		ret = (int)syscall(SYS_mount_setattr, at, "", AT_EMPTY_PATH, &w->attr, sizeof(w->attr));
		break;
	default:
		errno = EINVAL;
	}
out:
	if (ret) {
		int err = errno;

		close(at);
		errno = err;
		return -1;
	}
	close(at);
	return 0;
}

struct place {
	int fd, expect;
	const char *path;
};

static int open_place(struct errand *e)
{
	struct place *p = e->arg;
	struct statx st;

	e->step = "open the mount point";
	p->fd = open(p->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (p->fd < 0)
		return -1;
	if (statx(p->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &st) ||
	    (p->expect >= 0 && (int64_t)st.stx_mnt_id != p->expect)) {
		close(p->fd);
		errno = ESTALE;
		return -1;
	}
	return 0;
}

/* openPlace(ns, path, expect): number, O_PATH; `expect` is the id of the mount that must be there, -1: any */
static napi_value open_place_verb(napi_env env, napi_callback_info info)
{
	char path[4098];
	struct place p = { .path = path };
	struct errand e = { .type = CLONE_NEWNS, .work = open_place, .arg = &p };
	napi_value args[3], result;

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &e.ns) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &p.expect))
		return NULL;
	if (there(&e))
		return throw_errno(env, e.err, e.step);
	return napi_create_int32(env, p.fd, &result) == napi_ok ? result : NULL;
}

static int move_by_fd(struct errand *e)
{
	int32_t *fds = e->arg;

	e->step = "move_mount of a mount below";
	return (int)syscall(SYS_move_mount, fds[0], "", fds[1], "", MOVE_F_EMPTY | MOVE_T_EMPTY);
}

/* moveMount(ns, from, to): the mount whose root `from` is, to the directory `to` */
static napi_value move_mount_verb(napi_env env, napi_callback_info info)
{
	int32_t fds[2];
	struct errand e = { .type = CLONE_NEWNS, .work = move_by_fd, .arg = fds };
	napi_value args[3];

	if (!get_args(env, info, 3, args) || !get_int(env, args[0], &e.ns) || !get_int(env, args[1], &fds[0]) ||
	    !get_int(env, args[2], &fds[1]))
		return NULL;
	return there(&e) ? throw_errno(env, e.err, e.step) : undefined(env);
}

/* workOnMount(ns, verb, path, expect, fd, propagation): `expect` is the id of the mount that must stand at `path` */
static napi_value work_on_mount_verb(napi_env env, napi_callback_info info)
{
	struct mount_work w = { 0 };
	struct errand e = { .type = CLONE_NEWNS, .work = work_on_mount, .arg = &w };
	napi_value args[6];
	int32_t propagation;

	if (!get_args(env, info, 6, args) || !get_int(env, args[0], &e.ns) || !get_int(env, args[1], &w.verb) ||
	    !get_path(env, args[2], w.path, sizeof(w.path)) || !get_int(env, args[3], &w.expect) ||
	    !get_int(env, args[4], &w.fd) || !get_int(env, args[5], &propagation))
		return NULL;
	w.attr.propagation = (uint32_t)propagation;
	return there(&e) ? throw_errno(env, e.err, e.step) : undefined(env);
}

/* cloneTree(dir, path, set, clear, propagation): number — a copy of the mount that shows `dir`/`path`, "" being `dir`, nowhere to be seen */
static napi_value clone_tree(napi_env env, napi_callback_info info)
{
	int32_t dir, set, clear, propagation, fd;
	struct mount_attr_ attr = { 0 };
	napi_value args[5], result;
	char path[4098];
	size_t len;

	if (!get_args(env, info, 5, args) || !get_int(env, args[0], &dir) ||
	    napi_get_value_string_latin1(env, args[1], path, sizeof(path), &len) != napi_ok ||
	    !get_int(env, args[2], &set) || !get_int(env, args[3], &clear) || !get_int(env, args[4], &propagation))
		return NULL;
	fd = (int)syscall(SYS_open_tree, dir, path, OPEN_TREE_CLONE_ | O_CLOEXEC | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
	if (fd < 0)
		return throw_errno(env, errno, "open_tree");
	attr.attr_set = (uint32_t)set;
	attr.attr_clr = (uint32_t)clear;
	attr.propagation = (uint32_t)propagation;
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr))) {
		int err = errno;

		close(fd);
		return throw_errno(env, err, "mount_setattr");
	}
	return napi_create_int32(env, fd, &result) == napi_ok ? result : NULL;
}

/*
 * openAs(dir, path, flags, uid, gid, groups): number: beneath `dir`, as that user of the file system's; no link is followed.
 * Identities here are this thread's alone: the raw calls, which the C library would make for all threads.
 */
static napi_value open_as(napi_env env, napi_callback_info info)
{
	struct open_how how = { .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };
	int32_t dir, flags, uid, gid, *groups;
	napi_value args[6], result;
	char path[4098];
	gid_t own[256];
	int fd, err, n;
	size_t n_groups;

	if (!get_args(env, info, 6, args) || !get_int(env, args[0], &dir) || !get_path(env, args[1], path, sizeof(path)) ||
	    !get_int(env, args[2], &flags) || !get_int(env, args[3], &uid) || !get_int(env, args[4], &gid) ||
	    !get_ints(env, args[5], &groups, &n_groups))
		return NULL;
	n = (int)syscall(SYS_getgroups, 256, own);
	if (n < 0)
		return throw_errno(env, errno, "getgroups");
	how.flags = (uint32_t)flags | O_CLOEXEC;
	if (uid || gid || n_groups) {
		syscall(SYS_setgroups, n_groups, groups);
		syscall(SYS_setfsgid, gid);
		syscall(SYS_setfsuid, uid);
	}
	fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
	err = errno;
	if (uid || gid || n_groups) {
		syscall(SYS_setfsuid, geteuid());
		syscall(SYS_setfsgid, getegid());
		syscall(SYS_setgroups, (size_t)n, own);
	}
	if (fd < 0)
		return throw_errno(env, err, "openat2");
	return napi_create_int32(env, fd, &result) == napi_ok ? result : NULL;
}

/* uapi/linux: what getdents64(2) gives */
struct entry {
	uint64_t ino;
	int64_t next;
	uint16_t size;
	uint8_t type;
	char name[];
} __attribute__((packed));

/*
 * listDirectory(fd): { names, positions }: every name, ended by NULs, and the stream's position behind each. The stream of
 * `fd` is left at its start.
 */
static napi_value list_directory(napi_env env, napi_callback_info info)
{
	struct list list = { 0 };
	napi_value args[1], result = NULL;
	char buf[32768];
	int32_t fd;
	long n;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &fd))
		return NULL;
	while ((n = syscall(SYS_getdents64, fd, buf, sizeof(buf))) > 0) {
		for (long at = 0; at < n;) {
			struct entry *entry = (struct entry *)(buf + at);
			struct seen *seen = add(&list);

			if (!seen || !(seen->path = strdup(entry->name))) {
				n = -1;
				errno = ENOMEM;
				break;
			}
			seen->pos = entry->next;
			at += entry->size;
		}
		if (n < 0)
			break;
	}
	if (n < 0 || lseek(fd, 0, SEEK_SET))
		throw_errno(env, errno, "getdents64");
	else
		result = columns(env, &list);
	free_list(&list);
	return result;
}

struct diag {
	struct list found;
};

static int ask_diag(struct errand *e)
{
	struct diag *d = e->arg;
	struct {
		struct nlmsghdr head;
		struct unix_diag_req req;
	} ask = {
		.head = { .nlmsg_len = sizeof(ask), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.req = { .sdiag_family = AF_UNIX, .udiag_states = ~0u, .udiag_show = UDIAG_SHOW_VFS },
	};
	char buf[32768] __attribute__((aligned(8)));
	int sk, ret = -1;

	e->step = "ask for unix sockets";
	sk = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (sk < 0 || send(sk, &ask, sizeof(ask), 0) != (ssize_t)sizeof(ask))
		goto out;
	for (;;) {
		ssize_t n = recv(sk, buf, sizeof(buf), 0);
		struct nlmsghdr *h = (struct nlmsghdr *)buf;
		unsigned int left = n > 0 ? (unsigned int)n : 0;

		if (n <= 0)
			goto out;
		for (; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
			struct unix_diag_msg *msg = NLMSG_DATA(h);
			struct nlattr *attr = (struct nlattr *)(msg + 1);
			char *end = (char *)h + h->nlmsg_len;

			if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR) {
				ret = 0;
				goto out;
			}
			for (; (char *)attr + sizeof(*attr) <= end && attr->nla_len >= sizeof(*attr);
			     attr = (struct nlattr *)((char *)attr + NLA_ALIGN(attr->nla_len))) {
				struct unix_diag_vfs vfs;
				struct seen *seen;

				if (attr->nla_type != UNIX_DIAG_VFS || attr->nla_len < sizeof(*attr) + sizeof(vfs))
					continue;
				memcpy(&vfs, attr + 1, sizeof(vfs));
				seen = add(&d->found);
				if (!seen)
					goto out;
				seen->ino = msg->udiag_ino;
				/* The kernel's own form of a device number. */
				seen->dev = (int64_t)makedev(vfs.udiag_vfs_dev >> 20, vfs.udiag_vfs_dev & 0xfffff);
			}
		}
	}
out:
	if (sk >= 0)
		close(sk);
	return ret;
}

/* boundSockets(netns): inode numbers of the unix sockets that are bound to a path, and the devices of those paths */
static napi_value bound_sockets(napi_env env, napi_callback_info info)
{
	struct diag d = { 0 };
	struct errand e = { .type = CLONE_NEWNET, .work = ask_diag, .arg = &d };
	napi_value args[1], result;

	if (!get_args(env, info, 1, args) || !get_int(env, args[0], &e.ns))
		return NULL;
	result = there(&e) ? throw_errno(env, e.err, e.step) : columns(env, &d.found);
	free_list(&d.found);
	return result;
}

/* teePipe(from, to): number: copies what is in one pipe into another and leaves it there */
static napi_value tee_pipe(napi_env env, napi_callback_info info)
{
	napi_value args[2], result;
	int32_t from, to;
	int size;
	ssize_t n;

	if (!get_args(env, info, 2, args) || !get_int(env, args[0], &from) || !get_int(env, args[1], &to))
		return NULL;
	size = fcntl(from, F_GETPIPE_SZ);
	if (size < 0 || (size != fcntl(to, F_GETPIPE_SZ) && fcntl(to, F_SETPIPE_SZ, size) < 0))
		return throw_errno(env, errno, "F_SETPIPE_SZ");
	n = tee(from, to, (size_t)size, SPLICE_F_NONBLOCK);
	if (n < 0 && errno != EAGAIN)
		return throw_errno(env, errno, "tee");
	return napi_create_int32(env, n < 0 ? 0 : (int32_t)n, &result) == napi_ok ? result : NULL;
}

bool retire_register(napi_env env, napi_value exports)
{
	const napi_property_descriptor verbs[] = {
#define VERB(name, fn) { name, NULL, fn, NULL, NULL, NULL, napi_enumerable, NULL }
		VERB("openFiles", open_files), VERB("lookAt", look_at), VERB("mountTable", mount_table),
		VERB("workOnMount", work_on_mount_verb), VERB("cloneTree", clone_tree), VERB("openAs", open_as),
		VERB("listDirectory", list_directory), VERB("boundSockets", bound_sockets), VERB("teePipe", tee_pipe),
		VERB("openPlace", open_place_verb), VERB("moveMount", move_mount_verb),
#undef VERB
	};

	return napi_define_properties(env, exports, sizeof(verbs) / sizeof(verbs[0]), verbs) == napi_ok;
}
