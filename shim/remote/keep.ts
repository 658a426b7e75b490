// SPDX-License-Identifier: Apache-2.0
// The keeper of a file system that SPFS stands for: waits until its server is there again, lets SPFS pass everything on to it,
// and where that is wanted puts the real mount in SPFS's place. It ends when that is done, or when SPFS has ended.

import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { addon } from "../../native/index.js";
import { listSpfs, openSpfs, type Spfs } from "../../spfs/control.js";
import { retire } from "../../spfs/retire.js";
import { deviceOf, hexDevice } from "../../spfs/retire-mounts.js";
import { verbs } from "../../spfs/retire-native.js";
import { keepsInodes, locksAtServer, mountsOf } from "../carriers/remote-mounts.js";
import { partOf } from "../carriers/remote-restore.js";
import type { RemoteSettings } from "../engine/launch-file.js";
import { reason } from "../error.js";
import { O_PATH } from "../flags.js";
import { type Backend, closeBackend, findBackend, mayPass } from "./backend.js";
import { type Remembered, recall, remember, spfsOf } from "./state.js";

/** Milliseconds between two tries: the first, and the longest; and how often mounts are looked at meanwhile. */
const [FIRST, LONGEST, LOOK] = [200, 5000, 400];

/** Waits, but not longer than until something is mounted or unmounted. */
const pause = async (ms: number): Promise<void> => {
  const mounts = (): string => readFileSync("/proc/self/mountinfo", "latin1");
  const before = mounts();
  for (const end = Date.now() + ms; Date.now() < end && mounts() === before; ) await sleep(Math.min(LOOK, ms));
};

const bytesOf = (path: Uint8Array): string => Buffer.from(path).toString("latin1");

/**
 * Puts the real mount in SPFS's place, wherever the container has it; SPFS ends when nothing is left on it. `fd`: what SPFS stands for
 * as a whole.
 */
export const retireFor = async (remembered: Remembered, fd: number): Promise<NonNullable<Remembered["retired"]>> => {
  const { id, root, fs } = remembered;
  if (root === undefined) throw new Error("the container's first process is not known");
  const sameInodes = keepsInodes(fs.type);
  const retired = { at: new Date().toISOString(), swapped: 0, left: [] as string[] };
  for (const mount of fs.mounts) {
    // Another mount of the same has taken this one along.
    if (!mountsOf(root).some((line) => line.point === mount.point && spfsOf(line) === id)) continue;
    const part = partOf(fs, mount);
    const real = part === "" ? fd : addon.openBeneath(fd, part, O_PATH, 0);
    try {
      const mountpoint = Buffer.from(mount.point, "latin1").toString("utf8");
      const { swapped, left } = await retire({ root, mountpoint, real, sameInodes });
      retired.swapped += swapped;
      retired.left.push(...left.map(({ pid, what, why }) => `process ${pid}: ${what}: ${why}`));
    } finally {
      if (real !== fd) closeSync(real);
    }
  }
  return retired;
};

/** Whether unix sockets are bound to paths on these devices: retire leaves them behind, and nobody would reach them any more. */
const hasSockets = (pid: number, devices: readonly string[]): boolean => {
  const fd = openSync(`/proc/${pid}/ns/net`, "r");
  try {
    const bound = new Set(verbs.boundSockets(fd).dev);
    return devices.some((dev) => bound.has(deviceOf(dev)));
  } finally {
    closeSync(fd);
  }
};

/**
 * Whether somebody holds locks on SPFS that had been the server's: there they are the host's own, and no other client sees them
 * (fs/fuse/file.c, without FUSE_POSIX_LOCKS). On the real mount they are the server's again.
 */
const hidesLocks = ({ id, root, fs }: Remembered): boolean => {
  if (root === undefined || !locksAtServer(fs)) return false;
  const devices = mountsOf(root).flatMap((line) => (spfsOf(line) === id ? [line.dev] : []));
  const named = new Set(devices.map(hexDevice));
  const locks = readFileSync("/proc/locks", "latin1");
  const held = [...locks.matchAll(/ ([0-9a-f]+:[0-9a-f]+):\d+ \d+ \S+$/gm)].some(([, dev]) => named.has(dev!));
  return held && !hasSockets(root, devices);
};

/**
 * Retires, and remembers first who does: if that is killed the next keeper ends what it has begun. That the real mount cannot take
 * SPFS's place is only remembered: SPFS goes on.
 */
const retireNow = async (remembered: Remembered, { fd }: Backend): Promise<void> => {
  remember({ ...remembered, retiring: process.pid });
  try {
    remember({ ...remembered, retired: await retireFor(remembered, fd) });
  } catch (error) {
    remember({ ...remembered, stays: reason(error) });
  }
};

/** One try. Throws why the server cannot be had yet. */
export const bringBack = async (spfs: Spfs, remembered: Remembered, settings: RemoteSettings): Promise<void> => {
  const backend = await findBackend(remembered, settings);
  try {
    const { gone, retire: when } = remembered.treatment;
    const passthrough = mayPass(remembered.treatment, backend.mount);
    const { reopened, differs } = await spfs.proxy(backend.fd, {
      gone: gone === "stub" ? "stub" : "error",
      passthrough,
      sameInodes: keepsInodes(remembered.fs.type),
    });
    const { waits: _, ...rest } = remembered;
    const now: Remembered = {
      ...rest,
      proxied: {
        ...{ at: new Date().toISOString(), from: backend.from, reopened },
        differs: differs.map(({ path, what }) => ({ path: bytesOf(path), what })),
      },
    };
    remember(now);
    if (when === "never") return;
    if (when === "auto" && !(passthrough && (hidesLocks(now) || !(await spfs.status()).passthrough))) return;
    await retireNow(now, backend);
  } finally {
    closeBackend(backend);
  }
};

/**
 * A runtime may have put the restore, and with it this process, into the container's cgroups: there it would be frozen and killed
 * with it, and may not have the devices that a mount needs. To the root of each hierarchy.
 */
export const leaveCgroups = (): void => {
  for (const { type, root, point } of mountsOf("self")) {
    if (!type.startsWith("cgroup") || root !== "/") continue;
    try {
      writeFileSync(`${point}/cgroup.procs`, String(process.pid));
    } catch {
      // Not ours to leave: what is done there may still be enough.
    }
  }
};

/** A process that had begun to retire it, and is no more. */
const wasRetiring = ({ retiring }: Remembered): boolean => retiring !== undefined && !existsSync(`/proc/${retiring}`);

/** Keeps on trying. Resolves when the file system is back, or needed no more. */
export const keep = async (id: string, settings: () => RemoteSettings): Promise<void> => {
  for (let wait = FIRST; ; wait = Math.min(wait * 2, LONGEST)) {
    const remembered = recall(id);
    if (remembered === undefined || !listSpfs().includes(id)) return;
    try {
      const spfs = await openSpfs(id);
      if ((await spfs.status()).phase !== "proxy") await bringBack(spfs, remembered, settings());
      else if (wasRetiring(remembered)) {
        const { retiring: _, ...rest } = remembered;
        const backend = await findBackend(remembered, settings());
        try {
          await retireNow(rest, backend);
        } finally {
          closeBackend(backend);
        }
      }
      // Retired altogether it has ended.
      await spfs.kept().catch(() => {});
      return;
    } catch (error) {
      remember({ ...(recall(id) ?? remembered), waits: reason(error) });
    }
    await pause(wait);
  }
};
