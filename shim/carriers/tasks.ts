// SPDX-License-Identifier: Apache-2.0
// Names of tasks that hold across a restore: outside, a restored process has another number.
import { closeSync, constants, openSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { pidfdGetfd, pidfdOpen } from "../../native/index.js";

/** A process's numbers in its pid namespaces, outermost first. */
const numbers = (pid: number): string[] =>
  /^NSpid:\s+(.*)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]?.split(/\s+/) ?? [String(pid)];

/** How many pid namespaces the root task sees above its own. */
export const depthOf = (root: number): number => numbers(root).length - 1;

/** The name of a process in a tree whose root is `depth` pid namespaces deep. */
export const taskName = (pid: number, depth: number): string => numbers(pid).slice(depth).join(":");

/** A descriptor of a process, as one of ours. */
export const take = (pid: number, fd: number): number => {
  const pidfd = pidfdOpen(pid);
  try {
    return pidfdGetfd(pidfd, fd);
  } finally {
    closeSync(pidfd);
  }
};

/** The id of the mount of a descriptor of ours (proc(5)). */
export const mountIdOf = (fd: number): number =>
  Number(/^mnt_id:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1"))?.[1]);

/** The inode of a task's namespace. */
export const namespaceOf = (pid: number, kind: string): number => statSync(`/proc/${pid}/ns/${kind}`).ino;

/** All processes that /proc shows. */
export const allProcesses = (): number[] =>
  readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number);

/** All namespaces of a kind in which these processes live, by inode, each with the first of them there. */
export const namespacesOf = (kind: string, pids: readonly number[]): Map<number, number> => {
  const found = new Map<number, number>();
  for (const pid of pids) {
    try {
      const inode = namespaceOf(pid, kind);
      if (!found.has(inode)) found.set(inode, pid);
    } catch {
      // It has ended.
    }
  }
  return found;
};

/** Lends the mount namespace of a process. */
export const inMountNamespace = <T>(pid: number, use: (ns: number) => T): T => {
  const ns = openSync(`/proc/${pid}/ns/mnt`, constants.O_RDONLY);
  try {
    return use(ns);
  } finally {
    closeSync(ns);
  }
};

/** Whether processes other than these are in the namespace. */
export const isSharedNamespace = (kind: string, inode: number, tree: ReadonlySet<number>): boolean =>
  allProcesses().some((pid) => {
    if (tree.has(pid)) return false;
    try {
      return namespaceOf(pid, kind) === inode;
    } catch {
      return false;
    }
  });

/** The number of the descriptor at which a process has a socket. */
export const fdOfSocket = (pid: number, matches: (link: string) => boolean): number | undefined =>
  readdirSync(`/proc/${pid}/fd`)
    .map(Number)
    .find((fd) => matches(readlinkSync(`/proc/${pid}/fd/${fd}`)));
