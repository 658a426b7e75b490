// SPDX-License-Identifier: Apache-2.0
// Locks that outlive their session: from a dump that ended its container until the restore has its sockets back. The
// links are pinned in bpffs, a record says whose they are. Pins do not survive a boot, so neither does a lock.

import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { addon, closeFd } from "../../native/index.js";
import { allProcesses, namespacesOf } from "../carriers/tasks.js";
import { ID_LENGTH } from "../id.js";
import { stateDir } from "../session/plugin-dir.js";
import { bpf, CMD, closeAll } from "./bpf.js";
import { type Attached, countDropped, type Dropped, type Extent } from "./netlock.js";

/** What is known of a kept lock. */
export interface KeptLock {
  id: string;
  extent: Extent;
  /** Inode of its network namespace. */
  netns: number;
  /** The directory that the images were written to. */
  images: string;
  /** The process that was dumped. */
  pid: number;
  /** When, ISO 8601. */
  time: string;
  bootId: string;
}

const BPF_FS_MAGIC = 0xcafe4a11;
const SYSTEM_BPFFS = "/sys/fs/bpf";
const ID = new RegExp(`^[A-Za-z0-9_-]{${ID_LENGTH}}$`);

/** Whether a text can be the id of a kept lock. */
export const isLockId = (text: string): boolean => ID.test(text);

const cString = (text: string): Buffer => Buffer.from(`${text}\0`);

const isBpffs = (path: string): boolean => {
  try {
    return statfsSync(path).type === BPF_FS_MAGIC;
  } catch {
    return false;
  }
};

/** Where the pins lie: the system's bpffs, or one of our own. */
export const pinRoot = (): string => {
  const own = join(stateDir(), "bpf");
  const root = isBpffs(SYSTEM_BPFFS) && !isBpffs(own) ? join(SYSTEM_BPFFS, "cryoshim") : own;
  mkdirSync(root, { recursive: true, mode: 0o700 });
  if (root === own && !isBpffs(own)) (addon.mountBpffs as (path: string) => void)(own);
  return root;
};

const pinRoots = (): string[] => [join(SYSTEM_BPFFS, "cryoshim"), "/run/cryoshim/bpf"];

const recordDir = (): string => {
  const dir = join(stateDir(), "locks");
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return dir;
};

export const bootId = (): string => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();

const parse = (text: string): KeptLock | undefined => {
  const found = JSON.parse(text) as Partial<KeptLock> | null;
  const { id, extent, netns, images, pid, time, bootId } = found ?? {};
  const fits =
    typeof id === "string" &&
    ID.test(id) &&
    (extent === "netns" || extent === "sockets") &&
    [netns, pid].every(Number.isSafeInteger) &&
    [images, time, bootId].every((value) => typeof value === "string");
  return fits ? (found as KeptLock) : undefined;
};

/** Pins what a lock has attached; throws where that cannot be, and then nothing is left. */
export const keep = (attached: Attached, lock: Omit<KeptLock, "time" | "bootId">): void => {
  const dir = join(pinRoot(), lock.id);
  const path = join(recordDir(), lock.id);
  const record: KeptLock = { ...lock, time: new Date().toISOString(), bootId: bootId() };
  // The record first: there is no pin that nobody knows of, also if this process is killed.
  writeFileSync(path, JSON.stringify(record), { mode: 0o600, flag: "wx" });
  try {
    mkdirSync(dir, { mode: 0o700 });
    const pins: [string, number][] = attached.links.map((fd, i) => [`link${i}`, fd]);
    pins.push(...Object.entries(attached.maps));
    for (const [name, fd] of pins) bpf(CMD.objPin, { 0: cString(join(dir, name)), 8: fd });
  } catch (error) {
    removePins(dir);
    rmSync(path, { force: true });
    throw error;
  }
};

const removePins = (dir: string): void => {
  try {
    for (const name of readdirSync(dir)) unlinkSync(join(dir, name));
    rmSync(dir, { recursive: true });
  } catch {
    // Gone already.
  }
};

/** The directory of a lock's pins, if there is one. */
const pinsOf = (id: string): string | undefined =>
  pinRoots()
    .map((root) => join(root, id))
    .find((dir) => lstatSync(dir, { throwIfNoEntry: false })?.isDirectory());

/** Programs that stay loaded from one session to the next; the number changes with what the launcher expects of them. */
const KIT = "kit1";

/** Where a program of the kit is pinned. */
export const kitPin = (program: string): string => join(pinRoot(), KIT, program);

