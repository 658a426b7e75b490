// SPDX-License-Identifier: Apache-2.0
// The tasks of a checkpoint with what belongs to each: the images, put together.
import { CryoshimError } from "../shim/error.js";
import type { Checkpoint } from "./checkpoint.js";
import { broken } from "./frame.js";
import { bytesSource } from "./io.js";
import type { KindName } from "./kinds.js";
import type { Message } from "./message.js";
import { fileText, type OpenFile, openFileOf } from "./open-file.js";
import { FD_TYPE_NAMES } from "./schema/names.js";
import { streamImage } from "./stream.js";
import { child, num, str } from "./values.js";

export { fileText } from "./open-file.js";
export { child, list, num, str } from "./values.js";

export const PAGE = 4096;

const refuseKind = (file: string, kind: KindName, wanted: KindName): void => {
  if (kind === wanted) return;
  throw new CryoshimError("ERR_IMAGE", {
    what: `cannot read image \`${file}\` at byte 4`,
    why: `it is an image of kind ${kind}, not ${wanted}`,
    fix: "the checkpoint is damaged; take it again or copy it again",
  });
};

/** The messages of one image, one at a time; none if it is not there. Throws ERR_IMAGE when it is of another kind. */
export function* messagesOf(checkpoint: Checkpoint, file: string, kind: KindName): Generator<Message, void, void> {
  const data = checkpoint.files.get(file);
  if (data === undefined) return;
  const image = streamImage(bytesSource(data), file);
  refuseKind(file, image.kind, kind);
  for (const { message } of image.entries) yield message;
}

/** The first message of an image, which many have alone; undefined if there is none. */
export const messageOf = (checkpoint: Checkpoint, file: string, kind: KindName): Message | undefined => {
  for (const message of messagesOf(checkpoint, file, kind)) return message;
  return undefined;
};

/** One task: its images, read when they are asked for. */
export interface TaskImages {
  pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  threads: number;
  /** Its numbers of the kernel's objects, and who it is: all that is kept of its core image. */
  ids: Message | undefined;
  user: { uid: number; gid: number } | undefined;
  comm: string;
  state: string;
}

/** As CRIU means them (compel's task-state.h): its crit mistakes stopped ones for zombies, and so must our JSON of images. */
const STATES: Readonly<Record<number, string>> = { 1: "Alive", 2: "Zombie", 3: "Stopped", 6: "Zombie" };
const stateName = (state: number): string => STATES[state] ?? String(state);

/** Read once for each checkpoint: nearly every question begins with them. */
const once = <T>(read: (checkpoint: Checkpoint) => T): ((checkpoint: Checkpoint) => T) => {
  const known = new WeakMap<Checkpoint, T>();
  return (checkpoint) => {
    let value = known.get(checkpoint);
    if (value === undefined) {
      value = read(checkpoint);
      known.set(checkpoint, value);
    }
    return value;
  };
};

export const tasksOf = once((checkpoint): TaskImages[] => {
  const seen = new Set<number>();
  return Array.from(messagesOf(checkpoint, "pstree.img", "PSTREE"), (entry) => {
    const pid = num(entry, "pid");
    if (seen.has(pid))
      throw new CryoshimError("ERR_IMAGE", {
        what: "cannot read image `pstree.img` at byte 8",
        why: `it has two tasks of pid ${pid}`,
        fix: "the checkpoint is damaged; take it again or copy it again",
      });
    seen.add(pid);
    const core = messageOf(checkpoint, `core-${pid}.img`, "CORE");
    const tc = child(core, "tc");
    const creds = child(child(core, "thread_core"), "creds");
    return {
      pid,
      ppid: num(entry, "ppid"),
      pgid: num(entry, "pgid"),
      sid: num(entry, "sid"),
      threads: (entry.threads as number[] | undefined)?.length ?? 1,
      ids: child(core, "ids"),
      user: creds && { uid: num(creds, "uid"), gid: num(creds, "gid") },
      comm: tc === undefined ? "?" : str(tc, "comm"),
      state: stateName(num(tc, "task_state")),
    };
  });
});

