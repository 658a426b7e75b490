// SPDX-License-Identifier: Apache-2.0
/*
 * exercise PATH SEED COUNT: does things to a file at random and knows at each moment what must be in it (the idea of fsx, of
 * which this is no copy): reads, writes, appends, mappings, truncations, holes, copies, several descriptors. Says "ok", or
 * what it found where.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX (512u << 10)

static uint8_t model[MAX], buffer[MAX];
static size_t size;
static uint64_t state;
static const char *path;
static int fds[3];
static unsigned long step;

static uint32_t below(uint32_t n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 16) % n;
}

static void wrong(const char *what, size_t at, size_t len)
{
	printf("step %lu: %s at %zu, %zu bytes\n", step, what, at, len);
	fflush(stdout);
	exit(1);
}

static void same(const char *what, const uint8_t *got, size_t at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (got[i] != model[at + i])
			wrong(what, at + i, len);
}

static void fill(size_t at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buffer[i] = (uint8_t)(below(255) + 1);
	if (at > size)
		memset(model + size, 0, at - size);
	memcpy(model + at, buffer, len);
	if (at + len > size)
		size = at + len;
}

static void read_some(int fd)
{
	size_t at = below(MAX), len = below(60000), there = at >= size ? 0 : size - at < len ? size - at : len, got = 0;

	while (got < len) {
		ssize_t n = pread(fd, buffer + got, len - got, (off_t)(at + got));

		if (n < 0)
			err(1, "step %lu: pread", step);
		if (!n)
			break;
		got += (size_t)n;
	}
	if (got != there)
		wrong("length of a read", at, got);
	same("read", buffer, at, got);
}

static void write_some(int fd)
{
	size_t len = below(60000) + 1, at = below((uint32_t)(MAX - len));

	fill(at, len);
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, buffer + done, len - done, (off_t)(at + done));

		if (n <= 0)
			err(1, "step %lu: pwrite", step);
		done += (size_t)n;
	}
}

static void map_some(int fd, bool write)
{
	size_t at, len;
	uint8_t *map;

	if (size < 2)
		return;
	at = below((uint32_t)size - 1) & ~4095u;
	len = below((uint32_t)(size - at)) + 1;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);
	if (map == MAP_FAILED)
		err(1, "step %lu: mmap", step);
	same("mapping", map, at, len);
	if (write) {
		fill(at, len);
		memcpy(map, buffer, len);
	}
	if (munmap(map, len))
		err(1, "munmap");
}

static void append(void)
{
	size_t len = below(3000) + 1;
	int fd;

	if (size + len > MAX)
		return;
	fd = open(path, O_WRONLY | O_APPEND);
	if (fd < 0)
		err(1, "step %lu: open to append", step);
	fill(size, len);
	if (write(fd, buffer, len) != (ssize_t)len || close(fd))
		err(1, "step %lu: append", step);
}

static void punch(int fd)
{
	size_t at = below(MAX), len = below(60000) + 1, end = at + len;

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len)) {
		if (errno == EOPNOTSUPP)
			return;
		err(1, "step %lu: fallocate", step);
	}
	if (end > size)
		end = size;
	if (at < end)
		memset(model + at, 0, end - at);
}

static void copy(int fd)
{
	size_t len = below(60000) + 1, from, to;
	off_t in, out;

	if (size < 2 * len + 2)
		return;
	from = below((uint32_t)(size / 2 - len));
	to = size / 2 + below((uint32_t)(size / 2 - len));
	in = (off_t)from;
	out = (off_t)to;
	for (size_t done = 0; done < len;) {
		ssize_t n = copy_file_range(fd, &in, fds[(step + 1) % 3], &out, len - done, 0);

		if (n <= 0)
			err(1, "step %lu: copy_file_range", step);
		done += (size_t)n;
	}
	memcpy(model + to, model + from, len);
}

static void resize(int fd)
{
	size_t new = below(MAX);

	if (ftruncate(fd, (off_t)new))
		err(1, "step %lu: ftruncate", step);
	if (new > size)
		memset(model + size, 0, new - size);
	size = new;
}

int main(int argc, char **argv)
{
	unsigned long count;
	struct stat st;

	if (argc < 4)
		errx(2, "exercise PATH SEED COUNT");
	path = argv[1];
	state = strtoull(argv[2], NULL, 10) * 2654435761u + 88172645463325252ull;
	count = strtoul(argv[3], NULL, 10);
	for (int i = 0; i < 3; i++) {
		fds[i] = open(path, O_RDWR | (i ? 0 : O_CREAT | O_TRUNC), 0600);
		if (fds[i] < 0)
			err(1, "%s", path);
	}
	for (step = 0; step < count; step++) {
		int fd = fds[below(3)];

		switch (below(10)) {
		case 0:
		case 1:
		case 2:
			read_some(fd);
			break;
		case 3:
		case 4:
			write_some(fd);
			break;
		case 5:
			map_some(fd, below(2));
			break;
		case 6:
			append();
			break;
		case 7:
			punch(fd);
			break;
		case 8:
			copy(fd);
			break;
		case 9:
			if (below(4) == 0)
				resize(fd);
			else if (below(2) == 0 && fsync(fd))
				err(1, "step %lu: fsync", step);
		}
		if (fstat(fd, &st) || (size_t)st.st_size != size)
			wrong("size", (size_t)st.st_size, size);
	}
	for (size_t at = 0; at < size;) {
		ssize_t n = pread(fds[0], buffer, sizeof(buffer), (off_t)at);

		if (n <= 0)
			wrong("end", at, size);
		same("whole", buffer, at, (size_t)n);
		at += (size_t)n;
	}
	puts("ok");
	return 0;
}
