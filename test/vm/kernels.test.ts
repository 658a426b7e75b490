// SPDX-License-Identifier: Apache-2.0
// The same on the kernels that Debian ships, in an emulated machine: the prebuilt BPF objects relocate there, and runtimes
// with cgroups of version 2 alone find what they need.
import { execa } from "execa";
import { describe, expect, test } from "vitest";

const run = async (suite: string, script: string): Promise<string> => {
  const { exitCode, all } = await execa("test/vm/vm.sh", [suite, `test/vm/${script}`], {
    all: true,
    reject: false,
    stdin: "ignore",
  });
  expect(exitCode, all).toBe(0);
  return all;
};

describe.each([
  ["bookworm", "6.1."],
  ["trixie", "6.12."],
])("Debian %s, Linux %s", (suite, version) => {
  test("queues, corked sockets and files on unmounted mounts are carried", async () => {
    const said = await run(suite, "carriers.sh");
    expect(said).toContain(`\n${version}`.trim());
    expect(said.match(/^carried: \w+/gm)).toEqual([
      "carried: queues",
      "carried: corks",
      "carried: detached",
      "carried: detached",
    ]);
  });

  test("containers of runc, crun and podman are checkpointed and restored", async () => {
    const said = await run(suite, "runtimes.sh");
    expect(said.match(/^went on: \w+/gm)).toEqual(["went on: runc", "went on: crun", "went on: podman"]);
  });
});