/** The program, if it is there. Throws what the kernel says. */
export const fromKit = (program: string): number => bpf(CMD.objGet, { 0: cString(kitPin(program)) });

/** Leaves a program loaded for the next session; `fd` stays the caller's. */
export const pinInKit = (program: string, fd: number): void => {
  const path = kitPin(program);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  bpf(CMD.objPin, { 0: cString(path), 8: fd });
};

/** Removes the kit. */
export const removeKit = (): void => {
  for (const root of pinRoots()) removePins(join(root, KIT));
};

/** All kept locks; a record that cannot be read is left out. */
export const listKept = (): KeptLock[] => {
  let names: string[];
  try {
    names = readdirSync("/run/cryoshim/locks");
  } catch {
    return [];
  }
  return names
    .filter((name) => ID.test(name))
    .flatMap((name) => {
      try {
        return parse(readFileSync(join("/run/cryoshim/locks", name), "utf8")) ?? [];
      } catch {
        return [];
      }
    });
};

/** Unlocks. Clearing what is gone is no error. */
export const clearKept = (id: string): void => {
  if (!ID.test(id)) return;
  for (const root of pinRoots())
    for (const name of dirsIn(root)) if (name === id || name.startsWith(`${id}-`)) removePins(join(root, name));
  rmSync(join("/run/cryoshim/locks", id), { force: true });
};

const dirsIn = (path: string): string[] => {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
};

/** Packets that a kept lock has dropped so far; undefined when its pins are gone. */
export const droppedByKept = (id: string): Dropped | undefined => {
  const dir = pinsOf(id);
  if (dir === undefined) return undefined;
  const map = bpf(CMD.objGet, { 0: cString(join(dir, "dropped")) });
  try {
    return countDropped(map);
  } finally {
    closeFd(map);
  }
};

/** A kept lock that a restore has taken over: it ends with close(), or with this process. */
export interface TakenLock {
  lock: KeptLock;
  dropped(): Dropped;
  close(): void;
}

/** Takes a lock over; of two restores only one can. Undefined when it is not there. */
export const take = (id: string): TakenLock | undefined => {
  if (!ID.test(id)) return undefined;
  const dir = pinsOf(id);
  const lock = listKept().find((kept) => kept.id === id);
  if (dir === undefined || lock === undefined) return undefined;
  // bpffs refuses names with a dot.
  const taken = `${dir}-${process.pid}`;
  try {
    renameSync(dir, taken);
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return undefined;
    throw error;
  }
  const fds: number[] = [];
  let map = -1;
  try {
    for (const name of readdirSync(taken)) {
      const fd = bpf(CMD.objGet, { 0: cString(join(taken, name)) });
      fds.push(fd);
      if (name === "dropped") map = fd;
    }
  } catch (error) {
    closeAll(fds);
    throw error;
  } finally {
    removePins(taken);
    rmSync(join("/run/cryoshim/locks", id), { force: true });
  }
  return { lock, dropped: () => countDropped(map), close: () => closeAll(fds.splice(0)) };
};

/** The inodes of all network namespaces in which a process lives or that a mount keeps. */
const livingNetns = (): Set<number> => {
  const living = new Set<number>();
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    const inode = /^\S+ \S+ \S+ net:\[(\d+)\]/.exec(line)?.[1];
    if (inode !== undefined) living.add(Number(inode));
  }
  for (const inode of namespacesOf("net", allProcesses()).keys()) living.add(inode);
  return living;
};

/** Whether a mount keeps a network namespace alive without processes. */
export const isMounted = (netns: number): boolean =>
  new RegExp(`^\\S+ \\S+ \\S+ net:\\[${netns}\\]`, "m").test(readFileSync("/proc/self/mountinfo", "utf8"));

/** Why a kept lock serves nobody any more; undefined while it may. */
export const orphaned = (lock: KeptLock, living = livingNetns()): string | undefined => {
  if (lock.bootId !== bootId()) return "made in another boot";
  if (pinsOf(lock.id) === undefined) return "its pins are gone";
  if (!living.has(lock.netns)) return "its network namespace is gone";
  return undefined;
};

/** Removes what serves nobody. Called at the begin of each session that may keep one. */
export const sweep = (): void => {
  const kept = listKept();
  if (kept.length === 0) return;
  const living = livingNetns();
  for (const lock of kept) if (orphaned(lock, living) !== undefined) clearKept(lock.id);
};
