// SPDX-License-Identifier: Apache-2.0
// cryoshim-detached.img: mounts, the files on them, and the contents of those that have no name any more. The last may
// be of any size: written and read in pieces.
import { closeSync, constants, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { decodeMessage, frameMessage, magicsOf } from "../../crit/frame.js";
import { fdSource } from "../../crit/io.js";
import { KINDS } from "../../crit/kinds.js";
import type { Message } from "../../crit/message.js";
import { streamImage } from "../../crit/stream.js";
import { addon } from "../../native/index.js";
import { CryoshimError } from "../error.js";
import { type Node, type Tree, typeOf } from "./detached-tree.js";

const { S_IFDIR, S_IFLNK } = constants;
/** Directories that a container has and does not use: one is covered while CRIU opens files (see MountEntry.base). */
export const BASES = ["/proc/driver", "/proc/tty", "/proc/fs", "/sys/module"];
export const IMAGE = "cryoshim-detached.img";
const KIND = KINDS.CRYOSHIM_DETACHED;
/** Of a file's contents in one entry. */
const PIECE = 256 << 10;
/** MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC. */
export const ALL_ATTRIBUTES = 15;

/** What descriptors there are of a file. */
export interface OpenFile {
  flags: number;
  pos: bigint;
}

/** A file without a name, to be made anew, or a socket. */
export interface Gone {
  uid: number;
  gid: number;
  size: bigint;
  rdev: bigint;
  /** Nanoseconds. */
  atime: bigint;
  mtime: bigint;
}

export interface MountEntry {
  host: boolean;
  /** Latin1, as all paths here. */
  path: string;
  attributes: number;
  /** What it is a part of, where that is in the images. */
  tree?: Tree;
  /** The directory for all copies that are mounted in the container while CRIU opens files there. */
  base?: string;
  /** In a mount namespace that is neither: wherever `path` is what `mark` says. */
  elsewhere?: true;
  /** What tells whether it is the same directory of the same file system: see markOf(). */
  mark?: Buffer;
}

export interface FileEntry {
  mount: MountEntry;
  path: string;
  mode: number;
  ino: bigint;
  open: ReadonlyMap<number, OpenFile>;
  handle?: Buffer;
  /** Which file has the name. */
  inode?: Buffer;
  /** Of a FIFO: how large it is, and what waits in it. */
  pipe?: { size: number; data: Uint8Array };
  gone?: Gone;
  /** Of a socket: the path that it was bound by. It has `gone`; its own `path` is "." where it has no name. */
  bound?: string;
  /** CRIU opens it, too. */
  key?: string;
}

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));

/** What a socket is called in files.img: by the number of its file here (native/plugin/bound.c). */
export const boundAs = (file: number): string => `cryoshim bound ${file}`;

/** Opens the contents of a regular file; the descriptor becomes the caller's. */
export type Contents = ReadonlyMap<FileEntry | Node, () => number>;

