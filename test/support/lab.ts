// SPDX-License-Identifier: Apache-2.0
// Runs a shell script in the lab, with cryoshim as criu or bare. A script ends at the first thing that does not hold.
import { spawn } from "node:child_process";
import { expect } from "vitest";

const root = new URL("../..", import.meta.url).pathname;

export interface Ended {
  code: number | null;
  /** Stdout and stderr as they came. */
  output: string;
  stdout: string;
}

/** Runs a command in the lab. */
export function inLab(command: string[], kind: "cryoshim" | "bare", env: Record<string, string> = {}): Promise<Ended> {
  const words = kind === "bare" ? ["--bare", ...command] : command;
  const { NODE_EXTRA_CA_CERTS: _, ...outer } = process.env; // slows each start of Node
  const child = spawn("test/lab/lab", words, {
    cwd: root,
    env: { ...outer, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let stdout = "";
  child.stdout.on("data", (data) => {
    output += data;
    stdout += data;
  });
  child.stderr.on("data", (data) => {
    output += data;
  });
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, output, stdout })));
}

/** A script with the words of scenario.sh, in the lab with cryoshim. */
export const lab = (script: string, env?: Record<string, string>): Promise<Ended> =>
  inLab(["bash", "-c", `. /cryoshim/test/support/scenario.sh\n${script}`], "cryoshim", env);

/** The same without cryoshim. */
export const bare = (script: string, env?: Record<string, string>): Promise<Ended> =>
  inLab(["bash", "-c", `. /cryoshim/test/support/scenario.sh\n${script}`], "bare", env);

/** Runs the script in the lab with cryoshim and expects it to hold to its end; gives its stdout. */
export async function holds(script: string, env?: Record<string, string>): Promise<string> {
  const run = process.env.E2E_BARE ? bare : lab; // E2E_BARE=1: does the scenario hold with CRIU alone?
  const { code, output, stdout } = await run(script, env);
  expect(code, output).toBe(0);
  return stdout;
}
