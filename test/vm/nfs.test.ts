// SPDX-License-Identifier: Apache-2.0
// Containers with files on NFS: a kernel's server in a network namespace of its own, a kernel's client, in an emulated machine.

import { execa } from "execa";
import { expect, test } from "vitest";

const env = {
  VM_TIMEOUT: "850",
  VM_PACKAGES: "nfs-kernel-server nfs-common rpcbind",
  VM_MODULES: "fs/nfs fs/nfsd fs/lockd fs/nfs_common fs/netfs net/sunrpc net/dns_resolver",
};

const PER_VERSION = [
  "a server that hangs: the dump is refused, nothing is stopped",
  "a mount within the container, mounted anew elsewhere; a file that has been replaced is told",
  "its server down at the restore: once it is up the real mount takes SPFS's place, and the locks are the server's again",
  "a mount bound from the host that hangs, prepared; files that have grown and been replaced are told",
  "a second checkpoint, on SPFS, restored on the real mount",
];

test("containers on NFS 3 and 4.2 go on as they were, or their checkpoint is refused at once", async () => {
  const { exitCode, all } = await execa("test/vm/vm.sh", ["trixie", "test/vm/nfs.sh"], {
    all: true,
    reject: false,
    stdin: "ignore",
    env,
  });
  expect(exitCode, all).toBe(0);
  const held = [...all.matchAll(/^(?:.*\S*)?held: (.*) \([\d.]+ s\)$/gm)].map(([, what]) => what);
  expect(held).toEqual([
    expect.stringMatching(/^server and client, Linux 6\.12\./),
    "CRIU alone refuses both",
    ...["3", "4.2"].flatMap((version) => PER_VERSION.map((what) => `${version}: ${what}`)),
    "podman + crun: a volume of the host's waits for its server, and goes on when it is up",
  ]);
});