/** Writes the image. Where no directory is given, it does the work and leaves nothing. */
export const writeDetached = (imagesDir: string | undefined, files: readonly FileEntry[], contents: Contents): void => {
  const out = imagesDir === undefined ? openSync("/dev/null", "w") : openSync(join(imagesDir, IMAGE), "wx", 0o600);
  let parts: Uint8Array[] = [magicsOf(KIND)];
  let length = 0;
  const flush = (): void => {
    const bytes = Buffer.concat(parts);
    for (let at = 0; at < bytes.length; ) at += writeSync(out, bytes, at);
    [parts, length] = [[], 0];
  };
  const put = (message: Message): void => {
    const frame = frameMessage(KIND.entry, message);
    for (const part of frame) length += part.length;
    parts.push(...frame);
    if (length >= PIECE) flush();
  };
  try {
    const [mounts, trees] = [new Set(files.map(({ mount }) => mount)), new Set<Tree>()];
    for (const { tree } of mounts) if (tree !== undefined) trees.add(tree);
    const numbers = new Map<MountEntry | Tree, number>();
    for (const all of [mounts, trees]) for (const [i, each] of [...all].entries()) numbers.set(each, i);
    for (const tree of trees) {
      put({ tree: { id: numbers.get(tree)!, bytes: tree.bytes, inodes: tree.inodes } });
      for (const node of tree.nodes) put({ node: nodeMessage(node) });
    }
    for (const mount of mounts) {
      const { host, elsewhere, path, attributes, base, tree, mark } = mount;
      const message: Message = { id: numbers.get(mount)!, host, path: bytes(path), attributes };
      if (base !== undefined) message.base = bytes(base);
      if (tree !== undefined) message.tree = numbers.get(tree)!;
      if (elsewhere) message.elsewhere = true;
      if (mark !== undefined) message.mark = new Uint8Array(mark);
      put({ mount: message });
    }
    for (const file of files) put({ file: { mount: numbers.get(file.mount)!, ...messageOf(file) } });
    const nodes = [...trees].flatMap((tree) => tree.nodes);
    const all: [FileEntry | Node, Message][] = [
      ...files.map((file, i): [FileEntry, Message] => [file, { file: i }]),
      ...nodes.map((node, i): [Node, Message] => [node, { node: i }]),
    ];
    for (const [of, whose] of all) {
      const open = contents.get(of);
      if (open === undefined) continue;
      const from = open();
      try {
        putContents(from, whose, put);
      } finally {
        closeSync(from);
      }
    }
    flush();
  } finally {
    closeSync(out);
  }
};

const nodeMessage = ({ path, link, target, xattrs, ...rest }: Node): Message => ({
  ...rest,
  path: bytes(path),
  ...(link !== undefined && { link }),
  ...(target !== undefined && { target: bytes(target) }),
  xattrs: xattrs.map(([name, value]) => ({ name: bytes(name), value: new Uint8Array(value) })),
});

const messageOf = ({ path, mode, ino, open, handle, inode, pipe, gone, bound, key }: FileEntry): Message => {
  const all = [...open];
  return {
    path: bytes(path),
    mode,
    ino,
    ids: all.map(([id]) => id),
    flags: all.map(([, { flags }]) => flags),
    positions: all.map(([, { pos }]) => pos),
    ...gone,
    ...(handle !== undefined && { handle: new Uint8Array(handle) }),
    ...(inode !== undefined && { inode: new Uint8Array(inode) }),
    ...(pipe !== undefined && { pipe_size: pipe.size, pipe: pipe.data }),
    ...(bound !== undefined && { bound: bytes(bound) }),
    ...(key !== undefined && { key }),
  };
};

const putContents = (from: number, whose: Message, put: (message: Message) => void): void => {
  const piece = Buffer.allocUnsafe(PIECE);
  for (let next = addon.nextData(from, 0); next !== undefined; next = addon.nextData(from, next[1])) {
    for (let [at, end] = next; at < end; ) {
      const n = readSync(from, piece, 0, Math.min(PIECE, end - at), at);
      if (n === 0) break;
      put({ data: { ...whose, offset: BigInt(at), data: new Uint8Array(piece.subarray(0, n)) } });
      at += n;
    }
  }
};

export const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

/** A path that says what it says: without "..", and with no byte that ends it. */
const textOf = (value: unknown, at: number, absolute: boolean): string => {
  const text = value instanceof Uint8Array ? Buffer.from(value).toString("latin1") : "";
  const parts = text.split("/");
  if (
    text === "" ||
    text.length > 4000 ||
    text.includes("\0") ||
    parts.includes("..") ||
    text.startsWith("/") !== absolute
  )
    throw wrong(at, "its path is none that cryoshim writes");
  return text;
};

/** What bind(2) takes as a path. */
const nameOf = (value: unknown, at: number): string => {
  const text = value instanceof Uint8Array ? Buffer.from(value).toString("latin1") : "";
  if (text === "" || text.length > 108 || text.includes("\0") || text.endsWith("/"))
    throw wrong(at, "a socket's name is none");
  return text;
};

