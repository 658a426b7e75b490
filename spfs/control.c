// SPDX-License-Identifier: Apache-2.0
/* The worker's main thread: commands (wire.h), and what comes with time. It never touches the backend or the mount. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "holder.h"
#include "keeper.h"
#include "mount.h"
#include "stub.h"
#include "switch.h"

#define MAX_CLIENTS 32
#define PROBE_MS 2000
#define WATCH_MS 1000
#define FIRST_CLIENT 5	/* after what else is polled */

static struct client {
	int fd;
	_Atomic bool busy;	/* a command of it runs in a thread */
	struct spfs_msg command;
	int lent;		/* the descriptor that came with it */
} clients[MAX_CLIENTS];

static void answer(int fd, struct spfs_msg *m, uint16_t type, const char *data)
{
	struct iovec iov[2] = { { m, sizeof(*m) }, { (void *)data, data ? strlen(data) : 0 } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	m->magic = SPFS_MAGIC;
	m->version = SPFS_VERSION;
	m->type = type;
	m->data_len = (uint32_t)iov[1].iov_len;
	/* A client that does not read is left to itself. */
	if (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
		say("answer to a client: %s", strerror(errno));
}

static void differs(void *arg, uint64_t what, const char *path)
{
	const struct client *c = arg;
	struct spfs_msg m = { .seq = c->command.seq, .a0 = what };

	answer(c->fd, &m, SPFS_DIFFERS, path);
}

static void *command(void *arg)
{
	struct client *c = arg;
	struct spfs_msg m = { .seq = c->command.seq };

	if (c->command.type == SPFS_STUB)
		m.err = switch_stub();
	else
		m.err = switch_proxy(c->lent, c->command.flags, differs, c, &m.a0);
	answer(c->fd, &m, SPFS_RESULT, m.err ? strerror(m.err) : NULL);
	c->busy = false;
	wake_control();
	return NULL;
}

static void status(struct client *c)
{
	struct spfs_msg m = { .seq = c->command.seq, .a0 = S->phase, .a1 = stub_blocked(), .a4 = S->passthrough,
			      .a5 = (uint64_t)S->worker, .a6 = S->restarts, .a7 = (uint64_t)S->holder };

	pthread_mutex_lock(&tree);
	m.a2 = handles_count();
	m.a3 = nodes_count();
	pthread_mutex_unlock(&tree);
	answer(c->fd, &m, SPFS_RESULT, NULL);
}

static void hang_up(struct client *c)
{
	close(c->fd);
	c->fd = -1;
}

static int own(const struct client *c)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return errno;
	return owner_watch(peer.pid, c->command.flags);
}

static void obey(struct client *c, int lent)
{
	struct spfs_msg m = { .seq = c->command.seq };

	c->lent = -1;
	switch (c->command.type) {
	case SPFS_STATUS:
		status(c);
		break;
	case SPFS_PROXY:
		if (lent < 0) {
			m.err = EBADF;
			answer(c->fd, &m, SPFS_RESULT, "no descriptor");
			break;
		}
		c->lent = lent;
		lent = -1;
		/* fall through */
	case SPFS_STUB:
		c->busy = true;
		start_thread(command, c);
		break;
	case SPFS_OWN:
		m.err = own(c);
		answer(c->fd, &m, SPFS_RESULT, m.err ? strerror(m.err) : NULL);
		break;
	case SPFS_KEEP:
		owner_release();
		keeper_want();
		answer(c->fd, &m, SPFS_RESULT, NULL);
		break;
	case SPFS_KEPT:
		keeper_done();
		answer(c->fd, &m, SPFS_RESULT, NULL);
		break;
	case SPFS_STOP:
		say("stop");
		atomic_store(&S->over, 1);
		clear_away();
		answer(c->fd, &m, SPFS_RESULT, NULL);
		break;
	default:
		m.err = EOPNOTSUPP;
		answer(c->fd, &m, SPFS_RESULT, "no such command");
	}
	if (lent >= 0)
		close(lent);
}

/* One message; whoever sends anything else is hung up on. */
static void hear(struct client *c)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * 4)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &c->command, sizeof(c->command) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT);
	int lent = -1;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	for (struct cmsghdr *at = n < 0 ? NULL : CMSG_FIRSTHDR(&msg); at; at = CMSG_NXTHDR(&msg, at)) {
		size_t count = at->cmsg_type == SCM_RIGHTS ? (at->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
		int fds[4];

		memcpy(fds, CMSG_DATA(at), count * sizeof(int));
		for (size_t i = 0; i < count; i++) {
			if (lent >= 0)
				close(fds[i]);
			else
				lent = fds[i];
		}
	}
	if (n == sizeof(c->command) && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && c->command.magic == SPFS_MAGIC &&
	    c->command.version == SPFS_VERSION && !c->command.data_len) {
		obey(c, lent);
		return;
	}
	if (lent >= 0)
		close(lent);
	hang_up(c);
}

