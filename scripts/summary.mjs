// SPDX-License-Identifier: Apache-2.0
//
// Adds up what test.sh left in a directory: NAME.step holds "passed" or "failed"; NAME.json is vitest's report and
// NAME.exit its exit code. Prints what failed, with its message, then a line for each, then the sum as the last line;
// exits 1 if anything failed.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";

const directory = process.argv[2];
const sum = { passed: 0, failed: 0, skipped: 0 };

/** A message's lines that are kept of a failure: the log of a long run may be kept by its end alone. */
const MESSAGE_LINES = 40;

/** Prints a failure with the beginning of its message, without the colours of a terminal. */
function tell(suite, test, messages) {
  const lines = stripVTControlCharacters(messages.join("\n")).split("\n");
  const more = lines.length > MESSAGE_LINES ? [`... ${lines.length - MESSAGE_LINES} lines more`] : [];
  console.log(`FAILED ${suite}: ${test}`);
  for (const line of [...lines.slice(0, MESSAGE_LINES), ...more]) console.log(`    ${line}`);
}

/** Prints each failed test of a report, and each file that failed outside of its tests. */
function tellFailures(suite, report) {
  for (const file of report.testResults) {
    const failed = file.assertionResults.filter(({ status }) => status === "failed");
    for (const test of failed) tell(suite, test.fullName, test.failureMessages ?? []);
    if (file.status === "failed" && failed.length === 0) tell(suite, file.name, [file.message ?? ""]);
  }
}

/** Vitest counts todo apart; a suite that died before its report, or outside of any test, is one failure. */
function suiteResult(name) {
  const report = join(directory, `${name}.json`);
  const code = readFileSync(join(directory, `${name}.exit`), "utf8").trim();
  const result = { passed: 0, failed: 0, skipped: 0 };
  if (existsSync(report)) {
    const totals = JSON.parse(readFileSync(report, "utf8"));
    tellFailures(name, totals);
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

const lines = [];
for (const file of readdirSync(directory).sort()) {
  const [, name, kind] = /^(.*)\.(step|exit)$/.exec(file) ?? [];
  if (name === undefined) continue;
  const result =
    kind === "exit"
      ? suiteResult(name)
      : { passed: 0, failed: 0, skipped: 0, [readFileSync(join(directory, file), "utf8").trim()]: 1 };
  for (const key of Object.keys(sum)) sum[key] += result[key];
  lines.push(`${name}: ${words(result)}`);
}
for (const line of lines) console.log(line);
if (sum.passed + sum.failed === 0) sum.failed = 1;
console.log(words(sum));
process.exitCode = sum.failed === 0 ? 0 : 1;
