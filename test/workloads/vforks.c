// SPDX-License-Identifier: Apache-2.0
/*
 * vforks LOG: starts one program after the other by vfork(2), each of which takes its time until it is started, and writes the number
 * of each that has ended well to LOG, one a line. Nearly always it waits for its child, in a sleep that no signal ends.
 */

#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const struct timespec nap = { .tv_nsec = 20000000 };
	int log = argc == 2 ? open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644) : -1;

	if (log < 0)
		return 2;
	for (int i = 1;; i++) {
		int status;
		pid_t pid = vfork();

		if (pid == 0) {
			nanosleep(&nap, NULL);
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status || dprintf(log, "%d\n", i) < 0)
			return 1;
	}
}
