// SPDX-License-Identifier: Apache-2.0
import { expect, test } from "vitest";
import { newId } from "../../shim/id.js";
import { isLockId } from "../../shim/netlock/kept.js";
import { startSpfs } from "../../spfs/control.js";

test("a name is letters and digits: given to a command it is no option, and in a path it is one part", () => {
  const names = Array.from({ length: 10_000 }, () => newId());
  expect(names.filter((name) => !/^[0-9A-Za-z]{21}$/.test(name))).toEqual([]);
  expect(new Set(names).size).toBe(names.length);
});

test("no stub-proxy file system has a name that a command would take for an option", async () => {
  const options = { mountpoint: "/nowhere", timeoutMs: 0, passthrough: "off", onLoss: "error" } as const;
  await expect(startSpfs({ id: "-name", ...options }, [])).rejects.toMatchObject({ code: "ERR_SPFS" });
});

test("a name can be that of a kept network lock, which the restore takes over", () => {
  for (let i = 0; i < 100; i++) expect(isLockId(newId())).toBe(true);
});
