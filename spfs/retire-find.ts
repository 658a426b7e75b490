// SPDX-License-Identifier: Apache-2.0
// What tasks have of the mounts that are replaced: open files, by inode; working and root directories; mappings; programs.

import { closeSync, fstatSync, readFileSync } from "node:fs";
import { O_PATH } from "../shim/flags.js";
import { below, hexDevice, type Replacement } from "./retire-mounts.js";
import { HOW, KCMP, rows, type Seen, verbs } from "./retire-native.js";
import { openReal } from "./retire-open.js";
import { type Credentials, credentialsOf, type Task } from "./retire-tasks.js";

/** One open file description, wherever tasks have it. */
export interface Description {
  seen: Seen;
  replacement: Replacement;
  /** From the root of the replaced mount on; "" is the root itself. */
  path: string;
  gone: boolean;
  at: { task: Task; fd: number }[];
  as: Credentials;
  /** What takes its place, ours; and what was there, once it is swapped. */
  next?: number | undefined;
  old?: number | undefined;
}

export interface Mapping {
  task: Task;
  replacement: Replacement;
  seen: Seen;
  path: string;
  gone: boolean;
  start: bigint;
  length: bigint;
  offset: bigint;
  prot: number;
  flags: number;
  /** VmFlags of /proc/PID/smaps. */
  vmFlags: Set<string>;
  pkey: number;
}

/** A directory or program of a task's. */
export interface Place {
  task: Task;
  kind: "cwd" | "root" | "exe";
  replacement: Replacement;
  seen: Seen;
  path: string;
  gone: boolean;
}

/** Something without a path: epoll, inotify, io_uring, sockets. */
export interface Other {
  task: Task;
  seen: Seen;
}

const [O_ACCMODE, O_NOFOLLOW] = [3, 0o400000];
const DELETED = " (deleted)";
const S_IFMT = 0o170000;

/** Mounts that an earlier attempt made, and which went with it when it was killed, are told by the real one's device. */
export interface Strays {
  dev: bigint;
  /** All mounts that are in a namespace of the container's, or in ours. */
  attached: ReadonlySet<number>;
}

export class Mounts {
  readonly replacements: readonly Replacement[];
  /** Their devices as /proc/PID/maps and /proc/locks write them. */
  readonly devices: ReadonlySet<string>;
  readonly #ids: Int32Array;
  readonly #byId: Map<number, Replacement>;
  /** Which namespace's view paths of a process are told in. */
  readonly #nsOf: (pid: number) => number;
  readonly #strays: Strays;
  readonly #attached: Int32Array;

  constructor(replacements: readonly Replacement[], nsOf: (pid: number) => number, strays: Strays) {
    this.replacements = replacements;
    this.devices = new Set(replacements.map(({ mount: { dev } }) => hexDevice(dev)));
    this.#ids = Int32Array.from(replacements, ({ mount }) => mount.id);
    this.#byId = new Map(replacements.map((each) => [each.mount.id, each]));
    this.#nsOf = nsOf;
    this.#strays = strays;
    this.#attached = Int32Array.from(strays.attached);
  }

  /** Whether something is on the mounts that go, or on what is left of an earlier attempt. */
  concern({ mount, dev }: Seen): boolean {
    return this.#byId.has(mount) || (mount !== -1 && this.#isStray(mount, dev));
  }

