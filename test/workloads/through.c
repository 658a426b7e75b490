// SPDX-License-Identifier: Apache-2.0
/*
 * through CASE PATH [N]: opens what a case of the spfs bench needs, says "ready", and for each line on its input does it once more
 * and says how many operations a second it was (reads and writes: those of 4 KiB or 1 MiB). `hold`: N open files PATH/fI, no more.
 * With CPU_TIME in the environment seconds are those that it had a processor: on a busy machine, too.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB (1u << 20)
#define LOOKS 200000
#define OPENS 20000

static char *buffer;
static uint32_t *order;
static size_t pages;
static clockid_t clock_ = CLOCK_MONOTONIC;

static double now(void)
{
	struct timespec t;

	clock_gettime(clock_, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Each page once, in an order that no readahead guesses. */
static void shuffle(void)
{
	uint64_t x = 88172645463325252ull;

	for (size_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (size_t i = pages; i > 1; i--) {
		size_t j = (x ^= x << 13, x ^= x >> 7, x ^= x << 17) % i;
		uint32_t t = order[i - 1];

		order[i - 1] = order[j];
		order[j] = t;
	}
}

static size_t once(const char *what, const char *path, int fd, size_t size)
{
	struct stat st;
	size_t n = 0;

	if (!strcmp(what, "random")) {
		for (; n < pages; n++)
			if (pread(fd, buffer, 4096, (off_t)order[n] * 4096) != 4096)
				err(1, "pread");
	} else if (!strcmp(what, "overwrite")) {
		for (; n < pages; n++)
			if (pwrite(fd, buffer, 4096, (off_t)order[n] * 4096) != 4096)
				err(1, "pwrite");
	} else if (!strcmp(what, "read") || !strcmp(what, "write")) {
		for (; (n + 1) * MIB <= size; n++)
			if ((what[0] == 'r' ? pread(fd, buffer, MIB, (off_t)(n * MIB)) :
					      pwrite(fd, buffer, MIB, (off_t)(n * MIB))) != MIB)
				err(1, "%s", what);
	} else if (!strcmp(what, "stat")) {
		for (; n < LOOKS; n++)
			if (stat(path, &st))
				err(1, "stat");
	} else {
		for (; n < OPENS; n++) {
			int other = open(path, O_RDONLY);

			if (other < 0 || close(other))
				err(1, "open");
		}
	}
	return n;
}

static void hold(const char *path, int n)
{
	struct rlimit limit;
	char name[4096];

	if (getrlimit(RLIMIT_NOFILE, &limit))
		err(1, "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		err(1, "setrlimit");
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "%s/f%d", path, i);
		if (open(name, O_RDWR) < 0)
			err(1, "%s", name);
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	char line[16];
	struct stat st;
	int fd;

	if (argc < 3)
		errx(2, "through CASE PATH [N]");
	if (getenv("CPU_TIME"))
		clock_ = CLOCK_PROCESS_CPUTIME_ID;
	if (!strcmp(argv[1], "hold"))
		hold(argv[2], argc > 3 ? atoi(argv[3]) : 1);
	fd = open(argv[2], O_RDWR);
	buffer = aligned_alloc(4096, MIB);
	if (fd < 0 || fstat(fd, &st) || !buffer)
		err(1, "%s", argv[2]);
	memset(buffer, 'x', MIB);
	pages = (size_t)st.st_size / 4096;
	order = malloc(pages * sizeof(*order) + 1);
	if (!order)
		err(1, "order");
	shuffle();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		double begin;
		size_t n;

		/* What is cached by the proxy is not what is measured; the backend's cache stays. */
		if (line[0] == 'c')
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		begin = now();
		n = once(argv[1], argv[2], fd, (size_t)st.st_size);
		printf("%.1f\n", (double)n / (now() - begin));
		fflush(stdout);
	}
	return 0;
}
