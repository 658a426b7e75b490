// SPDX-License-Identifier: Apache-2.0
// The same files on the real side, opened as they were, and checked to be the same.

import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  openSync,
  readSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { reason } from "../shim/error.js";
import { O_PATH } from "../shim/flags.js";
import type { Replacement } from "./retire-mounts.js";
import { codeOf, type Seen, verbs } from "./retire-native.js";
import type { Credentials } from "./retire-tasks.js";

const { O_RDONLY, O_RDWR, O_NONBLOCK, O_CREAT, O_EXCL } = constants;
const [O_TMPFILE, O_NOATIME] = [0o20200000, 0o1000000];
/** What a file was opened with, and is opened with again: never O_CREAT, O_TRUNC or O_EXCL. */
const KEPT =
  0o3 |
  constants.O_APPEND |
  O_NONBLOCK |
  constants.O_DSYNC |
  constants.O_SYNC |
  0o40000 |
  0o100000 |
  0o200000 |
  0o400000 |
  O_NOATIME |
  O_PATH;
const S_IFMT = 0o170000;
const [S_IFREG, S_IFDIR, S_IFIFO] = [0o100000, 0o40000, 0o10000];
/** A file without a name is copied; this much may stay frozen meanwhile. */
const MOST = 64 << 20;

/** The name that an NFS client gives to an open file when its own is taken away (fs/nfs/unlink.c): the only one that it has. */
const SILLY = /(^|\/)\.nfs[0-9a-f]{16,24}$/;

/** Why something stays where it is. */
export class Stays extends Error {}

const ROOT: Credentials = { uid: 0, gid: 0, groups: new Int32Array() };

/** Opens a path of the real side, as the task would; where the task itself could not (any more), as root. */
export const openReal = (tree: number, path: string, flags: number, as: Credentials = ROOT): number => {
  const open = ({ uid, gid, groups }: Credentials): number =>
    verbs.openAs(tree, path === "" ? "." : path, flags, uid, gid, groups);
  try {
    return open(as);
  } catch (error) {
    if (as === ROOT || !["EACCES", "EPERM"].includes(codeOf(error))) throw error;
    return open(ROOT);
  }
};

/** Inode numbers are the real ones' when the roots' are. */
export const hasStableInodes = (mountRoot: number, tree: number): boolean =>
  fstatSync(mountRoot, { bigint: true }).ino === fstatSync(tree, { bigint: true }).ino;

export class Opener {
  readonly #stable: boolean;
  /** Copies of files without a name, by inode. */
  readonly #copies = new Map<string, number>();
  readonly #keep: number[] = [];

  constructor(stable: boolean) {
    this.#stable = stable;
  }

  /** Throws Stays. `frozen`: nobody changes what has to be copied. */
  open(
    what: { seen: Seen; replacement: Replacement; path: string; gone: boolean },
    flags: number,
    as: Credentials,
    source?: () => number,
  ): number {
    const { seen, replacement, path, gone } = what;
    const tree = replacement.tree;
    if (tree === undefined) throw new Stays("its mount has not come");
    const type = seen.mode & S_IFMT;
    const kept = flags & KEPT;
    const named = (flags & O_PATH) !== 0;
    if (!named && type !== S_IFREG && type !== S_IFDIR && type !== S_IFIFO)
      throw new Stays("it is a device, and another one if it were opened again");
    if (gone) {
      if (named || type !== S_IFREG || source === undefined) throw new Stays("it has no name any more");
      return openSync(`/proc/self/fd/${this.#copy(what, tree, source)}`, kept & ~0o400000);
    }
    let fd: number;
    try {
      fd = openReal(tree, path, type === S_IFIFO ? kept | O_NONBLOCK : kept, as);
    } catch (error) {
      throw new Stays(`it cannot be opened on the real mount: ${reason(error)}`);
    }
    const { mode, ino } = fstatSync(fd, { bigint: true });
    const other =
      (Number(mode) & S_IFMT) !== type
        ? "something of another kind"
        : this.#stable && ino !== seen.ino
          ? "another file"
          : "";
    if (other === "") return fd;
    closeSync(fd);
    throw new Stays(`${other} has its name on the real mount`);
  }

  /** Both ends of a FIFO can be opened while this is. */
  holdFifo(tree: number, path: string): number {
    const fd = openReal(tree, path, O_RDWR | O_NONBLOCK);
    this.#keep.push(fd);
    return fd;
  }

  #copy({ seen, path }: { seen: Seen; path: string }, tree: number, source: () => number): number {
    const key = `${seen.mount} ${seen.ino}`;
    const known = this.#copies.get(key);
    if (known !== undefined) return known;
    let from = -1;
    try {
      from = openSync(`/proc/self/fd/${source()}`, O_RDONLY);
      const { size, mode, uid, gid, nlink } = fstatSync(from);
      if (nlink > (SILLY.test(path) ? 1 : 0))
        throw new Stays("the name that it had is gone, and the others are not known");
      if (size > MOST) throw new Stays(`it has no name any more, and ${size} bytes are too many to be copied`);
      const to = nameless(tree);
      this.#keep.push(to);
      const buffer = Buffer.alloc(1 << 20);
      for (let at = 0, n = 0; at < size; at += n) {
        n = readSync(from, buffer, 0, buffer.length, at);
        if (n <= 0) break;
        writeSync(to, buffer, 0, n, at);
      }
      fchownSync(to, uid, gid);
      fchmodSync(to, mode & 0o7777);
      this.#copies.set(key, to);
      return to;
    } catch (error) {
      if (error instanceof Stays) throw error;
      throw new Stays(`it has no name any more, and cannot be copied: ${reason(error)}`);
    } finally {
      if (from >= 0) closeSync(from);
    }
  }

  close(): void {
    for (const fd of this.#keep.splice(0)) closeSync(fd);
    this.#copies.clear();
  }
}

/** A new file without a name in the real mount. */
const nameless = (tree: number): number => {
  try {
    return openReal(tree, ".", O_TMPFILE | O_RDWR);
  } catch {
    // File systems of the network have no O_TMPFILE.
    const name = `.cryoshim-${randomBytes(8).toString("hex")}`;
    const fd = openReal(tree, name, O_CREAT | O_EXCL | O_RDWR);
    unlinkSync(`/proc/self/fd/${tree}/${name}`);
    return fd;
  }
};

/** What a program has read of a directory's stream is told by where the stream stands: the same names must be behind it. */
export const matchDirectory = (old: number, next: number, position: bigint): bigint => {
  if (position === 0n) return 0n;
  const list = (fd: number): { names: string[]; positions: bigint[] } => {
    const columns = verbs.listDirectory(fd);
    return { names: columns.path.split("\0").slice(0, -1), positions: [...columns.pos] };
  };
  const apart = openSync(`/proc/self/fd/${old}/.`, O_RDONLY | 0o200000);
  let before: ReturnType<typeof list>;
  try {
    before = list(apart);
  } finally {
    closeSync(apart);
  }
  const read = before.positions.indexOf(position) + 1;
  // At its end a stream may stand behind the last entry's position.
  const count = read > 0 ? read : before.names.length;
  const known = new Set(before.names.slice(0, count));
  // Through the new one itself: servers of FUSE know no positions but those that they have told it (sshfs).
  const after = list(next);
  const same = after.names.slice(0, count);
  if (same.length !== known.size || same.some((name) => !known.has(name)))
    throw new Stays("its entries have another order on the real mount, and it is read half way");
  return after.positions[count - 1]!;
};

/** Whatever was written to an old file and is only in memory goes to its server, as at each close. */
export const writeBack = (link: string): void => closeSync(openSync(link, O_RDWR));