/** Throws ERR_USAGE where there is none of that number. */
export const taskOf = (checkpoint: Checkpoint, pid: number): TaskImages => {
  const task = tasksOf(checkpoint).find((each) => each.pid === pid);
  if (task === undefined)
    throw new CryoshimError("ERR_USAGE", {
      what: `cannot show task ${pid}`,
      why: "there is no such task",
      fix: "`cryoshim show` names them",
    });
  return task;
};

/** Tasks with their children; a task whose parent is not here, or that is its own, is a root. */
export const treeOf = <T extends { pid: number; ppid: number }>(tasks: readonly T[]): { task: T; depth: number }[] => {
  const pids = new Set(tasks.map(({ pid }) => pid));
  const children = new Map<number, T[]>();
  for (const task of tasks) {
    const parent = pids.has(task.ppid) && task.ppid !== task.pid ? task.ppid : -1;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [task]);
    else siblings.push(task);
  }
  const rows: { task: T; depth: number }[] = [];
  // No image can make this run in circles: each list of children is taken once. Nor overflow the stack.
  const pending = (children.get(-1) ?? []).map((task) => ({ task, depth: 0 })).reverse();
  for (let row = pending.pop(); row !== undefined; row = pending.pop()) {
    rows.push(row);
    const { depth } = row;
    const below = children.get(row.task.pid) ?? [];
    children.delete(row.task.pid);
    for (const task of below.reverse()) pending.push({ task, depth: depth + 1 });
  }
  return rows;
};

/** The mappings of a task. */
export const mmOf = (checkpoint: Checkpoint, pid: number): Message | undefined =>
  messageOf(checkpoint, `mm-${pid}.img`, "MM");

/**
 * The runs of pages in the images of a task (by its pid) or of shared memory ("shmem-N"): where in memory, how many, and whether they are in this checkpoint. The first
 * message tells the number of the pages image instead.
 */
export function* pagemapOf(
  checkpoint: Checkpoint,
  of: number | string,
): Generator<{ head: boolean; run: Message }, void, void> {
  let head = true;
  for (const run of messagesOf(checkpoint, `pagemap-${of}.img`, "PAGEMAP")) {
    yield { head, run };
    head = false;
  }
}
export const pagesOf = (entry: Message): number => num(entry, "nr_pages") || num(entry, "compat_nr_pages");

/** Files by id. */
export type Files = ReadonlyMap<number, OpenFile>;
export const filesOf = once((checkpoint): Files => {
  const files = new Map<number, OpenFile>();
  for (const message of messagesOf(checkpoint, "files.img", "FILES"))
    files.set(num(message, "id"), openFileOf(message));
  return files;
});

export const fdType = (type: number): string => FD_TYPE_NAMES[type] ?? String(type);

/** More than that many descriptors no kernel lets a task have, unless it is told to. */
const MAX_DESCRIPTORS = 1 << 20;

/** The descriptors of a task: [number, type, id of the file]. */
export const descriptorsOf = (checkpoint: Checkpoint, task: TaskImages): { fd: number; type: string; id: number }[] => {
  const ids = messageOf(checkpoint, `ids-${task.pid}.img`, "IDS") ?? task.ids;
  if (ids === undefined) return [];
  const file = `fdinfo-${num(ids, "files_id")}.img`;
  const found: { fd: number; type: string; id: number }[] = [];
  for (const entry of messagesOf(checkpoint, file, "FDINFO")) {
    if (found.length === MAX_DESCRIPTORS) throw broken(file, 8, `it has more than ${MAX_DESCRIPTORS} descriptors`);
    found.push({ fd: num(entry, "fd"), type: fdType(num(entry, "type")), id: num(entry, "id") });
  }
  return found;
};

/** Where a task's working directory and root are; a task that has ended has none. */
export const placesOf = (
  checkpoint: Checkpoint,
  task: TaskImages,
  files: Files,
): { cwd: string; root: string } | undefined => {
  const fs = messageOf(checkpoint, `fs-${task.pid}.img`, "FS");
  return fs && { cwd: fileText(files, "REG", num(fs, "cwd_id")), root: fileText(files, "REG", num(fs, "root_id")) };
};
