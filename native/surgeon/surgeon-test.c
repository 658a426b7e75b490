// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The surgeon under AddressSanitizer and UndefinedBehaviorSanitizer, on a child of this program. */
#define _GNU_SOURCE
#include "surgeon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int passed, failed;

static void check(int ok, const char *behaviour)
{
	printf("%s - %s\n", ok ? "ok" : "not ok", behaviour);
	if (ok)
		passed++;
	else
		failed++;
}

static int open_temp(const char *content)
{
	int fd = memfd_create("surgeon-test", MFD_CLOEXEC);

	if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content) || ftruncate(fd, 4096)) {
		perror("memfd");
		exit(1);
	}
	return fd;
}

/* A child that stands in pause(), with `real` at descriptor 50 and mapped at `map`. */
static pid_t start_child(int real, void **map)
{
	pid_t pid;

	*map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, real, 0);
	if (*map == MAP_FAILED || (pid = fork()) < 0) {
		perror("start_child");
		exit(1);
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (dup2(real, 50) != 50)
			_exit(1);
		for (;;)
			pause();
	}
	return pid;
}

int main(void)
{
	int real = open_temp("real"), fake = open_temp("fake"), old = -1;
	struct surgeon_error err = { "", 0 };
	char buf[8] = "";
	struct surgeon s;
	int64_t ret = 0;
	void *map;
	pid_t pid = start_child(real, &map);

	usleep(100000);
	check(surgeon_seize(pid, &err) == 0, "a child is seized");
	for (int i = 0; i < 100; i++) {
		const uint64_t call[7] = { SYS_getpid };

		if (surgeon_begin(&s, pid, &err) || surgeon_syscall(&s, call, &ret, &err) || surgeon_end(&s, &err))
			break;
	}
	check(ret == pid && !err.err, "a hundred injected calls return what they must");
	{
		const uint64_t call[7] = { SYS_close, 4000 };

		check(!surgeon_begin(&s, pid, &err) && !surgeon_syscall(&s, call, &ret, &err) && !surgeon_end(&s, &err) &&
		      ret == -EBADF, "a failing call is told by its errno");
	}
	check(surgeon_swap_fd(pid, 50, fake, 0, &old, &err) == 0 && old >= 0, "a descriptor is swapped");
	check(pread(old, buf, 4, 0) == 4 && !memcmp(buf, "real", 4), "what was there is handed over");
	check(surgeon_swap_fd(pid, 49, fake, 0, &old, &err) == -1 && err.err == EBADF && old == -1,
	      "a descriptor that is not there cannot be swapped");
	check(surgeon_swap_mapping(pid, (uintptr_t)map, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fake, 0, &err) == 0,
	      "a mapping is swapped");
	check(surgeon_read(pid, (uintptr_t)map, buf, 4, &err) == 0 && !memcmp(buf, "fake", 4), "the new one is read there");
	check(surgeon_write(pid, (uintptr_t)map, "made", 4, &err) == 0 && pread(fake, buf, 4, 0) == 4 &&
	      !memcmp(buf, "made", 4), "what is written there reaches its file");
	check(surgeon_read(pid, 8, buf, 4, &err) == -1, "memory that is not mapped is an error");
	check(surgeon_release(pid, &err) == 0 && waitpid(pid, NULL, WNOHANG) == 0, "the child lives on");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	check(surgeon_seize(pid, &err) == -1 && err.err == ESRCH, "a dead task cannot be seized");
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
