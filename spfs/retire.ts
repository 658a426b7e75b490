// SPDX-License-Identifier: Apache-2.0
// The real mount takes the place of another under everything that a container's tasks have of it: docs/spfs-retire.md.
import { closeSync, fstatSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import { mountIdOf } from "../shim/carriers/tasks.js";
import { reason } from "../shim/error.js";
import { finish, type Operation, openNext, seeAgain } from "./retire-final.js";
import { areReadOnly, type Description, describe, inodeKey, Mounts, mappingsOf } from "./retire-find.js";
import { deviceOf, namedMount, namespacesOf, parseTable, type Replacement, replacementsFor } from "./retire-mounts.js";
import { verbs } from "./retire-native.js";
import { hasStableInodes, Opener } from "./retire-open.js";
import { type Left, serverAmong } from "./retire-others.js";
import { Exchange, Patients, Undo } from "./retire-swap.js";
import { Container, freeze, mountNamespace, refusal, sharers, type Task } from "./retire-tasks.js";

export interface RetireRequest {
  /** Any task of the container, in whose mount namespace the mount is named; all of the container's tasks are treated. */
  root: number;
  /** Where the mount stands in that namespace. Other mounts of the same part of its file system are replaced, too. */
  mountpoint: string;
  /** An O_PATH or O_DIRECTORY descriptor of the real directory; its mount is copied. Lent. */
  real: number;
  /** Whether inode numbers are the same on both; unless it is told, it is told by those of the two roots. */
  sameInodes?: boolean;
}

export interface RetireReport {
  /** Descriptors, mappings, directories and programs that are on the real mount now. */
  swapped: number;
  /** Mounts that were replaced. */
  mounts: number;
  /** What still is on the old mount, which lives on, mounted nowhere, for as long as that is so. */
  left: Left[];
  /** The longest time that the tasks stood still, and all of it. */
  frozenMs: number;
  frozenTotalMs: number;
  /** How often they did. */
  batches: number;
}

/** Descriptors in one freeze: some 50 ms. */
const BATCH = 2500;

/** Tables of descriptors by their thread, the same object each time. */
class Tables {
  readonly #known = new Map<number, Task>();

  of(pids: readonly number[], threadsOf: (pid: number) => number[]): Task[] {
    return sharers(pids, "files", threadsOf).map((task) => {
      const known = this.#known.get(task.tid) ?? task;
      this.#known.set(task.tid, known);
      return known;
    });
  }
}

/** Groups of files that nobody writes to, some at a time; the rest changes in the last freeze. */
const inBatches = (groups: readonly Description[][]): Description[][] => {
  const batches: Description[][] = [];
  let size = BATCH;
  for (const group of groups) {
    const count = group.reduce((sum, { at }) => sum + at.length, 0);
    if (size + count > BATCH) {
      batches.push([]);
      size = 0;
    }
    batches.at(-1)!.push(...group);
    size += count;
  }
  return batches;
};

const byInode = (descriptions: readonly Description[]): Description[][] => {
  const groups = new Map<string, Description[]>();
  for (const each of descriptions) {
    const key = inodeKey(each.seen);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [each]);
    else group.push(each);
  }
  return [...groups.values()];
};

/**
 * Replaces a mount. Files that are only read go first, some at a time, the tasks running in between; all others, directories,
 * mappings and the mount itself go in one last freeze. Throws ERR_RETIRE, and then everything is as it was.
 */
