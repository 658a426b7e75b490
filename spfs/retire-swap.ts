// SPDX-License-Identifier: Apache-2.0
// The exchange under stopped tasks. Each step is written down with its undo before the next is made.

import { closeSync, existsSync, openSync } from "node:fs";
import { getSystemErrorName } from "node:util";
import { reason } from "../shim/error.js";
import { O_PATH } from "../shim/flags.js";
import { type Description, inodeKey, type Mapping, type Place } from "./retire-find.js";
import type { HeldLock, Lock } from "./retire-locks.js";
import { verbs } from "./retire-native.js";
import { matchDirectory, Stays } from "./retire-open.js";
import type { Registration } from "./retire-others.js";
import { type Frozen, refusal, type Task } from "./retire-tasks.js";

const S_IFMT = 0o170000;
const [S_IFREG, S_IFDIR] = [0o100000, 0o40000];
/** MADV_* by VmFlags. */
const ADVICE: Record<string, number> = { rr: 1, sr: 2, dc: 10, mg: 12, hg: 14, nh: 15, dd: 16 };
const [ENOENT, ESRCH, EMFILE] = [2, 3, 24];

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

  has({ tid }: Task): boolean {
    return this.#open.has(tid);
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

/** A registration on its way: 0 when it is made anew, ENOENT when it was not there, negative why it could not be made. */
interface Watch {
  registration: Registration;
  /** Made also where none was. */
  always: boolean;
  result: number;
}

interface Swap {
  task: Task;
  description: Description;
  fd: number;
  locks: Lock[];
  watches: Watch[];
}

/** Descriptors, locks and watches of one task that change at once: what one message can carry (native/surgeon/patient.h). */
const [MOST_SWAPS, MOST_LOCKS, MOST_WATCHES] = [240, 60, 60];

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
   * Exchanges descriptions, and registers them anew where epolls watch them. Each is checked to be what was seen, first; gives those
   * that are not any more: they stay, and nothing was done to them. And registrations that the new files do not have.
   */
  files(
    descriptions: readonly Description[],
    locks: ReadonlyMap<Description, HeldLock[]> = new Map(),
    registrations: readonly Registration[] = [],
  ): { left: { description: Description; why: string }[]; unwatched: { registration: Registration; why: string }[] } {
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
    const rounds = roundsOf(going, locks, registrations);
    for (const round of rounds) this.#swap(round);
    for (const description of going) {
      // The tasks have it now.
      closeSync(description.next!);
      description.next = undefined;
    }
    const watches = rounds.flat().flatMap((swap) => swap.watches);
    const unwatched = watches.filter(({ result }) => result < 0);
    return {
      left,
      unwatched: unwatched.map(({ registration, result }) => ({ registration, why: getSystemErrorName(result) })),
    };
  }

  #directory({ seen, old, next }: Description): void {
    if ((seen.mode & S_IFMT) !== S_IFDIR || (seen.flags & O_PATH) !== 0) return;
    const position = verbs.position(old!);
    if (position !== 0n) verbs.setPosition(next!, matchDirectory(old!, next!, position));
  }

  /** In all tasks at once: whoever shares an open file goes on sharing one, whenever we are killed. */
  #swap(round: readonly Swap[]): void {
    let done: readonly Swap[] = [];
    this.#undo.push(round[0]!.description.replacement, (patients) => {
      // Positions have moved on meanwhile.
      const state = done.flatMap(({ task, fd, description }) => [
        task.tid,
        fd,
        description.old!,
        hasPosition(description),
      ]);
      verbs.closeAll(verbs.copyState(Int32Array.from(state)));
      // What was taken out is put back, also where the new file could not be watched.
      const back = done.map((swap) => ({
        ...swap,
        watches: swap.watches.flatMap((each) => (each.result === ENOENT ? [] : [{ ...each, always: true }])),
      }));
      const { why } = exchange(patients, back, ({ old }) => old!);
      if (why !== undefined) throw new Error(`${why}: descriptors stay on the new mount`);
    });
    const result = exchange(this.#patients, round, ({ next }) => next!);
    done = result.done;
    if (result.why !== undefined)
      throw refusal("cannot exchange the descriptors of tasks", result.why, "all is as it was; try again");
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

const isAlive = ({ tid }: Task): boolean => existsSync(`/proc/${tid}`);

/** One round. With fewer at once where a task has no numbers free; without those whom somebody has killed. */
const exchange = (
  patients: Patients,
  round: readonly Swap[],
  fdOf: (description: Description) => number,
): { done: Swap[]; why?: string } => {
  const rows = round.filter(({ task }) => patients.has(task) || isAlive(task));
  if (rows.length === 0) return { done: [] };
  for (const { task } of rows) patients.of(task);
  const tids = [...new Set(rows.map(({ task }) => task.tid))];
  const sorted = tids.flatMap((tid) => rows.filter(({ task }) => task.tid === tid));
  const watches = sorted.flatMap((swap) => swap.watches);
  const told = BigInt64Array.from(
    watches.flatMap(({ registration: { epfd, events, data }, always }) => [
      BigInt(epfd),
      events,
      data,
      always ? 1n : 0n,
      0n,
    ]),
  );
  const [errno, step, ...counts] = verbs.patientSwapFds(
    Int32Array.from(
      sorted.flatMap(({ task, fd, description, locks, watches }) => [
        task.tid,
        fd,
        fdOf(description),
        locks.length,
        watches.length,
      ]),
    ),
    BigInt64Array.from(sorted.flatMap(({ locks }) => locks.flatMap(numbersOf))),
    told,
  );
  for (const [i, watch] of watches.entries()) watch.result = Number(told[i * 5 + 4]);
  const done = tids.flatMap((tid, i) => sorted.filter(({ task }) => task.tid === tid).slice(0, counts[i]));
  if (errno === 0) return { done };
  const living = rows.filter(({ task }) => isAlive(task));
  if (errno === ESRCH && done.length === 0 && living.length < rows.length) return exchange(patients, living, fdOf);
  const files = [...new Set(rows.map(({ description }) => description))];
  if (errno === EMFILE && done.length === 0 && files.length > 1) {
    const few = new Set(files.slice(0, files.length >> 1));
    const first = exchange(
      patients,
      rows.filter(({ description }) => few.has(description)),
      fdOf,
    );
    if (first.why !== undefined) return first;
    const second = exchange(
      patients,
      rows.filter(({ description }) => !few.has(description)),
      fdOf,
    );
    return { ...second, done: [...first.done, ...second.done] };
  }
  return { done, why: `${step}: error ${errno}` };
};

/** Descriptions of one inode together; as many as one message to each task can carry. */
const roundsOf = (
  going: readonly Description[],
  locks: ReadonlyMap<Description, HeldLock[]>,
  registrations: readonly Registration[],
): Swap[][] => {
  const byInode = new Map<string, Description[]>();
  for (const description of going) {
    const key = inodeKey(description.seen);
    const group = byInode.get(key);
    if (group === undefined) byInode.set(key, [description]);
    else group.push(description);
  }
  const watched = new Map<string, Registration[]>();
  for (const each of registrations) {
    const key = `${each.task.tid} ${each.fd}`;
    watched.set(key, [...(watched.get(key) ?? []), each]);
  }
  const rounds: Swap[][] = [];
  const none = { swaps: 0, locks: 0, watches: 0 };
  let sizes = new Map<Task, typeof none>();
  for (const group of byInode.values())
    for (const swap of withLocks(group, locks, watched)) {
      const size = sizes.get(swap.task) ?? none;
      const isFull =
        size.swaps + 1 > MOST_SWAPS ||
        size.locks + swap.locks.length > MOST_LOCKS ||
        size.watches + swap.watches.length > MOST_WATCHES;
      if (rounds.length === 0 || (isFull && rounds.at(-1)!.at(-1)!.description !== swap.description)) {
        rounds.push([]);
        sizes = new Map();
      }
      rounds.at(-1)!.push(swap);
      const now = sizes.get(swap.task) ?? none;
      sizes.set(swap.task, {
        swaps: now.swaps + 1,
        locks: now.locks + swap.locks.length,
        watches: now.watches + swap.watches.length,
      });
    }
  return rounds;
};

/**
 * The descriptors of one inode and what goes with them: an epoll's registration with its own; locks of a description with its first, of
 * a table with its last, because each that is closed takes those along.
 */
const withLocks = (
  group: readonly Description[],
  locks: ReadonlyMap<Description, HeldLock[]>,
  watched: ReadonlyMap<string, Registration[]>,
): Swap[] => {
  const swaps = group.flatMap((description) =>
    description.at.map(({ task, fd }): Swap => {
      const registrations = watched.get(`${task.tid} ${fd}`) ?? [];
      const watches = registrations.map((registration) => ({ registration, always: false, result: ENOENT }));
      return { task, description, fd, locks: [], watches };
    }),
  );
  for (const description of group)
    for (const { task, fd, lock } of locks.get(description) ?? []) {
      const swap =
        lock.kind === "POSIX"
          ? swaps.findLast((each) => each.task === task)
          : swaps.find((each) => each.task === task && each.fd === fd);
      swap?.locks.push(lock);
    }
  return swaps;
};
