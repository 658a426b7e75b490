// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const tree = fileURLToPath(new URL("../..", import.meta.url));
const gpl = "GPL-2.0-only";
const apache = "Apache-2.0";
const either = "GPL-2.0-only OR Apache-2.0";

/** What is made here, not written: the names in .gitignore. */
const made = new Set([".git", "node_modules", "build", "dist", "prebuilds", "coverage"]);

const files = readdirSync(tree, { withFileTypes: true })
  .filter((entry) => !made.has(entry.name) && !entry.name.endsWith(".tgz"))
  .flatMap((entry) => (entry.isDirectory() ? below(entry.name) : [entry.name]));

/** The files below a directory of the tree, named from the top. */
function below(directory: string): string[] {
  return readdirSync(join(tree, directory), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(tree, join(entry.parentPath, entry.name)));
}

/** Files that have no place for a comment, or are read by people as they are; LICENSE speaks for them. */
const without = (file: string) =>
  /\.(md|json|jsonc|snap|img|bin|txt|log|tar|gz|png|svg)$/.test(file) ||
  /^(LICENSES\/.*|LICENSE|binding\.gyp|\.gitignore|\.dockerignore)$/.test(file);

/** The licence that a file names in its first lines. */
function named(file: string): string | undefined {
  const start = readFileSync(`${tree}/${file}`, "utf8").split("\n").slice(0, 6).join("\n");
  return /SPDX-License-Identifier: ([^\n*]*[^\n* ])/.exec(start)?.[1]?.replace(/ *(-->|\*\/)$/, "");
}

/** Which licences LICENSE allows at a place. */
function allowed(file: string): string[] {
  if (file.startsWith("native/surgeon/")) return [either];
  if (file.startsWith("native/plugin/") || file.startsWith("native/bpf/")) return [gpl, either];
  if (/^native\/[^/]*\.h$/.test(file)) return [apache, either];
  if (/^test\/fixtures\/[^/]*-plugin\.c$/.test(file)) return [gpl];
  return [apache];
}

test("every source file names the licence that LICENSE gives its place", () => {
  expect(files).toContain("native/addon.c");
  const wrong = files
    .filter((file) => !without(file))
    // What is empty, or lies on a disk in exactly these bytes (test/lab/etc), has nothing to license.
    .filter((file) => !file.startsWith("test/lab/etc/") && basename(file) !== ".gitkeep")
    .filter((file) => !allowed(file).includes(named(file) ?? ""))
    .map((file) => `${file}: ${named(file) ?? "no SPDX line"}`);
  expect(wrong).toEqual([]);
});

test("the text of every licence that is named lies in LICENSES", () => {
  for (const licence of [gpl, apache]) {
    expect(readFileSync(`${tree}/LICENSES/${licence}.txt`, "utf8").length).toBeGreaterThan(10_000);
  }
});