const mountFrom = (
  { host, elsewhere, path, attributes, base, tree, mark }: Message,
  trees: ReadonlyMap<number, Tree>,
  at: number,
): MountEntry => {
  if (typeof attributes !== "number" || attributes > ALL_ATTRIBUTES)
    throw wrong(at, "its attributes are none of a mount");
  const mount: MountEntry = { host: host === true, path: textOf(path, at, true), attributes };
  if (base !== undefined) mount.base = textOf(base, at, true);
  if (mount.base !== undefined && !BASES.includes(mount.base)) throw wrong(at, "nothing is mounted there");
  if (mark instanceof Uint8Array) mount.mark = Buffer.from(mark);
  if (elsewhere === true && mount.mark === undefined) throw wrong(at, "it is somewhere, and not told by anything");
  if (elsewhere === true) mount.elsewhere = true;
  if (tree === undefined) return mount;
  const known = trees.get(tree as number);
  if (known === undefined) throw wrong(at, "it is of a file system that is not there");
  return { ...mount, tree: known };
};

const goneFrom = ({ uid, gid, size, rdev, atime, mtime }: Message, at: number): Gone | undefined => {
  if (uid === undefined) return undefined;
  const whole = [size, rdev, atime, mtime].every((value) => typeof value === "bigint");
  if (typeof gid !== "number" || !whole || (size as bigint) > BigInt(Number.MAX_SAFE_INTEGER))
    throw wrong(at, "a file without a name is not told whole");
  return { uid, gid, size, rdev, atime, mtime } as unknown as Gone;
};

const fileFrom = (file: Message, mount: MountEntry | undefined, at: number): FileEntry => {
  const { ids = [], flags = [], positions = [] } = file as unknown as Record<string, unknown[]>;
  const { mode, ino, handle, inode, pipe_size, pipe, bound, key } = file;
  if (mount === undefined) throw wrong(at, "it is of a mount that is not there");
  if (typeof mode !== "number" || ids.length !== flags.length || ids.length !== positions.length)
    throw wrong(at, "it is no file");
  const open = ids.map((id, i) => [id as number, { flags: flags[i] as number, pos: positions[i] as bigint }] as const);
  const loaded: FileEntry = {
    mount,
    path: textOf(file.path, at, false),
    mode,
    ino: ino as bigint,
    open: new Map(open),
  };
  const gone = goneFrom(file, at);
  if (gone !== undefined) loaded.gone = gone;
  if (handle instanceof Uint8Array) loaded.handle = Buffer.from(handle);
  if (inode instanceof Uint8Array) loaded.inode = Buffer.from(inode);
  if (typeof pipe_size === "number" && pipe instanceof Uint8Array)
    loaded.pipe = { size: pipe_size, data: Buffer.from(pipe) };
  if (bound !== undefined) loaded.bound = nameOf(bound, at);
  if (bound !== undefined && gone === undefined) throw wrong(at, "nothing says whose socket it is");
  if (typeof key === "string") loaded.key = key;
  return loaded;
};

/** Checks that a node lies in a directory of its file system: no name leads out of it. */
const nodeFrom = (message: Message, tree: Tree | undefined, known: ReadonlyMap<string, Node>, at: number): Node => {
  const { mode, uid, gid, size, rdev, atime, mtime, link } = message as unknown as Node;
  const xattrs = (message.xattrs ?? []) as Message[];
  if (tree === undefined) throw wrong(at, "it is in no file system");
  const path = textOf(message.path, at, false);
  const parts = path.split("/");
  const above = path === "." ? undefined : parts.length === 1 ? "." : parts.slice(0, -1).join("/");
  const parent = above === undefined ? undefined : known.get(above);
  if (above === undefined ? known.size > 0 : parent === undefined || typeOf(parent) !== S_IFDIR)
    throw wrong(at, "it lies in no directory");
  if (known.has(path) || parts.includes("") || (path !== "." && parts.includes(".")))
    throw wrong(at, "its path is none");
  const node: Node = { path, mode, uid, gid, size, rdev, atime, mtime, xattrs: [] };
  if (path === "." && typeOf(node) !== S_IFDIR) throw wrong(at, "its root is no directory");
  const first = link === undefined ? undefined : tree.nodes[link];
  if (link !== undefined && (first === undefined || typeOf(first) === S_IFDIR))
    throw wrong(at, "it is a link of nothing");
  if (link !== undefined) node.link = link;
  if (message.target !== undefined) node.target = Buffer.from(message.target as Uint8Array).toString("latin1");
  if ((typeOf(node) === S_IFLNK) !== (node.target !== undefined)) throw wrong(at, "it leads nowhere");
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw wrong(at, "it is too large");
  node.xattrs = xattrs.map(({ name, value }) => {
    if (!(name instanceof Uint8Array && value instanceof Uint8Array))
      throw wrong(at, "an attribute has no name or value");
    return [Buffer.from(name).toString("latin1"), Buffer.from(value)];
  });
  return node;
};

