// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more (umount -l): where else the same file system is mounted, and where the
// file is there.

import { type BigIntStats, closeSync, constants, fstatSync, openSync } from "node:fs";
import { addon } from "../../native/index.js";
import { O_PATH } from "../flags.js";
import { treeOf } from "../netlock/netlock.js";
import type { Found } from "../xray/find.js";
import { MountRoots } from "../xray/mount-root.js";
import { isAt, linkOf, MOST_NAMES, markOf, namesOf } from "./detached-inode.js";
import { allProcesses, inMountNamespace, mountIdOf, namespaceOf, namespacesOf } from "./tasks.js";

/** Where a file is found again. Paths are latin1: each byte a character. */
export interface Place {
  /** In the mount namespace of the host, not of the container. */
  host: boolean;
  /** In a mount namespace of others, where `mark` tells it. */
  elsewhere?: true;
  /** What the detached mount showed as its root. */
  root: string;
  /** Of the file, in it; "." is the root itself. */
  path: string;
  /** It is to be made again: the file system, by its device, is mounted nowhere else. */
  tree?: number;
  /** Where none of its names is known: the kernel's own (name_to_handle_at(2)). */
  handle?: Buffer;
  /** The root, and the file that has the name, in words that still tell them when others have their names. */
  mark?: Buffer;
  inode?: Buffer;
}

interface Mount {
  id: number;
  /** What part of the file system it shows, and where. */
  root: string;
  point: string;
}

/** Paths in mountinfo have their blanks and backslashes in octal. */
export const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

const mountsIn = (ns: number, dev: string): Mount[] =>
  addon
    .mountInfo(ns)
    .split("\n")
    .map((line) => line.split(" "))
    .filter((columns) => columns[2] === dev)
    .map((columns) => ({ id: Number(columns[0]), root: unescaped(columns[3]!), point: unescaped(columns[4]!) }));

export const join = (directory: string, link: string): string =>
  directory === "/" ? link : link === "/" ? directory : directory + link;

/** What is below a mount's root in a path of its namespace; undefined where it is not below. */
const below = (point: string, path: string): string | undefined => {
  if (path === point) return "/";
  const before = point === "/" ? "" : point;
  return path.startsWith(`${before}/`) ? path.slice(before.length) : undefined;
};

const isSame = (one: BigIntStats, other: BigIntStats): boolean =>
  one.ino === other.ino && one.dev === other.dev && one.mode === other.mode;

/** A file of a task: a link of /proc that leads to it, a descriptor of ours for it, and what fstat(2) says. */
export interface Sought {
  found: Pick<Found, "pid" | "mntId" | "dev">;
  link: string;
  fd: number;
  st: BigIntStats;
}

/** A mount on which files may be found again. */
interface Candidate extends Pick<Place, "host" | "elsewhere" | "root" | "mark"> {
  /** A descriptor of its own root, what of it the detached mount showed, and where it is mounted. */
  top: number;
  part: string;
  point: string;
  /** It is the unmounted one itself. */
  tree?: number;
}

/** A directory on a file system that is mounted nowhere else: the root of an unmounted mount, and what it shows. */
export interface Source {
  top: number;
  shown: string;
}

/** Finds files again; what it has found out of mounts it keeps until close(). */
export class Places {
  readonly #roots = new MountRoots();
  readonly #candidates = new Map<string, Candidate[]>();
  /** By device. */
  readonly #sources = new Map<number, Source>();
  /** Other names of files whose own is gone: looked for before the freeze, as it may take long. */
  readonly #names = new Map<string, string>();
  readonly #root: number;
  #namespaces: { mine: number[]; foreign: number[] } | undefined;

  /** `root`: of the tree whose files are sought. */
  constructor(root: number) {
    this.#root = root;
  }

  /**
   * Where else a file is; undefined: the file system is mounted nowhere else, or the file is not there. What has no name
   * any more has `anywhere`, the root, as its place.
   */
  of(sought: Sought): { place: Place; gone: boolean } | undefined {
    const { link, st, fd } = sought;
    const candidates = this.#mounts(sought);
    const names = namesOf(linkOf(link));
    for (const at of candidates)
      for (const name of names)
        if (isAt(at.top, join(at.part, name), fd))
          return { place: named(at, name === "/" ? "." : name.slice(1), fd), gone: false };
    const [first] = candidates;
    if (first === undefined) return undefined;
    if (isGone(st, names)) return { place: { ...placeOf(first), path: "." }, gone: true };
    const place = this.#byOtherName(candidates, sought);
    return place && { place, gone: false };
  }

