// SPDX-License-Identifier: Apache-2.0
// The tasks of a checkpoint with what belongs to each: the images, put together.
import { CryoshimError } from "../shim/error.js";
import type { Checkpoint } from "./checkpoint.js";
import { decodeImage } from "./image.js";
import { quote, strayString } from "./json/escape.js";
import type { KindName } from "./kinds.js";
import type { Message } from "./message.js";
import { FD_TYPE_NAMES } from "./schema/names.js";

export const PAGE = 4096;

/** The messages of one image; none if it is not there. Throws ERR_IMAGE when it is of another kind. */
export const messagesOf = (checkpoint: Checkpoint, file: string, kind: KindName): Message[] => {
  const data = checkpoint.files.get(file);
  if (data === undefined) return [];
  const image = decodeImage(data, file);
  if (image.kind !== kind)
    throw new CryoshimError("ERR_IMAGE", {
      what: `cannot read image \`${file}\` at byte 4`,
      why: `it is an image of kind ${image.kind}, not ${kind}`,
      fix: "the checkpoint is damaged; take it again or copy it again",
    });
  return image.entries.map(({ message }) => message);
};

export const num = (message: Message | undefined, field: string): number => Number(message?.[field] ?? 0);
export const child = (message: Message | undefined, field: string): Message | undefined =>
  message?.[field] as Message | undefined;
export const list = (message: Message | undefined, field: string): Message[] => (message?.[field] ?? []) as Message[];
/** A string of a message, as text also when it is no UTF-8. */
export const str = (message: Message | undefined, field: string): string => {
  const value = message?.[field];
  return value instanceof Uint8Array ? strayString(value) : String(value ?? "");
};

/** One task: its images, read when they are asked for. */
export interface TaskImages {
  pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  threads: number;
  core: Message | undefined;
  comm: string;
  state: number;
}

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
  return messagesOf(checkpoint, "pstree.img", "PSTREE").map((entry) => {
    const pid = num(entry, "pid");
    if (seen.has(pid))
      throw new CryoshimError("ERR_IMAGE", {
        what: "cannot read image `pstree.img` at byte 8",
        why: `it has two tasks of pid ${pid}`,
        fix: "the checkpoint is damaged; take it again or copy it again",
      });
    seen.add(pid);
    const [core] = messagesOf(checkpoint, `core-${pid}.img`, "CORE");
    const tc = child(core, "tc");
    return {
      pid,
      ppid: num(entry, "ppid"),
      pgid: num(entry, "pgid"),
      sid: num(entry, "sid"),
      threads: (entry.threads as number[] | undefined)?.length ?? 1,
      core,
      comm: tc === undefined ? "?" : str(tc, "comm"),
      state: num(tc, "task_state"),
    };
  });
});

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
  messagesOf(checkpoint, `mm-${pid}.img`, "MM")[0];

/** The runs of pages in the images of a task: where in memory, how many, and whether they are in this checkpoint. */
export const pagemapOf = (checkpoint: Checkpoint, pid: number): Message[] =>
  messagesOf(checkpoint, `pagemap-${pid}.img`, "PAGEMAP").slice(1);
export const pagesOf = (entry: Message): number => num(entry, "nr_pages") || num(entry, "compat_nr_pages");

/** Files by id, from files.img or the images of single kinds that older CRIUs wrote. */
export type Files = Map<number, Message>;
export const filesOf = once(
  (checkpoint): Files =>
    new Map(messagesOf(checkpoint, "files.img", "FILES").map((entry) => [num(entry, "id"), entry])),
);

export const fdType = (type: number): string => FD_TYPE_NAMES[type] ?? String(type);

/** What a descriptor or mapping is, in a few words, as CRIU's crit says it. */
export const fileText = (files: Files, type: string, id: number): string => {
  const file = files.get(id);
  if (type === "REG") return file?.reg === undefined ? "unknown path" : str(child(file, "reg"), "name");
  if (type === "PIPE") return file?.pipe === undefined ? "pipe[?]" : `pipe[${num(child(file, "pipe"), "pipe_id")}]`;
  if (type === "UNIXSK") {
    const socket = child(file, "usk");
    if (socket === undefined) return "unix[?]";
    const name = quote(socket.name as Uint8Array).replaceAll("=\n", "");
    return `unix[${num(socket, "ino")} (${num(socket, "peer")})${name === "" ? "" : ` ${name}`}]`;
  }
  return `${type}.${id}`;
};

/** The descriptors of a task: [number, type, id of the file]. */
export const descriptorsOf = (checkpoint: Checkpoint, task: TaskImages): { fd: number; type: string; id: number }[] => {
  const ids = messagesOf(checkpoint, `ids-${task.pid}.img`, "IDS")[0] ?? child(task.core, "ids");
  if (ids === undefined) return [];
  return messagesOf(checkpoint, `fdinfo-${num(ids, "files_id")}.img`, "FDINFO").map((entry) => ({
    fd: num(entry, "fd"),
    type: fdType(num(entry, "type")),
    id: num(entry, "id"),
  }));
};

/** Where a task's working directory and root are; a task that has ended has none. */
export const placesOf = (
  checkpoint: Checkpoint,
  task: TaskImages,
  files: Files,
): { cwd: string; root: string } | undefined => {
  const [fs] = messagesOf(checkpoint, `fs-${task.pid}.img`, "FS");
  return fs && { cwd: fileText(files, "REG", num(fs, "cwd_id")), root: fileText(files, "REG", num(fs, "root_id")) };
};
