// SPDX-License-Identifier: Apache-2.0
// The table of docs/limits.md against the real CRIU: each object alone and through cryoshim.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { holds } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

interface Row {
  name: string;
  /** undefined: CRIU dumps it. */
  says: string | undefined;
  here: string;
}

const rows: Row[] = readFileSync("docs/limits.md", "utf8")
  .split("\n")
  .flatMap((line) => {
    const [, name, , says = "", here = ""] = line.split("|").map((cell) => cell.trim());
    const inTicks = /^`([a-z_-]+)`$/.exec(name ?? "")?.[1];
    return inTicks === undefined ? [] : [{ name: inTicks, says: /^`(.*)`$/.exec(says)?.[1], here }];
  });

/** N is a number, … anything. */
const pattern = (text: string): RegExp =>
  new RegExp(
    text
      .replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
      .replace(/\bN\b/g, "\\d+")
      .replace(/…/g, ".*"),
  );

/** One line per attempt: CASE bare|ours CODE ALIVE, then what CRIU's log has of errors. */
const SCRIPT = `
echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range
attempt() {
  rm -rf i; mkdir i; code=0
  $3 dump -t $pid -D /tmp/i -o d.log -v4 --shell-job --leave-running >/dev/null 2>&1 || code=$?
  for try in $(seq 100); do
    state=$(awk '/^State:/ { print $2 }' /proc/$pid/status 2>/dev/null || echo gone)
    [ "$state" != S ] || break
    sleep 0.02
  done
  echo "$1 $2 $code $state $(grep -h 'Error (' i/d.log | tr '\\n' ' ')"
}
for name in $cases; do
  rm -f o e; setsid /cryoshim/build/workloads/refused $name /tmp/o </dev/null >/dev/null 2>e & pid=$!
  for try in $(seq 200); do [ ! -s o ] && [ ! -s e ] || break; sleep 0.02; done
  [ ! -s e ] || { echo "$name cannot $(cat e)"; continue; }
  echo "$name doctor $(cryoshim doctor --json --pid $pid | tr -d '\\n')"
  attempt $name bare /usr/sbin/criu
  attempt $name ours criu
  kill -9 -- -$pid; wait $pid || true
done`;

let attempts: string[];
beforeTests(async () => {
  attempts = (await holds(`cases="${rows.map(({ name }) => name).join(" ")}"${SCRIPT}`)).split("\n");
});

/** What came of one attempt: CRIU's code, the state of the process, what the log says. */
const attempt = (name: string, who: "bare" | "ours"): { code: string; state: string; said: string } => {
  const line = attempts.find((text) => text.startsWith(`${name} ${who} `));
  const [, code = "", state = "", said = ""] = /^\S+ \S+ (\d+) (\S+) (.*)$/.exec(line ?? "") ?? [];
  return { code, state, said };
};

test("every row of the table was tried", () => {
  expect(rows.length).toBeGreaterThan(20);
  expect(attempts.filter((line) => / cannot /.test(line))).toEqual([]);
});

describe.each(rows)("$name", ({ name, says, here }) => {
  test(says === undefined ? "CRIU dumps it" : "CRIU alone refuses it in these words", () => {
    const { code, state, said } = attempt(name, "bare");
    expect({ code, state }).toEqual({ code: says === undefined ? "0" : "1", state: "S" });
    if (says !== undefined) expect(said).toMatch(pattern(says));
  });

  test(here === "carried" ? "cryoshim carries it" : "through cryoshim the outcome is the same", () => {
    const { code, state, said } = attempt(name, "ours");
    const dumped = says === undefined || here === "carried";
    expect({ code, state }).toEqual({ code: dumped ? "0" : "1", state: "S" });
    if (!dumped) expect(said).toMatch(pattern(says!));
  });

  test("doctor foretells it", () => {
    const line = attempts.find((text) => text.startsWith(`${name} doctor `));
    const findings = JSON.parse(line?.replace(/^\S+ \S+ /, "") ?? "") as { verdict: string; finding: string }[];
    const foretold = findings.filter(({ verdict }) => verdict === "fail").map(({ finding }) => finding);
    if (here === "carried") expect(findings.map(({ finding }) => finding).join()).toMatch(/carried by cryoshim/);
    const fails = /^(refused|planned)$/.test(here);
    expect(foretold.length > 0, foretold.join()).toBe(fails);
  });
});
