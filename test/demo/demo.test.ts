// SPDX-License-Identifier: Apache-2.0
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const demo = fileURLToPath(new URL("./demo.mjs", import.meta.url));

test("a container that counts goes on after checkpoint and restore through cryoshim: file, pipe and connection", async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [demo, "--quick"]);
  expect(stdout).toMatch(/criu in PATH is \/cryoshim\//);
  expect(stdout).toMatch(/checkpointed: its processes are gone/);
  expect(stdout).toMatch(/connection: still the first and only one/);
  expect(stdout).toMatch(/everything went on$/m);
});
