// SPDX-License-Identifier: Apache-2.0
/*
 * What CRIU runs as `tar` to save a tmpfs in a dump (criu/filesystems.c:tmpfs_dump), once for each and with the tasks
 * frozen: a container has three to six, nearly empty. Starting a shell's worth of tar and gzip takes 3 ms; this takes
 * a quarter of one. It knows exactly CRIU's command line, and writes what tar would, in gzip's stored form; whatever it
 * does not know, and any file system that is not small and simple, is left to the real tar.
 */
#define _GNU_SOURCE
#include "standin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define BLOCK 512
#define MAX_BYTES (1u << 20)
#define MAX_DEPTH 16
#define MAX_ID 07777777

/* tar(5), GNU's old format: what GNU tar writes by default. */
struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], chksum[8], typeflag, linkname[100], magic[8];
	char uname[32], gname[32], devmajor[8], devminor[8], unused[167];
};

_Static_assert(sizeof(struct header) == BLOCK, "a header is a block");

static uint8_t *archive;
static size_t used;

static uint8_t *grow(size_t len)
{
	uint8_t *at = archive + used;

	if (used + len > MAX_BYTES)
		return NULL;
	used += len;
	return at; /* zeroed: calloc, written once */
}

static bool octal(char *field, size_t size, uint64_t value)
{
	return snprintf(field, size, "%0*llo", (int)size - 1, (unsigned long long)value) == (int)size - 1;
}

static bool add_data(int dir, const char *name, uint64_t size)
{
	uint8_t *to = grow((size + BLOCK - 1) / BLOCK * BLOCK);
	int fd = to ? openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
	uint64_t got = 0;

	while (fd >= 0 && got < size) {
		ssize_t n = read(fd, to + got, size - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		got += n;
	}
	if (fd >= 0)
		close(fd);
	return fd >= 0 && got == size;
}

/* One entry, without what is below it. False: not simple. */
static bool add(int dir, const char *name, const char *path, const struct stat *st)
{
	struct header *h = (struct header *)grow(BLOCK);
	bool directory = S_ISDIR(st->st_mode);
	unsigned int sum = 0;

	if (!h || st->st_uid > MAX_ID || st->st_gid > MAX_ID || st->st_mtime < 0 ||
	    (!directory && st->st_nlink > 1) ||
	    snprintf(h->name, sizeof(h->name), "%s%s", path, directory ? "/" : "") >= (int)sizeof(h->name))
		return false;
	switch (st->st_mode & S_IFMT) {
	case S_IFDIR:
		h->typeflag = '5';
		break;
	case S_IFREG:
		h->typeflag = '0';
		/* With holes: tar has a form of its own for it. */
		if (st->st_size > (off_t)MAX_BYTES || (uint64_t)st->st_blocks * 512 < (uint64_t)st->st_size)
			return false;
		break;
	case S_IFLNK: {
		ssize_t n = readlinkat(dir, name, h->linkname, sizeof(h->linkname));

		if (n <= 0 || n >= (ssize_t)sizeof(h->linkname))
			return false;
		h->typeflag = '2';
		break;
	}
	case S_IFCHR:
	case S_IFBLK:
		h->typeflag = S_ISCHR(st->st_mode) ? '3' : '4';
		if (!octal(h->devmajor, sizeof(h->devmajor), major(st->st_rdev)) ||
		    !octal(h->devminor, sizeof(h->devminor), minor(st->st_rdev)))
			return false;
		break;
	case S_IFIFO:
		h->typeflag = '6';
		break;
	default: /* tar leaves sockets out and says so */
		return false;
	}
	memcpy(h->magic, "ustar  ", 8);
	memset(h->chksum, ' ', sizeof(h->chksum));
	if (!octal(h->mode, sizeof(h->mode), st->st_mode & 07777) || !octal(h->uid, sizeof(h->uid), st->st_uid) ||
	    !octal(h->gid, sizeof(h->gid), st->st_gid) || !octal(h->mtime, sizeof(h->mtime), st->st_mtime) ||
	    !octal(h->size, sizeof(h->size), S_ISREG(st->st_mode) ? st->st_size : 0))
		return false;
	for (size_t i = 0; i < BLOCK; i++)
		sum += ((uint8_t *)h)[i];
	snprintf(h->chksum, sizeof(h->chksum), "%06o", sum);
	h->chksum[7] = ' ';
	return !S_ISREG(st->st_mode) || add_data(dir, name, st->st_size);
}

static bool add_below(int fd, const char *path, dev_t dev, int depth)
{
	DIR *dir = depth < MAX_DEPTH ? fdopendir(fd) : NULL;
	struct dirent *d;
	bool simple = dir != NULL;

	if (!dir) {
		close(fd);
		return false;
	}
	while (simple && (errno = 0, d = readdir(dir))) {
		char below[PATH_MAX];
		struct stat st;
		int sub;

		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		simple = snprintf(below, sizeof(below), "%s/%s", path, d->d_name) < (int)sizeof(below) &&
			 fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && add(dirfd(dir), d->d_name, below, &st);
		/* --one-file-system: of a mount there is the directory, not what is in it. */
		if (!simple || !S_ISDIR(st.st_mode) || st.st_dev != dev)
			continue;
		sub = openat(dirfd(dir), d->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		simple = sub >= 0 && add_below(sub, below, dev, depth + 1);
	}
	simple = simple && errno == 0;
	closedir(dir);
	return simple;
}

static uint32_t crc32_of(const uint8_t *data, size_t len)
{
	uint32_t table[256], crc = ~0u;

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int bit = 0; bit < 8; bit++)
			c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
		table[i] = c;
	}
	for (size_t i = 0; i < len; i++)
		crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
	return ~crc;
}

