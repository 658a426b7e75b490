// SPDX-License-Identifier: Apache-2.0
// cryoshim-remote.img: file systems whose files are on a server, where they were mounted, and what a restore asks of them.
// What is read is checked: it may come from anywhere.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { CryoshimError } from "../error.js";
import type { Looked } from "./remote-look.js";

export const REMOTE_IMAGE = "cryoshim-remote.img";

/** A mount of a remote file system. Paths are latin1. */
export interface RemoteMount {
  mntId: number;
  /** Under which CRIU asks for it at the restore; undefined: it was in the host's own mount namespace. */
  key: string | undefined;
  /** The key is ours: no runtime knows it. */
  ours: boolean;
  /** What part of the file system it shows, and where. */
  root: string;
  point: string;
  /** In mountinfo's words. */
  flags: string;
}

/** A file that a restore asks for, or a directory above one; the path is below the base, empty for the base itself. */
export interface RemoteNode extends Omit<Looked, "dev" | "mntId"> {
  path: string;
}

export interface RemoteFs {
  type: string;
  source: string;
  /** Without secrets. */
  options: string;
  /** The directory of the file system below which everything recorded is. */
  base: string;
  dev: string;
  mounts: RemoteMount[];
  nodes: RemoteNode[];
}

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));

/** A string of an image is text where it can be, and bytes where not: latin1 of either. */
export const latinOf = (value: unknown): string =>
  typeof value === "string"
    ? Buffer.from(value, "utf8").toString("latin1")
    : value instanceof Uint8Array
      ? Buffer.from(value).toString("latin1")
      : "";

const messagesOf = (fs: RemoteFs, id: number): Message[] => [
  {
    fs: {
      id,
      type: bytes(fs.type),
      source: bytes(fs.source),
      options: bytes(fs.options),
      base: bytes(fs.base),
      dev: fs.dev,
    },
  },
  ...fs.mounts.map(({ mntId, key, ours, root, point, flags }) => ({
    mount: {
      fs: id,
      mnt_id: mntId,
      ...(key !== undefined && { key: bytes(key) }),
      ...(ours && { ours }),
      root: bytes(root),
      point: bytes(point),
      flags,
    },
  })),
  ...fs.nodes.map(({ path, ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, target }) => ({
    node: {
      fs: id,
      path: bytes(path),
      ino,
      ...{ mode, nlink, uid, gid, rdev, size, atime, mtime, ctime },
      ...(target !== undefined && { target: bytes(target) }),
    },
  })),
];

export const writeRemote = (imagesDir: string, all: readonly RemoteFs[]): void => {
  const entries = all.flatMap(messagesOf).map((message) => ({ message }));
  const image = encodeImage({ kind: "CRYOSHIM_REMOTE", entries });
  writeFileSync(join(imagesDir, REMOTE_IMAGE), image, { mode: 0o600, flag: "wx" });
};

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${REMOTE_IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

const LONGEST = 4000;

/** Text that no byte ends early. */
const textOf = (value: unknown, at: number, what: string): string => {
  const text = latinOf(value);
  if (text.length > LONGEST || text.includes("\0")) throw wrong(at, `its ${what} is none that cryoshim writes`);
  return text;
};

/** A path that says what it says. */
const pathOf = (value: unknown, at: number, what: string, absolute: boolean): string => {
  const path = textOf(value, at, what);
  const parts = path.split("/");
  const good = absolute ? path.startsWith("/") : !path.startsWith("/");
  if (!good || parts.includes("..") || parts.includes(".")) throw wrong(at, `its ${what} is no path`);
  return path;
};

const fsOf = (message: Message, at: number): RemoteFs => ({
  type: textOf(message.type, at, "type"),
  source: textOf(message.source, at, "source"),
  options: textOf(message.options, at, "options"),
  base: pathOf(message.base, at, "base", true),
  dev: textOf(message.dev, at, "device"),
  mounts: [],
  nodes: [],
});

const mountOf = (message: Message, at: number): RemoteMount => {
  const key = message.key === undefined ? undefined : textOf(message.key, at, "key");
  // It becomes part of `mnt[KEY]:PATH`.
  if (key !== undefined && (key === "" || key.includes("]"))) throw wrong(at, "its key is none");
  return {
    mntId: Number(message.mnt_id),
    key,
    ours: message.ours === true,
    root: pathOf(message.root, at, "root", true),
    point: pathOf(message.point, at, "place", true),
    flags: textOf(message.flags, at, "flags"),
  };
};

const nodeOf = (message: Message, at: number): RemoteNode => {
  const number = (field: string): number => {
    const value = message[field];
    if (typeof value !== "number" || value < 0) throw wrong(at, `its ${field} is ${String(value)}`);
    return value;
  };
  const big = (field: string): bigint => {
    const value = message[field];
    if (typeof value !== "bigint" && typeof value !== "number") throw wrong(at, `it has no ${field}`);
    return BigInt(value);
  };
  const node: RemoteNode = {
    path: pathOf(message.path, at, "path", false),
    ino: big("ino"),
    mode: number("mode"),
    nlink: number("nlink"),
    uid: number("uid"),
    gid: number("gid"),
    rdev: number("rdev"),
    size: big("size"),
    atime: big("atime"),
    mtime: big("mtime"),
    ctime: big("ctime"),
  };
  if (message.target !== undefined) node.target = textOf(message.target, at, "target");
  return node;
};

/** What the images say of remote file systems. Throws ERR_IMAGE. */
export const readRemote = (imagesDir: string): RemoteFs[] => parseRemote(readFileSync(join(imagesDir, REMOTE_IMAGE)));

/** The same of the image itself. */
export const parseRemote = (image: Uint8Array): RemoteFs[] => {
  const { kind, entries } = decodeImage(image, REMOTE_IMAGE);
  if (kind !== "CRYOSHIM_REMOTE") throw wrong(0, `it is an image of kind ${kind}`);
  const all = new Map<number, RemoteFs>();
  for (const [at, { message }] of entries.entries()) {
    const { fs, mount, node } = message as { [name: string]: Message | undefined };
    if (fs !== undefined) {
      all.set(fs.id as number, fsOf(fs, at));
      continue;
    }
    const of = all.get((mount ?? node)?.fs as number);
    if (of === undefined) throw wrong(at, "it is of a file system that is not there");
    if (mount !== undefined) of.mounts.push(mountOf(mount, at));
    else if (node !== undefined) of.nodes.push(nodeOf(node, at));
  }
  return [...all.values()];
};
