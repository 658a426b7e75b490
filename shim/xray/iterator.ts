// SPDX-License-Identifier: Apache-2.0
// BPF iterators over open files: loaded before the freeze and run in it.
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { artefact } from "../../native/index.js";
import { bpf, CMD } from "../netlock/bpf.js";
import { type LoadedObject, loadObject, type ProgramKind } from "../netlock/bpf-object.js";

// BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER
const [TRACING, ATTACH_ITER] = [26, 28];

/** A program over the files that tasks have open. */
export const TASK_FILE: ProgramKind = { type: TRACING, attach: ATTACH_ITER, target: "bpf_iter_task_file" };

/** Loads the program of one section of xray.bpf.o. Throws where the kernel cannot: iterators are of Linux 5.8. */
export const loadIterator = (section: string, kind = TASK_FILE): LoadedObject =>
  loadObject(readFileSync(artefact("xray.bpf.o")), { [section]: kind });

/**
 * Runs a program over the open files of one process (Linux 6.1), or of all. Returns what it wrote. Throws EINVAL on a
 * kernel that knows no iterator for one process.
 */
export const runIterator = (program: number, tgid?: number): Buffer => {
  const link = aimIterator(program, tgid);
  try {
    return runAimed(link);
  } finally {
    closeSync(link);
  }
};

/** For a program that is run many times: a descriptor for `runAimed`. */
export const aimIterator = (program: number, tgid?: number): number => {
  const info = Buffer.alloc(16);
  info.writeUInt32LE(tgid ?? 0, 4);
  const one = tgid === undefined ? {} : { 16: info, 24: info.length };
  return bpf(CMD.linkCreate, { 0: program, 8: ATTACH_ITER, ...one });
};

export const runAimed = (link: number): Buffer => {
  const iterator = bpf(CMD.iterCreate, { 0: link });
  try {
    return readToEnd(iterator);
  } finally {
    closeSync(iterator);
  }
};

/** A read may be short long before the end: it ends at what one file has written. */
const readToEnd = (fd: number): Buffer => {
  const parts: Buffer[] = [];
  for (;;) {
    const part = Buffer.allocUnsafe(64 << 10);
    const n = readSync(fd, part);
    if (n === 0) return Buffer.concat(parts);
    parts.push(part.subarray(0, n));
  }
};

/** How many files this kernel has open, about. */
export const openFiles = (): number => {
  const fd = openSync("/proc/sys/fs/file-nr", "r");
  try {
    const text = Buffer.alloc(64);
    return Number.parseInt(text.toString("latin1", 0, readSync(fd, text)), 10);
  } finally {
    closeSync(fd);
  }
};
