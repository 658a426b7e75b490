// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more (umount -l): where else the same file system is mounted, and where the
// file is there.
import { closeSync, constants, fstatSync, openSync, readFileSync, readlinkSync } from "node:fs";
import { addon } from "../../native/index.js";
import type { Found } from "../xray/find.js";
import { MountRoots } from "../xray/mount-root.js";

/** Where a file is found again. Paths are latin1: each byte a character. */
export interface Place {
  /** In the mount namespace of the host, not of the container. */
  host: boolean;
  /** What the detached mount showed as its root. */
  root: string;
  /** Of the file, in it; "." is the root itself. */
  path: string;
}

interface Mount {
  id: number;
  /** What part of the file system it shows, and where. */
  root: string;
  point: string;
}

/** Paths in mountinfo have their blanks and backslashes in octal. */
const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

const mountsOf = (pid: number | "self", dev: string): Mount[] =>
  readFileSync(`/proc/${pid}/mountinfo`, "latin1")
    .split("\n")
    .map((line) => line.split(" "))
    .filter((columns) => columns[2] === dev)
    .map((columns) => ({ id: Number(columns[0]), root: unescaped(columns[3]!), point: unescaped(columns[4]!) }));

const mountId = (fd: number): number =>
  Number(/^mnt_id:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1"))?.[1]);

const latin = (path: string): Buffer => Buffer.from(path, "latin1");
const linkOf = (path: string): string => readlinkSync(path, "latin1");

const join = (directory: string, link: string): string =>
  directory === "/" ? link : link === "/" ? directory : directory + link;

/** What is below a mount's root in a path of its namespace; undefined where it is not below. */
const below = (point: string, path: string): string | undefined => {
  if (path === point) return "/";
  const before = point === "/" ? "" : point;
  return path.startsWith(`${before}/`) ? path.slice(before.length) : undefined;
};

/** Whether `path`, in the directory `top`, is the file. */
const isAt = (top: number, path: string, file: number): boolean => {
  try {
    const fd = addon.openBeneath(top, path === "/" ? "." : path.slice(1), constants.O_NOFOLLOW | O_PATH, 0);
    try {
      const [there, here] = [fstatSync(fd, { bigint: true }), fstatSync(file, { bigint: true })];
      return there.ino === here.ino && there.mode === here.mode;
    } finally {
      closeSync(fd);
    }
  } catch {
    return false;
  }
};

const O_PATH = 0o10000000;
const DELETED = / \(deleted\)$/;

/** A mount on which files may be found again. */
interface Candidate extends Omit<Place, "path"> {
  /** A descriptor of its own root, and what of it the detached mount showed. */
  top: number;
  part: string;
}

/** Finds files again; what it has found out of mounts it keeps until close(). */
export class Places {
  readonly #roots = new MountRoots();
  readonly #candidates = new Map<string, Candidate[]>();

  /**
   * Where else the file of a descriptor is; `file` is a descriptor of ours for it. One without a name is anywhere on its
   * file system. undefined: the file system is mounted nowhere else, or the file is not found there.
   */
  of(found: Found, file: number, gone: boolean): Place | undefined {
    const link = linkOf(`/proc/${found.pid}/fd/${found.fd}`).replace(DELETED, "");
    for (const { host, root, top, part } of this.#mounts(found, file)) {
      if (gone) return { host, root, path: "." };
      if (isAt(top, join(part, link), file)) return { host, root, path: link === "/" ? "." : link.slice(1) };
    }
    return undefined;
  }

  /** In the container's namespace, then in ours. */
  #mounts(found: Found, file: number): Candidate[] {
    const key = `${found.pid} ${found.mntId}`;
    const known = this.#candidates.get(key);
    if (known !== undefined) return known;
    const dev = `${found.dev >>> 20}:${found.dev & 0xfffff}`;
    const shown = this.#roots.of(file, found.mntId);
    const candidates: Candidate[] = [];
    this.#candidates.set(key, candidates);
    for (const host of [false, true]) {
      const before = host ? "" : `/proc/${found.pid}/root`;
      for (const mount of mountsOf(host ? "self" : found.pid, dev)) {
        // What the detached mount shows is to be there whole: its root becomes that of the copy.
        const part = below(mount.root, shown);
        if (part === undefined) continue;
        try {
          const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
          const top = openSync(latin(`${before}${mount.point}`), flags);
          // Something else may be mounted over it.
          if (mountId(top) === mount.id) candidates.push({ host, root: join(mount.point, part), top, part });
          else closeSync(top);
        } catch {
          // Unmounted meanwhile, or a mount of a single file.
        }
      }
    }
    return candidates;
  }

  /** What was found out of mounts: it may have changed. */
  forget(): void {
    for (const { top } of [...this.#candidates.values()].flat()) closeSync(top);
    this.#candidates.clear();
    this.#roots.forget();
  }

  close(): void {
    this.forget();
    this.#roots.close();
  }
}
