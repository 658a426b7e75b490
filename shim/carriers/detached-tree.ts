// SPDX-License-Identifier: Apache-2.0
// A tmpfs that is mounted nowhere any more: what is in it is saved, and a new one is made of it that is mounted nowhere, too.
import {
  type BigIntStats,
  chmodSync,
  closeSync,
  constants,
  ftruncateSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  statfsSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import { addon } from "../../native/index.js";

const { S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
const TMPFS_MAGIC = 0x01021994;

export interface Node {
  /** From the root on, latin1: "a/b"; "." is the root itself. */
  path: string;
  mode: number;
  uid: number;
  gid: number;
  size: bigint;
  rdev: bigint;
  /** Nanoseconds. */
  atime: bigint;
  mtime: bigint;
  /** The number of the node that is the same inode. */
  link?: number;
  /** Of a symbolic link. */
  target?: string;
  xattrs: readonly (readonly [name: string, value: Buffer])[];
}

/** A file system: how large it may become, and what is in it. */
export interface Tree {
  /** 0: as large as memory. */
  bytes: bigint;
  inodes: bigint;
  nodes: Node[];
}

export const typeOf = ({ mode }: { mode: number }): number => mode & S_IFMT;

const latin = (path: string): Buffer => Buffer.from(path, "latin1");
const below = (directory: number, path: string): string => `/proc/self/fd/${directory}/${path}`;

/** What a file system allows; undefined where it is no tmpfs. */
export const tmpfsOf = (path: string): Omit<Tree, "nodes"> | undefined => {
  const { type, bsize, blocks, files } = statfsSync(path, { bigint: true });
  return Number(type) === TMPFS_MAGIC ? { bytes: blocks * bsize, inodes: files } : undefined;
};

const nodeOf = (path: string, st: BigIntStats, at: string, follow: boolean): Node => ({
  path,
  mode: Number(st.mode),
  uid: Number(st.uid),
  gid: Number(st.gid),
  size: st.size,
  rdev: st.rdev,
  atime: st.atimeNs,
  mtime: st.mtimeNs,
  xattrs: addon.xattrs(at, follow),
  ...((Number(st.mode) & S_IFMT) === S_IFLNK && { target: readlinkSync(latin(at), "latin1") }),
});

/** All that is below a directory, with the bytes that its files take. */
export const walk = (root: number): { nodes: Node[]; used: bigint } => {
  const nodes: Node[] = [];
  const inodes = new Map<bigint, number>();
  let used = 0n;
  const add = (path: string): void => {
    const at = below(root, path);
    const st = lstatSync(latin(at), { bigint: true });
    const node = nodeOf(path, st, at, false);
    const first = inodes.get(st.ino);
    if (first !== undefined) node.link = first;
    else {
      used += st.blocks * 512n;
      if (st.nlink > 1n && typeOf(node) !== S_IFDIR) inodes.set(st.ino, nodes.length);
    }
    nodes.push(node);
    if (typeOf(node) !== S_IFDIR) return;
    for (const name of readdirSync(latin(at), "latin1")) add(path === "." ? name : `${path}/${name}`);
  };
  add(".");
  return { nodes, used };
};

/**
 * A file system of which only parts can be looked at: all that is below one directory, which is `shown` in it, and files alone, to
 * which `at` leads. Of what is above nothing is known but names.
 */
export const nodesOf = (
  seen: { shown: string; nodes: readonly Node[] } | undefined,
  files: readonly { path: string; at: string; st: BigIntStats }[],
): Node[] => {
  const nodes = new Map<string, Node>();
  const directory = { mode: S_IFDIR | 0o755, uid: 0, gid: 0, size: 0n, rdev: 0n, atime: 0n, mtime: 0n, xattrs: [] };
  const makeAbove = (path: string): void => {
    const parts = path === "." ? [] : path.split("/");
    for (const above of [".", ...parts.slice(1).map((_, i) => parts.slice(0, i + 1).join("/"))])
      if (above !== path && !nodes.has(above)) nodes.set(above, { path: above, ...directory });
  };
  if (seen !== undefined) {
    const within = placeIn(seen.shown);
    makeAbove(within("."));
    const first = nodes.size;
    for (const node of seen.nodes) {
      const path = within(node.path);
      nodes.set(path, { ...node, path, ...(node.link !== undefined && { link: node.link + first }) });
    }
  }
  for (const { path, at, st } of files) {
    makeAbove(path);
    nodes.set(path, nodeOf(path, st, at, true));
  }
  return [...nodes.values()];
};

/** Names below a directory of a file system as names below its root. */
const placeIn =
  (shown: string) =>
  (path: string): string =>
    shown === "/" ? path : path === "." ? shown.slice(1) : `${shown.slice(1)}/${path}`;

/** A descriptor for the contents of a node below a directory, which is `shown` in the file system. */
export const contentsBelow = (root: number, shown: string, { path }: Node): number =>
  openSync(latin(below(root, shown === "/" ? path : path.slice(shown.length))), O_RDONLY | O_NOFOLLOW);

/** Makes a tmpfs anew. Returns a mount namespace in which it is the root; nobody lives there. */
export const makeTree = (
  { bytes, inodes, nodes }: Tree,
  contents: (node: Node, piece: (bytes: Uint8Array, offset: number) => void) => void,
): number => {
  const ns = addon.newTmpfs(`size=${bytes},nr_inodes=${inodes},mode=0700`);
  let root: number | undefined;
  try {
    root = addon.openIn(ns, "/");
    for (const node of nodes) make(root, node, nodes, (piece) => contents(node, piece));
    // Times last, and of what is deeper first: making something changes them.
    for (const { path, atime, mtime } of [...nodes].reverse()) addon.setTimes(below(root, path), atime, mtime);
    return ns;
  } catch (error) {
    closeSync(ns);
    throw error;
  } finally {
    if (root !== undefined) closeSync(root);
  }
};

const make = (
  root: number,
  node: Node,
  nodes: readonly Node[],
  contents: (piece: (bytes: Uint8Array, offset: number) => void) => void,
): void => {
  const { path, mode, uid, gid, rdev, link, target, xattrs } = node;
  const at = latin(below(root, path));
  if (link !== undefined) {
    linkSync(latin(below(root, nodes[link]!.path)), at);
    return;
  }
  const type = typeOf(node);
  if (type === S_IFLNK) symlinkSync(latin(target!), at);
  else if (type === S_IFREG) makeRegular(at, node, contents);
  else if (type !== S_IFDIR) addon.makeNode(root, path, type | 0o600, Number(rdev));
  else if (path !== ".") mkdirSync(at, 0o700);
  lchownSync(at, uid, gid);
  if (type !== S_IFLNK) chmodSync(at, mode & 0o7777);
  for (const [name, value] of xattrs) addon.setXattr(below(root, path), name, value);
};

const makeRegular = (
  at: Buffer,
  { size }: Node,
  contents: (piece: (bytes: Uint8Array, offset: number) => void) => void,
): void => {
  const fd = openSync(at, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  try {
    ftruncateSync(fd, Number(size));
    if (size > 0n)
      contents((bytes, offset) => {
        for (let done = 0; done < bytes.length; )
          done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
      });
  } finally {
    closeSync(fd);
  }
};
