// SPDX-License-Identifier: Apache-2.0
// SPFS of one restore: raised before CRIU asks for the first file, in stub before the first task runs, and from then on
// the keeper's; dropped if the restore fails.
import { existsSync, mkdirSync, readlinkSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { addon, packageRoot } from "../../native/index.js";
import { type Owning, openSpfs, type Spfs, startSpfs } from "../../spfs/control.js";
import type { CarrierContext } from "../carriers/carrier.js";
import type { RemoteFs } from "../carriers/remote-image.js";
import { mountsOf } from "../carriers/remote-mounts.js";
import { joined, partOf, standsAt } from "../carriers/remote-restore.js";
import { inPath } from "../engine/choose.js";
import { reason } from "../error.js";
import { newId } from "../id.js";
import { stateDir } from "../session/plugin-dir.js";
import { recall, remember, type Treatment } from "./state.js";

/**
 * The command that brings a file system back, in the mount namespace of the first process: LXC restores in one of its own, which
 * sees nothing of what the host mounts later.
 */
export const keeper = (id: string): [string, ...string[]] => {
  const [host, here] = ["/proc/1/ns/mnt", "/proc/self/ns/mnt"];
  const [nsenter] = inPath("nsenter", process.env.PATH);
  const enter = nsenter !== undefined && readlinkSync(host) !== readlinkSync(here);
  return [
    ...(enter ? [nsenter, `--mount=${host}`, "--"] : []),
    ...[process.execPath, join(packageRoot, "dist", "cli.js"), "spfs", "keep", "--", id],
  ] as [string, ...string[]];
};

/** A directory for a mount of SPFS while a restore lasts, in one of root's alone; SPFS makes it. */
const mountpointFor = (id: string): string => {
  const parent = join(stateDir(), "mounts");
  mkdirSync(parent, { mode: 0o700, recursive: true });
  return join(parent, id);
};

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));

/** Raises SPFS for a file system at a directory that is there. */
export const raiseAt = async (
  fs: RemoteFs,
  treatment: Treatment,
  { id, mountpoint, paths, own: owning }: { id: string; mountpoint: string; paths: string[]; own?: Owning },
): Promise<Spfs> => {
  const { nodes, ...rest } = fs;
  const spfs = await startSpfs(
    {
      id,
      mountpoint: Buffer.from(mountpoint, "latin1").toString("utf8"),
      readOnly: fs.options.split(",").includes("ro"),
      timeoutMs: treatment.timeoutMs,
      passthrough: treatment.passthrough,
      onLoss: treatment.onLoss === "eio" ? "error" : "stub",
      keeper: keeper(id),
      ...(owning !== undefined && { own: owning }),
    },
    nodes.map(({ target, path, ...node }) => ({
      ...node,
      path: bytes(path),
      ...(target !== undefined && { target: bytes(target) }),
    })),
  );
  const own = /^(nfs4?|cifs|smb3|9p|ceph)$/.test(fs.type) && fs.mounts.some(({ ours }) => ours);
  remember({ version: 1, ...{ id, fs: rest, treatment, paths, mountpoint, own }, since: new Date().toISOString() });
  return spfs;
};

/** Raises one with nothing in it, and ends it. Throws why it cannot be raised here. */
export const tryStand = async (): Promise<{ passthrough: boolean }> => {
  const id = `try-${newId()}`;
  const mountpoint = mountpointFor(id);
  const numbers = { ino: 1n, mode: 0o40755, nlink: 2, uid: 0, gid: 0, rdev: 0, size: 0n };
  const root = { path: bytes(""), ...numbers, ...{ atime: 0n, mtime: 0n, ctime: 0n } };
  try {
    const spfs = await startSpfs(
      { id, mountpoint, timeoutMs: 0, passthrough: "auto", onLoss: "error", own: { unsee: "mount and directory" } },
      [root],
    );
    try {
      const { passthrough } = await spfs.status();
      return { passthrough };
    } finally {
      await spfs.stop();
    }
  } finally {
    if (existsSync(mountpoint)) rmdirSync(mountpoint);
  }
};

