// SPDX-License-Identifier: Apache-2.0

import { expect, test } from "vitest";
import { type Ended, inLab } from "../support/lab.js";
import { RETRIES } from "../support/tries.js";

// Whatever dies at whatever moment: the container runs on unharmed, or is gone as its runtime reports it, and nothing
// is left lying about. KILL_ROUNDS moments for each pair of operation and victim, KILL_SEED
// repeats the moments of an earlier run. Bare CRIU is put through the same for comparison; nothing is demanded of it.

const rounds = Number(process.env.KILL_ROUNDS ?? 20);
const seed = Number(process.env.KILL_SEED ?? Date.now() % 1_000_000);
const bareRounds = Math.min(rounds, Number(process.env.KILL_BARE_ROUNDS ?? Math.max(3, Math.floor(rounds / 4))));

interface Report {
  outcomes: Record<string, number>;
  harms: { round: number; victim: string; moment: number; code: number | string; harm: string[] }[];
}

async function kill(kind: "cryoshim" | "bare", operation: string, victim: string, count: number, workload = "") {
  const words = ["node", "test/fault/kill.mjs", operation, victim, `${count}`, `${seed}`, workload];
  const ended: Ended = await inLab(words, kind);
  expect(ended.code, ended.output).toBe(0);
  const report: Report = JSON.parse(ended.stdout.trim().split("\n").at(-1) ?? "");
  const counts = Object.entries(report.outcomes).map(([outcome, times]) => `${times} × ${outcome}`);
  console.log(
    `${kind}, ${workload} ${operation}, ${victim} killed, seed ${seed}, ${count} rounds: ${counts.join("; ")}`,
  );
  if (kind === "bare" && report.harms.length > 0) console.log(`  bare: ${report.harms.length} rounds left something`);
  return report;
}

const unharmed = ({ outcomes, harms }: Report): void => {
  expect(harms, JSON.stringify(harms, null, 1)).toEqual([]);
  const hits = Object.keys(outcomes).filter((outcome) => !outcome.includes("too late"));
  expect(hits.length, "no round hit its victim").toBeGreaterThan(0);
};

const victims = ["shim", "engine", "both", "runtime"];
const pairs = ["dump", "restore"].flatMap((operation) => victims.map((victim) => [operation, victim] as const));

test.each(pairs)("a %s whose %s is killed harms no container and leaves nothing", async (operation, victim) => {
  if (victim === "engine" || victim === "runtime") await kill("bare", operation, victim, bareRounds);
  unharmed(await kill("cryoshim", operation, victim, rounds));
});

// A tenth of the rounds: each takes some seconds.
const busyRounds = Math.max(4, Math.round((rounds * victims.length) / 10));

// Tried again in CI: an engine that dies while it runs its own parasite can take the task along, also bare (docs/how-it-works.md).
test.each(["dump", "restore"])(
  "a %s whose parts are killed while rings and roots are swapped harms none of them",
  { retry: RETRIES },
  async (operation) => {
    unharmed(await kill("cryoshim", operation, victims.join(","), busyRounds, "busy"));
  },
);
