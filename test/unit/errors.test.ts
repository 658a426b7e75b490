// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

test("docs/errors.md lists every code that the sources use, and no other", () => {
  const used = new Set<string>();
  for (const dir of ["shim", "spfs", "hooks", "crit"])
    for (const file of readdirSync(dir, { recursive: true, encoding: "utf8" }))
      if (file.endsWith(".ts"))
        for (const [code] of readFileSync(join(dir, file), "utf8").matchAll(/(?<=")ERR_[A-Z_]+(?=")/g)) used.add(code);
  const listed = [...readFileSync("docs/errors.md", "utf8").matchAll(/(?<=^\| `)ERR_[A-Z_]+/gm)].map(([code]) => code);
  expect(listed.sort()).toEqual([...used].sort());
});
