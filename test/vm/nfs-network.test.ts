// SPDX-License-Identifier: Apache-2.0
// NFS that only the container's own network reaches, in an emulated machine.

import { execa } from "execa";
import { expect, test } from "vitest";

const env = {
  VM_PACKAGES: "nfs-kernel-server nfs-common rpcbind",
  VM_MODULES: "fs/nfs fs/nfsd fs/lockd fs/nfs_common fs/netfs net/sunrpc net/dns_resolver",
};

test("a container that reaches its NFS server by its own network is dumped, and restored before the mount is there", async () => {
  const words = ["trixie", "test/vm/nfs-network.sh"];
  const { exitCode, all } = await execa("test/vm/vm.sh", words, { all: true, reject: false, stdin: "ignore", env });
  expect(exitCode, all).toBe(0);
  expect([...all.matchAll(/held: (.*) \([\d.]+ s\)$/gm)].map(([, what]) => what)).toEqual([
    "the dump is not cut off from its files",
    "the mount is made again by the container's network, and the files are as they were",
  ]);
});
