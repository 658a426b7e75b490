// SPDX-License-Identifier: Apache-2.0
import { defineConfig } from "vitest/config";
import { RETRIES } from "./test/support/tries.js";

// unit: no lab. e2e and fault: real runtimes in the lab, one file at a time, because they share the kernel's
// cgroups and the two cores: a second test would change the first one's timing.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: ["test/unit/**/*.test.ts"], testTimeout: 60_000 } },
      {
        test: {
          name: "e2e",
          include: ["test/{e2e,pack,demo}/**/*.test.ts"],
          testTimeout: 600_000,
          // Vitest names what it has tried again.
          retry: RETRIES,
          hookTimeout: 600_000,
          fileParallelism: false,
        },
      },
      {
        test: {
          name: "vm",
          include: ["test/vm/**/*.test.ts"],
          // Emulated machines: some twenty seconds each, and as many more where they are fetched first.
          testTimeout: 900_000,
          retry: process.env.CI ? 1 : 0,
          fileParallelism: false,
          maxConcurrency: 2,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: "fault",
          include: ["test/fault/**/*.test.ts"],
          testTimeout: 1_800_000,
          hookTimeout: 600_000,
          fileParallelism: false,
        },
      },
    ],
  },
});
