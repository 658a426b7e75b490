// SPDX-License-Identifier: Apache-2.0
import { CryoshimError } from "../error.js";

/** What is said of a file on an unmounted mount that cannot be had again. */
export const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_DETACHED", { what, why, fix, cause });
