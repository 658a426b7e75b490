// SPDX-License-Identifier: Apache-2.0
/*
 * refused CASE FILE: makes one kernel object of a kind that docs/limits.md names, writes "ready" to FILE and sleeps. Ends
 * with 77 and errno's text on stderr where this kernel or machine cannot make it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sent.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
enum { SYS_IO_URING_SETUP = 425, SYS_MEMFD_SECRET = 447, SYS_LANDLOCK = 444, SYS_FSOPEN = 430, SYS_OPEN_TREE = 428 };

static int io_uring(void)
{
	uint32_t params[30] = { 0 };

	return (int)syscall(SYS_IO_URING_SETUP, 8, params);
}

static int mqueue(void)
{
	int fd = mq_open("/refused", O_RDWR | O_CREAT, 0600, NULL);

	mq_unlink("/refused");
	return fd;
}

static int corked(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0), one = 1;

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) || setsockopt(fd, IPPROTO_UDP, UDP_CORK, &one, sizeof(one)) ||
	    send(fd, "x", 1, 0) != 1)
		return -1;
	return fd;
}

static int detached_file(void)
{
	char dir[] = "/tmp/refusedXXXXXX", path[64];
	int fd;

	if (!mkdtemp(dir) || mount("none", dir, "tmpfs", 0, NULL))
		return -1;
	snprintf(path, sizeof(path), "%s/file", dir);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || umount2(dir, MNT_DETACH))
		return -1;
	rmdir(dir);
	return fd;
}

static int detached_bind(void)
{
	char dir[] = "/tmp/refusedXXXXXX", from[64], at[64], path[80];
	int fd;

	if (!mkdtemp(dir))
		return -1;
	snprintf(from, sizeof(from), "%s/from", dir);
	snprintf(at, sizeof(at), "%s/at", dir);
	snprintf(path, sizeof(path), "%s/file", at);
	if (mkdir(from, 0700) || mkdir(at, 0700) || mount(from, at, NULL, MS_BIND, NULL))
		return -1;
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || umount2(at, MNT_DETACH))
		return -1;
	return fd;
}

static int userfault(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC);
}

static int secret(void)
{
	int fd = (int)syscall(SYS_MEMFD_SECRET, 0);

	if (fd < 0 || ftruncate(fd, 4096) || mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED)
		return -1;
	return fd;
}

static int bpf_program(void)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2 };

	attr.insns = (uintptr_t)code;
	attr.license = (uintptr_t) "";
	return (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
}

static int bpf_map(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };

	return (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
}

static int perf_event(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr), .config = PERF_COUNT_SW_TASK_CLOCK };

	return (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static int vsock(void)
{
	return socket(AF_VSOCK, SOCK_STREAM, 0);
}

static int ping(void)
{
	return socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
}

static int mptcp(void)
{
	return socket(AF_INET, SOCK_STREAM, 262);
}

static int xdp(void)
{
	return socket(44, SOCK_RAW, 0);
}

static int landlock(void)
{
	struct landlock_ruleset_attr attr = { .handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE };

	return (int)syscall(SYS_LANDLOCK, &attr, sizeof(attr), 0);
}

static int fs_context(void)
{
	return (int)syscall(SYS_FSOPEN, "tmpfs", 0);
}

static int mount_fd(void)
{
	return (int)syscall(SYS_OPEN_TREE, AT_FDCWD, "/tmp", 1 /* OPEN_TREE_CLONE */);
}

static int packet_pipe(void)
{
	int fds[2];

	return pipe2(fds, O_DIRECT) ? -1 : fds[0];
}

static int pidfd_outside(void)
{
	return (int)syscall(SYS_pidfd_open, getppid(), 0);
}

static void *sleeping(void *tid)
{
	__atomic_store_n((int *)tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
	for (;;)
		pause();
	return NULL;
}

static int a_thread(void)
{
	static int tid;
	pthread_t thread;

	if (pthread_create(&thread, NULL, sleeping, &tid))
		return -1;
	while (!__atomic_load_n(&tid, __ATOMIC_ACQUIRE))
		sched_yield();
	return tid;
}

static int pidfd_thread(void)
{
	return (int)syscall(SYS_pidfd_open, a_thread(), PIDFD_THREAD);
}

/* A descriptor that is nowhere but in a message on its way. */
static int sent(int fd)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) || put_in_flight(pair[0], fd))
		return -1;
	close(fd);
	return pair[1];
}

static int corked_sent(void)
{
	return sent(corked());
}

