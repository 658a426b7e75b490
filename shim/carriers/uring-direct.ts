// SPDX-License-Identifier: Apache-2.0
// Direct descriptors: registered files that are open nowhere else. The kernel gives none of them away but by a submission to the ring,
// which the program would miss in its count: what has a name is opened by it again.

import { closeSync, constants, openSync, readFileSync } from "node:fs";
import { O_CLOEXEC, O_PATH } from "../flags.js";
import type { RingReader } from "../xray/rings.js";
import { refuse } from "./uring-ring.js";
import { CALL, type Hand } from "./uring-task.js";

const O_CREATING = constants.O_CREAT | constants.O_EXCL | constants.O_TRUNC;
const [S_IFMT, SEEK_SET] = [0o170000, 0];
const KINDS: ReadonlyMap<number, string> = new Map([
  [0o140000, "a socket"],
  [0o010000, "a pipe"],
]);
/** Regular files, directories and devices come back as they were by opening them. */
const OPENABLE: ReadonlySet<number> = new Set([0o100000, 0o040000, 0o020000]);

/** As cryoshim_uring_file has it. */
export interface DirectFile {
  /** Equal for all that are one open file. */
  opened: number;
  path: Uint8Array;
  flags: number;
  position?: bigint;
}

/** The names of a ring's registered files, which the kernel tells (io_uring/fdinfo.c; spaces and the like in octal). */
const namesOf = (fd: number): Map<number, string> => {
  const text = readFileSync(`/proc/self/fdinfo/${fd}`, "latin1");
  const list = /^UserFiles:.*\n((?: *\d+: .*\n)*)/m.exec(text)?.[1] ?? "";
  return new Map(
    [...list.matchAll(/^ *(\d+): (.*)$/gm)].map(([, index, name]) => [
      Number(index),
      name!.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
    ]),
  );
};

/** Files that are opened at once, to be compared in one pass. */
const AT_ONCE = 256;

/** Finds out how direct descriptors of one dump can be opened again. */
export class DirectFinder {
  readonly #reader: RingReader;
  readonly #numbers = new Map<bigint, number>();

  constructor(reader: RingReader) {
    this.#reader = reader;
  }

  /**
   * Slots of the ring at our descriptor; `pid`: who will open them. Throws ERR_URING where one has no name that leads to it.
   */
  find(fd: number, slots: readonly number[], pid: number, at: string): Map<number, DirectFile> {
    const found = new Map<number, DirectFile>();
    if (slots.length === 0) return found;
    const [names, wanted] = [namesOf(fd), new Set(slots)];
    const opened = this.#reader.opened(fd).filter(({ index }) => wanted.has(index));
    const inodes = this.#inodes(pid, [...new Set(opened.map(({ index }) => names.get(index) ?? ""))]);
    for (const { index, file, inode, flags, mode, position } of opened) {
      const name = names.get(index) ?? "";
      const cannot = (why: string): Error =>
        refuse(
          `cannot carry ${at}`,
          `its registered file ${index} is open nowhere else, and ${why}`,
          "keep a descriptor of it",
        );
      const kind = mode & S_IFMT;
      if (!OPENABLE.has(kind) || !name.startsWith("/"))
        throw cannot(`${KINDS.get(kind) ?? "such a file"} (${name}) cannot be opened again`);
      if (inodes.get(name) !== inode)
        throw cannot(`${name} is not its name any more, where process ${pid} looks for it`);
      const number = this.#numbers.get(file) ?? this.#numbers.size;
      this.#numbers.set(file, number);
      found.set(index, {
        opened: number,
        path: Buffer.from(name, "latin1"),
        flags: (flags & ~O_CREATING) >>> 0,
        position: BigInt.asUintN(64, position),
      });
    }
    return found;
  }

  /** The kernel's inodes of names, as far as there are any, from a process's root. */
  #inodes(pid: number, names: readonly string[]): Map<string, bigint> {
    const inodes = new Map<string, bigint>();
    for (let at = 0; at < names.length; at += AT_ONCE) {
      const open = new Map<number, string>();
      try {
        for (const name of names.slice(at, at + AT_ONCE)) {
          const fd = tryOpen(`/proc/${pid}/root${name}`);
          if (fd !== undefined) open.set(fd, name);
        }
        for (const { fd, inode } of this.#reader.descriptors(process.pid))
          if (open.has(fd)) inodes.set(open.get(fd)!, inode);
      } finally {
        for (const fd of open.keys()) closeSync(fd);
      }
    }
    return inodes;
  }
}

const tryOpen = (path: string): number | undefined => {
  try {
    return openSync(Buffer.from(path, "latin1"), O_PATH | constants.O_NOFOLLOW);
  } catch {
    return undefined;
  }
};

/** Opens one in the task. Throws CallFailed. */
export const openDirect = async ({ path, flags, position }: DirectFile, hand: Hand): Promise<number> => {
  const name = Buffer.concat([path, Buffer.alloc(1)]);
  const what = `open ${Buffer.from(path).toString("latin1")}`;
  const fd = await hand.call(what, CALL.openat, 0, await hand.lend(name), flags | O_CLOEXEC, 0);
  if (position !== undefined && position !== 0n) await hand.call("lseek", CALL.lseek, fd, position, SEEK_SET);
  return fd;
};
