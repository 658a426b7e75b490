// SPDX-License-Identifier: Apache-2.0
// Finds, in one pass over open files, what CRIU refuses.
import { closeFd } from "../../native/index.js";
import { fromKit, pinInKit } from "../netlock/kept.js";
import { treeOf } from "../netlock/netlock.js";
import { loadIterator, openFiles, runIterator } from "./iterator.js";

/** enum kind of native/bpf/xray.bpf.c */
const KINDS = { 1: "mqueue", 2: "detached", 3: "corked", 4: "uring", 5: "bound" } as const;
export type Kind = (typeof KINDS)[keyof typeof KINDS];

/** A descriptor of something special, as the X-ray sees it. */
export interface Found {
  kind: Kind;
  /** The process and the thread, as this process numbers them. */
  pid: number;
  tid: number;
  fd: number;
  mntId: number;
  /** The kernel's own dev_t: 20 bits of minor number. Of a bound socket that of its name, as is `mntId`. */
  dev: number;
  /** O_*, with the access mode. */
  flags: number;
  mode: number;
  ino: bigint;
  /** Equal for descriptors that share one open file. */
  file: bigint;
  /** MNT_* of its mount (linux/mount.h). */
  mntFlags: number;
}

/** The kernel's dev_t as stat(2) has it (new_encode_dev). */
export const statDev = (dev: number): number => {
  const [major, minor] = [dev >>> 20, dev & 0xfffff];
  return (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
};

const SIZE = 56;

const decode = (bytes: Buffer): Found[] =>
  Array.from({ length: Math.floor(bytes.length / SIZE) }, (_, i): Found => {
    const at = i * SIZE;
    return {
      kind: KINDS[bytes.readUInt32LE(at) as keyof typeof KINDS],
      pid: bytes.readInt32LE(at + 4),
      tid: bytes.readInt32LE(at + 8),
      fd: bytes.readUInt32LE(at + 12),
      mntId: bytes.readInt32LE(at + 16),
      dev: bytes.readUInt32LE(at + 20),
      flags: bytes.readUInt32LE(at + 24),
      mode: bytes.readUInt32LE(at + 28),
      ino: bytes.readBigUInt64LE(at + 32),
      file: bytes.readBigUInt64LE(at + 40),
      mntFlags: bytes.readUInt32LE(at + 48),
    };
  });

/** Above this many open files on the host the tree is walked, and its processes alone are looked at. */
const MANY_FILES = 50_000;

let program: number | undefined;

/** Where an earlier session has left the program loaded: loading it takes 20 ms. The number changes with its records. */
const PINNED = "find-bound2";

/** Makes the program ready, before the freeze. Throws where the kernel cannot. */
export const prepareFind = (): number => {
  if (program !== undefined) return program;
  try {
    program = fromKit(PINNED);
  } catch {
    const { maps, programs } = loadIterator("iter/task_file");
    for (const map of Object.values(maps)) closeFd(map);
    program = programs.find!;
    try {
      pinInKit(PINNED, program);
    } catch {
      // Another session was quicker, or there is no bpffs: the next one loads it again.
    }
  }
  return program;
};

/** What is special in the tree of a process; the tasks should stand still. */
export const findSpecial = (root: number): Found[] => {
  const find = prepareFind();
  if (openFiles() < MANY_FILES) {
    const found = decode(runIterator(find));
    if (found.length === 0) return found;
    const tree = new Set(treeOf(root));
    return found.filter(({ pid }) => tree.has(pid));
  }
  return treeOf(root).flatMap((pid) => decode(runIterator(find, pid)));
};
