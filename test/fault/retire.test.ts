// SPDX-License-Identifier: Apache-2.0
import { spawnSync } from "node:child_process";
import { expect, test } from "vitest";

// KILL_ROUNDS and KILL_SEED as in kill.test.ts. No lab: one mount namespace is enough.
const rounds = process.env.KILL_ROUNDS ?? "20";
const seed = process.env.KILL_SEED ?? `${Date.now() % 1_000_000}`;

test("whoever replaces a mount is killed at any moment: no program notices, and it can be done again", () => {
  const { status, stdout, stderr } = spawnSync("node", ["test/fault/retire.mjs", rounds, seed], {
    encoding: "utf8",
    timeout: 600_000,
    killSignal: "SIGKILL",
  });
  expect(status, stderr).toBe(0);
  const { outcomes, halves, harms, stacked, report } = JSON.parse(stdout.trim().split("\n").at(-1) ?? "");
  console.log(`seed ${seed}: ${JSON.stringify(outcomes)}, ${halves} of them half way`);
  expect(harms).toEqual([]);
  expect(outcomes.killed).toBeGreaterThan(0);
  // It replaces what a killed attempt has left there as well.
  expect(JSON.parse(report)).toMatchObject({ left: [] });
  expect(JSON.parse(report).mounts).toBeGreaterThan(0);
  expect(stacked).toBe(1);
});
