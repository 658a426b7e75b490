// SPDX-License-Identifier: Apache-2.0
// cryoshim-pidfd.img, and what of it is in CRIU's images. What is read is checked: it may come from anywhere.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage, type Image } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { CryoshimError } from "../error.js";
import { replaceFile } from "../session/replace-file.js";
import { onTheirWay } from "./claim.js";

export const PIDFD_IMAGE = "cryoshim-pidfd.img";
/** fd_types of fdinfo.proto */
const EXT = 16;

/** Where a descriptor is: a task by its number in the images, and the number of the descriptor. */
export interface Place {
  task: number;
  fd: number;
  cloexec: boolean;
}

/** That an epoll of a task waits for it. */
export interface Watch {
  task: number;
  epoll: number;
  fd: number;
  events: number;
  data: bigint;
}

/** A pidfd that CRIU refuses. */
export interface SavedPidfd {
  /** CRIU's id of the file. */
  id: number;
  /** O_NONBLOCK and PIDFD_THREAD. */
  flags: number;
  /** What it is of: a thread or process of the tree, by its numbers there; one outside; nothing that lives. */
  of:
    | { kind: "inside"; process: number; thread: number }
    | { kind: "outside"; pid: number; start: bigint; ino: bigint; boot: string }
    | { kind: "dead" };
  /** Of one that can be opened only when all threads are there. */
  places: Place[];
  watches: Watch[];
}

const tables = (imagesDir: string, pattern: RegExp): { name: string; key: number; image: Image }[] =>
  readdirSync(imagesDir).flatMap((name) => {
    const key = pattern.exec(name)?.[1];
    return key === undefined
      ? []
      : [{ name, key: Number(key), image: decodeImage(readFileSync(join(imagesDir, name)), name) }];
  });

const readIfThere = (imagesDir: string, name: string): Image | undefined => {
  try {
    return decodeImage(readFileSync(join(imagesDir, name)), name);
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return undefined;
    throw error;
  }
};

/**
 * Makes the descriptors of these files, which CRIU has taken for pidfds, descriptors of a plugin's files, and finds out where
 * each late one is. Returns the late ones that are in a message on its way: then nothing has been changed.
 */
export const settlePidfds = (
  imagesDir: string,
  saved: readonly SavedPidfd[],
  late: ReadonlySet<SavedPidfd>,
): ReadonlySet<SavedPidfd> => {
  const byId = new Map(saved.map((pidfd) => [pidfd.id, pidfd]));
  const sent = new Set(late.size > 0 ? onTheirWay(imagesDir) : []);
  const lost = new Set([...late].filter(({ id }) => sent.has(id)));
  if (lost.size > 0) return lost;
  const fdinfo = tables(imagesDir, /^fdinfo-(\d+)\.img$/);
  const tasks = tables(imagesDir, /^ids-(\d+)\.img$/);
  const owners = (table: number): number[] =>
    tasks.filter(({ image }) => image.entries[0]?.message.files_id === table).map(({ key }) => key);
  /** By file: where it is. */
  const where = new Map<number, Place[]>();
  for (const { name, key, image } of fdinfo) {
    let changed = false;
    for (const { message } of image.entries) {
      const { id, fd, flags } = message as { id: number; fd: number; flags: number };
      // One table is shared by all its tasks (CLONE_FILES): the first does for them.
      const [task] = owners(key);
      if (late.size > 0 && task !== undefined)
        where.set(id, [...(where.get(id) ?? []), { task, fd, cloexec: (flags & 1) !== 0 }]);
      if (!byId.has(id)) continue;
      message.type = EXT;
      changed = true;
    }
    if (changed) replaceFile(join(imagesDir, name), encodeImage(image));
  }
  if (late.size === 0) return lost;
  for (const pidfd of late) pidfd.places.push(...(where.get(pidfd.id) ?? []));
  const files = readIfThere(imagesDir, "files.img")?.entries ?? [];
  const epolls = files.flatMap(({ message: { epfd } }) => (epfd === undefined ? [] : [epfd as Message]));
  for (const { watches, places } of late)
    for (const { id, tfd } of epolls)
      for (const { tfd: fd, events, data } of (tfd ?? []) as Message[]) {
        const both = (where.get(id as number) ?? []).find((at) =>
          places.some((p) => p.task === at.task && p.fd === fd),
        );
        if (both === undefined) continue;
        watches.push({
          task: both.task,
          epoll: both.fd,
          fd: fd as number,
          events: events as number,
          data: data as bigint,
        });
      }
  return lost;
};

export const writePidfds = (imagesDir: string, saved: readonly SavedPidfd[]): void => {
  const entries = saved.map(({ id, flags, of, places, watches }) => {
    const message: Message = { id, flags };
    if (of.kind === "inside") Object.assign(message, { process: of.process, thread: of.thread });
    if (of.kind === "outside")
      Object.assign(message, { outside: { pid: of.pid, start: of.start, ino: of.ino, boot: of.boot } });
    message.places = places.map(({ task, fd, cloexec }) => ({ task, fd, cloexec }));
    message.watches = watches.map((watch) => ({ ...watch }));
    return { message };
  });
  writeFileSync(join(imagesDir, PIDFD_IMAGE), encodeImage({ kind: "CRYOSHIM_PIDFD", entries }), {
    mode: 0o600,
    flag: "wx",
  });
};

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${PIDFD_IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

const MAX_PID = 1 << 22;

/** What the images say of pidfds. Throws ERR_IMAGE. */
export const readPidfds = (imagesDir: string): SavedPidfd[] => {
  const { kind, entries } = decodeImage(readFileSync(join(imagesDir, PIDFD_IMAGE)), PIDFD_IMAGE);
  if (kind !== "CRYOSHIM_PIDFD") throw wrong(0, `it is an image of kind ${kind}`);
  return entries.map(({ message }, at) => {
    const pid = (value: unknown, what: string): number => {
      if (typeof value !== "number" || value < 1 || value > MAX_PID) throw wrong(at, `its ${what} is no process`);
      return value;
    };
    const number = (value: unknown, what: string): number => {
      if (typeof value !== "number" || value < 0 || value > 0x7fffffff) throw wrong(at, `its ${what} is no descriptor`);
      return value;
    };
    const { id, flags, process, thread, outside } = message as { id: number; flags: number } & Message;
    const saved: SavedPidfd = { id, flags, of: { kind: "dead" }, places: [], watches: [] };
    if (process !== undefined)
      saved.of = { kind: "inside", process: pid(process, "process"), thread: pid(thread, "thread") };
    if (outside !== undefined) {
      const { pid: number, start, ino, boot } = outside as { start: bigint; ino: bigint; boot: string } & Message;
      saved.of = { kind: "outside", pid: pid(number, "pid"), start, ino, boot };
    }
    for (const { task, fd, cloexec } of (message.places ?? []) as Message[])
      saved.places.push({ task: pid(task, "task"), fd: number(fd, "fd"), cloexec: cloexec === true });
    for (const { task, epoll, fd, events, data } of (message.watches ?? []) as Message[])
      saved.watches.push({
        task: pid(task, "task"),
        epoll: number(epoll, "epoll"),
        fd: number(fd, "fd"),
        events: events as number,
        data: data as bigint,
      });
    return saved;
  });
};
