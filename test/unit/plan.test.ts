// SPDX-License-Identifier: Apache-2.0
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { encodePlan, MAX_PLAN } from "../../shim/session/plan.js";

const fields = ["magic", "kind", "exit_code", "n_env", "n_argv", "n_fds", "fd_target"];

test("the plan has the layout that the launcher's C declares", () => {
  const dir = mkdtempSync(join(tmpdir(), "cryoshim-plan-"));
  try {
    writeFileSync(
      join(dir, "layout.c"),
      `#include <stddef.h>\n#include <stdio.h>\n#include "launch.h"\nint main(void) {
        ${fields.map((f) => `printf("%zu ", offsetof(struct launch_plan, ${f}));`).join("\n")}
        printf("%zu %u %d %d", sizeof(struct launch_plan), LAUNCH_MAGIC, LAUNCH_MAX, LAUNCH_MAX_FDS); return 0; }`,
    );
    execFileSync("gcc", ["-Inative/launcher", "-o", join(dir, "layout"), join(dir, "layout.c")]);
    const said = execFileSync(join(dir, "layout"), { encoding: "utf8" }).split(" ").map(Number);
    const fd = { fd: 40, target: 77 };
    const plan = { kind: "exec", engine: "/e", env: { A: "1", B: undefined }, argv: ["criu"], fds: [fd] } as const;
    const { data, fds } = encodePlan({ ...plan, argv: [...plan.argv], fds: [...plan.fds] });
    const at = Object.fromEntries(fields.map((f, i) => [f, said[i]!]));
    const [size, magic, max, maxFds] = said.slice(fields.length);
    expect(data.readUInt32LE(at.magic)).toBe(magic);
    expect(data.readUInt32LE(at.kind)).toBe(1);
    expect(data.readUInt32LE(at.n_env)).toBe(2);
    expect(data.readUInt32LE(at.n_argv)).toBe(1);
    expect(data.readUInt32LE(at.n_fds)).toBe(1);
    expect(data.readInt32LE(at.fd_target)).toBe(77);
    expect(data.subarray(size).toString()).toBe("/e\0A=1\0B\0criu\0");
    expect(fds).toEqual([40]);
    expect(MAX_PLAN).toBe(max! - 1);
    const many = Array.from({ length: maxFds! + 1 }, () => fd);
    expect(() => encodePlan({ kind: "exec", engine: "/e", env: {}, fds: many })).toThrow(RangeError);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a plan that does not fit the socket is refused, not cut", () => {
  const argv = ["criu", "x".repeat(MAX_PLAN)];
  expect(() => encodePlan({ kind: "exec", engine: "/e", env: {}, argv, fds: [] })).toThrow(/does not fit/);
});

test("no string of a plan can end another one early", () => {
  const { data } = encodePlan({ kind: "exit", code: 3, message: "a\0b" });
  expect(data.subarray(56).toString()).toBe("ab\0");
  expect(data.readUInt32LE(8)).toBe(3);
});
