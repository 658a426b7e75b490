// SPDX-License-Identifier: Apache-2.0
// The members of a tar file that is not packed, by seeking from header to header: what is between them, the pages of a
// large container, is never read. Packed ones go through tar-stream.
import { fstatSync, readSync } from "node:fs";

export interface Member {
  name: string;
  /** Where its contents are in the file. */
  from: number;
  size: number;
  isFile: boolean;
}

const BLOCK = 512;
const MAX_NAME = 64 << 10;

const text = (bytes: Buffer): string => {
  const end = bytes.indexOf(0);
  return bytes.toString("utf8", 0, end < 0 ? bytes.length : end);
};

/** An octal number, or a binary one as GNU tar writes sizes of 8 GiB and more; NaN for what is none. */
const number = (bytes: Buffer): number => {
  if (bytes[0]! & 0x80) {
    let value = bytes[0]! & 0x7f;
    for (const byte of bytes.subarray(1)) value = value * 256 + byte;
    return value;
  }
  const digits = text(bytes).trim();
  if (!/^[0-7]*$/.test(digits)) return Number.NaN;
  return digits === "" ? 0 : Number.parseInt(digits, 8);
};

const checked = (header: Buffer): boolean => {
  let sum = 8 * 32;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += header[i]!;
  return sum === number(header.subarray(148, 156));
};

/** path and size of a pax header. */
const pax = (bytes: Buffer): Map<string, string> => {
  const records = new Map<string, string>();
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(32, at);
    const length = Number.parseInt(bytes.toString("latin1", at, space), 10);
    if (space < 0 || !(length > 0)) break;
    const record = bytes.toString("utf8", space + 1, at + length - 1);
    const equals = record.indexOf("=");
    records.set(record.slice(0, equals), record.slice(equals + 1));
    at += length;
  }
  return records;
};

/** The members in their order. Throws RangeError naming the offset where the file is no tar or is cut off. */
export function* tarMembers(fd: number): Generator<Member, void, void> {
  const { size: end } = fstatSync(fd);
  const header = Buffer.alloc(BLOCK);
  let next: { name?: string; size?: number } = {};
  for (let at = 0; at < end; ) {
    if (readSync(fd, header, 0, BLOCK, at) < BLOCK) throw new RangeError(`it ends within a header at byte ${at}`);
    if (header.every((byte) => byte === 0)) return;
    if (!checked(header)) throw new RangeError(`there is no tar header at byte ${at}`);
    const type = String.fromCharCode(header[156]!);
    const size = next.size ?? number(header.subarray(124, 136));
    const from = at + BLOCK;
    if (!Number.isSafeInteger(size) || size < 0 || size > end - from)
      throw new RangeError(`a member at byte ${at} claims ${size} bytes, ${end - from} are left`);
    at = from + Math.ceil(size / BLOCK) * BLOCK;
    if (type === "L" || type === "x" || type === "g" || type === "K") {
      if (type === "g" || type === "K") continue;
      if (size > MAX_NAME) throw new RangeError(`a name at byte ${from} has ${size} bytes`);
      const body = Buffer.alloc(size);
      readSync(fd, body, 0, size, from);
      if (type === "L") next.name = text(body);
      else {
        const records = pax(body);
        const [path, bytes] = [records.get("path"), records.get("size")];
        if (path !== undefined) next.name = path;
        if (bytes !== undefined) next.size = Number(bytes);
      }
      continue;
    }
    // GNU's headers have other things where POSIX's have the prefix.
    const posix = header.toString("latin1", 257, 263) === "ustar\0";
    const prefix = posix ? text(header.subarray(345, 500)) : "";
    const own = text(header.subarray(0, 100));
    const name = next.name ?? (prefix === "" ? own : `${prefix}/${own}`);
    next = {};
    yield { name, from, size, isFile: type === "0" || type === "\0" || type === "7" };
  }
}
