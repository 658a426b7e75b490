// SPDX-License-Identifier: Apache-2.0

/** Stable, documented in docs/errors.md: scripts may match on them. */
export type ErrorCode = `ERR_${string}`;

/** What a person needs to act: what failed on what, why, and what to do about it. */
export interface ErrorParts {
  /** What failed, and on what: "cannot read configuration `/etc/cryoshim/config.toml`". */
  what: string;
  /** The cause, as the kernel, CRIU or the file told it. */
  why: string;
  /** What the person can do. */
  fix?: string;
  cause?: unknown;
}

/** The one error class of cryoshim: a stable `code` for programs, `what`, `why` and `fix` for people. */
export class CryoshimError extends Error {
  readonly code: ErrorCode;
  readonly what: string;
  readonly why: string;
  readonly fix: string | undefined;

  constructor(code: ErrorCode, parts: ErrorParts) {
    const hint = parts.fix === undefined ? "" : ` (${parts.fix})`;
    super(`${parts.what}: ${parts.why}${hint}`, parts.cause === undefined ? undefined : { cause: parts.cause });
    this.name = "CryoshimError";
    this.code = code;
    this.what = parts.what;
    this.why = parts.why;
    this.fix = parts.fix;
  }
}

/** The text of anything that was thrown, for the `why` of a new error. */
export const reason = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown));