interface Stand {
  spfs: Spfs;
  /** Where it is seen on the host: from there it goes when the container has it. */
  seen: string[];
  /** The directory is ours. */
  ours: boolean;
  /** It was there before the restore. */
  prepared: boolean;
}

/** Everything that stands for a restore. */
export class Stands {
  readonly #context: CarrierContext;
  readonly #answerWithin: number;
  #stands: Stand[] = [];
  #over = false;
  #raising: Promise<unknown> = Promise.resolve();

  constructor(context: CarrierContext, answerWithin: number) {
    this.#context = context;
    this.#answerWithin = answerWithin;
  }

  /** Stands for a file system. Returns what CRIU must be told. */
  raise(fs: RemoteFs, treatment: Treatment): Promise<string[]> {
    const raising = this.#raise(fs, treatment);
    // Who drops it waits for that: nothing may be raised afterwards.
    this.#raising = raising.catch(() => {});
    return raising;
  }

  async #raise(fs: RemoteFs, treatment: Treatment): Promise<string[]> {
    const { given, log, mounting } = this.#context;
    const keyed = fs.mounts.filter(({ key }) => key !== undefined);
    const paths = keyed.flatMap(({ key }) => given.get(key!) ?? []);
    for (const path of paths) {
      const id = await standsAt(path, this.#answerWithin).catch(() => undefined);
      if (id === undefined) continue;
      // Somebody has prepared it, for a runtime that looks at the path before it starts CRIU.
      const spfs = await openSpfs(id);
      await spfs.own({ unsee: "mount", prepared: true });
      this.#stands.push({ spfs, seen: [path], ours: false, prepared: true });
      return [];
    }
    const id = newId();
    const host = keyed.length === 0 ? fs.mounts[0] : undefined;
    const mountpoint = host === undefined ? mountpointFor(id) : host.point;
    if (host === undefined) mounting(mountpoint);
    // Tasks without mounts of their own have it on the host, for good.
    const ours = host === undefined;
    const own: Owning = { unsee: ours ? "mount and directory" : "nothing" };
    const spfs = await raiseAt(fs, treatment, { id, mountpoint, paths, own });
    this.#stands.push({ spfs, seen: ours ? [mountpoint] : [], ours, prepared: false });
    // The engine may have died meanwhile.
    if (this.#over) throw new Error("the restore is over");
    log("Info ", `SPFS ${id} stands for ${fs.type} ${fs.source}`);
    return keyed.map((mount) => `mnt[${mount.key}]:${joined(mountpoint, partOf(fs, mount))}`);
  }

  /** All files are open: from here on what asks for more waits for the server. `pid`: the first process. */
  async stub(pid: number): Promise<void> {
    for (const { spfs } of this.#stands) {
      await spfs.stub();
      const remembered = recall(spfs.id);
      if (remembered !== undefined) remember({ ...remembered, root: pid });
    }
  }

  /** The container runs: it alone has the mounts now, and with it they go. */
  async keep(): Promise<void> {
    for (const stand of this.#stands.splice(0)) {
      this.#unsee(stand);
      try {
        await stand.spfs.keep();
      } catch (error) {
        // With a container that has ended already it has ended, too.
        this.#context.log("Info ", reason(error));
      }
    }
  }

  #unsee({ seen, ours }: Stand): void {
    for (const path of seen) {
      try {
        if (mountsOf("self").some(({ point, type }) => point === path && type === "fuse.spfs")) addon.unmount(path);
        if (ours && existsSync(path)) rmdirSync(path);
      } catch (error) {
        this.#context.log("Warn ", `SPFS stays mounted at ${path}: ${reason(error)}`);
      }
    }
  }

  /** The restore has failed. */
  async drop(): Promise<void> {
    this.#over = true;
    await this.#raising;
    for (const stand of this.#stands.splice(0)) {
      // Another try may find it as it was.
      if (stand.prepared && (await stand.spfs.status()).phase === "restore") continue;
      await stand.spfs.stop().catch((error) => this.#context.log("Warn ", `SPFS: ${reason(error)}`));
      if (stand.ours) this.#unsee(stand);
    }
  }
}
