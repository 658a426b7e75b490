// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The parasite under AddressSanitizer and UndefinedBehaviorSanitizer, with surgeons that are killed at random moments. */
#define _GNU_SOURCE
#include "parasite.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int passed, failed;

/* What the patient tells of itself. */
static struct report {
	atomic_ulong rounds, naps, signals, bad;
	char what[64];
} *report;

static void check(int ok, const char *behaviour)
{
	printf("%s - %s\n", ok ? "ok" : "not ok", behaviour);
	if (ok)
		passed++;
	else
		failed++;
}

static void complain(const char *what)
{
	snprintf(report->what, sizeof(report->what), "%s (%s)", what, strerror(errno));
	report->bad++;
}

static void on_signal(int sig)
{
	(void)sig;
	report->signals++;
}

/* Computes with all it has, naps, looks at its signal mask: whatever is lost, it sees. */
static void patient(void)
{
	sigset_t own, now;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGUSR1, on_signal);
	sigemptyset(&own);
	sigaddset(&own, SIGUSR2);
	sigprocmask(SIG_SETMASK, &own, NULL);
	for (;;) {
		struct timespec nap = { 0, 3000000 };
		double f = 1.5;
		uint64_t a = 1, b = 2, c = 3;
		char byte;

		for (int i = 0; i < 20000; i++)
			a += 3, b ^= a, b ^= a, c += b, c -= b, f *= 1.0000001;
		if (a != 60001 || b != 2 || c != 3 || f < 1.503 || f > 1.5031)
			complain("registers");
		/* Only a handler of its own may interrupt it. */
		unsigned long signals = report->signals;

		if (clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL) && report->signals == signals)
			complain("nap");
		report->naps++;
		if (pread(50, &byte, 1, 0) != 1 || (byte != 'r' && byte != 'f'))
			complain("file");
		sigprocmask(SIG_SETMASK, NULL, &now);
		if (memcmp(&own, &now, 8))
			complain("signal mask");
		report->rounds++;
	}
}

static int count_of(pid_t pid, const char *what)
{
	char path[64], line[4608];
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, what);
	if (!strcmp(what, "fd")) {
		DIR *dir = opendir(path);

		while (dir && readdir(dir))
			n++;
		if (dir)
			closedir(dir);
		return n;
	}
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		n++;
	if (f)
		fclose(f);
	return n;
}

static int goes_on(void)
{
	unsigned long before = report->rounds;

	for (int i = 0; i < 400 && report->rounds < before + 3; i++)
		usleep(5000);
	return report->rounds >= before + 3;
}

/* Puts `file` at number 50 and at 199 others, in one list. */
static int swap(struct parasite *p, int file, struct surgeon_error *err)
{
	struct parasite_call calls[200];
	unsigned int done;

	memset(calls, 0, sizeof(calls));
	for (int i = 0; i < 200; i++)
		calls[i] = (struct parasite_call){ .nr = SYS_dup3, .arg = { parasite_fd(p, 0), (uint64_t)(50 + i), O_CLOEXEC },
						   .load = 1 };
	return parasite_run(p, calls, 200, &file, 1, &done, err) || done != 200;
}

/* A surgeon who does nothing else until he is killed. */
static void operate(pid_t pid, const int *files)
{
	struct surgeon_error err;
	struct parasite p;

	for (int round = 0;; round++) {
		if (surgeon_seize(pid, &err) || parasite_start(&p, pid, 0, &err) || swap(&p, files[round % 2], &err) ||
		    swap(&p, files[1 - round % 2], &err) || parasite_cure(&p, &err) || surgeon_release(pid, &err)) {
			fprintf(stderr, "surgeon: %s: %s\n", err.step, strerror(err.err));
			_exit(1);
		}
		usleep(200);
	}
}

static int open_temp(const char *content)
{
	int fd = memfd_create("parasite-test", MFD_CLOEXEC);

	if (fd < 0 || write(fd, content, strlen(content)) != (ssize_t)strlen(content)) {
		perror("memfd");
		exit(1);
	}
	return fd;
}

