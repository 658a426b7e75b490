// SPDX-License-Identifier: Apache-2.0
/* locked FILE COMMAND...: takes an exclusive lock (flock) on FILE, then becomes COMMAND, which holds it on by a
 * descriptor that no shell uses. */

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd;

	if (argc < 3)
		return 2;
	fd = open(argv[1], O_RDWR | O_CREAT, 0644);
	if (fd < 0 || dup2(fd, 99) != 99 || close(fd) || flock(99, LOCK_EX))
		return 1;
	execvp(argv[2], argv + 2);
	return 127;
}
