// SPDX-License-Identifier: Apache-2.0
// A run of the lab that many tests read.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach } from "vitest";
import { RETRIES } from "./tries.js";

/**
 * Runs what all tests of this file or `describe` read, before the first of them. Where tests are tried again
 * (vitest.config.ts) it is run anew for each further try: what it left the first time would fail in the same way. A
 * hook itself is tried but once by vitest, so a run that throws is repeated here.
 * @param run leaves what the tests read; has an empty directory of its own, which goes with the last of the tests.
 */
export function beforeTests(run: (scratch: string) => Promise<void>): void {
  const directories: string[] = [];
  const fresh = (): Promise<void> => {
    const scratch = mkdtempSync(join(tmpdir(), "cryoshim-test-"));
    directories.push(scratch);
    return run(scratch);
  };
  beforeAll(async () => {
    for (let left = RETRIES; ; left--) {
      try {
        return await fresh();
      } catch (error) {
        if (left === 0) throw error;
        console.warn("tried again:", error);
      }
    }
  });
  beforeEach(async ({ task }) => {
    if ((task.result?.retryCount ?? 0) > 0) await fresh();
  });
  afterAll(() => {
    for (const directory of directories) rmSync(directory, { recursive: true, force: true });
  });
}