static bool put(const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len > 0) {
		ssize_t n = write(STDOUT_FILENO, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		len -= n;
	}
	return true;
}

static void put_le32(uint8_t *to, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		to[i] = (uint8_t)(value >> 8 * i);
}

/* RFC 1952, with blocks that are stored (RFC 1951, 3.2.4). */
static bool put_gzip(void)
{
	static const uint8_t head[10] = { 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255 };
	uint8_t tail[8];

	if (!put(head, sizeof(head)))
		return false;
	for (size_t at = 0; at < used;) {
		size_t len = used - at < 65535 ? used - at : 65535;
		uint8_t block[5] = { at + len == used, (uint8_t)len, (uint8_t)(len >> 8), (uint8_t)~len,
				     (uint8_t)(~len >> 8) };

		if (!put(block, sizeof(block)) || !put(archive + at, len))
			return false;
		at += len;
	}
	put_le32(tail, crc32_of(archive, used));
	put_le32(tail + 4, (uint32_t)used);
	return put(tail, sizeof(tail));
}

enum standin tar_create(char **argv)
{
	static const char *const known[] = { "--create", "--gzip", "--no-unquote", "--no-wildcards", "--one-file-system",
					     "--check-links", "--preserve-permissions", "--sparse", "--numeric-owner",
					     "--directory", "/proc/self/fd/0", "." };
	const size_t n = sizeof(known) / sizeof(known[0]);
	struct stat st;
	size_t i = 0;
	int fd;

	while (i < n && argv[i + 1] && !strcmp(argv[i + 1], known[i]))
		i++;
	if (i < n || argv[n + 1])
		return STANDIN_NOT_SIMPLE;
	/* Two more blocks end an archive. */
	archive = calloc(1, MAX_BYTES + 2 * BLOCK);
	fd = archive ? open("/proc/self/fd/0", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (fd < 0 || fstat(fd, &st) || !add(fd, ".", ".", &st) || !add_below(fd, ".", st.st_dev, 0))
		return STANDIN_NOT_SIMPLE;
	used += 2 * BLOCK;
	return put_gzip() ? STANDIN_DONE : STANDIN_FAILED;
}
