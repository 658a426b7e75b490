/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs with files on unmounted mounts have in common. Include it last. */
#ifndef CRYOSHIM_TEST_UNMOUNTED_H
#define CRYOSHIM_TEST_UNMOUNTED_H

/* Where checks are told, and the directory that all is in. */
static FILE *out;
static char dir[200];

static void check(const char *what, bool ok)
{
	fprintf(out, "%s %s\n", ok ? "ok" : "BAD", what);
	fflush(out);
}

/* For what has to be so before there is anything to check. */
static void must(const char *what, bool ok)
{
	if (ok)
		return;
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

/* A path in the directory; four of them live at a time. */
static const char *at(const char *name)
{
	static char paths[4][300];
	static int turn;
	char *path = paths[turn++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

/* The mount of a descriptor, as it is numbered; -1: not known. */
static inline int mount_of(int fd)
{
	char path[64], line[256];
	int id = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "mnt_id: %d", &id);
	if (f)
		fclose(f);
	return id;
}

/* Whether a descriptor is on a mount that mountinfo has. */
static inline bool is_listed(int fd)
{
	int id = mount_of(fd), each;
	char line[4096];
	bool found = false;
	FILE *f = fopen("/proc/self/mountinfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%d", &each) == 1 && each == id)
			found = true;
	if (f)
		fclose(f);
	return found;
}

#endif
