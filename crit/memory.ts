// SPDX-License-Identifier: Apache-2.0
// The memory of tasks: which page is where in the pages images, and reading it.
import { type Checkpoint, type Part, readParts } from "./checkpoint.js";
import { ANON_SHARED } from "./mappings.js";
import type { Message } from "./message.js";
import { list, mmOf, num, PAGE, pagemapOf, pagesOf, tasksOf } from "./tasks.js";

/** Pages that lie one after another in memory and in the file. */
export interface Run {
  start: bigint;
  end: bigint;
  /** Where in the file. */
  from: number;
}
export interface Memory {
  pid: number;
  file: string;
  runs: Run[];
}

const PE_PRESENT = 4;
/** Whether an entry's pages are in this checkpoint, not in its parent or nowhere. */
export const isHere = (entry: Message): boolean =>
  entry.flags === undefined ? entry.in_parent !== true : (num(entry, "flags") & PE_PRESENT) !== 0;

/** Bytes that a page map has in this checkpoint. */
const savedIn = (checkpoint: Checkpoint, of: number | string): number => {
  let pages = 0;
  for (const { head, run } of pagemapOf(checkpoint, of)) if (!head && isHere(run)) pages += pagesOf(run);
  return pages * PAGE;
};

export const memoryOf = (checkpoint: Checkpoint, pid: number): Memory => {
  const runs: Run[] = [];
  let [id, from] = [0, 0];
  for (const { head, run } of pagemapOf(checkpoint, pid)) {
    if (head) id = num(run, "pages_id");
    if (head || !isHere(run)) continue;
    const start = (run.vaddr ?? 0n) as bigint;
    const size = pagesOf(run) * PAGE;
    const last = runs.at(-1);
    if (last?.end === start) last.end += BigInt(size);
    else runs.push({ start, end: start + BigInt(size), from });
    from += size;
  }
  return { pid, file: `pages-${id}.img`, runs };
};

/** What two ranges have in common: where it starts, and how much it is. */
const overlap = (run: { start: bigint; end: bigint }, start: bigint, end: bigint): { from: bigint; size: number } => {
  let [from, to] = [start, end];
  if (run.start > from) from = run.start;
  if (run.end < to) to = run.end;
  return { from, size: to > from ? Number(to - from) : 0 };
};

/** The parts of the file that hold a range of memory, each with how far into the range it starts. */
export const locate = (memory: Memory, start: bigint, end: bigint): (Part & { into: number })[] => {
  const parts: (Part & { into: number })[] = [];
  for (const run of memory.runs) {
    const { from, size } = overlap(run, start, end);
    if (size === 0) continue;
    parts.push({ name: memory.file, from: run.from + Number(from - run.start), size, into: Number(from - start) });
  }
  return parts;
};

/** How much of each task's memory is in the images, its own and what it shares. */
export const memorySizes = (checkpoint: Checkpoint): { pid: number; comm: string; own: number; shared: number }[] =>
  tasksOf(checkpoint).map(({ pid, comm }) => {
    const segments = new Set(
      list(mmOf(checkpoint, pid), "vmas")
        .filter((vma) => (num(vma, "status") & ANON_SHARED) !== 0)
        .map((vma) => vma.shmid as bigint),
    );
    let shared = 0;
    for (const segment of segments) shared += savedIn(checkpoint, `shmem-${segment}`);
    return { pid, comm, own: savedIn(checkpoint, pid), shared };
  });

const MAX_TEXT = 256 << 10;
const MAX_TEXTS = 32 << 20;

/** Ranges of memory of several tasks, in one pass over the checkpoint; what is in no image is zeros. */
const readRanges = async (
  checkpoint: Checkpoint,
  ranges: readonly { pid: number; start: bigint; end: bigint }[],
): Promise<Buffer[]> => {
  const parts: Part[] = [];
  const places: { range: number; into: number }[] = [];
  const most = Math.min(MAX_TEXT, Math.floor(MAX_TEXTS / Math.max(1, ranges.length)));
  const out = ranges.map(({ start, end }) => Buffer.alloc(Math.max(0, Math.min(most, Number(end - start)))));
  for (const [range, { pid, start }] of ranges.entries())
    for (const { into, ...part } of locate(memoryOf(checkpoint, pid), start, start + BigInt(out[range]!.length))) {
      parts.push(part);
      places.push({ range, into });
    }
  const read = await readParts(checkpoint, parts);
  for (const [index, bytes] of read.entries()) bytes.copy(out[places[index]!.range]!, places[index]!.into);
  return out;
};

const strings = (bytes: Buffer): string[] => bytes.toString().replace(/\0+$/, "").split("\0");

/** Command line and environment of each task, as they stand in its memory. */
export const wordsOf = async (
  checkpoint: Checkpoint,
  pids: readonly number[],
): Promise<Map<number, { command: string[]; environment: string[] }>> => {
  const ranges = pids.flatMap((pid) => {
    const mm = mmOf(checkpoint, pid);
    if (mm === undefined) return [];
    const at = (field: string): bigint => (mm[field] ?? 0n) as bigint;
    return [
      { pid, start: at("mm_arg_start"), end: at("mm_arg_end") },
      { pid, start: at("mm_env_start"), end: at("mm_env_end") },
    ];
  });
  const read = await readRanges(checkpoint, ranges);
  const found = new Map<number, { command: string[]; environment: string[] }>();
  for (let i = 0; i < ranges.length; i += 2)
    found.set(ranges[i]!.pid, { command: strings(read[i]!), environment: strings(read[i + 1]!) });
  return found;
};
