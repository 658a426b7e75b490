// SPDX-License-Identifier: Apache-2.0
// Flags of open(2) that Node's constants lack (include/uapi/asm-generic/fcntl.h), as x86-64 and most others have them.

export const O_PATH = 0o10000000;
export const O_CLOEXEC = 0o2000000;