  /** Where a place that was found before is now: a descriptor of the mount's root, and what of it the detached mount showed. */
  again(sought: Sought, place: Place): { top: number; part: string } | undefined {
    return this.#mounts(sought).find(
      ({ host, elsewhere, root, tree, mark }) =>
        host === place.host &&
        elsewhere === place.elsewhere &&
        root === place.root &&
        tree === undefined &&
        (mark === undefined ? place.mark === undefined : place.mark !== undefined && mark.equals(place.mark)),
    );
  }

  /** Another name of an inode, or its handle: the kernel may know a name for it, and otherwise it is looked for. */
  #byOtherName(candidates: readonly Candidate[], { fd, st }: Sought): Place | undefined {
    const handle = addon.fileHandle(fd);
    let byHandle: Place | undefined;
    for (const at of candidates) {
      const { root, top, part, point } = at;
      const known = this.#names.get(`${root} ${st.dev}:${st.ino}`);
      const name = known ?? (handle && nameByHandle(top, handle, st, point));
      const path = name === undefined ? undefined : below(part, name);
      if (path !== undefined && isAt(top, name!, fd)) return named(at, path.slice(1), fd);
      if (handle !== undefined && opens(top, handle, st)) byHandle ??= { ...placeOf(at), path: ".", handle };
    }
    return byHandle;
  }

  /** Looks for another name of a file whose own is gone, everywhere where it may be. Before the freeze. */
  search(sought: Sought): void {
    const { st } = sought;
    if (this.of(sought)?.place.handle === undefined && this.of(sought) !== undefined) return;
    for (const { root, top, part } of this.#mounts(sought)) {
      const dir = addon.openBeneath(top, part === "/" ? "." : part.slice(1), constants.O_DIRECTORY, 0);
      try {
        const path = addon.findInode(dir, st.ino, MOST_NAMES, undefined);
        if (path !== undefined) this.#names.set(`${root} ${st.dev}:${st.ino}`, join(part, path));
      } finally {
        closeSync(dir);
      }
    }
  }

  /** In the container's namespace, then in ours, then in those of others. */
  #mounts({ found, fd: file }: Sought): Candidate[] {
    const key = `${found.pid} ${found.mntId}`;
    const known = this.#candidates.get(key);
    if (known !== undefined) return known;
    const dev = devOf(found.dev);
    const shown = this.#roots.of(file, found.mntId);
    const candidates: Candidate[] = [];
    this.#candidates.set(key, candidates);
    // Tasks may well be in our own mount namespace.
    const own = namespaceOf(found.pid, "mnt") === namespaceOf(process.pid, "mnt");
    for (const host of own ? [true] : [false, true])
      candidates.push(
        ...inMountNamespace(host ? process.pid : found.pid, (ns) => this.#inNamespace(ns, host, dev, shown, false)),
      );
    if (candidates.length === 0)
      for (const pid of this.#others().foreign)
        candidates.push(...(inNamespaceIfThere(pid, (ns) => this.#inNamespace(ns, true, dev, shown, true)) ?? []));
    const source = candidates.length === 0 ? this.#sources.get(found.dev) : undefined;
    const part = source && below(source.shown, shown);
    if (source !== undefined && part !== undefined)
      candidates.push({ host: true, root: shown, top: source.top, part, point: "/", tree: found.dev });
    return candidates;
  }

  #inNamespace(ns: number, host: boolean, dev: string, shown: string, foreign: boolean): Candidate[] {
    const candidates: Candidate[] = [];
    for (const mount of mountsIn(ns, dev)) {
      // What the detached mount shows is to be there whole: its root becomes that of the copy.
      const part = below(mount.root, shown);
      if (part === undefined) continue;
      try {
        const top = addon.openIn(ns, mount.point);
        // Something else may be mounted over it.
        if (mountIdOf(top) === mount.id) {
          const mark = markOf(top, part === "/" ? "." : part.slice(1), ns);
          const at: Candidate = { host, root: join(mount.point, part), top, part, point: mount.point };
          if (mark !== undefined) at.mark = mark;
          if (foreign) at.elsewhere = true;
          // Where others have it mounted by then is known by the mark alone.
          if (foreign && mark === undefined) closeSync(top);
          else candidates.push(at);
        } else closeSync(top);
      } catch {
        // Unmounted meanwhile, or a mount of a single file.
      }
    }
    return candidates;
  }

  /**
   * The mount of a directory may be all that is left of its file system: then its root is where files are found. `fd`, of a
   * directory on it, is lent.
   */
  offer({ dev, mntId }: Pick<Found, "dev" | "mntId">, fd: number): void {
    const shown = this.#roots.of(fd, mntId);
    const known = this.#sources.get(dev);
    if (known !== undefined && below(shown, known.shown) === undefined) return;
    if (known !== undefined && shown === known.shown) return;
    if (known !== undefined) closeSync(known.top);
    this.#sources.set(dev, { top: climb(fd), shown });
  }

  /** What is left of a file system that is mounted nowhere else. */
  source(dev: number): Source | undefined {
    return this.#sources.get(dev);
  }

  /** What an unmounted mount shows as its root. */
  shown({ mntId }: Pick<Found, "mntId">, fd: number): string {
    return this.#roots.of(fd, mntId);
  }

  /** Whether a file system is mounted anywhere. */
  isMounted({ pid, dev }: Pick<Found, "pid" | "dev">): boolean {
    const is = (ns: number): boolean => isMountedIn(ns, dev);
    const { mine, foreign } = this.#others();
    return (
      [pid, process.pid].some((each) => inMountNamespace(each, is)) ||
      [...mine, ...foreign].some((each) => inNamespaceIfThere(each, is))
    );
  }

  /** Whether it is, and a restore makes that anew: in a mount namespace of the tree's, but not in that of `pid`. */
  isRemade({ pid, dev }: Pick<Found, "pid" | "dev">): boolean {
    const own = namespaceOf(pid, "mnt");
    return this.#others().mine.some(
      (each) => namespaceOf(each, "mnt") !== own && inMountNamespace(each, (ns) => isMountedIn(ns, dev)),
    );
  }

  /** A process in each mount namespace that is not ours: of those in which the tree lives, and of others. */
  #others(): { mine: number[]; foreign: number[] } {
    if (this.#namespaces !== undefined) return this.#namespaces;
    const tree = treeOf(this.#root);
    const own = namespaceOf(process.pid, "mnt");
    const pids = [...namespacesOf("mnt", [...tree, ...allProcesses()])]
      .filter(([inode]) => inode !== own)
      .map(([, pid]) => pid);
    const mine = new Set(tree);
    this.#namespaces = { mine: pids.filter((pid) => mine.has(pid)), foreign: pids.filter((pid) => !mine.has(pid)) };
    return this.#namespaces;
  }

  /** What was found out of mounts: it may have changed. */
  forget(): void {
    for (const { top, tree } of [...this.#candidates.values()].flat()) if (tree === undefined) closeSync(top);
    for (const { top } of this.#sources.values()) closeSync(top);
    this.#candidates.clear();
    this.#sources.clear();
    this.#namespaces = undefined;
    this.#roots.forget();
  }

  close(): void {
    this.forget();
    this.#roots.close();
  }
}

const { S_IFMT, S_IFDIR } = constants;

const placeOf = ({ host, elsewhere, root, tree, mark }: Candidate): Omit<Place, "path"> => ({
  ...{ host, root },
  ...(elsewhere && { elsewhere }),
  ...(tree !== undefined && { tree }),
  ...(mark !== undefined && { mark }),
});

const named = (at: Candidate, path: string, fd: number): Place => {
  const place: Place = { ...placeOf(at), path };
  const inode = at.mark && addon.fileId(fd);
  return inode === undefined ? place : { ...place, inode };
};

/** Lends the mount namespace of a process that may have ended, or that we may not enter. */
const inNamespaceIfThere = <T>(pid: number, use: (ns: number) => T): T | undefined => {
  try {
    return inMountNamespace(pid, use);
  } catch {
    return undefined;
  }
};

const devOf = (dev: number): string => `${dev >>> 20}:${dev & 0xfffff}`;

const isMountedIn = (ns: number, dev: number): boolean => mountsIn(ns, devOf(dev)).length > 0;

/** The root of a mount, from a directory on it: there is nothing above it, the mount is in no namespace. */
const climb = (fd: number): number => {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY;
  let at = openSync(`/proc/self/fd/${fd}`, flags);
  for (;;) {
    const up = openSync(`/proc/self/fd/${at}/..`, flags);
    const same = isSame(fstatSync(at, { bigint: true }), fstatSync(up, { bigint: true }));
    closeSync(at);
    if (same) return up;
    at = up;
  }
};

/** Whether a file has no name any more. Some file systems count no links of directories. */
const isGone = ({ nlink, mode }: BigIntStats, names: readonly string[]): boolean =>
  nlink === 0n || ((Number(mode) & S_IFMT) === S_IFDIR && names.length > 1);

/** Opens an inode by its handle and gives it to `use`; undefined where that cannot be. */
const byHandle = <T>(top: number, handle: Buffer, st: BigIntStats, use: (fd: number) => T): T | undefined => {
  let fd: number;
  try {
    fd = addon.openHandle(top, handle, O_PATH);
  } catch {
    // The file system cannot, or it is none of it.
    return undefined;
  }
  try {
    return isSame(fstatSync(fd, { bigint: true }), st) ? use(fd) : undefined;
  } finally {
    closeSync(fd);
  }
};

const opens = (top: number, handle: Buffer, st: BigIntStats): boolean => byHandle(top, handle, st, () => true) ?? false;

/** A name that the kernel remembers of an inode, from the root of its mount on. */
const nameByHandle = (top: number, handle: Buffer, st: BigIntStats, point: string): string | undefined =>
  byHandle(top, handle, st, (fd) => below(point, linkOf(`/proc/self/fd/${fd}`)));
