// SPDX-License-Identifier: Apache-2.0
/*
 * What a process has on a mount that has been unmounted lazily otherwise than by a descriptor: its working directory, its
 * root, its program, mapped files; for a checkpoint in the middle. Binds DIR/sub to DIR/at, runs itself from a copy there, unmounts it with MNT_DETACH,
 * writes "ready" to OUT, and when GO exists "ok what" or "BAD what" for each thing, then "done".
 *
 *	inside DIR OUT GO [chroot]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "unmounted.h"

static void copy(const char *from, const char *to)
{
	int in = open(from, O_RDONLY), fd = open(to, O_CREAT | O_WRONLY, 0755);
	char buf[65536];
	ssize_t n;

	must(to, in >= 0 && fd >= 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		must(to, write(fd, buf, (size_t)n) == n);
	close(in);
	close(fd);
}

#define PAGE 4096
#define SIZE (8 * PAGE)

static char *map_at(const char *name, int prot, int flags, bool keep)
{
	int fd = open(at(name), O_RDWR);
	char *p;

	must(name, fd >= 0);
	p = mmap(NULL, SIZE, prot, flags, fd, 0);
	must(name, p != MAP_FAILED);
	if (!keep)
		close(fd);
	return p;
}

static void make(const char *name, char fill)
{
	int fd = open(at(name), O_CREAT | O_RDWR, 0644);
	char buf[SIZE];

	must(name, fd >= 0);
	memset(buf, fill, sizeof(buf));
	must(name, write(fd, buf, sizeof(buf)) == SIZE);
	close(fd);
}

static bool is_dot(const char *name)
{
	struct stat one, other;

	return stat(".", &one) == 0 && stat(name, &other) == 0 && one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

static void second(char **argv)
{
	bool chrooted = argv[4] != NULL;
	char *shared, *private, *gone, *both, link[PATH_MAX] = "", before[PATH_MAX] = "";
	int there, fd, host, go;
	struct stat st;

	host = open("/", O_PATH | O_DIRECTORY);
	there = open(at("at"), O_RDONLY | O_DIRECTORY);
	must("open", there >= 0 && host >= 0);
	make("at/shared", 's');
	make("at/private", 'p');
	make("at/gone", 'g');
	make("at/both", 'b');
	shared = map_at("at/shared", PROT_READ | PROT_WRITE, MAP_SHARED, false);
	private = map_at("at/private", PROT_READ | PROT_WRITE, MAP_PRIVATE, false);
	gone = map_at("at/gone", PROT_READ, MAP_PRIVATE, false);
	both = map_at("at/both", PROT_READ | PROT_WRITE, MAP_SHARED, true);
	must("unlink", unlink(at("at/gone")) == 0);
	private[PAGE] = 'P';
	must("chdir", chdir(at("at/deep")) == 0);
	must("readlink", readlink("/proc/self/exe", before, sizeof(before) - 1) > 0);
	go = open(at("."), O_PATH);
	(void)go;
	if (chrooted)
		must("chroot", chroot(at("at")) == 0);
	{
		char full[300];

		snprintf(full, sizeof(full), "%s", at("at"));
		/* From outside of a new root it still has its name. */
		must("umount", chrooted ? (fchdir(host) == 0 && syscall(SYS_umount2, full + 1, MNT_DETACH) == 0 && fchdir(there) == 0 &&
					   chdir("deep") == 0) : umount2(full, MNT_DETACH) == 0);
	}
	fprintf(out, "ready\n");
	fflush(out);
	while (faccessat(host, argv[3] + 1, F_OK, 0))
		usleep(20000);

	check("the working directory", openat(AT_FDCWD, "made", O_CREAT | O_RDWR, 0644) >= 0 &&
				       fstatat(host, at("sub/deep/made") + 1, &st, 0) == 0);
	check("nothing above it", chrooted || syscall(SYS_getcwd, link, sizeof(link)) > 0);
	check("what is above the working directory", openat(AT_FDCWD, "../shared", O_RDONLY) >= 0 && !access("../deep", F_OK));
	check("the mount's root has nothing above it", openat(AT_FDCWD, "../../deep", O_RDONLY) >= 0);
	shared[0] = 'S';
	fd = openat(host, at("sub/shared") + 1, O_RDONLY);
	check("a shared mapping is the file", fd >= 0 && pread(fd, link, 1, 0) == 1 && link[0] == 'S' && shared[PAGE] == 's');
	check("a private mapping", private[0] == 'p' && private[PAGE] == 'P' && private[2 * PAGE] == 'p');
	check("its file is untouched", (fd = openat(host, at("sub/private") + 1, O_RDONLY)) >= 0 && pread(fd, link, 1, PAGE) == 1 &&
				       link[0] == 'p');
	check("a mapping of a file without a name", gone[0] == 'g' && gone[SIZE - 1] == 'g');
	both[1] = 'B';
	fd = openat(host, at("sub/both") + 1, O_RDONLY);
	check("a mapping of a file that is open as well", fd >= 0 && pread(fd, link, 2, 0) == 2 && link[1] == 'B');
	if (chrooted) {
		check("the root", is_dot("/deep") && !access("/shared", F_OK));
		check("nothing above the root", access("/../sub", F_OK) < 0);
	} else {
		memset(link, 0, sizeof(link));
		check("the program", readlink("/proc/self/exe", link, sizeof(link) - 1) > 0 && !strcmp(link, "/inside"));
	}
	fprintf(out, "done\n");
	fflush(out);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	snprintf(dir, sizeof(dir), "%s", argv[1]);
	if (getenv("INSIDE")) {
		out = fopen(argv[2], "a");
		must(argv[2], out != NULL);
		second(argv);
	}
	must("mkdir", mkdir(at("sub"), 0755) == 0 && mkdir(at("sub/deep"), 0755) == 0 && mkdir(at("at"), 0755) == 0);
	must("mount", mount(at("sub"), at("at"), NULL, MS_BIND, NULL) == 0);
	copy("/proc/self/exe", at("at/inside"));
	must("setenv", setenv("INSIDE", "1", 1) == 0);
	execv(at("at/inside"), argv);
	must("execv", false);
}