static int pidfd_thread_sent(void)
{
	return sent(pidfd_thread());
}

static int pidfd_outside_sent(void)
{
	return sent(pidfd_outside());
}

static int pidfd_child(void)
{
	pid_t pid = fork();

	if (pid == 0)
		for (;;)
			pause();
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static int pidfd_dead(void)
{
	pid_t pid = fork();
	int fd;

	if (pid == 0)
		_exit(0);
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	waitpid(pid, NULL, 0);
	return fd;
}

static int traced(void)
{
	pid_t pid = fork();

	if (pid == 0)
		for (;;)
			pause();
	return ptrace(PTRACE_SEIZE, pid, 0, 0) ? -1 : 0;
}

static int seccomp_listener(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { 1, code };

	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static int socket_path(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(name.sun_path, sizeof(name.sun_path), "/tmp/refused%d", (int)getpid());
	if (listener < 0 || bind(listener, (struct sockaddr *)&name, sizeof(name)))
		return -1;
	close(listener);
	return open(name.sun_path, O_PATH);
}

static int unix_outside(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), fd, len;
	pid_t pid;

	/* Its other end is in a process that is not in the tree. */
	len = snprintf(name.sun_path + 1, sizeof(name.sun_path) - 1, "refused%d", (int)getpid());
	if (listener < 0 || bind(listener, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)) ||
	    listen(listener, 1))
		return -1;
	pid = fork();
	if (pid == 0) {
		if (fork() == 0) {
			setsid();
			fd = accept(listener, NULL, NULL);
			prctl(PR_SET_NAME, "outside");
			for (;;)
				pause();
		}
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	close(listener);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	return connect(fd, (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len)) ? -1 : fd;
}

static int large_ghost(void)
{
	char path[] = "/tmp/refusedXXXXXX";
	int fd = mkstemp(path);

	if (fd < 0 || fallocate(fd, 0, 0, 2 << 20) || unlink(path))
		return -1;
	return fd;
}

static int fuse(void)
{
	return open("/dev/fuse", O_RDWR);
}

static int namespace_outside(void)
{
	int fd;

	if (unshare(CLONE_NEWUTS))
		return -1;
	fd = open("/proc/self/ns/uts", O_RDONLY);
	return fd < 0 || unshare(CLONE_NEWUTS) ? -1 : fd;
}

static int link_remap(void)
{
	char path[] = "/tmp/refusedXXXXXX", other[40];
	int fd = mkstemp(path);

	snprintf(other, sizeof(other), "%s.link", path);
	return fd < 0 || link(path, other) || unlink(path) ? -1 : fd;
}

static const struct {
	const char *name;
	int (*make)(void);
} cases[] = {
	{ "io_uring", io_uring },
	{ "mqueue", mqueue },
	{ "udp-cork", corked },
	{ "udp-cork-sent", corked_sent },
	{ "detached-bind", detached_bind },
	{ "detached-tmpfs", detached_file },
	{ "userfaultfd", userfault },
	{ "memfd_secret", secret },
	{ "bpf-program", bpf_program },
	{ "bpf-map", bpf_map },
	{ "perf-event", perf_event },
	{ "vsock", vsock },
	{ "ping-socket", ping },
	{ "mptcp", mptcp },
	{ "af-xdp", xdp },
	{ "landlock-ruleset", landlock },
	{ "fs-context", fs_context },
	{ "mount-fd", mount_fd },
	{ "packet-pipe", packet_pipe },
	{ "pidfd-child", pidfd_child },
	{ "pidfd-dead", pidfd_dead },
	{ "pidfd-outside", pidfd_outside },
	{ "pidfd-outside-sent", pidfd_outside_sent },
	{ "pidfd-thread", pidfd_thread },
	{ "pidfd-thread-sent", pidfd_thread_sent },
	{ "traced-child", traced },
	{ "seccomp-listener", seccomp_listener },
	{ "unix-outside", unix_outside },
	{ "large-ghost", large_ghost },
	{ "linked-ghost", link_remap },
	{ "socket-path", socket_path },
	{ "fuse-device", fuse },
	{ "namespace-outside", namespace_outside },
};

int main(int argc, char **argv)
{
	int out;

	if (argc != 3)
		return 2;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		if (strcmp(cases[i].name, argv[1]))
			continue;
		if (cases[i].make() < 0) {
			fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
			return 77;
		}
		out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
		if (out < 0 || write(out, "ready\n", 6) != 6 || close(out))
			return 1;
		for (;;)
			pause();
	}
	return 2;
}
