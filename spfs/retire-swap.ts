// SPDX-License-Identifier: Apache-2.0
// The exchange under stopped tasks. Each step is written down with its undo before the next is made.
import { closeSync, openSync } from "node:fs";
import { reason } from "../shim/error.js";
import { type Description, inodeKey, type Mapping, type Place } from "./retire-find.js";
import type { HeldLock, Lock } from "./retire-locks.js";
import { verbs } from "./retire-native.js";
import { matchDirectory, O_PATH, Stays } from "./retire-open.js";
import type { Registration } from "./retire-others.js";
import { type Frozen, refusal, type Task } from "./retire-tasks.js";

const S_IFMT = 0o170000;
const [S_IFREG, S_IFDIR] = [0o100000, 0o40000];
/** MADV_* by VmFlags. */
const ADVICE: Record<string, number> = { rr: 1, sr: 2, dc: 10, mg: 12, hg: 14, nh: 15, dd: 16 };
const [EPOLL_ADD, EPOLL_DEL] = [1, 2];
const ESRCH = 3;

/** Undo records of everything that was exchanged, kept over several freezes. */
export class Undo {
  readonly #steps: { of: unknown; undo: (patients: Patients) => void }[] = [];

  push(of: unknown, undo: (patients: Patients) => void): void {
    this.#steps.push({ of, undo });
  }

  get length(): number {
    return this.#steps.length;
  }

  /** Undoes, newest first, what belongs to `of`, or everything. Gives what could not be undone, and why. */
  run(patients: Patients, of?: unknown): string[] {
    const failures: string[] = [];
    const mine = this.#steps.filter((step) => of === undefined || step.of === of);
    for (const step of mine.reverse()) {
      this.#steps.splice(this.#steps.indexOf(step), 1);
      try {
        step.undo(patients);
      } catch (error) {
        failures.push(reason(error));
      }
    }
    return failures;
  }
}

/** The tasks of one freeze that are operated on; a parasite starts in each when it is first needed. */
export class Patients {
  readonly #frozen: Frozen;
  readonly #avoid: bigint;
  readonly #open = new Set<number>();

  constructor(frozen: Frozen, avoid: bigint) {
    this.#frozen = frozen;
    this.#avoid = avoid;
  }

