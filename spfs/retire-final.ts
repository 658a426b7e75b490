// SPDX-License-Identifier: Apache-2.0
// The last freeze: what is left is exchanged, the mounts change places, and nothing leads to the old one any more.

import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { reason } from "../shim/error.js";
import { O_PATH } from "../shim/flags.js";
import {
  type Description,
  describe,
  inodeKey,
  type Mapping,
  type Mounts,
  mappingsOf,
  type Place,
  placesOf,
} from "./retire-find.js";
import { locksBy } from "./retire-locks.js";
import { openLate, putBeneath, type Replacement, takePlace } from "./retire-mounts.js";
import { type Seen, verbs } from "./retire-native.js";
import { type Opener, openReal, Stays, writeBack } from "./retire-open.js";
import { type Left, leftOf, type Registration, registrationsOf } from "./retire-others.js";
import { Exchange, Patients, type Undo } from "./retire-swap.js";
import { credentialsOf, type Frozen, refusal, sharers, type Task } from "./retire-tasks.js";

/** What is under way over several freezes. */
export interface Operation {
  mounts: Mounts;
  openers: ReadonlyMap<Replacement, Opener>;
  undo: Undo;
  /** Ours, to be closed when all is over. */
  held: number[];
  left: Left[];
  threadsOf: (pid: number) => number[];
  /** The device of the old mounts. */
  avoid: bigint;
  swapped: number;
}

const S_IFMT = 0o170000;
const S_IFIFO = 0o10000;
const [O_RDONLY, O_RDWR] = [0, 2];

export const nameOf = ({ replacement, path }: { replacement: Replacement; path: string }): string =>
  path === "" ? replacement.mount.point : `${replacement.mount.point}/${path}`;

const isSameInode = (a: number, b: number): boolean => {
  const [x, y] = [fstatSync(a, { bigint: true }), fstatSync(b, { bigint: true })];
  return x.ino === y.ino && x.dev === y.dev;
};

const stays = (operation: Operation, pid: number, what: string, why: string): void => {
  operation.left.push({ pid, what, why });
};

const descriptionStays = (operation: Operation, description: Description, why: string): void => {
  for (const { task, fd } of description.at)
    stays(operation, task.pid, `descriptor ${fd}: ${nameOf(description)}`, why);
  if (description.next !== undefined) closeSync(description.next);
  description.next = undefined;
};

interface Where {
  task: Task;
  fd: number;
}

/** What tables have on the old mounts now: descriptions that are as they were seen, and what must be looked at again. */
export const seeAgain = (
  open: ReadonlyMap<Task, readonly Seen[]>,
  known: readonly Description[],
): { same: Description[]; changed: Where[] } => {
  const byPlace = new Map<Task, Map<number, Description>>();
  for (const description of known)
    for (const { task, fd } of description.at) {
      const of = byPlace.get(task) ?? new Map<number, Description>();
      byPlace.set(task, of.set(fd, description));
    }
  const keyOf = ({ mount, ino }: Seen): string => `${mount} ${ino}`;
  const count = new Map<Description, number>();
  // An inode of which anything is new is looked at again as a whole: descriptions may have come to share an offset.
  const fresh = new Set<string>();
  for (const [task, files] of open) {
    const of = byPlace.get(task);
    for (const seen of files) {
      const description = of?.get(seen.fd);
      if (description !== undefined && description.seen.ino === seen.ino && description.seen.mount === seen.mount)
        count.set(description, (count.get(description) ?? 0) + 1);
      else fresh.add(keyOf(seen));
    }
  }
  for (const each of known) if (count.get(each) !== each.at.length) fresh.add(keyOf(each.seen));
  if (fresh.size === 0) return { same: [...known], changed: [] };
  const changed = [...open].flatMap(([task, files]) =>
    files.filter((seen) => fresh.has(keyOf(seen))).map(({ fd }) => ({ task, fd })),
  );
  return { same: known.filter(({ seen }) => !fresh.has(keyOf(seen))), changed };
};

const lookCloser = (mounts: Mounts, some: readonly Where[]): { task: Task; seen: Seen }[] =>
  some.flatMap(({ task, fd }) => {
    const [seen] = mounts.lookAt(task.pid, [`${task.pid}/task/${task.tid}/fd/${fd}`]);
    if (seen === undefined || !mounts.concern(seen)) return [];
    const note = readFileSync(`/proc/${task.pid}/task/${task.tid}/fdinfo/${fd}`, "latin1");
    const flags = Number.parseInt(/^flags:\s*(\d+)$/m.exec(note)?.[1] ?? "0", 8);
    return [{ task, seen: { ...seen, fd, flags, note } }];
  });

