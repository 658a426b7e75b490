// SPDX-License-Identifier: Apache-2.0
//
// Adds up what test.sh left in a directory: NAME.step holds "passed" or "failed"; NAME.json is vitest's report and
// NAME.exit its exit code. Prints a line for each, then the sum as the last line; exits 1 if anything failed.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const directory = process.argv[2];
const sum = { passed: 0, failed: 0, skipped: 0 };

/** Vitest counts todo apart; a suite that died before its report, or outside of any test, is one failure. */
function suiteResult(name) {
  const report = join(directory, `${name}.json`);
  const code = readFileSync(join(directory, `${name}.exit`), "utf8").trim();
  const result = { passed: 0, failed: 0, skipped: 0 };
  if (existsSync(report)) {
    const totals = JSON.parse(readFileSync(report, "utf8"));
    result.passed = totals.numPassedTests;
    result.failed = totals.numFailedTests;
    result.skipped = totals.numPendingTests + totals.numTodoTests;
  }
  if (code !== "0" && result.failed === 0) result.failed = 1;
  return result;
}

/** The words of one result, without the skipped ones when there are none. */
function words({ passed, failed, skipped }) {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

for (const file of readdirSync(directory).sort()) {
  const [, name, kind] = /^(.*)\.(step|exit)$/.exec(file) ?? [];
  if (name === undefined) continue;
  const result =
    kind === "exit"
      ? suiteResult(name)
      : { passed: 0, failed: 0, skipped: 0, [readFileSync(join(directory, file), "utf8").trim()]: 1 };
  for (const key of Object.keys(sum)) sum[key] += result[key];
  console.log(`${name}: ${words(result)}`);
}
if (sum.passed + sum.failed === 0) sum.failed = 1;
console.log(words(sum));
process.exitCode = sum.failed === 0 ? 0 : 1;
