// SPDX-License-Identifier: Apache-2.0
// Which inode a file is, in words that outlast its name: between a dump and a restore a name may become another file's, and an
// inode's number as well, but not its handle (name_to_handle_at(2)), which has its generation in it.

import { closeSync, constants, fstatSync, readlinkSync } from "node:fs";
import { addon } from "../../native/index.js";
import { O_PATH } from "../flags.js";
import { mountLines } from "./remote-mounts.js";
import { allProcesses, inMountNamespace, namespacesOf } from "./tasks.js";

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;
/** Of a file system whose names are looked through for one inode. */
export const MOST_NAMES = 200_000;

export const linkOf = (path: string): string => readlinkSync(path, "latin1");

const DELETED = " (deleted)";
/** The names that a link in /proc may mean: a file may well be called "x (deleted)". */
export const namesOf = (link: string): string[] =>
  link.endsWith(DELETED) ? [link, link.slice(0, -DELETED.length)] : [link];

/** Whether `path`, in the directory `top`, is the file. */
export const isAt = (top: number, path: string, file: number): boolean =>
  path.length < 4000 && addon.isBeneath(top, path === "/" ? "." : path.slice(1), file);

/** The handle of what has a name, after whatever `more` says of it; undefined where nothing is there, or has none. */
const inodeAt = (top: number, path: string, more?: (fd: number) => Buffer | undefined): Buffer | undefined => {
  let fd: number | undefined;
  try {
    fd = addon.openBeneath(top, path, O_PATH | O_NOFOLLOW, 0);
    const handle = addon.fileId(fd);
    if (handle === undefined || more === undefined) return handle;
    const before = more(fd);
    return before && Buffer.concat([before, handle]);
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
};

const major = (dev: number): number => (dev >>> 8) & 0xfff;
const minor = (dev: number): number => (dev & 0xff) | ((dev >>> 12) & 0xfff00);

/** Of an overlay: where what is written goes. Others of the same lower layers have the same files in these. */
const upperOf = (dev: number, ns: number): string => {
  const at = mountLines(addon.mountInfo(ns)).find((each) => each.dev === `${major(dev)}:${minor(dev)}`);
  return (at?.type === "overlay" && /(?:^|,)upperdir=((?:\\.|[^,\\])*)/.exec(at.options)?.[1]) || "";
};

/**
 * Tells a directory from all others, of other file systems too; undefined where that cannot be. `ns`: a mount namespace that has it, or -1
 * for ours.
 */
export const markOf = (top: number, path: string, ns: number): Buffer | undefined => {
  const more = (fd: number): Buffer | undefined => {
    if (addon.fileHandle(fd) !== undefined) return addon.fileSystemId(fd);
    const upper = upperOf(fstatSync(fd).dev, ns);
    return upper === "" ? undefined : Buffer.concat([addon.fileSystemId(fd), Buffer.from(`${upper}\0`, "latin1")]);
  };
  return inodeAt(top, path, more);
};

/** Opens an inode on the mount of a directory, which may be open with O_PATH. */
export const openInode = (top: number, handle: Buffer, flags: number): number => {
  const mount = addon.openBeneath(top, ".", O_RDONLY | O_DIRECTORY, 0);
  try {
    return addon.openHandle(mount, handle, flags);
  } finally {
    closeSync(mount);
  }
};

/** Where the inode is that had a name: its name, a handle where it has none below `top`; undefined: it is no more. */
export const locate = (top: number, path: string, inode: Buffer, ino: bigint): string | Buffer | undefined => {
  if (inodeAt(top, path)?.equals(inode)) return path;
  // An overlay opens nothing by what it tells of an inode. podman unpacks what its checkpoint has kept of one over it: all its files are others then.
  if (addon.fileHandle(top) === undefined)
    return addon.findInode(top, ino, MOST_NAMES, inode)?.slice(1) ?? (inodeAt(top, path) && path);
  let fd: number;
  try {
    fd = openInode(top, inode, O_PATH | O_NOFOLLOW);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESTALE") return undefined;
    throw error;
  }
  try {
    return nameOf(top, fd, ino) ?? inode;
  } finally {
    closeSync(fd);
  }
};

/** The kernel may know a name, and otherwise it is looked for. */
const nameOf = (top: number, fd: number, ino: bigint): string | undefined => {
  const known = namesOf(linkOf(`/proc/self/fd/${fd}`)).find((name) => isAt(top, name, fd));
  if (known !== undefined) return known === "/" ? "." : known.slice(1);
  if (fstatSync(fd).nlink === 0) return undefined;
  const found = addon.findInode(top, ino, MOST_NAMES, undefined);
  return found !== undefined && isAt(top, found, fd) ? found.slice(1) : undefined;
};

/** A copy of a mount of whatever mount namespace has this very directory at `path`. */
export const cloneElsewhere = (path: string, mark: Buffer): number => {
  for (const pid of namespacesOf("mnt", allProcesses()).values()) {
    let tree: number | undefined;
    try {
      const made = inMountNamespace(pid, (ns) => {
        tree = addon.cloneMount(ns, path);
        return markOf(tree, ".", ns);
      });
      if (made?.equals(mark)) return tree!;
    } catch {
      // It has ended, or there is no such directory.
    }
    if (tree !== undefined) closeSync(tree);
  }
  throw new Error("no process has it mounted any more");
};
