// SPDX-License-Identifier: Apache-2.0
import { closeSync, constants, openSync, writeSync } from "node:fs";
import { join } from "node:path";

export type Level = "Error" | "Warn " | "Info ";

/** Writes one line of the session's log. */
export type Log = (level: Level, text: string) => void;

/** How much is written: each has what those before it have. */
export const LEVELS = ["none", "error", "warn", "info"] as const;
export type LogLevel = (typeof LEVELS)[number];
const RANK: Record<Level, number> = { Error: 1, "Warn ": 2, "Info ": 3 };

/**
 * cryoshim.log beside CRIU's own log, in its format. Made only when there is something to say: a checkpoint directory
 * with nothing special in it stays as CRIU made it.
 */
export const sessionLog = (dir: string, most: LogLevel = "info"): Log => {
  const start = process.hrtime.bigint();
  const rank = LEVELS.indexOf(most);
  return (level, text) => {
    if (RANK[level] > rank) return;
    const micros = Number((process.hrtime.bigint() - start) / 1000n);
    const stamp = `(${String(Math.floor(micros / 1e6)).padStart(2, "0")}.${String(micros % 1e6).padStart(6, "0")})`;
    try {
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND | constants.O_NOFOLLOW;
      const fd = openSync(join(dir, "cryoshim.log"), flags, 0o600);
      writeSync(fd, `${stamp} ${level} (cryoshim): ${text}\n`);
      closeSync(fd);
    } catch {
      // A log that cannot be written must not fail a checkpoint.
    }
  };
};
