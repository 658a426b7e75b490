// SPDX-License-Identifier: Apache-2.0
// What the commands read and write: a file that is named, or stdin and stdout.
import { closeSync, constants, fstatSync, openSync, unlinkSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { CryoshimError, reason } from "../../shim/error.js";
import { fdSink, fdSource, type Sink, type Source } from "../io.js";

const refuse = (what: string, path: string, cause: unknown): CryoshimError =>
  new CryoshimError("ERR_FILE", { what: `cannot ${what} \`${path}\``, why: reason(cause), cause });

/** From this size on memory counts for more than time. */
const LARGE = 8 << 20;
/** V8 of Node 24 lets the young objects of a large message fill 96 MiB before it looks for garbage, whatever they are. */
const keepYoungSpaceSmall = (): void => setFlagsFromString("--semi-space-growth-factor=1");

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
    if (fstatSync(fd).size > LARGE) keepYoungSpaceSmall();
    return work(fdSource(fd), path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EISDIR")
      throw refuse("read", path, "it is a directory, one image is wanted");
    throw error;
  } finally {
    closeSync(fd);
  }
};

/** Opens the output. A file that was made here and is not whole when it is closed is removed. */
const openSink = (path: string | undefined): { sink: Sink; close(whole: boolean): void } => {
  if (path === undefined) return { sink: fdSink(1), close: () => {} };
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
  return {
    sink: fdSink(fd),
    close(whole) {
      if (fresh && !whole) unlinkSync(path);
      closeSync(fd);
    },
  };
};

/** Runs `work` with the output; closes it. */
export const withSink = (path: string | undefined, work: (sink: Sink) => void): void => {
  const { sink, close } = openSink(path);
  let whole = false;
  try {
    work(sink);
    whole = true;
  } finally {
    close(whole);
  }
};

/** The same for work that waits. */
export const withSinkAsync = async (path: string | undefined, work: (sink: Sink) => Promise<void>): Promise<void> => {
  const { sink, close } = openSink(path);
  let whole = false;
  try {
    await work(sink);
    whole = true;
  } finally {
    close(whole);
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
