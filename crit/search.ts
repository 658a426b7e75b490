// SPDX-License-Identifier: Apache-2.0
// Finds a text, a pattern or bytes in the memory of tasks. The pages go by in pieces; what is kept is the end of the last.
import { CryoshimError } from "../shim/error.js";
import { type Checkpoint, visitCheckpoint } from "./checkpoint.js";
import { mappingName, mappingsOf, segmentNumbers } from "./mappings.js";
import { type Memory, memoryOf } from "./memory.js";
import { filesOf, list, mmOf, taskOf, tasksOf } from "./tasks.js";

export interface Hit {
  pid: number;
  comm: string;
  address: string;
  mapping: string;
  /** Where in the pages image. */
  file: string;
  offset: number;
  /** Printable text around it. */
  context: string;
}
export interface SearchOptions {
  regex?: boolean;
  hex?: boolean;
  pid?: number;
  limit?: number;
  /** How many bytes are told before and after what is found. */
  context?: number;
}

/** What a pattern matches is at most this long, so that matches across pieces are found. */
const MAX_MATCH = 4096;
const CONTEXT = 24;
export const MAX_CONTEXT = 1024;

type Find = (bytes: Buffer, from: number) => { at: number; length: number } | undefined;

const usage = (pattern: string, why: string): CryoshimError =>
  new CryoshimError("ERR_USAGE", { what: `cannot search for \`${pattern}\``, why });

const finder = (pattern: string, { regex = false, hex = false }: SearchOptions): Find => {
  if (regex) {
    let compiled: RegExp;
    try {
      compiled = new RegExp(pattern, "g");
    } catch (error) {
      throw usage(pattern, (error as Error).message);
    }
    let text = "";
    let of: Buffer | undefined;
    return (bytes, from) => {
      // Bytes as characters: a pattern speaks of bytes.
      if (of !== bytes) text = bytes.toString("latin1");
      of = bytes;
      compiled.lastIndex = from;
      for (let found = compiled.exec(text); found !== null; found = compiled.exec(text)) {
        if (found[0] !== "") return { at: found.index, length: Math.min(MAX_MATCH, found[0].length) };
        compiled.lastIndex++;
      }
      return undefined;
    };
  }
  const digits = pattern.replace(/^0x|[\s:]/gi, "");
  if (hex && !/^([0-9a-f]{2})+$/i.test(digits)) throw usage(pattern, "pairs of hexadecimal digits are wanted");
  const bytes = hex ? Buffer.from(digits, "hex") : Buffer.from(pattern);
  if (bytes.length === 0 || bytes.length > MAX_MATCH) throw usage(pattern, `1 to ${MAX_MATCH} bytes are wanted`);
  return (where, from) => {
    const at = where.indexOf(bytes, from);
    return at < 0 ? undefined : { at, length: bytes.length };
  };
};

const printable = (bytes: Buffer): string => bytes.toString("latin1").replace(/[^ -~]/g, ".");

/** Where in memory an offset of the file is, in one run from there. */
const addressOf = (memory: Memory, offset: number, length: number): bigint | undefined => {
  let [low, high] = [0, memory.runs.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (memory.runs[middle]!.from <= offset) low = middle;
    else high = middle - 1;
  }
  const run = memory.runs[low];
  if (run === undefined || offset < run.from) return undefined;
  const address = run.start + BigInt(offset - run.from);
  return address + BigInt(length) <= run.end ? address : undefined;
};

/** Finds a pattern in all tasks' memory. Throws ERR_USAGE for a pattern that is none. */
export const search = async (
  checkpoint: Checkpoint,
  pattern: string,
  options: SearchOptions,
  hit: (found: Hit) => void,
): Promise<number> => {
  const find = finder(pattern, options);
  const limit = options.limit ?? 1000;
  const around = Math.min(MAX_CONTEXT, options.context ?? CONTEXT);
  const files = filesOf(checkpoint);
  const tasks = options.pid === undefined ? tasksOf(checkpoint) : [taskOf(checkpoint, options.pid)];
  const byFile = new Map(
    tasks.map((task) => {
      const memory = memoryOf(checkpoint, task.pid);
      return [memory.file, { task, memory }];
    }),
  );
  let count = 0;
  let named: { pid: number; mappings: { start: bigint; end: bigint; what: string }[] } | undefined;
  const name = (pid: number, address: bigint): string => {
    if (named?.pid !== pid) {
      const mm = mmOf(checkpoint, pid);
      const vmas = list(mm, "vmas");
      const mappings = mappingsOf(mm, files, segmentNumbers());
      named = {
        pid,
        mappings: mappings.map(({ start, end, what }, i) => ({ start, end, what: mappingName(vmas[i]!, what) })),
      };
    }
    return named.mappings.find(({ start, end }) => address >= start && address < end)?.what ?? "";
  };
  if (checkpoint.path === undefined) return 0;
  await visitCheckpoint(checkpoint.path, (file) => {
    const owner = byFile.get(file);
    if (owner === undefined || count >= limit) return undefined;
    const { task, memory } = owner;
    let tail: Buffer = Buffer.alloc(0);
    let reported = -1;
    return {
      piece: (bytes, at) => {
        const window = Buffer.concat([tail, bytes]);
        const base = at - tail.length;
        let from = 0;
        for (let found = find(window, from); found !== undefined && count < limit; found = find(window, from)) {
          const offset = base + found.at;
          from = found.at + 1;
          const address = offset > reported ? addressOf(memory, offset, found.length) : undefined;
          if (address === undefined) continue;
          reported = offset;
          count++;
          hit({
            pid: task.pid,
            comm: task.comm,
            address: `0x${address.toString(16)}`,
            mapping: name(task.pid, address),
            file,
            offset,
            context: printable(
              window.subarray(Math.max(0, found.at - around), found.at + Math.min(found.length, 64) + around),
            ),
          });
        }
        tail = Buffer.from(window.subarray(Math.max(0, window.length - MAX_MATCH + 1)));
      },
    };
  });
  return count;
};
