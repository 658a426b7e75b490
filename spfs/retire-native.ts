// SPDX-License-Identifier: Apache-2.0
// The addon's verbs for what takes a mount's place (native/addon_retire.c) and for tasks that are operated on
// (native/addon_patient.c). Whatever fails throws with the errno's name as `code` and the step as `syscall`.
import { addon } from "../native/index.js";

/** Rows in columns; texts are ended by NULs, latin1. */
export interface Columns {
  fd: BigInt64Array;
  mount: BigInt64Array;
  ino: BigInt64Array;
  mode: BigInt64Array;
  nlink: BigInt64Array;
  flags: BigInt64Array;
  pos: BigInt64Array;
  dev: BigInt64Array;
  path: string;
  note: string;
}

/** Bits: path, flags, position and locks, not identity alone; and whatever has no path, with all it says of itself. */
export const HOW = { brief: 0, full: 1, others: 2 } as const;
/** What workOnMount() does: mount beneath, unmount, mount on top, set propagation. */
export const MOUNT_WORK = { beneath: 0, unmount: 1, onTop: 2, set: 3 } as const;
/** Of kcmp(2). */
export const KCMP = { file: 0, vm: 1, files: 2, fs: 3 } as const;

interface Verbs {
  openFiles(
    ns: number,
    pid: number,
    tid: number,
    mounts: Int32Array,
    how: number,
    dev: bigint,
    attached: Int32Array,
  ): Columns;
  lookAt(ns: number, links: string): Columns;
  mountTable(ns: number): string;
  workOnMount(ns: number, verb: number, path: string, expect: number, fd: number, propagation: number): void;
  openPlace(ns: number, path: string, expect: number): number;
  moveMount(ns: number, from: number, to: number): void;
  cloneTree(dir: number, path: string, set: number, clear: number, propagation: number): number;
  openAs(dir: number, path: string, flags: number, uid: number, gid: number, groups: Int32Array): number;
  listDirectory(fd: number): Columns;
  boundSockets(netns: number): Columns;
  teePipe(from: number, to: number): number;
  freeze(tids: Int32Array, patience: number): Int32Array;
  thaw(tids: Int32Array): void;
  thawLate(): number;
  patientStart(tid: number, avoid: bigint): void;
  patientEnd(tid: number): void;
  patientSwapFds(
    rows: Int32Array,
    locks: BigInt64Array,
    watches: BigInt64Array,
  ): [errno: number, step: string, ...done: number[]];
  patientChdir(tid: number, root: number, cwd: number): void;
  patientRemap(tid: number, ours: number, addr: bigint, length: bigint, offset: bigint, how: Int32Array): void;
  patientExe(tid: number, ours: number): void;
  kcmp(pid1: number, pid2: number, type: number, a: number, b: number): number;
  copyState(rows: Int32Array): Int32Array;
  closeAll(fds: Int32Array): void;
  position(fd: number): bigint;
  setPosition(fd: number, position: bigint): void;
}

export const verbs = addon as unknown as Verbs;

/** One thing that is open, or otherwise used. `mount` is -1 for what is on none of the mounts that were asked for. */
export interface Seen {
  fd: number;
  mount: number;
  ino: bigint;
  mode: number;
  nlink: number;
  flags: number;
  pos: bigint;
  dev: bigint;
  path: string;
  note: string;
}

export const rows = (columns: Columns): Seen[] => {
  const paths = columns.path.split("\0");
  const notes = columns.note.split("\0");
  return Array.from(columns.fd, (fd, i) => ({
    fd: Number(fd),
    mount: Number(columns.mount[i]),
    ino: columns.ino[i]!,
    mode: Number(columns.mode[i]),
    nlink: Number(columns.nlink[i]),
    flags: Number(columns.flags[i]),
    pos: columns.pos[i]!,
    dev: columns.dev[i]!,
    path: paths[i]!,
    note: notes[i]!,
  }));
};

/** The errno's name of what a verb threw. */
export const codeOf = (error: unknown): string => (error as { code?: string }).code ?? "";
