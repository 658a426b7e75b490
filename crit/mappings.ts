// SPDX-License-Identifier: Apache-2.0
// A task's mappings for people: what each one is.
import type { Message } from "./message.js";
import { type Files, fileText, list, num } from "./tasks.js";

const [REGULAR, STACK, VSYSCALL, VDSO, HEAP] = [1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5];
const [FILE_PRIVATE, FILE_SHARED] = [1 << 6, 1 << 7];
export const ANON_SHARED = 1 << 8;
const [SYSVIPC, SOCKET, VVAR] = [1 << 10, 1 << 11, 1 << 12];
const GROWSDOWN = 0x100;

export interface Mapping {
  start: bigint;
  end: bigint;
  prot: string;
  /** As CRIU's crit calls it. */
  what: string;
  /** Whether it belongs to the task's own memory, or is the kernel's. */
  regular: boolean;
}

/** Numbers shared memory from 1, in the order in which it is met. */
export const segmentNumbers = (): ((id: number) => number) => {
  const known = new Map<number, number>();
  return (id) => {
    const number = known.get(id) ?? known.size + 1;
    known.set(id, number);
    return number;
  };
};

export const isFile = (vma: Message): boolean => (num(vma, "status") & (FILE_PRIVATE | FILE_SHARED)) !== 0;

export const mappingsOf = (mm: Message | undefined, files: Files, segment: (id: number) => number): Mapping[] =>
  list(mm, "vmas").map((vma) => {
    const status = num(vma, "status");
    const shmid = num(vma, "shmid");
    let what = "";
    if (status & SYSVIPC) what = `ips[${segment(shmid).toString(16)}]`;
    else if (status & ANON_SHARED) what = `shmem[${segment(shmid).toString(16)}]`;
    else if (status & SOCKET) what = `packet[${segment(shmid).toString(16)}]`;
    else if (isFile(vma)) {
      what = fileText(files, "REG", shmid);
      const offset = vma.pgoff as bigint;
      if (offset !== 0n) what += ` + 0x${offset.toString(16)}`;
      if (status & FILE_SHARED) what += " (s)";
    } else if (status & STACK) what = "[stack]";
    else if (status & VSYSCALL) what = "[vsyscall]";
    else if (status & VDSO) what = "[vdso]";
    else if (num(vma, "flags") & GROWSDOWN) what = "[stack?]";
    const prot = num(vma, "prot");
    return {
      start: vma.start as bigint,
      end: vma.end as bigint,
      prot: `${prot & 1 ? "r" : "-"}${prot & 2 ? "w" : "-"}${prot & 4 ? "x" : "-"}`,
      what,
      regular: (status & REGULAR) !== 0,
    };
  });

/** Names that CRIU's crit does not give: the heap, the kernel's variables. */
export const mappingName = (vma: Message, what: string): string => {
  if (what !== "") return what;
  const status = num(vma, "status");
  return status & HEAP ? "[heap]" : status & VVAR ? "[vvar]" : "";
};
