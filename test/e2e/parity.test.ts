// SPDX-License-Identifier: Apache-2.0
//
// What fails, and what needs no session, must look as with CRIU alone: exit codes, what is said, the errors in the logs,
// the messages of swrk byte by byte. test/support/parity.sh holds the cases; it runs in both labs.
import { describe, expect, test } from "vitest";
import { inLab } from "../support/lab.js";
import { beforeTests } from "../support/once.js";

const script = ["bash", "/cryoshim/test/support/parity.sh"];

/** Replaces what differs from run to run: pids, times. Line numbers of CRIU's sources stay: it is the same CRIU. */
const normalise = (text: string): string =>
  text
    .replace(/\(\d+\.\d{6}\) ?/g, "")
    // When a restore fails CRIU kills its children: what they still say, and whether it reads how they end, is a race of its own.
    .replace(
      /^.*( killed by signal 9: Killed|Restorer fail \d+|Error \(criu\/cr-restore.c:\d+\): \d+ exited, status=1)\n/gm,
      "",
    )
    .replace(/-\d{2,}\.img/g, "-N.img")
    .replace(/(?<!\.c:)(?<![\w.])\d{2,}(?![\w.])/g, (digits) => (digits === "999999" ? digits : "N"));

/** The cases by name. */
function parse(stdout: string): Map<string, string> {
  const cases = new Map<string, string>();
  for (const part of stdout.split(/^=== /m).slice(1)) {
    const [name = "", ...rest] = part.split("\n");
    const code = /^code (\d+)/m.exec(part)?.[1]; // kept as it is, though pids are not
    cases.set(name, `code ${code}\n${normalise(rest.join("\n"))}`);
  }
  return cases;
}

describe("beside CRIU alone", () => {
  let cryoshim = new Map<string, string>();
  let bare = new Map<string, string>();

  beforeTests(async () => {
    const first = await inLab(script, "bare");
    const second = await inLab(script, "cryoshim");
    expect(first.code, first.output).toBe(0);
    expect(second.code, second.output).toBe(0);
    bare = parse(first.stdout);
    cryoshim = parse(second.stdout);
  });

  test("the same cases ran to their end", () => {
    expect([...cryoshim.keys()]).toEqual([...bare.keys()]);
    expect(bare.size).toBeGreaterThan(60);
    expect([...bare.keys()].at(-1)).toBe("left behind");
  });

  test("the cases are what they are called: most fail, and say why", () => {
    const said = [...bare.values()].filter((text) => /Error \(|^code [1-9]|stderr: ./m.test(text));
    expect(said.length).toBeGreaterThan(40);
    for (const name of ["dump of an established connection", "dump of a held lock", "dump of a userfaultfd"])
      expect(bare.get(name), name).toMatch(/^code 1\n(.*\n)*.*Dumping FAILED.*\n(.*\n)*unharmed/);
    expect(bare.get("swrk: version")).toMatch(/answer 080a1001/);
  });

  const families: [string, (name: string) => boolean][] = [
    ["options and verbs", (name) => /^(no arg|-|unknown|check|swrk w)/.test(name)],
    ["refused dumps", (name) => name.startsWith("dump")],
    ["damaged images", (name) => name.startsWith("restore")],
    ["swrk, also with a client that errs or dies", (name) => name.startsWith("swrk: ")],
    ["nothing left behind", (name) => name === "left behind"],
  ];
  test.each(families)("%s: codes and messages are equal", (_, belongs) => {
    const pick = (cases: Map<string, string>) => Object.fromEntries([...cases].filter(([name]) => belongs(name)));
    expect(Object.keys(pick(bare)).length).toBeGreaterThan(0);
    expect(pick(cryoshim)).toEqual(pick(bare));
  });
});

// The task's pid is PID there, and the messages are decoded: a success names pids, so its bytes differ from run to run.
describe("a client of swrk with a living task, beside CRIU alone", () => {
  const run = async (kind: "cryoshim" | "bare") => {
    const script = "mkdir /tmp/i; python3 /cryoshim/test/support/swrk-live.py";
    const { code, output, stdout } = await inLab(["bash", "-c", script], kind);
    expect(code, output).toBe(0);
    return stdout.split(/^--- /m).slice(1);
  };

  test("hears the same notifications and answers, and its task fares the same, also when it refuses, errs or dies", async () => {
    const bare = await run("bare");
    const cryoshim = await run("cryoshim");
    expect(cryoshim).toEqual(bare);
    const last = bare.at(-1);
    for (const word of [
      "pre-restore",
      "post-restore 2=PID",
      "pre-resume",
      "post-resume",
      "task counts",
      "client: True",
    ])
      expect(last).toContain(word);
  });
});
