// SPDX-License-Identifier: Apache-2.0
// Names of ours for what exists for a while: sessions, locks, stub-proxy file systems.
import { customAlphabet } from "nanoid/non-secure";

/** As pins.c of the launcher and those who read locks that were kept know it. */
export const ID_LENGTH = 21;

/**
 * A new name that nobody else has: letters and digits. Nothing else: a name that begins with "-" is an option to a command that
 * is given it.
 */
export const newId = customAlphabet("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", ID_LENGTH);