export const retire = async (request: RetireRequest): Promise<RetireReport> => {
  const container = new Container(request.root);
  container.check();
  const pids = container.processes();
  const namespaces = namespacesOf(request.root, pids);
  const held: number[] = namespaces.map(({ fd }) => fd);
  const openers = new Map<Replacement, Opener>();
  let known: Description[] = [];
  try {
    const named = namedMount(request.root, request.mountpoint, namespaces[0]!.table);
    const replacements = replacementsFor(named, namespaces, request.real);
    for (const { tree } of replacements) if (tree !== undefined) held.push(tree);
    const byNamespace = new Map(namespaces.map(({ ino, fd }) => [ino, fd]));
    const attached = new Set(
      [...namespaces.flatMap(({ table }) => table), ...parseTable(verbs.mountTable(-1))].map(({ id }) => id),
    );
    for (const { tree } of replacements) if (tree !== undefined) attached.add(mountIdOf(tree));
    const strays = { dev: fstatSync(request.real, { bigint: true }).dev, attached };
    const mounts = new Mounts(replacements, (pid) => byNamespace.get(mountNamespace(pid) ?? 0) ?? -1, strays);
    for (const replacement of replacements) {
      const root = verbs.openPlace(replacement.ns, replacement.mount.point, -1);
      openers.set(
        replacement,
        new Opener(request.sameInodes ?? hasStableInodes(root, replacement.tree ?? request.real)),
      );
      closeSync(root);
    }
    const tables = new Tables();
    const threadsOf = (pid: number): number[] => container.threads(pid);
    const operation: Operation = {
      mounts,
      openers,
      undo: new Undo(),
      held,
      left: [],
      threadsOf,
      avoid: deviceOf(named.dev),
      swapped: 0,
    };

    const first = tables.of(pids, threadsOf);
    const found = first.map((task) => ({ task, ...mounts.open(task, true) }));
    const server = serverAmong(
      mounts,
      found.flatMap(({ others }) => others),
    );
    if (server !== undefined)
      throw refusal(
        `cannot retire the mount at \`${named.point}\``,
        `task ${server}, which would have to stop, is the one that serves it`,
        "a mount that is served from inside of the container stays as it is",
      );
    const open = found.flatMap(({ task, files }) => files.map((seen) => ({ task, seen })));
    const groups = byInode(describe(mounts, open).descriptions);
    const mapped = new Set(
      sharers(pids, "vm", threadsOf).flatMap((task) => mappingsOf(mounts, task).map(({ seen }) => inodeKey(seen))),
    );
    const isEarly = (group: Description[]): boolean =>
      areReadOnly(group) &&
      !mapped.has(inodeKey(group[0]!.seen)) &&
      group.every(({ replacement }) => replacement.later === undefined);
    const early = groups.filter(isEarly);
    const report: RetireReport = {
      swapped: 0,
      mounts: 0,
      left: operation.left,
      frozenMs: 0,
      frozenTotalMs: 0,
      batches: 0,
    };
    const count = (ms: number): void => {
      report.frozenMs = Math.max(report.frozenMs, ms);
      report.frozenTotalMs += ms;
      report.batches++;
    };

    try {
      // Less than one batch is not worth a freeze of its own.
      const batches = early.flat().length > BATCH ? inBatches(early) : [];
      for (const batch of batches) {
        await setImmediate();
        known = batch.filter((each) => openNext(operation, each, false));
        count(exchangeEarly(operation, container, tables, known));
        closeNext(known);
      }
      known = groups.filter((group) => batches.length === 0 || !isEarly(group)).flat();
      // What only the freeze can tell, and what is copied, waits for it.
      known = known.filter(
        (each) => each.gone || each.replacement.later !== undefined || openNext(operation, each, false),
      );
      await setImmediate();
      const frozen = freeze(container);
      try {
        report.mounts = finish(operation, frozen, known, tables.of(frozen.pids, threadsOf));
      } finally {
        count(frozen.thaw());
      }
    } catch (error) {
      undoEarly(operation, container, error);
      throw (error as { code?: string }).code === "ERR_RETIRE"
        ? error
        : refusal(`cannot retire the mount at \`${named.point}\``, reason(error), "everything is as it was", error);
    }
    report.swapped = operation.swapped;
    return report;
  } finally {
    closeNext(known);
    for (const opener of openers.values()) opener.close();
    verbs.closeAll(Int32Array.from(held));
  }
};

const closeNext = (descriptions: readonly Description[]): void => {
  for (const each of descriptions) {
    if (each.next !== undefined) closeSync(each.next);
    each.next = undefined;
  }
};

/** One batch, in a freeze of its own. Gives how long that was. */
const exchangeEarly = (
  operation: Operation,
  container: Container,
  tables: Tables,
  batch: readonly Description[],
): number => {
  const size = (some: readonly Description[]): number => some.reduce((sum, { at }) => sum + at.length, 0);
  const frozen = freeze(container);
  const patients = new Patients(frozen, operation.avoid);
  let ms = 0;
  try {
    const now = tables.of(frozen.pids, operation.threadsOf);
    // What has changed meanwhile is left for the last freeze.
    const { same } = seeAgain(new Map(now.map((task) => [task, operation.mounts.brief(task)])), batch);
    const { left } = new Exchange(operation.undo, patients, operation.held).files(same);
    operation.swapped += size(same) - size(left.map(({ description }) => description));
  } finally {
    patients.end();
    ms = frozen.thaw();
  }
  return ms;
};

/** What went in earlier freezes goes back. */
const undoEarly = (operation: Operation, container: Container, cause: unknown): void => {
  if (operation.undo.length === 0) return;
  const frozen = freeze(container);
  const patients = new Patients(frozen, operation.avoid);
  try {
    const failures = operation.undo.run(patients);
    if (failures.length > 0)
      throw refusal(
        "cannot retire a mount",
        reason(cause),
        `both mounts serve; not put back: ${failures.join("; ")}`,
        cause,
      );
  } finally {
    patients.end();
    frozen.thaw();
  }
};