  #isStray(mount: number, dev: bigint): boolean {
    return dev === this.#strays.dev && !this.#strays.attached.has(mount);
  }

  /** Whether a line of /proc/PID/maps is worth a look. */
  mayConcern(dev: string): boolean {
    return this.devices.has(dev) || dev === hexNumber(this.#strays.dev);
  }

  /** Where something is on its mount; undefined: its path is not below the mount point, so that it cannot be told. */
  placeOf(seen: Seen): { replacement: Replacement; path: string; gone: boolean } | undefined {
    const gone = seen.nlink === 0 || seen.path.endsWith(DELETED);
    const text = gone && seen.path.endsWith(DELETED) ? seen.path.slice(0, -DELETED.length) : seen.path;
    const replacement = this.#byId.get(seen.mount);
    if (replacement === undefined) return this.#placeOfStray(seen, gone);
    const path = below(replacement.mount.point, text);
    return path === undefined ? undefined : { replacement, path, gone };
  }

  /** Paths on a mount in no namespace begin at its root, which was the real directory. A nameless file is copied anywhere. */
  #placeOfStray(seen: Seen, gone: boolean): { replacement: Replacement; path: string; gone: boolean } | undefined {
    const path = gone ? "" : seen.path.slice(1);
    for (const replacement of this.replacements)
      if (replacement.tree !== undefined && (gone || isThere(replacement.tree, path, seen.ino)))
        return { replacement, path, gone };
    return undefined;
  }

  lookAt(pid: number, links: readonly string[]): Seen[] {
    return links.length === 0 ? [] : rows(verbs.lookAt(this.#nsOf(pid), links.map((link) => `${link}\0`).join("")));
  }

  /** What a table of descriptors has open on the mounts (path, flags and locks, too, where `full`), and what has no path. */
  open(task: Task, full: boolean): { files: Seen[]; others: Other[] } {
    const all = this.#openFiles(task, HOW.others | (full ? HOW.full : 0));
    const others = all.filter(({ mount }) => mount === -1).map((seen) => ({ task, seen }));
    return { files: all.filter(({ mount }) => mount !== -1), others };
  }

  /** The descriptors on the mounts, by identity alone. */
  brief(task: Task): Seen[] {
    return this.#openFiles(task, HOW.brief);
  }

  #openFiles({ pid, tid }: Task, how: number): Seen[] {
    return rows(verbs.openFiles(this.#nsOf(pid), pid, tid, this.#ids, how, this.#strays.dev, this.#attached));
  }
}

/** The inverse of deviceOf(), as /proc/PID/maps has it. */
const hexNumber = (dev: bigint): string => {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xfff00n);
  return hexDevice(`${major}:${minor}`);
};

const isThere = (tree: number, path: string, ino: bigint): boolean => {
  let fd = -1;
  try {
    fd = openReal(tree, path, O_PATH | O_NOFOLLOW);
    return fstatSync(fd, { bigint: true }).ino === ino;
  } catch {
    return false;
  } finally {
    if (fd >= 0) closeSync(fd);
  }
};

/** Descriptors that share an offset become one description. Several of one inode are compared by the kernel. */
export const describe = (
  mounts: Mounts,
  open: readonly { task: Task; seen: Seen }[],
): { descriptions: Description[]; lost: { task: Task; seen: Seen }[] } => {
  const byInode = new Map<string, { task: Task; seen: Seen }[]>();
  for (const each of open) {
    const key = `${each.seen.mount} ${each.seen.ino}`;
    const known = byInode.get(key);
    if (known === undefined) byInode.set(key, [each]);
    else known.push(each);
  }
  const credentials = new Map<number, Credentials>();
  const descriptions: Description[] = [];
  const lost: { task: Task; seen: Seen }[] = [];
  for (const group of byInode.values()) {
    const sorted = group.length === 1 ? group : [...group].sort(order);
    let current: Description | undefined;
    for (const [i, one] of sorted.entries()) {
      const { task, seen } = one;
      if (i === 0 || order(sorted[i - 1]!, one) !== 0) {
        const place = mounts.placeOf(seen);
        const as = credentials.get(task.pid) ?? credentialsOf(task.pid);
        credentials.set(task.pid, as);
        current = place && { seen, ...place, at: [], as };
        if (current !== undefined) descriptions.push(current);
      }
      if (current === undefined) lost.push(one);
      else current.at.push({ task, fd: seen.fd });
    }
  }
  return { descriptions, lost };
};

/** As the kernel orders open files; one that has been closed meanwhile is like no other. */
const order = (a: { task: Task; seen: Seen }, b: { task: Task; seen: Seen }): number => {
  if (a === b) return 0;
  try {
    return [0, -1, 1][verbs.kcmp(a.task.tid, b.task.tid, KCMP.file, a.seen.fd, b.seen.fd)] ?? 1;
  } catch {
    return a.task.tid - b.task.tid || a.seen.fd - b.seen.fd;
  }
};

/** All that concerns one inode must change at once: else one side would not see what the other writes. */
export const inodeKey = ({ dev, ino }: Seen): string => `${dev} ${ino}`;

/** Files that nobody here can write to through what is open: each may change at a moment of its own. */
export const areReadOnly = (group: readonly Description[]): boolean =>
  group.every(
    ({ seen, gone }) =>
      (seen.mode & S_IFMT) === 0o100000 && (seen.flags & O_ACCMODE) === 0 && seen.note === "" && !gone,
  );

const LINE = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) \d+/;

