// SPDX-License-Identifier: Apache-2.0
import { addon, closeFd } from "../../native/index.js";
import type { ControlMessage } from "./wire.js";
import { MAX_DATA, TYPE } from "./wire.js";

/** Sends a command to the engine plugin and waits for its RESULT; `fds` are lent. */
export type Command = (m: ControlMessage, fds?: number[]) => Promise<{ ret: number; data: Buffer; fds: number[] }>;

/** A mapping to be replaced; undone by mapping `oldFd` there again. */
export interface MappingSwap {
  addr: bigint;
  len: bigint;
  /** PROT_* and MAP_* of mmap(2). */
  prot: number;
  flags: number;
  newFd: number;
  newOffset: bigint;
  /** Becomes the undo record's, which closes it. */
  oldFd: number;
  oldOffset: bigint;
}

/** What can be done with a stopped task, by the engine's own thread. Each throws with the step and its errno. */
export interface Engine {
  /** Runs one system call in a task (any thread). Resolves to what it returned, -errno included. */
  syscall(tid: number, number: number, ...args: bigint[]): Promise<number>;
  readMemory(tid: number, addr: bigint, len: number): Promise<Buffer>;
  writeMemory(tid: number, addr: bigint, data: Buffer): Promise<void>;
  /** Puts our descriptor at the task's number; undone at the end of the dump. */
  swapFd(pid: number, fd: number, newFd: number, cloexec: boolean): Promise<void>;
  swapMapping(pid: number, swap: MappingSwap): Promise<void>;
  /** Undoes every swap now. Resolves to how many could not be undone. */
  rollBack(): Promise<number>;
  /** The swaps are to stay: what has been put back at a restore. */
  keep(): Promise<void>;
  /** As `--external KEY`: CRIU takes the objects as they are and asks for them at restore. Before anything is collected. */
  external(keys: Iterable<string>): Promise<void>;
  /** As `--inherit-fd`, when a restore begins: what was external under this key is `fd`, which is lent. */
  inherit(fd: number, key: string): Promise<void>;
  /** CRIU need not look at the contents of mounts of this type: somebody else carries them. */
  noFsDump(type: string): Promise<void>;
  /** A line for CRIU's own log. */
  log(text: string): Promise<void>;
}

/** One swap as this side remembers it, for the case that the engine dies and cannot undo it. */
export type Undo =
  | { kind: "fd"; pid: number; fd: number; old: number; cloexec: boolean }
  | { kind: "mapping"; pid: number; swap: MappingSwap; old: number };

export const engineBy = (command: Command, undo: Undo[]): Engine => {
  const forget = (): void => {
    for (const { old } of undo.splice(0)) closeFd(old);
  };
  return {
    async syscall(tid, number, ...args) {
      return (await command({ type: TYPE.INJECT, pid: tid, args: [BigInt(number), ...args] })).ret;
    },
    async readMemory(tid, addr, len) {
      return (await command({ type: TYPE.READ, pid: tid, addr, len: BigInt(len) })).data;
    },
    async writeMemory(tid, addr, data) {
      await command({ type: TYPE.WRITE, pid: tid, addr, data });
    },
    async swapFd(pid, fd, newFd, cloexec) {
      const { fds } = await command({ type: TYPE.SWAP_FD, pid, fd, flags: cloexec ? 1 : 0 }, [newFd]);
      undo.push({ kind: "fd", pid, fd, old: fds[0]!, cloexec });
    },
    async swapMapping(pid, swap) {
      const { addr, len, prot, flags, newOffset, oldOffset } = swap;
      const args = [BigInt(prot), BigInt(flags), newOffset, oldOffset];
      await command({ type: TYPE.SWAP_MAPPING, pid, addr, len, args }, [swap.newFd, swap.oldFd]);
      undo.push({ kind: "mapping", pid, swap, old: swap.oldFd });
    },
    async rollBack() {
      const { ret } = await command({ type: TYPE.ROLLBACK });
      forget();
      return ret;
    },
    async keep() {
      await command({ type: TYPE.FORGET });
      forget();
    },
    async external(keys) {
      let text = "";
      for (const key of [...keys, undefined]) {
        if (text !== "" && (key === undefined || text.length + key.length >= MAX_DATA)) {
          await command({ type: TYPE.EXTERNAL, data: Buffer.from(text, "latin1") });
          text = "";
        }
        if (key !== undefined) text += `${key}\0`;
      }
    },
    async inherit(fd, key) {
      await command({ type: TYPE.INHERIT, data: Buffer.from(key) }, [fd]);
    },
    async noFsDump(type) {
      await command({ type: TYPE.NO_FS_DUMP, data: Buffer.from(type) });
    },
    async log(text) {
      await command({ type: TYPE.LOG, flags: 3, data: Buffer.from(text) });
    },
  };
};

const surgeon = addon as unknown as {
  seize(tid: number): void;
  release(tid: number): void;
  swapFd(tid: number, fd: number, ours: number, cloexec: boolean): number;
  swapMapping(tid: number, addr: bigint, len: bigint, prot: number, flags: number, ours: number, off: bigint): void;
};

/** Undoes swaps when the engine is dead, newest first, by our own hand. Returns what could not be undone, and why. */
export const undoByHand = (undo: Undo[]): string[] => {
  const failures: string[] = [];
  while (undo.length > 0) {
    const u = undo.pop()!;
    try {
      surgeon.seize(u.pid);
      try {
        if (u.kind === "fd") closeFd(surgeon.swapFd(u.pid, u.fd, u.old, u.cloexec));
        else surgeon.swapMapping(u.pid, u.swap.addr, u.swap.len, u.swap.prot, u.swap.flags, u.old, u.swap.oldOffset);
      } finally {
        surgeon.release(u.pid);
      }
    } catch (error) {
      failures.push(`task ${u.pid}: ${(error as Error).message}`);
    }
    closeFd(u.old);
  }
  return failures;
};
