// SPDX-License-Identifier: Apache-2.0
// cryoshim-detached.img: mounts, the files on them, and the contents of those that have no name any more. The last may
// be of any size: written and read in pieces.
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { frameMessage, magicsOf } from "../../crit/frame.js";
import { fdSource } from "../../crit/io.js";
import { KINDS } from "../../crit/kinds.js";
import type { Message } from "../../crit/message.js";
import { streamImage } from "../../crit/stream.js";
import { addon } from "../../native/index.js";
import { CryoshimError } from "../error.js";

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

/** A file without a name, to be made anew. */
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
  /** The directory for all copies that are mounted in the container while CRIU opens files there. */
  base?: string;
}

export interface FileEntry {
  mount: MountEntry;
  path: string;
  mode: number;
  ino: bigint;
  open: ReadonlyMap<number, OpenFile>;
  handle?: Buffer;
  pipe?: number;
  gone?: Gone;
  /** CRIU opens it, too. */
  key?: string;
}

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));

/** Writes the image; `contents` has a descriptor for each regular file without a name. */
export const writeDetached = (
  imagesDir: string,
  files: readonly FileEntry[],
  contents: ReadonlyMap<FileEntry, number>,
): void => {
  const out = openSync(join(imagesDir, IMAGE), "wx", 0o600);
  const put = (message: Message): void => {
    const frame = Buffer.concat(frameMessage(KIND.entry, message));
    for (let at = 0; at < frame.length; ) at += writeSync(out, frame, at);
  };
  try {
    writeSync(out, magicsOf(KIND));
    const mounts = new Map<MountEntry, number>();
    for (const { mount } of files) {
      if (mounts.has(mount)) continue;
      mounts.set(mount, mounts.size);
      const { host, path, attributes, base } = mount;
      const attached = base === undefined ? {} : { base: bytes(base) };
      put({ mount: { id: mounts.get(mount)!, host, path: bytes(path), attributes, ...attached } });
    }
    for (const file of files) put({ file: { mount: mounts.get(file.mount)!, ...messageOf(file) } });
    for (const [index, file] of files.entries()) {
      const from = contents.get(file);
      if (from !== undefined) putContents(from, index, put);
    }
  } finally {
    closeSync(out);
  }
};

const messageOf = ({ path, mode, ino, open, handle, pipe, gone, key }: FileEntry): Message => {
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
    ...(pipe !== undefined && { pipe_id: pipe }),
    ...(key !== undefined && { key }),
  };
};

const putContents = (from: number, file: number, put: (message: Message) => void): void => {
  const piece = Buffer.allocUnsafe(PIECE);
  for (let next = addon.nextData(from, 0); next !== undefined; next = addon.nextData(from, next[1])) {
    for (let [at, end] = next; at < end; ) {
      const n = readSync(from, piece, 0, Math.min(PIECE, end - at), at);
      if (n === 0) break;
      put({ data: { file, offset: BigInt(at), data: new Uint8Array(piece.subarray(0, n)) } });
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

const mountFrom = ({ host, path, attributes, base }: Message, at: number): MountEntry => {
  if (typeof attributes !== "number" || attributes > ALL_ATTRIBUTES)
    throw wrong(at, "its attributes are none of a mount");
  const mount: MountEntry = { host: host === true, path: textOf(path, at, true), attributes };
  if (base !== undefined) mount.base = textOf(base, at, true);
  return mount;
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
  const { mode, ino, handle, pipe_id, key } = file;
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
  if (typeof pipe_id === "number") loaded.pipe = pipe_id;
  if (typeof key === "string") loaded.key = key;
  return loaded;
};

/** What the image says of the files, checked: it may come from anywhere. Throws ERR_IMAGE. */
export const readDetached = (imagesDir: string): FileEntry[] => {
  const mounts = new Map<number, MountEntry>();
  const files: FileEntry[] = [];
  for (const { at, message } of entriesOf(imagesDir)) {
    const { mount, file, data } = message as Record<string, Message | undefined>;
    if (mount !== undefined) mounts.set(mount.id as number, mountFrom(mount, at));
    else if (file !== undefined) files.push(fileFrom(file, mounts.get(file.mount as number), at));
    else if (data !== undefined) {
      const size = files[data.file as number]?.gone?.size ?? 0n;
      if ((data.offset as bigint) + BigInt((data.data as Uint8Array).length) > size)
        throw wrong(at, "it lies outside of its file");
    } else throw wrong(at, "it says nothing that this version knows");
  }
  return files;
};

/** Calls back with the contents of a file, by its number in the image, piece by piece. */
export const readContents = (
  imagesDir: string,
  file: number,
  piece: (bytes: Uint8Array, offset: number) => void,
): void => {
  for (const { message } of entriesOf(imagesDir)) {
    const data = message.data as Message | undefined;
    if (data?.file === file) piece(data.data as Uint8Array, Number(data.offset));
  }
};

function* entriesOf(imagesDir: string): Generator<{ at: number; message: Message }> {
  const fd = openSync(join(imagesDir, IMAGE), "r");
  try {
    const { kind, entries } = streamImage(fdSource(fd), IMAGE);
    if (kind !== "CRYOSHIM_DETACHED") throw wrong(0, `it is an image of kind ${kind}`);
    for (const { index, message } of entries) yield { at: index, message };
  } finally {
    closeSync(fd);
  }
}
