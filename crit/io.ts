// SPDX-License-Identifier: Apache-2.0
// Files and pipes of any size, read and written piece by piece.
import { fstatSync, readSync, writeSync } from "node:fs";
import { CryoshimError, reason } from "../shim/error.js";

/** Bytes one after another. */
export interface Source {
  /** How many were taken so far. */
  readonly at: number;
  /** The next `size` bytes, or fewer at the end; valid until the next call. */
  take(size: number): Uint8Array;
}

const WINDOW = 256 << 10;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** A descriptor that somebody made non-blocking says EAGAIN: wait a moment, as blocking ones do. */
const patiently = (work: () => number): number => {
  for (;;) {
    try {
      return work();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      Atomics.wait(sleeper, 0, 0, 5);
    }
  }
};

/** Reads a descriptor from where it stands, or `range` of a file. */
export const fdSource = (fd: number, range?: { from: number; size: number }): Source => {
  // Most images are a few hundred bytes: one more than that, to see the end with the first read.
  const { size: known } = fstatSync(fd);
  let window: Buffer = Buffer.allocUnsafe(known > 0 ? Math.min(WINDOW, known + 1) : WINDOW);
  let [from, to] = [0, 0];
  let at = 0;
  let left = range?.size ?? Number.POSITIVE_INFINITY;
  let position = range?.from ?? null;
  const fill = (size: number): void => {
    if (size > window.length) {
      // As it comes in, not as it is claimed: a length that lies costs no memory.
      const larger = Buffer.allocUnsafe(Math.min(size, window.length * 2));
      window.copy(larger, 0, from, to);
      window = larger;
    } else window.copyWithin(0, from, to);
    to -= from;
    from = 0;
    while (to < Math.min(size, window.length) && left > 0) {
      const want = Math.min(window.length - to, left);
      const got = patiently(() => readSync(fd, window, to, want, position));
      if (got === 0) left = 0;
      to += got;
      left -= got;
      if (position !== null) position += got;
    }
  };
  return {
    get at() {
      return at;
    },
    take(size) {
      while (to - from < size && (left > 0 || from > 0)) {
        const had = to - from;
        fill(size);
        if (to - from === had && left <= 0) break;
      }
      const end = Math.min(to, from + size);
      const bytes = window.subarray(from, end);
      at += end - from;
      from = end;
      return bytes;
    },
  };
};

/** Bytes in memory as a source. */
export const bytesSource = (bytes: Uint8Array): Source => {
  let at = 0;
  return {
    get at() {
      return at;
    },
    take(size) {
      const piece = bytes.subarray(at, at + Math.min(size, bytes.length - at));
      at += piece.length;
      return piece;
    },
  };
};

/** Where text or bytes go. */
export interface Sink {
  write(data: string | Uint8Array): void;
  flush(): void;
}

/** Such texts become bytes at once: V8 keeps the parts that a text was joined of as long as the text, and collecting that
 * garbage was two thirds of all work, and half of the memory, for messages of many small values. */
const LONG = 4 << 10;

/** Where text becomes bytes, for all sinks; three bytes for a character are the most. */
let scratch: Buffer | undefined;
const bytesOf = (text: string): Buffer => {
  if (3 * text.length > 4 * WINDOW) return Buffer.from(text);
  scratch ??= Buffer.allocUnsafeSlow(4 * WINDOW);
  return scratch.subarray(0, scratch.write(text));
};

/** Writes to a descriptor in large pieces. */
export const fdSink = (fd: number): Sink => {
  let pending = "";
  const all = (data: Uint8Array): void => {
    try {
      for (let done = 0; done < data.length; ) done += patiently(() => writeSync(fd, data, done, data.length - done));
    } catch (error) {
      // Who reads has enough: for the command's end to deal with.
      if ((error as NodeJS.ErrnoException).code === "EPIPE") throw error;
      throw new CryoshimError("ERR_FILE", { what: "cannot write the output", why: reason(error), cause: error });
    }
  };
  const flush = (): void => {
    if (pending === "") return;
    const text = pending;
    pending = "";
    all(bytesOf(text));
  };
  return {
    write(data) {
      if (typeof data !== "string") {
        flush();
        all(data);
        return;
      }
      if (data.length > LONG) {
        flush();
        all(bytesOf(data));
        return;
      }
      pending += data;
      if (pending.length > WINDOW) flush();
    },
    flush,
  };
};
