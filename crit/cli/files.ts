// SPDX-License-Identifier: Apache-2.0
// What the commands read and write: a file that is named, or stdin and stdout.
import { closeSync, constants, openSync, unlinkSync } from "node:fs";
import { CryoshimError, reason } from "../../shim/error.js";
import { fdSink, fdSource, type Sink, type Source } from "../io.js";

const refuse = (what: string, path: string, cause: unknown): CryoshimError =>
  new CryoshimError("ERR_FILE", { what: `cannot ${what} \`${path}\``, why: reason(cause), cause });

/** Runs `work` with the input; closes it. Of a directory from elsewhere no link is followed. */
export const withSource = <T>(path: string | undefined, work: (source: Source, name: string) => T, links = true): T => {
  if (path === undefined) return work(fdSource(0), "stdin");
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | (links ? 0 : constants.O_NOFOLLOW));
  } catch (error) {
    throw refuse("read", path, error);
  }
  try {
    return work(fdSource(fd), path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EISDIR")
      throw refuse("read", path, "it is a directory, one image is wanted");
    throw error;
  } finally {
    closeSync(fd);
  }
};

/** Runs `work` with the output; closes it. A file that was made here and is not whole is removed. */
export const withSink = (path: string | undefined, work: (sink: Sink) => void): void => {
  if (path === undefined) {
    work(fdSink(1));
    return;
  }
  let fresh = true;
  let fd: number;
  try {
    try {
      fd = openSync(path, "wx");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      fresh = false;
      fd = openSync(path, "w");
    }
  } catch (error) {
    throw refuse("write", path, error);
  }
  try {
    work(fdSink(fd));
  } catch (error) {
    if (fresh) unlinkSync(path);
    throw error;
  } finally {
    closeSync(fd);
  }
};

const MAX_JSON = 256 << 20;

/** All of a text. */
export const readText = (source: Source, name: string): string => {
  const parts: Buffer[] = [];
  let size = 0;
  for (;;) {
    const piece = source.take(64 << 10);
    if (piece.length === 0) break;
    size += piece.length;
    if (size > MAX_JSON) throw refuse("read", name, `it has more than ${MAX_JSON >> 20} MiB`);
    parts.push(Buffer.from(piece));
  }
  return Buffer.concat(parts).toString();
};
