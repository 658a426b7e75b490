// SPDX-License-Identifier: Apache-2.0
// A unix socket that had its name on an unmounted mount is bound there again. Its name leads there from nowhere, so it is bound below a
// directory of ours, as if that were the root, and what bind(2) has made is then put where it was.

import { randomUUID } from "node:crypto";
import { chownSync, closeSync, constants, fstatSync, renameSync, rmdirSync, unlinkSync } from "node:fs";
import { addon } from "../../native/index.js";
import { O_PATH } from "../flags.js";
import type { FileEntry } from "./detached-image.js";
import { locate } from "./detached-inode.js";

const { S_IFMT, S_IFDIR, S_IFSOCK, O_DIRECTORY, O_NOFOLLOW } = constants;

/** The directories that a path passes, and where it ends, from the start of who has it; all below one directory. */
export const passes = (path: string): { start: string; directories: string[]; end: string } => {
  const parts = path.split("/");
  const name = parts.pop()!;
  const absolute = path.startsWith("/");
  // As deep as it climbs, by a name that is in no path of a socket.
  const start = absolute ? [] : parts.filter((part) => part === "..").map(() => "x".repeat(109));
  const directories = start.map((_, i) => start.slice(0, i + 1).join("/"));
  const at = [...start];
  for (const part of parts) {
    if (part === "" || part === ".") continue;
    if (part === "..") at.pop();
    else at.push(part);
    const directory = at.join("/");
    if (at.length > 0 && !directories.includes(directory)) directories.push(directory);
  }
  return { start: start.join("/") || ".", directories, end: [...at, name].join("/") };
};

const below = (directory: number, path: string): Buffer => Buffer.from(`/proc/self/fd/${directory}/${path}`, "latin1");

/** Does something to what is in a directory, which keeps its times. */
const keepingTimes = (directory: number, work: () => void): void => {
  const { atimeNs, mtimeNs } = fstatSync(directory, { bigint: true });
  work();
  addon.setTimes(`/proc/self/fd/${directory}/.`, atimeNs, mtimeNs);
};

/** Whether a socket's file is what a dead socket has left, or nothing. */
const isFree = (tree: number, path: string): boolean => {
  let fd: number;
  try {
    fd = addon.openBeneath(tree, path, O_PATH | O_NOFOLLOW, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return true;
    throw error;
  }
  try {
    if ((fstatSync(fd).mode & S_IFMT) !== S_IFSOCK) return false;
    closeSync(addon.seqpacketConnect(`/proc/self/fd/${fd}`));
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ECONNREFUSED";
  } finally {
    closeSync(fd);
  }
};

/** Where a socket's file belongs: in place of the old one, wherever that is by now. */
const placeOf = ({ path, inode, ino }: FileEntry, tree: number, same: boolean): string | undefined => {
  if (path === ".") return undefined;
  const now = same && inode !== undefined ? locate(tree, path, inode, ino) : undefined;
  if (typeof now !== "string" && now !== undefined) return undefined;
  const place = now ?? path;
  return isFree(tree, place) ? place : undefined;
};

/** Puts a file where it belongs; returns whether it could. */
const put = (from: Buffer, tree: number, path: string): boolean => {
  const at = path.lastIndexOf("/");
  let parent: number;
  try {
    parent = addon.openBeneath(tree, at < 0 ? "." : path.slice(0, at), O_PATH | O_DIRECTORY, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw error;
  }
  try {
    keepingTimes(parent, () => renameSync(from, below(parent, path.slice(at + 1))));
    return true;
  } finally {
    closeSync(parent);
  }
};

/**
 * Binds a socket by the path that it had, on a copy of its mount, which may show the `same` directory. Returns a descriptor of its file, and whether that has its place: what
 * others have there by now is left to them.
 */
export const bindAgain = (
  file: FileEntry,
  tree: number,
  socket: number,
  same: boolean,
): { fd: number; placed: boolean } => {
  const { bound, mode } = file;
  const { uid, gid, atime, mtime } = file.gone!;
  const { start, directories, end } = passes(bound!);
  const stage = `.cryoshim-${randomUUID()}`;
  let result: { fd: number; placed: boolean } | undefined;
  keepingTimes(tree, () => {
    addon.makeNode(tree, stage, S_IFDIR | 0o700, 0);
    const made = [stage];
    const root = addon.openBeneath(tree, stage, O_PATH | O_DIRECTORY, 0);
    let fd: number | undefined;
    try {
      for (const directory of directories) {
        addon.makeNode(root, directory, S_IFDIR | 0o700, 0);
        made.push(`${stage}/${directory}`);
      }
      addon.bindBelow(root, start, socket, bound!);
      fd = addon.openBeneath(root, end, O_PATH | O_NOFOLLOW, 0);
      chownSync(`/proc/self/fd/${fd}`, uid, gid);
      addon.setAttributes(`/proc/self/fd/${fd}`, mode & 0o7777, atime, mtime);
      const place = placeOf(file, tree, same);
      const placed = place !== undefined && put(below(root, end), tree, place);
      if (!placed) unlinkSync(below(root, end));
      result = { fd, placed: placed || file.path === "." };
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      unlinkIfThere(below(root, end));
      throw error;
    } finally {
      closeSync(root);
      for (const directory of made.reverse()) rmdirSync(below(tree, directory));
    }
  });
  return result!;
};

const unlinkIfThere = (path: Buffer): void => {
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
};
