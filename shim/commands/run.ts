// SPDX-License-Identifier: Apache-2.0
import { constants } from "node:os";
import { dirname } from "node:path";
import { execa } from "execa";
import { artefact } from "../../native/index.js";
import { CryoshimError } from "../error.js";

/**
 * Runs a command with cryoshim's launcher first in PATH as `criu`; nothing is installed. Resolves to the exit code a
 * shell would see. The terminal's signals reach the command by themselves; SIGTERM and SIGHUP are passed on.
 */
export const run = async ([command, ...args]: string[]): Promise<number> => {
  const PATH = `${dirname(artefact("criu"))}:${process.env.PATH ?? "/usr/sbin:/usr/bin:/sbin:/bin"}`;
  const child = execa(command!, args, { stdio: "inherit", env: { PATH }, reject: false });
  for (const signal of ["SIGTERM", "SIGHUP"] as const) process.on(signal, () => child.kill(signal));
  process.on("SIGINT", () => {});
  const result = await child;
  if (result.exitCode !== undefined) return result.exitCode;
  if (result.signal !== undefined) return 128 + constants.signals[result.signal as keyof typeof constants.signals];
  throw new CryoshimError("ERR_RUN", {
    what: `cannot run \`${command}\``,
    why: result.code === "ENOENT" ? "no such program in PATH" : (result.originalMessage ?? "unknown"),
    fix: "check the command after --",
  });
};
