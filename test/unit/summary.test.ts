// SPDX-License-Identifier: Apache-2.0
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";

const summary = fileURLToPath(new URL("../../scripts/summary.mjs", import.meta.url));
let directory = "";

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cryoshim-summary-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

/** Leaves what test.sh would leave after one vitest run. */
function suite(name: string, exit: number, passed: number, failed: number, skipped: number): void {
  const report = {
    numPassedTests: passed,
    numFailedTests: failed,
    numPendingTests: skipped,
    numTodoTests: 0,
    testResults: [],
  };
  writeFileSync(join(directory, `${name}.exit`), `${exit}\n`);
  writeFileSync(join(directory, `${name}.json`), JSON.stringify(report));
}

/** The sum that CI reads, and the exit code. */
function sum(): { last: string | undefined; code: number | null } {
  const { stdout, status } = spawnSync(process.execPath, [summary, directory], { encoding: "utf8" });
  return { last: stdout.trim().split("\n").at(-1), code: status };
}

test("all runs and steps are added up in the last line", () => {
  suite("unit", 0, 10, 0, 1);
  suite("e2e", 0, 5, 0, 0);
  writeFileSync(join(directory, "lint.step"), "passed\n");
  expect(sum()).toEqual({ last: "16 passed, 0 failed, 1 skipped", code: 0 });
});

test("a failed test or step makes the whole fail", () => {
  suite("unit", 1, 10, 2, 0);
  writeFileSync(join(directory, "lint.step"), "failed\n");
  expect(sum()).toEqual({ last: "10 passed, 3 failed", code: 1 });
});

test("a run that died without a report is a failure", () => {
  writeFileSync(join(directory, "e2e.exit"), "137\n");
  expect(sum()).toEqual({ last: "0 passed, 1 failed", code: 1 });
});

test("a run whose tests passed but which ended with an error is a failure", () => {
  suite("unit", 1, 10, 0, 0);
  expect(sum()).toEqual({ last: "10 passed, 1 failed", code: 1 });
});

test("a sum over nothing is a failure", () => {
  expect(sum()).toEqual({ last: "0 passed, 1 failed", code: 1 });
});
