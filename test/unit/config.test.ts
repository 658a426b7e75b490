// SPDX-License-Identifier: Apache-2.0
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { loadConfig, parseConfig } from "../../shim/config.js";
import { findEngine, inPath, isLauncher } from "../../shim/engine/choose.js";
import { DEFAULTS, decideLaunch } from "../../shim/engine/launch-file.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-config-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const program = (name: string, content: string): string => {
  const path = join(dir, name);
  writeFileSync(path, content, { mode: 0o755 });
  return path;
};

test("the sample parses, and says what holds without it", () => {
  expect(parseConfig(readFileSync("configs/config.toml", "utf8"), "sample")).toEqual(DEFAULTS);
});

test("every key of the sample is accepted when it is set", () => {
  const sample = readFileSync("configs/config.toml", "utf8");
  const set = sample.replace(
    /^# (path|node|manage|lock|extra|policy|answer_within|timeout|passthrough|on_loss|retire|gone|wait) = /gm,
    "$1 = ",
  );
  expect(parseConfig(set, "sample")).toEqual({
    engine: { path: "/usr/sbin/criu", node: "/usr/bin/node" },
    cgroup: { manage: "auto" },
    network: { lock: "auto" },
    carriers: { extra: ["/usr/local/lib/cryoshim/my-carrier.mjs"] },
    detached: { largest: 1024 },
    remote: {
      ...{ policy: "auto", answer_within: 2, timeout: 0, passthrough: "auto", on_loss: "block", retire: "auto" },
      ...{ gone: "fail", mount: [] },
    },
    uring: { policy: "wait", wait: 500 },
  });
});

test("mounts of servers are named one by one", () => {
  const mounts = "[[remote.mount]]\nsource = 'a:*'\npath = '/a'\n[[remote.mount]]\nsource = 'b:/c'\nfrom = 'd:/c'";
  expect(parseConfig(mounts, "/f").remote.mount).toEqual([
    { source: "a:*", path: "/a" },
    { source: "b:/c", from: "d:/c" },
  ]);
});

test.each([
  ["[engine]\npaht = '/x'", /engine\.paht: no such key/],
  ["[motor]", /motor: no such key/],
  ["[engine]\npath = 'criu'", /engine\.path: must be an absolute path/],
  ["[cgroup]\nmanage = 'maybe'", /cgroup\.manage: /],
  ["[carriers]\nextra = '/x'", /carriers\.extra: /],
  ["[remote]\nanswer_within = 0", /remote\.answer_within: /],
  ["[[remote.mount]]\nsource = 'a'\ntype = '-o'", /remote\.mount\.0\.type: must not begin with -/],
  ["[[remote.mount]]\npath = '/a'", /remote\.mount\.0\.source: /],
  ["[engine", /line 1, column \d+: /],
])("a wrong configuration names its key or line: %s", (text, why) => {
  expect(() => parseConfig(text, "/f")).toThrow(
    expect.objectContaining({ code: "ERR_CONFIG", why: expect.stringMatching(why) }),
  );
});

test("a configuration that others can write is refused", () => {
  const file = program("config.toml", "");
  expect(loadConfig(file)).toEqual(DEFAULTS);
  chmodSync(file, 0o666);
  expect(() => loadConfig(file)).toThrow(expect.objectContaining({ code: "ERR_CONFIG" }));
});

test("the engine is the next criu in PATH that is no launcher", () => {
  const launcher = program("criu", readFileSync("build/Release/criu", "latin1"));
  writeFileSync(launcher, readFileSync("build/Release/criu"));
  const elsewhere = mkdtempSync(join(tmpdir(), "cryoshim-engine-"));
  const engine = join(elsewhere, "criu");
  writeFileSync(engine, "#!/bin/sh\n", { mode: 0o755 });
  try {
    expect(isLauncher(launcher)).toBe(true);
    expect(isLauncher(engine)).toBe(false);
    expect(inPath("criu", `${dir}:${elsewhere}`).slice(0, 2)).toEqual([launcher, engine]);
    expect(findEngine(`${dir}:${elsewhere}`)).toBe(engine);
    expect(inPath("criu", `.:relative:${elsewhere}`)[0]).toBe(engine);
  } finally {
    rmSync(elsewhere, { recursive: true });
  }
});

test("environment beats configuration, and neither may name a launcher or a relative path", () => {
  const engine = program("engine", "#!/bin/sh\n");
  const other = program("other", "#!/bin/sh\n");
  const config = { ...DEFAULTS, engine: { path: engine } };
  expect(decideLaunch(config, {}).engine).toBe(engine);
  expect(decideLaunch(config, { CRYOSHIM_ENGINE: other }).engine).toBe(other);
  const refused = expect.objectContaining({ code: "ERR_ENGINE" });
  expect(() => decideLaunch(config, { CRYOSHIM_ENGINE: "criu" })).toThrow(refused);
  expect(() => decideLaunch(config, { CRYOSHIM_ENGINE: join(process.cwd(), "build/Release/criu") })).toThrow(refused);
});
