// SPDX-License-Identifier: Apache-2.0
// Restores without their server, and what stands for it, killed at random moments. REMOTE_ROUNDS for each victim, REMOTE_SEED
// for the moments of an earlier run.

import { expect, test } from "vitest";
import { inLab } from "../support/lab.js";
import { RETRIES } from "../support/tries.js";

const rounds = Number(process.env.REMOTE_ROUNDS ?? 10);
const seed = Number(process.env.REMOTE_SEED ?? Date.now() % 32_768);

// As the end-to-end tests: in CI tried again, and named by vitest.
test.each(["shim", "engine", "both", "all", "worker", "holder", "keeper", "server"])(
  "killed: %s; the container runs on or is gone, and nothing is left",
  { retry: RETRIES },
  async (victim) => {
    const words = ["bash", "test/fault/remote.sh", victim, `${rounds}`, `${seed}`];
    const { code, output } = await inLab(words, "cryoshim", { LAB_PACKAGES: "sshfs openssh-sftp-server" });
    expect(code, `seed ${seed}\n${output}`).toBe(0);
    const outcomes = [...output.matchAll(/^outcome: (.*)$/gm)].map(([, outcome]) => outcome!);
    const count = (outcome: string): number => outcomes.filter((each) => each === outcome).length;
    console.log(`${victim} killed, seed ${seed}: ${count("runs on")} × runs on, ${count("gone")} × gone`);
    expect(outcomes).toHaveLength(rounds);
  },
);
