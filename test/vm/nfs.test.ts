// SPDX-License-Identifier: Apache-2.0
// Containers with files on NFS: a kernel's server in a network namespace of its own, a kernel's client, in emulated machines.

import { execa } from "execa";
import { describe, expect, test } from "vitest";

const env = {
  VM_TIMEOUT: "850",
  VM_PACKAGES: "nfs-kernel-server nfs-common rpcbind",
  VM_MODULES: "fs/nfs fs/nfsd fs/lockd fs/nfs_common fs/netfs net/sunrpc net/dns_resolver",
};

/** What a script says that held. */
const held = async (script: string): Promise<string[]> => {
  const { exitCode, all } = await execa("test/vm/vm.sh", ["trixie", `test/vm/${script}`], {
    all: true,
    reject: false,
    stdin: "ignore",
    env,
  });
  expect(exitCode, all).toBe(0);
  return [...all.matchAll(/^(?:.*\S*)?held: (.*) \([\d.]+ s\)$/gm)].map(([, what]) => what!);
};

const PER_VERSION = [
  "a server that hangs: the dump is refused, nothing is stopped",
  "a mount within the container, mounted anew elsewhere; a file that has been replaced is told",
  "its server down at the restore: once it is up the real mount takes SPFS's place, and the locks are the server's again",
  "a mount bound from the host that hangs, prepared; files that have grown and been replaced are told",
  "a second checkpoint, on SPFS, restored on the real mount",
];

// One emulated machine takes one core.
describe.concurrent("containers on NFS 3 and 4.2 go on as they were", () => {
  test("runc's, or their checkpoint is refused at once", async () => {
    expect(await held("nfs.sh")).toEqual([
      expect.stringMatching(/^server and client, Linux 6\.12\./),
      "CRIU alone refuses both",
      ...["3", "4.2"].flatMap((version) => PER_VERSION.map((what) => `${version}: ${what}`)),
      "4.2: at another address, which the configuration names, with options of a file that root alone reads",
    ]);
  });

  test("LXC's and podman's, with hooks: a mount bound from the host waits for its server, and goes on when it is up", async () => {
    expect(await held("nfs-runtimes.sh")).toEqual(["LXC on NFS 3", "LXC on NFS 4.2", "podman and crun on NFS 4.2"]);
  });

  test("one that reaches its server by its own network is dumped, and restored before the mount is there", async () => {
    expect(await held("nfs-network.sh")).toEqual([
      "the dump is not cut off from its files",
      "the mount is made again by the container's network, and the files are as they were",
    ]);
  });
});
