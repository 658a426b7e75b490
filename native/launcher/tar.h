/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CRYOSHIM_TAR_H
#define CRYOSHIM_TAR_H

enum tar_result {
	TAR_WRITTEN,
	TAR_NOT_SIMPLE,		/* nothing was written: the real tar shall do it */
	TAR_FAILED,		/* something was */
};

/* argv as CRIU starts tar; the directory is descriptor 0, the image descriptor 1. */
enum tar_result tar_create(char **argv);

#endif
