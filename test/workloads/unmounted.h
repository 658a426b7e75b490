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

#endif
