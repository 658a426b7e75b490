// SPDX-License-Identifier: Apache-2.0
// A piece of a task's memory, as bytes in a file or as a hexadecimal dump.
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { CryoshimError, reason } from "../shim/error.js";
import { type Checkpoint, readParts, visitCheckpoint } from "./checkpoint.js";
import type { Take } from "./members.js";
import { locate, memoryOf } from "./memory.js";
import { list, mmOf, taskOf } from "./tasks.js";

export interface Region {
  pid: number;
  start: bigint;
  end: bigint;
}

const MAX_DUMP = 1 << 20;

/** A region by its range in hexadecimal ("7f00-7fff"), or the mapping that holds one address. */
export const regionOf = (checkpoint: Checkpoint, pid: number, range: string): Region => {
  const found = /^(?:0x)?([0-9a-f]{1,16})(?:-(?:0x)?([0-9a-f]{1,16}))?$/i.exec(range);
  const refuse = (why: string): CryoshimError =>
    new CryoshimError("ERR_USAGE", { what: `cannot read memory \`${range}\` of task ${pid}`, why });
  taskOf(checkpoint, pid);
  if (found === null) throw refuse("START-END or one address is wanted, in hexadecimal");
  const start = BigInt(`0x${found[1]}`);
  if (found[2] === undefined) {
    const vma = list(mmOf(checkpoint, pid), "vmas").find(
      (each) => start >= (each.start as bigint) && start < (each.end as bigint),
    );
    if (vma === undefined) throw refuse("nothing is mapped there");
    return { pid, start: vma.start as bigint, end: vma.end as bigint };
  }
  const end = BigInt(`0x${found[2]}`);
  if (end <= start) throw refuse("it ends before it starts");
  return { pid, start, end };
};

/** Writes a region to a file; pages that no image holds are holes, and read as zeros. */
export const writeRegion = async (checkpoint: Checkpoint, { pid, start, end }: Region, path: string): Promise<void> => {
  const parts = locate(memoryOf(checkpoint, pid), start, end);
  let fd: number;
  try {
    fd = openSync(path, "w", 0o600);
  } catch (error) {
    throw new CryoshimError("ERR_FILE", { what: `cannot write \`${path}\``, why: reason(error), cause: error });
  }
  try {
    ftruncateSync(fd, Number(end - start));
    if (checkpoint.path === undefined || parts.length === 0) return;
    let part = 0;
    await visitCheckpoint(checkpoint.path, (name) => {
      if (name !== parts[0]!.name) return undefined;
      return {
        ranges: parts,
        piece: (bytes, at) => {
          while (part < parts.length - 1 && at >= parts[part]!.from + parts[part]!.size) part++;
          writeSync(fd, bytes, 0, bytes.length, parts[part]!.into + at - parts[part]!.from);
        },
      };
    });
  } finally {
    closeSync(fd);
  }
};

/** Lines of 16 bytes; equal ones are left out, as hexdump does. */
const hexDump = (): ((bytes: Uint8Array, address: bigint) => string[]) => {
  let last = "";
  let starred = false;
  return (bytes, address) => {
    const lines: string[] = [];
    const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at < all.length; at += 16) {
      const row = all.subarray(at, at + 16);
      const hex = row.toString("hex").replace(/../g, "$& ").padEnd(48);
      if (hex === last) {
        if (!starred) lines.push("*");
        starred = true;
        continue;
      }
      last = hex;
      starred = false;
      const text = row.toString("latin1").replace(/[^ -~]/g, ".");
      lines.push(`${(address + BigInt(at)).toString(16).padStart(12, "0")}  ${hex} ${text}`);
    }
    return lines;
  };
};

/** A region as a dump in hexadecimal; not all of a large one. */
export const dumpRegion = async (checkpoint: Checkpoint, { pid, start, end }: Region): Promise<string[]> => {
  const size = Math.min(MAX_DUMP, Number(end - start));
  const parts = locate(memoryOf(checkpoint, pid), start, start + BigInt(size));
  const bytes = Buffer.alloc(size);
  for (const [index, part] of (await readParts(checkpoint, parts)).entries()) part.copy(bytes, parts[index]!.into);
  const lines = hexDump()(bytes, start);
  if (Number(end - start) > size)
    lines.push(`... ${Number(end - start) - size} more bytes: write them to a file with -o`);
  return lines;
};

/** All of a task's pages that are in the images, as a dump, in the order of addresses. */
export const dumpTask = async (checkpoint: Checkpoint, pid: number, print: (line: string) => void): Promise<void> => {
  taskOf(checkpoint, pid);
  const { file, runs } = memoryOf(checkpoint, pid);
  if (checkpoint.path === undefined) return;
  const lines = hexDump();
  let run = 0;
  await visitCheckpoint(checkpoint.path, (name) => {
    if (name !== file) return undefined;
    return {
      // The file may be read in pieces of any length: lines begin at multiples of 16 all the same.
      ...aligned(16, (bytes, at) => {
        for (let done = 0; done < bytes.length && run < runs.length; ) {
          const { start, end, from } = runs[run]!;
          const left = from + Number(end - start) - (at + done);
          if (left <= 0) {
            run++;
            continue;
          }
          const piece = bytes.subarray(done, done + left);
          for (const line of lines(piece, start + BigInt(at + done - from))) print(line);
          done += piece.length;
        }
      }),
    };
  });
};

/** Hands pieces on in multiples of a size. */
const aligned = (unit: number, work: (bytes: Uint8Array, at: number) => void): Pick<Take, "piece" | "end"> => {
  let rest: Uint8Array = new Uint8Array(0);
  let from = 0;
  return {
    piece: (bytes, at) => {
      const all = rest.length === 0 ? bytes : Buffer.concat([rest, bytes]);
      from = at - rest.length;
      const whole = all.length - (all.length % unit);
      work(all.subarray(0, whole), from);
      from += whole;
      rest = Uint8Array.from(all.subarray(whole));
    },
    end: () => work(rest, from),
  };
};
