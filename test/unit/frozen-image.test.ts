// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { forgetFreeze } from "../../shim/session/frozen-image.js";

let dir = "";
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-frozen-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const cgroup = (name: string, property: string, value: string, children: Message[] = []): Message => ({
  dir_name: name,
  ...(children.length > 0 && { children }),
  properties: [
    { name: property, value },
    { name: "pids.max", value: "1" },
  ],
});
const write = (...dirs: Message[]): void =>
  writeFileSync(
    join(dir, "cgroup.img"),
    encodeImage({ kind: "CGROUP", entries: [{ message: { controllers: [{ cnames: ["freezer"], dirs }] } }] }),
  );
const read = (): Message[] => {
  const { entries } = decodeImage(readFileSync(join(dir, "cgroup.img")));
  return (entries[0]!.message.controllers as Message[])[0]!.dirs as Message[];
};

test("of cgroup2 the cgroup that was frozen here is told as running, one below that was frozen before stays frozen", () => {
  write(
    cgroup("pod", "cgroup.freeze", "0", [cgroup("c1", "cgroup.freeze", "1", [cgroup("in", "cgroup.freeze", "1")])]),
  );
  forgetFreeze(dir, { file: "/sys/fs/cgroup/unified/pod/c1/cgroup.freeze", thawed: "0", frozen: ["1"] });
  expect(read()).toEqual([
    cgroup("pod", "cgroup.freeze", "0", [cgroup("c1", "cgroup.freeze", "0", [cgroup("in", "cgroup.freeze", "1")])]),
  ]);
});

test("of v1 the one state that CRIU keeps is told as thawed", () => {
  write(cgroup("c1", "freezer.state", "FROZEN"));
  forgetFreeze(dir, { file: "/sys/fs/cgroup/freezer/c1/freezer.state", thawed: "THAWED", frozen: ["FROZEN"] });
  expect(read()).toEqual([cgroup("c1", "freezer.state", "THAWED")]);
});

test("an image that says nothing of it stays byte for byte, and none is no error", () => {
  const freezer = { file: "/sys/fs/cgroup/c1/cgroup.freeze", thawed: "0", frozen: ["1"] };
  forgetFreeze(dir, freezer);
  write(cgroup("other", "cgroup.freeze", "1"));
  const before = readFileSync(join(dir, "cgroup.img"));
  forgetFreeze(dir, freezer);
  expect(readFileSync(join(dir, "cgroup.img")).equals(before)).toBe(true);
});