/** Opens what takes a description's place; false: it stays, which the last freeze tells. */
export const openNext = (operation: Operation, description: Description, last: boolean): boolean => {
  const { seen, replacement, as, at } = description;
  const source = (): number => {
    const [fd = -1] = verbs.copyState(Int32Array.from([at[0]!.task.tid, at[0]!.fd, -1, 0]));
    operation.held.push(fd);
    return fd;
  };
  try {
    description.next ??= operation.openers.get(replacement)!.open(description, seen.flags, as, source);
    return true;
  } catch (error) {
    if (!(error instanceof Stays)) throw error;
    if (last) descriptionStays(operation, description, error.message);
    return false;
  }
};

/** A FIFO is exchanged when all of its ends that are known are here; what is in it comes along. */
const openFifos = (operation: Operation, descriptions: readonly Description[]): Set<Description> => {
  const bad = new Set<Description>();
  const byInode = new Map<string, Description[]>();
  for (const each of descriptions)
    if ((each.seen.mode & S_IFMT) === S_IFIFO && (each.seen.flags & O_PATH) === 0) {
      const key = inodeKey(each.seen);
      byInode.set(key, [...(byInode.get(key) ?? []), each]);
    }
  for (const group of byInode.values()) {
    const access = new Set(group.map(({ seen }) => seen.flags & 3));
    const whole = access.has(O_RDWR) || access.size > 1;
    const [first] = group as [Description];
    try {
      if (!whole) throw new Stays("only one of its ends is open in the container");
      const tree = first.replacement.tree;
      if (tree === undefined || first.gone) throw new Stays("it has no name on the real mount");
      const to = operation.openers.get(first.replacement)!.holdFifo(tree, first.path);
      const [any = -1] = verbs.copyState(Int32Array.from([first.at[0]!.task.tid, first.at[0]!.fd, -1, 0]));
      operation.held.push(any);
      const from = openSync(`/proc/self/fd/${any}`, O_RDWR | 0o4000);
      operation.held.push(from);
      // On another mount of the same file system it is the same pipe.
      if (!isSameInode(from, to)) verbs.teePipe(from, to);
    } catch (error) {
      for (const each of group) {
        bad.add(each);
        descriptionStays(operation, each, reason(error));
      }
    }
  }
  return bad;
};

/** One wave: everything of replacements whose new mount is there. */
const exchangeAll = (operation: Operation, exchange: Exchange, wave: Wave): void => {
  const { mounts, openers } = operation;
  const fifos = openFifos(operation, wave.descriptions);
  // All of an inode, or nothing of it.
  const staying = new Set<string>();
  let going = wave.descriptions.filter((each) => {
    if (!fifos.has(each) && openNext(operation, each, true)) return true;
    staying.add(inodeKey(each.seen));
    return false;
  });
  if (staying.size > 0)
    going = going.filter((each) => {
      if (!staying.has(inodeKey(each.seen)) || each.gone) return true;
      descriptionStays(operation, each, "another descriptor of this file stays");
      return false;
    });
  const locks = locksBy(mounts, going, wave.tables);

  // Mappings come first: a file is opened and closed in the task for each, and that takes its POSIX locks along.
  for (const mapping of wave.mappings) {
    const link = `/proc/${mapping.task.tid}/map_files/${mapping.start.toString(16)}-${(mapping.start + mapping.length).toString(16)}`;
    const writable = (mapping.flags & 1) === 1 && mapping.vmFlags.has("mw");
    try {
      if (staying.has(inodeKey(mapping.seen))) throw new Stays("a descriptor of this file stays");
      const as = credentialsOf(mapping.task.pid);
      const next = openers.get(mapping.replacement)!.open(mapping, writable ? O_RDWR : O_RDONLY, as, () => {
        operation.held.push(openSync(link, O_RDONLY));
        return operation.held.at(-1)!;
      });
      operation.held.push(next);
      if (writable) writeBack(link);
      exchange.mapping(mapping, next, link);
      operation.swapped++;
    } catch (error) {
      stays(operation, mapping.task.pid, `mapping at ${mapping.start.toString(16)}: ${nameOf(mapping)}`, reason(error));
    }
  }

  const { left, unwatched } = exchange.files(going, locks, wave.registrations);
  for (const { description, why } of left) {
    staying.add(inodeKey(description.seen));
    descriptionStays(operation, description, why);
  }
  for (const { registration, why } of unwatched)
    stays(
      operation,
      registration.task.pid,
      `descriptor ${registration.fd} in epoll ${registration.epfd}`,
      `the real mount's files cannot be watched: ${why}`,
    );
  operation.swapped += going.reduce((sum, { at }) => sum + at.length, 0);

  for (const place of wave.places) {
    try {
      if (place.gone) throw new Stays("it has no name any more");
      const tree = place.replacement.tree!;
      const next = openReal(tree, place.path, place.kind === "exe" ? O_RDONLY : O_PATH, credentialsOf(place.task.pid));
      operation.held.push(next);
      if (place.kind === "exe") exchange.program(place, next);
      else exchange.directory(place, next);
      operation.swapped++;
    } catch (error) {
      const what = { cwd: "working directory", root: "root directory", exe: "program" }[place.kind];
      stays(operation, place.task.pid, `${what}: ${nameOf(place)}`, reason(error));
    }
  }
};

