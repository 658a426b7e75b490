// SPDX-License-Identifier: Apache-2.0
// The same on the kernels that Debian ships, in an emulated machine: the prebuilt BPF objects relocate there, and runtimes
// with cgroups of version 2 alone find what they need.
import { build } from "esbuild";
import { execa } from "execa";
import { beforeAll, describe, expect, test } from "vitest";

const run = async (suite: string, script: string, env: Record<string, string> = {}): Promise<string> => {
  const { exitCode, all } = await execa("test/vm/vm.sh", [suite, `test/vm/${script}`], {
    all: true,
    env,
    reject: false,
    stdin: "ignore",
  });
  expect(exitCode, all).toBe(0);
  return all;
};

beforeAll(async () => {
  await build({
    entryPoints: ["test/vm/spfs.ts"],
    outfile: "build/workloads/spfs-vm.mjs",
    bundle: true,
    platform: "node",
    format: "esm",
    banner: {
      js: 'import { createRequire as __cr } from "node:module"; const require = __cr(import.meta.url);',
    },
  });
});

// One emulated machine takes one core.
describe.concurrent.each([
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
      "carried: large",
    ]);
  });

  test("everything on unmounted mounts is carried: on ext4, tmpfs, btrfs, and overlay since Linux 6.3", async () => {
    const env = { VM_PACKAGES: "btrfs-progs", VM_MODULES: "fs/btrfs drivers/block", VM_TIMEOUT: "850" };
    const said = await run(suite, "detached.sh", env);
    expect(
      said
        .match(/^(on|carried:) ?\w+/gm)
        ?.join(" ")
        .replaceAll("carried: ", ""),
    ).toBe(
      "on ext4 detached unmounted bound inside inside on ext4 renamed on tmpfs detached unmounted bound inside inside alone alone " +
        `${suite === "bookworm" ? "" : "on overlay detached unmounted bound inside inside "}on btrfs detached unmounted bound inside inside detached unmounted bound inside inside`,
    );
    expect(said).toContain("deleted since the checkpoint");
  });

  test("the stub-proxy file system goes through its phases and survives its worker, whatever this kernel's FUSE can", async () => {
    const said = await run(suite, "spfs.sh");
    expect(said.match(/^(passthrough|retired:|works:?) .*/gm)).toEqual([
      `passthrough auto: ${version === "6.1." ? "not used" : "used"}`,
      "retired: auto",
      "works: auto",
      "passthrough off: not used",
      "retired: off",
      "works: off",
    ]);
  });

  test("io_uring rings are carried, shared ones and with what is registered, too", async () => {
    const said = await run(suite, "rings.sh");
    expect(said.match(/^(carried|refused): rings [\w-]+/gm)).toEqual(
      ["plain", "shared", "mapped", "files", "pbuf-ring", "provided"]
        .map((first) => `carried: rings ${first}`)
        .concat(`${version === "6.1." ? "refused" : "carried"}: rings of-sockets`),
    );
  });

  test("containers of runc, crun and podman are checkpointed and restored", async () => {
    const said = await run(suite, "runtimes.sh");
    expect(said.match(/^went on: \w+/gm)).toEqual([
      "went on: runc",
      "went on: crun",
      "went on: podman",
      "went on: LXC",
    ]);
  });
});
