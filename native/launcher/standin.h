/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_STANDIN_H
#define CRYOSHIM_STANDIN_H

/* How a program went that stands in for another one in the engine's PATH. */
enum standin {
	STANDIN_DONE,
	STANDIN_NOT_SIMPLE,	/* nothing was written: the real one shall do it */
	STANDIN_FAILED,		/* something was; errno */
};

/* argv as CRIU starts tar in a dump; the directory is descriptor 0, the image descriptor 1. */
enum standin tar_create(char **argv);

/* argv as CRIU starts ip in a dump; the image is descriptor 1. */
enum standin ip_save(char **argv);

#endif