/** The image, read. Contents stay in it until they are asked for. */
export class DetachedImage {
  readonly files: FileEntry[] = [];
  readonly #path: string;
  /** Where in the image the pieces of a file or node are. */
  readonly #pieces = new Map<FileEntry | Node, number[]>();

  /** What the image says is checked: it may come from anywhere. Throws ERR_IMAGE. */
  constructor(imagesDir: string) {
    this.#path = join(imagesDir, IMAGE);
    const mounts = new Map<number, MountEntry>();
    const trees = new Map<number, Tree>();
    const nodes: Node[] = [];
    let known = new Map<string, Node>();
    let tree: Tree | undefined;
    const fd = openSync(this.#path, "r");
    try {
      const { kind, entries } = streamImage(fdSource(fd), IMAGE);
      if (kind !== "CRYOSHIM_DETACHED") throw wrong(0, `it is an image of kind ${kind}`);
      for (const { index, at, message } of entries) {
        const { mount, file, data, node } = message as Record<string, Message | undefined>;
        if (message.tree !== undefined) {
          const { id, bytes, inodes } = message.tree as { id: number; bytes: bigint; inodes: bigint };
          tree = { bytes, inodes, nodes: [] };
          known = new Map();
          trees.set(id, tree);
        } else if (node !== undefined) {
          const loaded = nodeFrom(node, tree, known, index);
          nodes.push(loaded);
          tree!.nodes.push(loaded);
          known.set(loaded.path, loaded);
        } else if (mount !== undefined) mounts.set(mount.id as number, mountFrom(mount, trees, index));
        else if (file !== undefined) this.files.push(fileFrom(file, mounts.get(file.mount as number), index));
        else if (data !== undefined) {
          const of = data.node === undefined ? this.files[data.file as number] : nodes[data.node as number];
          const size = of === undefined ? 0n : "open" in of ? (of.gone?.size ?? 0n) : of.size;
          const { offset, data: bytes } = data as { offset?: bigint; data?: Uint8Array };
          if (offset === undefined || bytes === undefined) throw wrong(index, "it has no offset or no contents");
          if (of === undefined || offset + BigInt(bytes.length) > size)
            throw wrong(index, "it lies outside of its file");
          this.#pieces.set(of, [...(this.#pieces.get(of) ?? []), at]);
        } else throw wrong(index, "it says nothing that this version knows");
      }
    } finally {
      closeSync(fd);
    }
  }

  /** Gives the contents of a file, or of a node, piece by piece. */
  contents(of: FileEntry | Node, piece: (bytes: Uint8Array, offset: number) => void): void {
    const pieces = this.#pieces.get(of) ?? [];
    if (pieces.length === 0) return;
    const fd = openSync(this.#path, "r");
    try {
      for (const from of pieces) {
        const length = fdSource(fd, { from, size: 4 }).take(4);
        const size = new DataView(length.buffer, length.byteOffset).getUint32(0, true);
        const body = fdSource(fd, { from: from + 4, size }).take(size);
        const { data, offset } = decodeMessage(KIND.entry, body, IMAGE, from).data as {
          data: Uint8Array;
          offset: bigint;
        };
        piece(data, Number(offset));
      }
    } finally {
      closeSync(fd);
    }
  }
}
