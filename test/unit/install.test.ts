// SPDX-License-Identifier: Apache-2.0
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { program } from "../../shim/cli.js";
import { install, links, uninstall } from "../../shim/commands/install.js";

let prefix = "";
beforeEach(() => {
  prefix = mkdtempSync(join(tmpdir(), "cryoshim-install-"));
});
afterEach(() => rmSync(prefix, { recursive: true, force: true }));
const files = (): string[] =>
  readdirSync(prefix, { recursive: true, encoding: "utf8" }).filter((f) => lstatSync(join(prefix, f)).isSymbolicLink());

test("what is installed exists, is installed once, and is gone after uninstall", () => {
  for (const { target } of links(prefix)) expect(existsSync(target), target).toBe(true);
  expect(install(prefix, false).map(({ action }) => action)).toEqual(links(prefix).map(() => "link"));
  expect(files()).toHaveLength(links(prefix).length);
  expect(install(prefix, false).every(({ action }) => action === "keep")).toBe(true);
  uninstall(prefix, false);
  expect(files()).toEqual([]);
  expect(uninstall(prefix, false).every(({ action }) => action === "absent")).toBe(true);
});

test("a dry run tells the same steps and writes nothing", () => {
  const said = install(prefix, true);
  expect(readdirSync(prefix)).toEqual([]);
  expect(install(prefix, false)).toEqual(said);
  uninstall(prefix, true);
  expect(files()).toHaveLength(links(prefix).length);
});

test("a criu of someone else is neither replaced nor removed, and nothing else is installed then", () => {
  mkdirSync(join(prefix, "sbin"));
  writeFileSync(join(prefix, "sbin/criu"), "theirs");
  expect(() => install(prefix, false)).toThrow(expect.objectContaining({ code: "ERR_INSTALL" }));
  uninstall(prefix, false);
  expect(readFileSync(join(prefix, "sbin/criu"), "utf8")).toBe("theirs");
  expect(files()).toEqual([]);
});

test("the launcher is a link into the package", () => {
  install(prefix, false);
  expect(readlinkSync(join(prefix, "sbin/criu"))).toMatch(/\/(build\/Release|prebuilds\/linux-x64)\/criu$/);
});

test("the man page and the completions name every command and option", () => {
  const page = readFileSync("docs/man/cryoshim.1", "utf8").replaceAll("\\-", "-");
  const completions = ["cryoshim.bash", "_cryoshim", "cryoshim.fish"].map((f) =>
    readFileSync(`configs/completions/${f}`, "utf8"),
  );
  for (const command of program().commands) {
    expect(page).toContain(command.name());
    for (const text of completions) expect(text).toContain(command.name());
    for (const { long } of command.options) {
      expect(page).toContain(long!);
      for (const text of completions) expect(text).toContain(long!.slice(2));
    }
  }
});
