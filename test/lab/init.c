// SPDX-License-Identifier: Apache-2.0
//
// Runs one command in the lab and leaves nothing behind.
//
//	init SETUP ROOT [CGROUP...] -- COMMAND [ARGUMENT...]
//
// Two processes of this program stand between the caller and the command:
//
//	outer	stays in the caller's namespaces: passes signals on, waits, removes the cgroups, returns the exit code
//	inner	pid 1 of the lab: runs SETUP (which mounts everything below ROOT), makes ROOT the root, starts the
//		command, reaps what is orphaned; with its end the kernel kills whatever still runs in the lab
//
// A socket pair joins the two. Inner sends the exit code through it before it ends, because it cannot end while a
// process of the lab hangs in a frozen cgroup: outer thaws first. When outer is killed, inner dies by PDEATHSIG.
// The command leads a session of its own, as CRIU refuses a session whose leader is outside of the pid namespace;
// at a terminal it stays in the caller's session, in the foreground, so that the terminal's keys work.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LAB_FAILED 125 /* as env(1), chroot(1) and the container tools */

static sigset_t forwarded; /* what a caller may send to the lab, and inner's SIGCHLD */
static sigset_t callers; /* the signal mask that we were started with */
static int terminal; /* stdin is a terminal and we are in its foreground */

static int complain(const char *format, ...)
{
	int reason = errno;
	va_list args;

	fputs("lab: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(reason));
	return -1;
}

static int write_file(const char *directory, const char *name, const char *text)
{
	char path[4096];
	int fd, ok;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok ? 0 : -1;
}

static int thaw_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)ftw;
	if (type == FTW_DP)
		write_file(path, "freezer.state", "THAWED"); /* fails in every other hierarchy */
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)ftw;
	if (type == FTW_DP)
		rmdir(path);
	return 0;
}

/* The kernel lets go of a cgroup a moment after its last process has been reaped. */
static void remove_cgroups(char **cgroups)
{
	for (; *cgroups; cgroups++) {
		for (int attempt = 0; attempt < 250 && !access(*cgroups, F_OK); attempt++) {
			if (attempt)
				usleep(20000);
			nftw(*cgroups, remove_one, 16, FTW_DEPTH | FTW_PHYS);
		}
		if (!access(*cgroups, F_OK))
			complain("cannot remove the cgroup %s", *cgroups);
	}
}

/* What lab tells mounts.sh is none of the command's business. */
static void clean_environment(void)
{
	const char *ours[] = { "LAB_LAYERS", "LAB_SOURCE", "LAB_CRIU", "LAB_NODE_PROGRAM", "LAB_HIERARCHIES",
			       "CRYOSHIM_LAB_CACHE" };

	for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
		unsetenv(ours[i]);
}

static int exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;

	if (fd < 0)
		return -1;
	ret = ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
	return ret;
}

static int run_setup(const char *setup)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return complain("cannot fork");
	if (!pid) {
		sigprocmask(SIG_SETMASK, &callers, NULL);
		execl(setup, setup, NULL);
		complain("cannot run %s", setup);
		_exit(LAB_FAILED);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return complain("cannot wait for %s", setup);
	return status ? -1 : 0; /* it has said why */
}

static int enter(const char *setup, const char *root, char **cgroups)
{
	for (; *cgroups; cgroups++)
		if (write_file(*cgroups, "cgroup.procs", "0"))
			return complain("cannot enter the cgroup %s", *cgroups);
	if (unshare(CLONE_NEWCGROUP))
		return complain("cannot make a cgroup namespace");
	if (sethostname("lab", 3))
		return complain("cannot set the host name");
	if (loopback_up())
		return complain("cannot bring up the loopback device");
	if (run_setup(setup))
		return -1;
	/* The old root lands on top of the new one, and goes. */
	if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		return complain("cannot make %s the root", root);
	return 0;
}

static void run_command(char **command)
{
	const char *cwd = getenv("LAB_CWD");

	if (terminal) {
		setpgid(0, 0);
		tcsetpgrp(STDIN_FILENO, getpgrp()); /* SIGTTOU is still blocked */
	} else {
		setsid();
	}
	cwd = cwd && *cwd ? cwd : "/cryoshim";
	if (chdir(cwd)) {
		complain("cannot enter %s", cwd);
		_exit(LAB_FAILED);
	}
	/* What the caller left open lies on mounts that the lab does not have; CRIU would stumble over it. */
	syscall(SYS_close_range, 3, ~0U, 0);
	clean_environment();
	sigprocmask(SIG_SETMASK, &callers, NULL);
	execvp(command[0], command);
	complain("cannot run %s", command[0]);
	_exit(errno == ENOENT ? 127 : 126);
}