static void greet(void)
{
	int fd = accept(S->listen, NULL, NULL);

	if (fd < 0)
		return;
	for (int i = 0; i < MAX_CLIENTS; i++) {
		if (clients[i].fd >= 0)
			continue;
		clients[i].fd = fd;
		return;
	}
	close(fd);
}

/* Descriptors that nothing in the state names were a dead worker's own; its clients see the end of their connections. */
static void close_unknown(void)
{
	uint8_t *known = calloc(1, 1 << 20);
	const int32_t ours[] = { 0, 1, 2, S->fuse, S->listen, S->log, S->backend, S->memory, S->dir, S->keeper, S->owner };
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *d;

	if (!known || !dir)
		goto out;
#define KNOW(fd) do { if ((fd) >= 0 && (fd) < 1 << 20) known[fd] = 1; } while (0)
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		KNOW(ours[i]);
	for (uint32_t n = 0; n < S->node_high; n++) {
		if (nodes[n].state == LIVE) {
			KNOW(nodes[n].fd);
			KNOW(nodes[n].shadow);
		}
	}
	for (uint32_t h = 0; h < S->handle_high; h++)
		if (handles[h].state == LIVE)
			KNOW(handles[h].fd);
	KNOW(dirfd(dir));
	while ((d = readdir(dir))) {
		int fd = atoi(d->d_name);

		if (d->d_name[0] != '.' && fd < 1 << 20 && !known[fd])
			close(fd);
	}
out:
	if (dir)
		closedir(dir);
	free(known);
}

/* A backend that does not answer at all is lost as one that says so is; a slow one is not. */
static _Atomic uint64_t probed;	/* since when it is asked; 0: it is not */
static _Atomic uint32_t probed_session;

static void *probe(void *unused)
{
	uint32_t session = probed_session;
	struct statfs st;
	int fd = S->backend;

	(void)unused;
	if (fd >= 0 && fstatfs(fd, &st))
		switch_lost(session);
	if (probed_session == session)
		probed = 0;
	return NULL;
}

static int watch(void)
{
	uint64_t since = probed;

	if (S->phase != SPFS_PHASE_PROXY || !S->on_loss_stub)
		return -1;
	if (since && probed_session == S->session) {
		if (now_ms() - since > PROBE_MS) {
			say("the backend has not answered for %u ms", S->loss_ms + PROBE_MS);
			probed = 0;
			switch_lost(S->session);
		}
	} else if (server_stuck(S->loss_ms)) {
		probed_session = S->session;
		probed = now_ms();
		start_thread(probe, NULL);
	}
	return WATCH_MS;
}

/* The sooner of two waits; -1: none. */
static int sooner(int a, int b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}

int worker_run(void)
{
	struct pollfd polled[MAX_CLIENTS + FIRST_CLIENT];
	int holder = -1;

	S->worker = (int32_t)getpid();
	(void)signal(SIGCHLD, SIG_IGN);
	umask(0);
	if (nodes_index())
		return 1;
	close_unknown();
	wake_fd = eventfd(0, EFD_NONBLOCK);
	if (wake_fd < 0 || stub_recover() || server_start())
		return 1;
	stub_release(false);
	for (int i = 0; i < MAX_CLIENTS; i++)
		clients[i].fd = -1;
	while (!S->over) {
		int wait, ms;
		uint64_t count;

		if (holder < 0)
			holder = (int)syscall(SYS_pidfd_open, S->holder, 0);
		polled[0] = (struct pollfd){ .fd = S->listen, .events = POLLIN };
		polled[1] = (struct pollfd){ .fd = wake_fd, .events = POLLIN };
		polled[2] = (struct pollfd){ .fd = holder, .events = POLLIN };
		ms = keeper_tick();
		polled[3] = (struct pollfd){ .fd = S->keeper, .events = POLLIN };
		polled[4] = (struct pollfd){ .fd = S->owner, .events = POLLIN };
		for (int i = 0; i < MAX_CLIENTS; i++)
			polled[FIRST_CLIENT + i] = (struct pollfd){ .fd = clients[i].busy ? -1 : clients[i].fd, .events = POLLIN };
		wait = sooner(sooner(stub_tick(), watch()), ms);
		if (poll(polled, MAX_CLIENTS + FIRST_CLIENT, wait) <= 0)
			continue;
		if (polled[1].revents && read(wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			say("wake: %s", strerror(errno));
		if (polled[0].revents)
			greet();
		if (polled[2].revents || (holder < 0 && errno == ESRCH)) {
			if (holder >= 0)
				close(holder);
			holder = -1;
			holder_replace();
		}
		if (polled[3].revents)
			keeper_ended();
		for (int i = 0; i < MAX_CLIENTS; i++)
			if (polled[FIRST_CLIENT + i].revents && clients[i].fd >= 0 && polled[FIRST_CLIENT + i].fd == clients[i].fd)
				hear(&clients[i]);
		if (polled[4].revents && S->owner == polled[4].fd)
			owner_died();
	}
	return 0;
}