int main(void)
{
	int files[2] = { open_temp("real"), open_temp("fake") }, fds, maps, i, hung = 0, harmed = 0, died = 0;
	int rounds = getenv("KILL_ROUNDS") ? atoi(getenv("KILL_ROUNDS")) : 60;
	struct surgeon_error err = { "", 0 };
	struct parasite_call calls[3];
	struct parasite p;
	unsigned int done;
	char byte = 0;
	pid_t pid;

	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid = report == MAP_FAILED ? -1 : fork();
	if (pid == 0) {
		for (i = 0; i < 200; i++)
			dup2(files[0], 50 + i);
		patient();
	}
	if (pid < 0) {
		perror("fork");
		return 1;
	}
	check(goes_on(), "the patient runs");
	fds = count_of(pid, "fd");
	maps = count_of(pid, "maps");

	check(!surgeon_seize(pid, &err) && !parasite_start(&p, pid, 0, &err), "a parasite starts in a stopped task");
	check(!swap(&p, files[1], &err), "a list of calls is run, with a descriptor of ours");
	memset(calls, 0, sizeof(calls));
	calls[0].nr = calls[2].nr = SYS_getpid;
	calls[1] = (struct parasite_call){ .nr = SYS_close, .arg = { 4000 } };
	check(!parasite_run(&p, calls, 3, NULL, 0, &done, &err) && done == 2 && calls[0].ret == pid && calls[1].ret == -EBADF,
	      "a call that fails ends the list");
	calls[1].go_on = 1;
	check(!parasite_run(&p, calls, 3, NULL, 0, &done, &err) && done == 3 && calls[2].ret == pid, "unless it may fail");
	calls[2].with = 2;
	check(!parasite_run(&p, calls, 3, NULL, 0, &done, &err) && done == 3 && calls[2].ret == -ECANCELED,
	      "and what is to be done only with it is left out");
	calls[2].with = 1;
	check(!parasite_run(&p, calls, 3, NULL, 0, &done, &err) && done == 3 && calls[2].ret == pid, "or done, if that was");
	kill(pid, SIGUSR1);
	check(!parasite_run(&p, calls, 3, NULL, 0, &done, &err) && done == 3, "a signal waits until the task is its own again");
	check(!parasite_cure(&p, &err) && !surgeon_release(pid, &err), "it ends");
	check(goes_on() && !report->bad, "the patient goes on as it was");
	check(report->signals == 1, "and has its signal");
	check(count_of(pid, "fd") == fds && count_of(pid, "maps") == maps, "nothing is left in it");
	{
		char path[64];

		snprintf(path, sizeof(path), "/proc/%d/fd/50", pid);
		i = open(path, O_RDONLY);
		check(pread(i, &byte, 1, 0) == 1 && byte == 'f', "what was put there is there");
		close(i);
	}

	srand((unsigned int)time(NULL));
	for (i = 0; i < rounds && !hung; i++) {
		pid_t surgeon = fork();

		if (surgeon == 0)
			operate(pid, files);
		usleep((unsigned int)(rand() % 12000) + 300);
		if (waitpid(surgeon, NULL, WNOHANG))
			died++;
		kill(surgeon, SIGKILL);
		waitpid(surgeon, NULL, 0);
		if (i % 3 == 0)
			kill(pid, SIGUSR1);
		if (!goes_on())
			hung++;
		if (report->bad) {
			harmed++;
			fprintf(stderr, "round %d: %s\n", i, report->what);
			report->bad = 0;
		}
	}
	check(!died, "no surgeon failed");
	check(!hung, "whenever its surgeon is killed, the task goes on");
	check(!harmed, "with its registers, its mask, its files and the time that was left of its nap");
	printf("# %d rounds, descriptors %d then %d, mappings %d then %d\n", i, fds, count_of(pid, "fd"), maps,
	       count_of(pid, "maps"));
	check(!surgeon_seize(pid, &err) && !parasite_start(&p, pid, 0, &err) && !swap(&p, files[0], &err) &&
	      !parasite_cure(&p, &err) && !surgeon_release(pid, &err) && goes_on(), "and can be operated on again");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