/* Reaps everything; returns the command's exit code once it has ended. */
static int reap(pid_t command)
{
	int status, code = -1;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
		if (pid != command)
			continue;
		if (WIFSTOPPED(status))
			kill(-command, SIGCONT); /* nobody here could bring it back to the foreground */
		else
			code = exit_code(status);
	}
	return code;
}

static int inner(const char *setup, const char *root, char **cgroups, char **argv, int outer)
{
	struct pollfd gone = { .fd = outer, .events = POLLRDHUP };
	siginfo_t info;
	int code = LAB_FAILED;
	pid_t command;

	/* Outer may have died before it could take us along. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (poll(&gone, 1, 0) > 0)
		return LAB_FAILED;
	if (enter(setup, root, cgroups))
		goto out;
	command = fork();
	if (command < 0) {
		complain("cannot fork");
		goto out;
	}
	if (!command)
		run_command(argv);
	for (code = -1; code < 0;) {
		if (sigwaitinfo(&forwarded, &info) < 0)
			continue;
		if (info.si_signo == SIGCHLD)
			code = reap(command);
		else
			kill(command, info.si_signo);
	}
out:
	kill(-1, SIGKILL);
	if (write(outer, &code, sizeof(code)) != sizeof(code))
		complain("cannot report the exit code");
	return code;
}

static int outer(pid_t lab, char **cgroups, int inside)
{
	struct pollfd events[2] = { { .events = POLLIN }, { .fd = inside, .events = POLLIN } };
	struct signalfd_siginfo info;
	int code = LAB_FAILED, status;

	events[0].fd = signalfd(-1, &forwarded, SFD_CLOEXEC);
	if (events[0].fd < 0) {
		complain("cannot make a signalfd");
		kill(lab, SIGKILL);
	}
	for (;;) {
		if (poll(events, 2, -1) < 0)
			continue;
		if (events[1].revents)
			break;
		if (read(events[0].fd, &info, sizeof(info)) == sizeof(info) && info.ssi_signo != SIGCHLD)
			kill(lab, info.ssi_signo);
	}
	if (read(inside, &code, sizeof(code)) != sizeof(code))
		complain("the lab's first process was killed");
	for (char **cgroup = cgroups; *cgroup; cgroup++)
		nftw(*cgroup, thaw_one, 16, FTW_DEPTH | FTW_PHYS);
	while (waitpid(lab, &status, 0) < 0 && errno == EINTR)
		;
	if (terminal)
		tcsetpgrp(STDIN_FILENO, getpgrp());
	remove_cgroups(cgroups);
	return code;
}

int main(int argc, char **argv)
{
	const int signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGCHLD };
	char **command, **cgroups = argv + 3;
	sigset_t blocked;
	int ends[2];
	pid_t lab;

	for (command = cgroups; command < argv + argc && strcmp(*command, "--"); command++)
		;
	if (argc < 5 || command + 1 >= argv + argc) {
		fputs("usage: init SETUP ROOT [CGROUP...] -- COMMAND [ARGUMENT...]\n", stderr);
		return LAB_FAILED;
	}
	*command++ = NULL; /* ends the list of cgroups */

	sigemptyset(&forwarded);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		sigaddset(&forwarded, signals[i]);
	blocked = forwarded;
	sigaddset(&blocked, SIGTTOU);
	sigprocmask(SIG_BLOCK, &blocked, &callers);
	signal(SIGCHLD, SIG_DFL);
	terminal = isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == getpgrp();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
		complain("cannot make a socket pair");
		return LAB_FAILED;
	}
	lab = syscall(SYS_clone, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | SIGCHLD, NULL,
		      NULL, NULL, 0);
	if (lab < 0) {
		complain("cannot make the lab's namespaces (are you root?)");
		remove_cgroups(cgroups);
		return LAB_FAILED;
	}
	if (!lab) {
		close(ends[0]);
		return inner(argv[1], argv[2], cgroups, command, ends[1]);
	}
	close(ends[1]);
	return outer(lab, cgroups, ends[0]);
}