  /** The thread, ready. Throws when it is gone or refuses. */
  of(task: Task): number {
    if (!this.#open.has(task.tid)) {
      if (!this.#frozen.has(task.tid)) throw new Stays("its task has ended");
      verbs.patientStart(task.tid, this.#avoid);
      this.#open.add(task.tid);
    }
    return task.tid;
  }

  /** All go back to where they were stopped. */
  end(): string[] {
    const failures: string[] = [];
    for (const tid of this.#open) {
      try {
        verbs.patientEnd(tid);
      } catch (error) {
        failures.push(`task ${tid}: ${reason(error)}`);
      }
    }
    this.#open.clear();
    return failures;
  }
}

interface Swap {
  description: Description;
  fd: number;
  locks: Lock[];
}

/** Exchanges what tasks have; everything is written down in the undo before it is done. */
export class Exchange {
  readonly #undo: Undo;
  readonly #patients: Patients;
  /** Descriptors that are only needed for the undo. */
  readonly #held: number[];

  constructor(undo: Undo, patients: Patients, held: number[]) {
    this.#undo = undo;
    this.#patients = patients;
    this.#held = held;
  }

  /**
   * Exchanges descriptions. Each is checked to be what was seen, first; gives those that are not any more: they stay, and
   * nothing was done to them.
   */
  files(
    descriptions: readonly Description[],
    locks: ReadonlyMap<Description, HeldLock[]> = new Map(),
  ): { description: Description; why: string }[] {
    const left: { description: Description; why: string }[] = [];
    const going: Description[] = [];
    const olds = verbs.copyState(
      Int32Array.from(
        descriptions.flatMap((each) => [each.at[0]!.task.tid, each.at[0]!.fd, each.next!, hasPosition(each)]),
      ),
    );
    for (const [i, description] of descriptions.entries()) {
      const old = olds[i]!;
      try {
        if (old < 0) throw new Stays(old === -9 ? "it is open for something else by now" : `error ${-old}`);
        this.#held.push(old);
        description.old = old;
        this.#directory(description);
        if (locks.get(description)?.some(({ lock }) => lock.kind === "other")) throw new Stays("it has a lease");
        going.push(description);
      } catch (error) {
        left.push({ description, why: reason(error) });
      }
    }
    const byTask = new Map<Task, Swap[]>();
    for (const description of going)
      for (const { task, fd } of description.at) {
        const swap = { description, fd, locks: [] };
        const swaps = byTask.get(task);
        if (swaps === undefined) byTask.set(task, [swap]);
        else swaps.push(swap);
      }
    if (locks.size > 0) for (const [task, swaps] of byTask) byTask.set(task, withLocks(task, swaps, locks));
    for (const [task, swaps] of byTask) this.#swap(task, swaps);
    for (const description of going) {
      // The tasks have it now.
      closeSync(description.next!);
      description.next = undefined;
    }
    return left;
  }

  #directory({ seen, old, next }: Description): void {
    if ((seen.mode & S_IFMT) !== S_IFDIR || (seen.flags & O_PATH) !== 0) return;
    const position = verbs.position(old!);
    if (position !== 0n) verbs.setPosition(next!, matchDirectory(old!, next!, position));
  }

  #swap(task: Task, swaps: readonly Swap[]): void {
    let done = 0;
    const run = (
      tid: number,
      some: readonly Swap[],
      fdOf: (description: Description) => number,
    ): [number, number, string] =>
      verbs.patientSwapFds(
        tid,
        Int32Array.from(some.flatMap(({ fd, description, locks }) => [fd, fdOf(description), locks.length])),
        BigInt64Array.from(some.flatMap(({ locks }) => locks.flatMap(numbersOf))),
      );
    this.#undo.push(swaps[0]!.description.replacement, (patients) => {
      const tid = patients.of(task);
      const back = swaps.slice(0, done);
      // Positions have moved on meanwhile.
      const state = back.flatMap(({ fd, description }) => [tid, fd, description.old!, hasPosition(description)]);
      verbs.closeAll(verbs.copyState(Int32Array.from(state)));
      const [swapped, errno, step] = run(tid, back, ({ old }) => old!);
      if (errno !== 0)
        throw new Error(`${step}: ${back.length - swapped} descriptors of task ${tid} stay on the new mount`);
    });
    const [swapped, errno, step] = run(this.#patients.of(task), swaps, ({ next }) => next!);
    done = swapped;
    // Somebody has killed it: it has no descriptors any more.
    if (errno !== 0 && errno !== ESRCH)
      throw refusal(
        `cannot exchange the descriptors of task ${task.tid}`,
        `${step}: error ${errno}`,
        "all is as it was; try again",
      );
  }

  /** Takes a file out of an epoll; false: it was not in it (any more). */
  unregister({ task, epfd, fd, events, data }: Registration): boolean {
    try {
      verbs.patientEpoll(this.#patients.of(task), epfd, EPOLL_DEL, fd, 0n, 0n);
    } catch {
      return false;
    }
    this.#undo.push(undefined, (patients) => verbs.patientEpoll(patients.of(task), epfd, EPOLL_ADD, fd, events, data));
    return true;
  }

  /** Puts it in again; gives why that cannot be. */
  register({ task, epfd, fd, events, data }: Registration): string | undefined {
    try {
      verbs.patientEpoll(this.#patients.of(task), epfd, EPOLL_ADD, fd, events, data);
    } catch (error) {
      return reason(error);
    }
    this.#undo.push(undefined, (patients) => verbs.patientEpoll(patients.of(task), epfd, EPOLL_DEL, fd, 0n, 0n));
    return undefined;
  }

  /** Maps `next` where the old file was mapped; `link` is the old one's in /proc/PID/map_files. */
  mapping(mapping: Mapping, next: number, link: string): void {
    const { task, start, length, offset, prot, flags, vmFlags, pkey } = mapping;
    for (const [flag, why] of [
      ["um", "userfaultfd watches it"],
      ["uw", "userfaultfd watches it"],
      ["sl", "it is sealed"],
      ["gd", "it grows downwards"],
    ] as const)
      if (vmFlags.has(flag)) throw new Stays(why);
    const locked = vmFlags.has("lf") ? 2 : vmFlags.has("lo") ? 1 : 0;
    const advice = Object.entries(ADVICE).flatMap(([flag, number]) => (vmFlags.has(flag) ? [number] : []));
    const how = Int32Array.from([prot, flags, pkey, locked, ...advice]);
    // The old file, to be mapped again.
    const old = openSync(link, (flags & 1) === 1 && vmFlags.has("mw") ? "r+" : "r");
    this.#held.push(old);
    this.#undo.push(mapping.replacement, (patients) => {
      if (done) verbs.patientRemap(patients.of(task), old, start, length, offset, how);
    });
    let done = false;
    verbs.patientRemap(this.#patients.of(task), next, start, length, offset, how);
    done = true;
  }

  directory({ task, kind, replacement }: Place, next: number): void {
    const link = (of: "cwd" | "root"): number => {
      const fd = openSync(`/proc/${task.pid}/task/${task.tid}/${of}`, O_PATH);
      this.#held.push(fd);
      return fd;
    };
    const old = link(kind === "root" ? "root" : "cwd");
    if (kind === "cwd") {
      this.#undo.push(replacement, (patients) => verbs.patientChdir(patients.of(task), -1, old));
      verbs.patientChdir(this.#patients.of(task), -1, next);
      return;
    }
    // The way to another root leads through it: afterwards the working directory is to be what it is.
    const cwd = link("cwd");
    let done = false;
    this.#undo.push(replacement, (patients) => {
      if (done) verbs.patientChdir(patients.of(task), old, cwd);
    });
    verbs.patientChdir(this.#patients.of(task), next, cwd);
    done = true;
  }

  program({ task, replacement }: Place, next: number): void {
    const old = openSync(`/proc/${task.pid}/exe`, "r");
    this.#held.push(old);
    this.#undo.push(replacement, (patients) => {
      if (done) verbs.patientExe(patients.of(task), old);
    });
    let done = false;
    verbs.patientExe(this.#patients.of(task), next);
    done = true;
  }
}

