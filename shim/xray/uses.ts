// SPDX-License-Identifier: Apache-2.0
// Finds what tasks have on lazily unmounted mounts otherwise than by a descriptor: working directories, roots, programs
// and mapped files.
import { closeFd } from "../../native/index.js";
import type { ProgramKind } from "../netlock/bpf-object.js";
import { fromKit, pinInKit } from "../netlock/kept.js";
import { loadIterator, runIterator, TASK_FILE } from "./iterator.js";

/** enum use_kind of native/bpf/xray.bpf.c */
const KINDS = { 1: "cwd", 2: "root", 3: "exe", 4: "mapping" } as const;

/** One use. */
export interface Use {
  kind: (typeof KINDS)[keyof typeof KINDS];
  pid: number;
  mntId: number;
  /** The kernel's own dev_t: 20 bits of minor number. */
  dev: number;
  /** MNT_* of its mount (linux/mount.h). */
  mntFlags: number;
  /** Leads to the file: /proc/PID/... */
  link: string;
}

const SIZE = 40;

const decode = (bytes: Buffer): Use[] =>
  Array.from({ length: Math.floor(bytes.length / SIZE) }, (_, i): Use => {
    const at = i * SIZE;
    const kind = KINDS[bytes.readUInt32LE(at) as keyof typeof KINDS];
    const pid = bytes.readInt32LE(at + 4);
    const hex = (from: number): string => bytes.readBigUInt64LE(at + from).toString(16);
    return {
      kind,
      pid,
      mntId: bytes.readInt32LE(at + 8),
      dev: bytes.readUInt32LE(at + 12),
      mntFlags: bytes.readUInt32LE(at + 16),
      link: `/proc/${pid}/${kind === "mapping" ? `map_files/${hex(24)}-${hex(32)}` : kind}`,
    };
  });

const PROGRAMS: Record<"uses" | "mappings", { section: string; kind: ProgramKind; pinned: string }> = {
  uses: { section: "iter/task.uses", kind: { ...TASK_FILE, target: "bpf_iter_task" }, pinned: "uses1" },
  mappings: { section: "iter/task_vma.mappings", kind: { ...TASK_FILE, target: "bpf_iter_task_vma" }, pinned: "maps2" },
};

const loaded = new Map<string, number>();

/** The program, loaded or as an earlier session has left it (see find.ts). */
const program = (name: keyof typeof PROGRAMS): number => {
  let fd = loaded.get(name);
  if (fd !== undefined) return fd;
  const { section, kind, pinned } = PROGRAMS[name];
  try {
    fd = fromKit(pinned);
  } catch {
    const { maps, programs } = loadIterator(section, kind);
    for (const map of Object.values(maps)) closeFd(map);
    fd = programs[name]!;
    try {
      pinInKit(pinned, fd);
    } catch {
      // As in find.ts.
    }
  }
  loaded.set(name, fd);
  return fd;
};

/**
 * What the processes have; a pass over the mappings of each takes some ten microseconds. Throws where the kernel cannot:
 * iterators over mappings are of Linux 5.13, those over one process of 6.1.
 */
export const findUses = (tree: readonly number[]): Use[] => {
  const pids = new Set(tree);
  const mappings = program("mappings");
  return [
    ...decode(runIterator(program("uses"))).filter(({ pid }) => pids.has(pid)),
    ...tree.flatMap((pid) => decode(runIterator(mappings, pid))),
  ];
};
