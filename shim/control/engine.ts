// SPDX-License-Identifier: Apache-2.0

import { closeSync, constants, openSync } from "node:fs";
import { closeFd, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { reason } from "../error.js";
import { O_PATH } from "../flags.js";
import type { ControlMessage, Known } from "./wire.js";
import { ANONYMOUS, encodeControl, KNOWN, MAX_DATA, OWN_FD, TAKE, TYPE } from "./wire.js";

/** Sends a command to the engine plugin and waits for its RESULT; `fds` are lent. */
export type Command = (m: ControlMessage, fds?: number[]) => Promise<{ ret: number; data: Buffer; fds: number[] }>;

/** A mapping to be replaced; undone by mapping `oldFd` there again. */
export interface MappingSwap {
  addr: bigint;
  len: bigint;
  /** PROT_* and MAP_* of mmap(2). */
  prot: number;
  flags: number;
  /** Lent, as is `oldFd`; without one `flags` has MAP_ANONYMOUS, and the placeholder is memory of no file. */
  newFd?: number;
  newOffset: bigint;
  oldFd?: number;
  /** In place of oldFd: the task's own descriptor, which stays (an io_uring can be sent over no socket). */
  ownFd?: number;
  oldOffset: bigint;
  /** What `oldFd` was mapped with, if it differs. */
  oldFlags?: number;
  oldCut?: Cut;
}

/** Bytes before and after a range that are mapped with it, and unmapped again: some files map as a whole or not at all. */
export interface Cut {
  before: bigint;
  after: bigint;
}

/** Who undoes swaps when the engine is dead. */
export interface Undoer {
  /** Resolves when it knows what is about to be swapped. */
  swap(order: Buffer, fds: number[]): Promise<void>;
  /** Whether a process may be stopped while something is swapped in it: then the undoer lets it go on. */
  hold(pid: number): Promise<boolean>;
  /** Nothing is left to be undone. */
  settled(): void;
}

/** What can be done with a stopped task, by the engine's own thread. Each throws with the step and its errno. */
export interface Engine {
  /** Runs one system call in a task (any thread). Resolves to what it returned, -errno included. */
  syscall(tid: number, number: number, ...args: bigint[]): Promise<number>;
  /**
   * Where the stop has interrupted this system call, and it would fail with EINTR for that, it begins again with the same
   * arguments when the thread goes on, now or after a restore. Resolves to whether that was so.
   */
  restart(tid: number, number: number): Promise<boolean>;
  readMemory(tid: number, addr: bigint, len: number): Promise<Buffer>;
  writeMemory(tid: number, addr: bigint, data: Buffer): Promise<void>;
  /**
   * Puts our descriptor, which is lent, at the task's number. This swap and those below are undone at the end of the dump, and
   * whoever dies before.
   */
  swapFd(pid: number, fd: number, newFd: number, cloexec: boolean): Promise<void>;
  /** The same for a ring of io_uring, which can be sent over no socket. */
  swapRing(pid: number, fd: number, newFd: number, cloexec: boolean): Promise<void>;
  swapMapping(pid: number, swap: MappingSwap): Promise<void>;
  /** The working directory becomes a directory of ours. Fails where the task could not go back to its own. */
  swapCwd(pid: number, dir: number): Promise<void>;
  /** The same for its root, which takes CAP_SYS_CHROOT in the task. */
  swapRoot(pid: number, dir: number): Promise<void>;
  /** Maps a descriptor of the task's own where something of no worth is; that stays. For a restore. */
  mapOwn(
    pid: number,
    at: { addr: bigint; len: bigint; prot: number; flags: number; fd: number; offset: bigint; cut?: Cut },
  ): Promise<void>;
  /** Puts a descriptor of this process at the task's number, for good. One that can be sent over no socket, in a restore. */
  give(pid: number, fd: number, ours: number, cloexec: boolean): Promise<void>;
  /**
   * Lets a thread submit entries of a ring of its own, so many at a time and so many times; completions are thrown away.
   * `at`: where in the ring's memory, of `len` bytes, are the tail of submissions, and head and tail of completions.
   */
  submit(
    pid: number,
    tid: number,
    fd: number,
    len: number,
    at: { sqTail: number; cqHead: number; cqTail: number },
    each: number,
    times: number,
  ): Promise<void>;
  /** Whether anything is swapped. */
  readonly swapped: boolean;
  /** Undoes every swap now. Resolves to how many could not be undone. */
  rollBack(): Promise<number>;
  /** The swaps are to stay: what has been put back at a restore. */
  keep(): Promise<void>;
  /** As `--external KEY`: CRIU takes the objects as they are and asks for them at restore. Before anything is collected. */
  external(keys: Iterable<string>): Promise<void>;
  /** As `--inherit-fd`, when a restore begins: what was external under this key is `fd`, which is lent. */
  inherit(fd: number, key: string): Promise<void>;
  /** Before CRIU dumps a file of this kind, carriers are asked (`dumpKnown`). Before anything is collected. */
  intercept(kind: Known): Promise<void>;
  /** When a restore begins: carriers bind the unix sockets whose names in the images are theirs (`bindSocket`). */
  bound(): Promise<void>;
  /** CRIU takes these unix sockets, by their inodes, whatever their relative names are. Before anything is collected. */
  anyNames(sockets: readonly bigint[]): Promise<void>;
  /** CRIU need not look at the contents of mounts of this type: somebody else carries them. */
  noFsDump(type: string): Promise<void>;
  /** A line for CRIU's own log. */
  log(text: string, level?: "error" | "info"): Promise<void>;
}

/** Runs with a descriptor of ours, which is closed afterwards. */
const lent = async (fd: number, use: (fd: number) => Promise<void>): Promise<void> => {
  try {
    await use(fd);
  } finally {
    closeFd(fd);
  }
};

export const engineBy = (command: Command, undoer: Undoer): Engine => {
  let swapped = false;
  /** Processes in which something is swapped, when they are held. */
  const holds = new Map<number, Promise<void>>();
  /** With its tracer dead a process would run on at once, with placeholders: it is stopped until they are gone. */
  const hold = async (pid: number): Promise<void> => {
    const may = (await command({ type: TYPE.HOLD, pid })).ret === 1;
    if (!may || !(await undoer.hold(pid))) return;
    try {
      await command({ type: TYPE.HOLD, pid, args: [1n] });
    } catch (error) {
      // A swap is what the dump needs; this is for the case of a sudden death alone.
      const text = `task ${pid} is not held while something is swapped in it: ${reason(error)}`;
      await command({ type: TYPE.LOG, flags: 2, data: Buffer.from(text) });
    }
  };
  const held = (pid: number): Promise<void> => {
    const known = holds.get(pid) ?? hold(pid);
    holds.set(pid, known);
    return known;
  };
  /** What the guard can undo, the plugin may do. */
  const swap = async (order: ControlMessage & { pid: number }, fds: number[]): Promise<void> => {
    await held(order.pid);
    await undoer.swap(encodeControl(order), fds);
    swapped = true;
    await command(order, fds);
  };
  const settled = (): void => {
    swapped = false;
    holds.clear();
    undoer.settled();
  };
  const swapDir = (type: number, pid: number, name: "cwd" | "root", dir: number): Promise<void> =>
    lent(openSync(`/proc/${pid}/${name}`, O_PATH | constants.O_DIRECTORY), (now) => swap({ type, pid }, [dir, now]));
  return {
    get swapped() {
      return swapped;
    },
    async syscall(tid, number, ...args) {
      return (await command({ type: TYPE.INJECT, pid: tid, args: [BigInt(number), ...args] })).ret;
    },
    async restart(tid, number) {
      return (await command({ type: TYPE.RESTART, pid: tid, args: [BigInt(number)] })).ret === 1;
    },
    async readMemory(tid, addr, len) {
      return (await command({ type: TYPE.READ, pid: tid, addr, len: BigInt(len) })).data;
    },
    async writeMemory(tid, addr, data) {
      await command({ type: TYPE.WRITE, pid: tid, addr, data });
    },
    async swapFd(pid, fd, newFd, cloexec) {
      const pidfd = pidfdOpen(pid);
      try {
        await lent(pidfdGetfd(pidfd, fd), (now) =>
          swap({ type: TYPE.SWAP_FD, pid, fd, flags: cloexec ? 1 : 0 }, [newFd, now]),
        );
      } finally {
        closeSync(pidfd);
      }
    },
    async swapRing(pid, fd, newFd, cloexec) {
      await swap({ type: TYPE.SWAP_FD, pid, fd, flags: (cloexec ? 1 : 0) | TAKE }, [newFd]);
    },
    async swapMapping(pid, swapped) {
      const { addr, len, prot, flags, newFd, newOffset, oldFd, ownFd, oldOffset, oldFlags = flags, oldCut } = swapped;
      const args = [
        BigInt(prot),
        BigInt(flags),
        newOffset,
        oldOffset,
        BigInt(oldFlags),
        oldCut?.before ?? 0n,
        oldCut?.after ?? 0n,
      ];
      const kind = (newFd === undefined ? ANONYMOUS : 0) | (ownFd === undefined ? 0 : OWN_FD);
      const fds = [newFd, ownFd === undefined ? oldFd : undefined].filter((fd) => fd !== undefined);
      await swap({ type: TYPE.SWAP_MAPPING, pid, fd: ownFd ?? 0, flags: kind, addr, len, args }, fds);
    },
    async mapOwn(pid, { addr, len, prot, flags, fd, offset, cut }) {
      const args = [BigInt(prot), BigInt(flags), offset, cut?.before ?? 0n, cut?.after ?? 0n];
      await command({ type: TYPE.MAP, pid, fd, addr, len, args });
    },
    async give(pid, fd, ours, cloexec) {
      const args = [process.pid, ours].map(BigInt);
      await command({ type: TYPE.GIVE, pid, fd, flags: cloexec ? 1 : 0, args });
    },
    async submit(pid, tid, fd, len, { sqTail, cqHead, cqTail }, each, times) {
      const args = [each, times, sqTail, cqHead, cqTail, pid].map(BigInt);
      await command({ type: TYPE.SUBMIT, pid: tid, fd, len: BigInt(len), args });
    },
    swapCwd: (pid, dir) => swapDir(TYPE.SWAP_CWD, pid, "cwd", dir),
    swapRoot: (pid, dir) => swapDir(TYPE.SWAP_ROOT, pid, "root", dir),
    async rollBack() {
      const { ret } = await command({ type: TYPE.ROLLBACK });
      if (ret === 0) settled();
      return ret;
    },
    async keep() {
      await command({ type: TYPE.FORGET });
      settled();
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
    async intercept(kind) {
      await command({ type: TYPE.INTERCEPT, args: [BigInt(KNOWN[kind])] });
    },
    async bound() {
      await command({ type: TYPE.BOUND });
    },
    async anyNames(sockets) {
      const most = MAX_DATA / 8;
      for (let at = 0; at < sockets.length; at += most) {
        const data = Buffer.from(BigUint64Array.from(sockets.slice(at, at + most)).buffer);
        await command({ type: TYPE.BOUND, data });
      }
    },
    async noFsDump(type) {
      await command({ type: TYPE.NO_FS_DUMP, data: Buffer.from(type) });
    },
    async log(text, level = "info") {
      await command({ type: TYPE.LOG, flags: level === "error" ? 1 : 3, data: Buffer.from(text) });
    },
  };
};
