// SPDX-License-Identifier: Apache-2.0
// What has changed between two checkpoints: tasks, descriptors, mappings, sockets, and how many pages.
import * as zlib from "node:zlib";
import { type Checkpoint, visitCheckpoint } from "./checkpoint.js";
import { type Details, details, type TaskDetail } from "./details.js";
import { memoryOf } from "./memory.js";
import { PAGE } from "./tasks.js";

export interface Change {
  /** "task 7", "task 7 descriptor", "socket", "image". */
  what: string;
  /** Undefined: it is new. */
  before?: string;
  /** Undefined: it is gone. */
  after?: string;
}
export interface PageChange {
  pid: number;
  onlyBefore: number;
  onlyAfter: number;
  changed: number;
  same: number;
}
export interface Difference {
  changes: Change[];
  pages?: PageChange[];
}

/** Compares two sets of things by a key. */
const compare = (what: string, before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): Change[] => {
  const changes: Change[] = [];
  for (const [key, old] of before) {
    const now = after.get(key);
    if (now === undefined) changes.push({ what, before: `${key} ${old}`.trim() });
    else if (now !== old) changes.push({ what: `${what} ${key}`, before: old, after: now });
  }
  for (const [key, now] of after) if (!before.has(key)) changes.push({ what, after: `${key} ${now}`.trim() });
  return changes;
};

const facts = (task: TaskDetail): Map<string, string> => {
  const told = (["comm", "state", "threads", "ppid", "uid", "exe", "cwd", "root"] as const).map(
    (key): [string, string] => [key, String(task[key] ?? "")],
  );
  const memory = task.mappings.reduce((sum, { saved }) => sum + saved, 0);
  return new Map([...told, ["command", (task.command ?? []).join(" ")], ["memory", `${memory} bytes`]]);
};

const taskChanges = (before: Details, after: Details): Change[] => {
  const [old, now] = [before, after].map(({ tasks }) => new Map(tasks.map((task) => [task.pid, task]))) as [
    Map<number, TaskDetail>,
    Map<number, TaskDetail>,
  ];
  const changes = compare(
    "task",
    new Map(before.tasks.filter(({ pid }) => !now.has(pid)).map(({ pid, comm }) => [String(pid), comm])),
    new Map(after.tasks.filter(({ pid }) => !old.has(pid)).map(({ pid, comm }) => [String(pid), comm])),
  );
  for (const [pid, was] of old) {
    const is = now.get(pid);
    if (is === undefined) continue;
    const descriptors = ({ descriptors: all }: TaskDetail): Map<string, string> =>
      new Map(all.map(({ fd, type, what }) => [String(fd), `${type} ${what}`]));
    const mappings = ({ mappings: all }: TaskDetail): Map<string, string> =>
      new Map(all.map(({ start, end, prot, what }) => [`${start}-${end}`, `${prot} ${what}`.trim()]));
    changes.push(
      ...compare(`task ${pid}`, facts(was), facts(is)),
      ...compare(`task ${pid} descriptor`, descriptors(was), descriptors(is)),
      ...compare(`task ${pid} mapping`, mappings(was), mappings(is)),
    );
  }
  return changes;
};

const sockets = ({ sockets: all }: Details): Map<string, string> =>
  new Map(
    all.map(({ kind, local, peer, state, queued }) => [
      `${kind} ${local} ${peer}`.trim(),
      `${state}, ${queued} queued`,
    ]),
  );
const images = ({ images: all }: Details): Map<string, string> =>
  new Map(all.map(({ name, size }) => [name, `${size} bytes`]));

/** A number for each page in the images of all tasks: four bytes for four KiB, so that any size can be compared. */
const pageSums = async (checkpoint: Checkpoint): Promise<Map<string, Uint32Array>> => {
  const sums = new Map<string, Uint32Array>();
  if (checkpoint.path === undefined) return sums;
  await visitCheckpoint(checkpoint.path, (name, size) => {
    if (!/^pages-\d+\.img$/.test(name)) return undefined;
    const list = new Uint32Array(Math.ceil(size / PAGE));
    sums.set(name, list);
    return {
      piece: (bytes, at) => {
        for (let from = 0; from < bytes.length; ) {
          const page = Math.floor((at + from) / PAGE);
          const to = Math.min(bytes.length, (page + 1) * PAGE - at);
          list[page] = zlib.crc32(bytes.subarray(from, to), list[page]);
          from = to;
        }
      },
    };
  });
  return sums;
};

const least = (values: readonly bigint[]): bigint => {
  let found = values[0]!;
  for (const value of values) if (value < found) found = value;
  return found;
};

const pageChanges = async (before: Checkpoint, after: Checkpoint, pids: readonly number[]): Promise<PageChange[]> => {
  const [old, now] = [await pageSums(before), await pageSums(after)];
  return pids.map((pid) => {
    const [was, is] = [memoryOf(before, pid), memoryOf(after, pid)];
    const change: PageChange = { pid, onlyBefore: 0, onlyAfter: 0, changed: 0, same: 0 };
    let [i, j] = [0, 0];
    let at = 0n;
    // One walk over both lists of runs, in the order of addresses.
    for (;;) {
      const [a, b] = [was.runs[i], is.runs[j]];
      if (a === undefined && b === undefined) return change;
      const starts = [a, b].filter((run) => run !== undefined).map(({ start }) => (start > at ? start : at));
      at = least(starts);
      const inA = a !== undefined && a.start <= at;
      const inB = b !== undefined && b.start <= at;
      const ends = [a, b].filter((run) => run !== undefined).map(({ start, end }) => (start <= at ? end : start));
      const end = least(ends);
      const count = Number((end - at) / BigInt(PAGE));
      if (inA && inB) {
        const [x, y] = [old.get(was.file), now.get(is.file)];
        const [p, q] = [(a.from + Number(at - a.start)) / PAGE, (b.from + Number(at - b.start)) / PAGE];
        // No further than the files go, whatever a page map claims.
        const there = Math.min(count, Math.max((x?.length ?? 0) - p, (y?.length ?? 0) - q, 0));
        for (let n = 0; n < there; n++)
          if (x?.[p + n] === y?.[q + n]) change.same++;
          else change.changed++;
      } else if (inA) change.onlyBefore += count;
      else change.onlyAfter += count;
      at = end;
      if (a !== undefined && a.end <= at) i++;
      if (b !== undefined && b.end <= at) j++;
    }
  });
};

/** Compares two checkpoints; `pages` compares the contents of memory, `commands` the command lines in it, too. */
export const diff = async (
  before: Checkpoint,
  after: Checkpoint,
  pages: boolean,
  commands = false,
): Promise<Difference> => {
  const [old, now] = [await details(before, { commands }), await details(after, { commands })];
  const changes = [
    ...taskChanges(old, now),
    ...compare("socket", sockets(old), sockets(now)),
    ...compare("image", images(old), images(now)),
  ];
  if (!pages) return { changes };
  const pids = old.tasks.map(({ pid }) => pid).filter((pid) => now.tasks.some((task) => task.pid === pid));
  return { changes, pages: await pageChanges(before, after, pids) };
};