/** Mappings of an address space. */
export const mappingsOf = (mounts: Mounts, task: Task): Mapping[] => {
  const lines: RegExpExecArray[] = [];
  for (const line of readFileSync(`/proc/${task.tid}/maps`, "latin1").split("\n")) {
    const match = LINE.exec(line);
    if (match !== null && mounts.mayConcern(match[5]!)) lines.push(match);
  }
  // There addresses have no leading zeros.
  const hex = (text: string | undefined): string => BigInt(`0x${text}`).toString(16);
  const links = lines.map(([, start, end]) => `${task.tid}/map_files/${hex(start)}-${hex(end)}`);
  const seen = mounts.lookAt(task.pid, links);
  const found = lines.flatMap((match, i) => (mounts.concern(seen[i]!) ? [{ match, seen: seen[i]! }] : []));
  if (found.length === 0) return [];
  const smaps = readFileSync(`/proc/${task.tid}/smaps`, "latin1");
  return found.flatMap(({ match, seen: one }) => {
    const [, start, end, perms, offset] = match as unknown as [string, string, string, string, string];
    const place = mounts.placeOf(one);
    if (place === undefined) return [];
    const from = smaps.indexOf(`${start}-${end} `);
    const entry = smaps.slice(from, smaps.indexOf("VmFlags:", from) + 200);
    const vmFlags = new Set((/^VmFlags: (.*)$/m.exec(entry)?.[1] ?? "").trim().split(" "));
    const first = BigInt(`0x${start}`);
    return [
      {
        task,
        seen: one,
        ...place,
        start: first,
        length: BigInt(`0x${end}`) - first,
        offset: BigInt(`0x${offset}`),
        prot: (perms[0] === "r" ? 1 : 0) | (perms[1] === "w" ? 2 : 0) | (perms[2] === "x" ? 4 : 0),
        flags: (perms[3] === "s" ? 1 : 2) | (vmFlags.has("nr") ? 0x4000 : 0),
        vmFlags,
        pkey: Number(/^ProtectionKey:\s*(\d+)$/m.exec(entry)?.[1] ?? 0),
      },
    ];
  });
};

/** Directories of sets of directories, programs of address spaces. */
export const placesOf = (mounts: Mounts, fs: readonly Task[], vm: readonly Task[]): Place[] => {
  const wanted = [
    ...fs.flatMap((task) => (["cwd", "root"] as const).map((kind) => ({ task, kind }))),
    ...vm.map((task) => ({ task, kind: "exe" as const })),
  ];
  return wanted.flatMap(({ task, kind }) => {
    const [seen] = mounts.lookAt(task.pid, [`${task.pid}/task/${task.tid}/${kind}`]);
    const place = seen === undefined || !mounts.concern(seen) ? undefined : mounts.placeOf(seen);
    return place === undefined ? [] : [{ task, kind, seen: seen!, ...place }];
  });
};
