// SPDX-License-Identifier: Apache-2.0
/*
 * stamps FILE [PROCESSES [MEBIBYTES]]: measures its own freeze.
 *
 * Reads the wall clock every 0.2 ms and keeps the largest gap in FILE (mapped, two 64-bit words: gap in ns, ticks).
 * Whoever measures writes 0 over the gap first. PROCESSES others sleep beside it; MEBIBYTES of memory are its own.
 * (The wall clock: a restored task has a monotonic clock of its own.)
 */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	struct timespec pause_time = { .tv_nsec = 200000 };
	volatile int64_t *shared;
	int64_t last;
	int fd, i;

	if (argc < 2)
		return 2;
	fd = open(argv[1], O_RDWR | O_CREAT, 0644);
	if (fd < 0 || ftruncate(fd, 4096))
		return 1;
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		return 1;
	for (i = argc > 2 ? atoi(argv[2]) : 0; i > 0; i--) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (pid == 0)
			for (;;)
				pause();
	}
	if (argc > 3) {
		size_t size = (size_t)atoi(argv[3]) << 20, at;
		uint64_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			return 1;
		for (at = 0; at < size / sizeof(*memory); at += 8)
			memory[at] = at * 0x9e3779b97f4a7c15ULL;
	}
	last = now();
	for (;;) {
		int64_t time;

		nanosleep(&pause_time, NULL);
		time = now();
		if (time - last > shared[0])
			shared[0] = time - last;
		last = time;
		shared[1]++;
	}
}