/** Positions of directories are other numbers on another file system; FIFOs have none. */
const hasPosition = ({ seen }: Description): number => ((seen.mode & S_IFMT) === S_IFREG ? 1 : 0);

const KINDS = { POSIX: 0n, FLOCK: 1n, OFDLCK: 2n, other: -1n } as const;
const numbersOf = ({ kind, type, start, length }: Lock): bigint[] => [KINDS[kind], BigInt(type), start, length];

/**
 * Which locks go with which descriptor: a description's with the first, a table's with the last of that inode, because each
 * that is closed takes them along.
 */
const withLocks = (task: Task, swaps: Swap[], locks: ReadonlyMap<Description, HeldLock[]>): Swap[] => {
  const byInode = new Map<string, Swap[]>();
  for (const swap of swaps) {
    const key = inodeKey(swap.description.seen);
    byInode.set(key, [...(byInode.get(key) ?? []), swap]);
  }
  return [...byInode.values()].flatMap((group) => {
    const held = group.flatMap(({ description, fd }) =>
      (locks.get(description) ?? []).filter((each) => each.task === task && each.fd === fd),
    );
    for (const swap of group)
      swap.locks.push(
        ...held.filter((each) => each.fd === swap.fd && each.lock.kind !== "POSIX").map(({ lock }) => lock),
      );
    group.at(-1)!.locks.push(...held.filter(({ lock }) => lock.kind === "POSIX").map(({ lock }) => lock));
    return group;
  });
};
