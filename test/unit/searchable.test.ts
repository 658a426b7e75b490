// SPDX-License-Identifier: Apache-2.0
import { chmodSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { makeSearchable } from "../../shim/session/searchable.js";

test.each([
  ["with a user namespace are made searchable for their owner", "userns-14.img", 0o600, 0o700],
  ["keep what others may do", "userns-9.img", 0o640, 0o740],
  ["without one are left as they are", "timens-0.img", 0o600, 0o600],
])("images %s", (_, name, before, after) => {
  const dir = mkdtempSync(join(tmpdir(), "searchable-"));
  try {
    writeFileSync(join(dir, name), "");
    chmodSync(dir, before);
    makeSearchable(dir);
    expect(statSync(dir).mode & 0o7777).toBe(after);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