interface Wave {
  descriptions: Description[];
  registrations: Registration[];
  mappings: Mapping[];
  places: Place[];
  tables: readonly Task[];
}

/** Everything that is there now, in the freeze. */
const lookAround = (
  operation: Operation,
  frozen: Frozen,
  known: readonly Description[],
  tables: readonly Task[],
): Wave => {
  const { mounts, threadsOf } = operation;
  const open = new Map(tables.map((task) => [task, mounts.open(task, false)] as const));
  const { same, changed } = seeAgain(new Map([...open].map(([task, { files }]) => [task, files])), known);
  const kept = new Set(same);
  for (const each of known)
    if (!kept.has(each) && each.next !== undefined) {
      closeSync(each.next);
      each.next = undefined;
    }
  const { descriptions, lost } = describe(mounts, lookCloser(mounts, changed));
  for (const { task, seen } of lost)
    stays(operation, task.pid, `descriptor ${seen.fd}: ${seen.path}`, "it is not below the mount point");
  const spaces = sharers(frozen.pids, "vm", threadsOf);
  const others = [...open.values()].flatMap((each) => each.others);
  operation.left.push(...leftOf(mounts, others, frozen.pids));
  return {
    descriptions: [...same, ...descriptions],
    registrations: registrationsOf(mounts, others),
    mappings: spaces.flatMap((task) => mappingsOf(mounts, task)),
    places: placesOf(mounts, sharers(frozen.pids, "fs", threadsOf), spaces),
    tables,
  };
};

const partOf = (wave: Wave, of: (replacement: Replacement) => boolean): Wave => ({
  ...wave,
  descriptions: wave.descriptions.filter(({ replacement }) => of(replacement)),
  mappings: wave.mappings.filter(({ replacement }) => of(replacement)),
  places: wave.places.filter(({ replacement }) => of(replacement)),
});

/** What could not be opened before. There is no way back here, and what fails stays. */
const follow = (operation: Operation, exchange: Exchange, wave: Wave): number => {
  let placed = 0;
  for (const replacement of operation.mounts.replacements.filter(({ later }) => later !== undefined))
    try {
      openLate(replacement);
      exchangeAll(
        operation,
        exchange,
        partOf(wave, (each) => each === replacement),
      );
      placed++;
    } catch (error) {
      stays(operation, 0, `mount at ${replacement.mount.point} in another namespace`, reason(error));
    }
  return placed;
};

/** In the freeze. Throws with everything as it was. Gives how many mounts have changed places. */
export const finish = (
  operation: Operation,
  frozen: Frozen,
  known: readonly Description[],
  tables: readonly Task[],
): number => {
  const { mounts, undo } = operation;
  const patients = new Patients(frozen, operation.avoid);
  const exchange = new Exchange(undo, patients, operation.held);
  let placed = 0;
  try {
    const wave = lookAround(operation, frozen, known, tables);
    for (const task of partOf(wave, () => true).descriptions.flatMap(({ at }) => at.map((each) => each.task)))
      patients.of(task);
    exchangeAll(
      operation,
      exchange,
      partOf(wave, ({ tree }) => tree !== undefined),
    );
    for (const replacement of mounts.replacements) {
      if (replacement.later === "propagated") continue;
      const { mount, ns } = replacement;
      try {
        putBeneath(replacement);
      } catch (error) {
        if (placed === 0) throw error;
        undo.run(patients, replacement);
        stays(operation, 0, `mount at ${mount.point} (namespace ${ns})`, reason(error));
        continue;
      }
      try {
        takePlace(replacement, (part) => openReal(replacement.tree!, part, O_PATH | 0o400000));
      } catch (error) {
        // It is beneath: the files of before and after are both served.
        stays(operation, 0, `mount at ${mount.point}`, reason(error));
      }
      placed++;
    }
    placed += follow(operation, exchange, wave);
  } catch (error) {
    const failures = undo.run(patients);
    if (failures.length === 0) throw error;
    throw refusal(
      "cannot retire a mount",
      reason(error),
      `both mounts serve; not put back: ${failures.join("; ")}`,
      error,
    );
  } finally {
    for (const failure of patients.end()) stays(operation, 0, "task", failure);
  }
  return placed;
};
