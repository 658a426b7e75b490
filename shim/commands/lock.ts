// SPDX-License-Identifier: Apache-2.0
// Locks that wait for a restore, for people: which there are, whom they still serve, and out with them.
import { CryoshimError } from "../error.js";
import { clearKept, droppedByKept, type KeptLock, listKept, orphaned } from "../netlock/kept.js";
import type { Dropped } from "../netlock/netlock.js";

export interface LockState extends KeptLock {
  /** Packets dropped so far. */
  dropped?: Dropped;
  /** Why it serves nobody any more. */
  orphan?: string;
}

/** Every kept lock, oldest first. */
export const locks = (): LockState[] =>
  listKept()
    .sort((a, b) => a.time.localeCompare(b.time))
    .map((lock) => {
      const orphan = orphaned(lock);
      const dropped = orphan === undefined ? droppedByKept(lock.id) : undefined;
      return { ...lock, ...(dropped && { dropped }), ...(orphan !== undefined && { orphan }) };
    });

/** The list for people. */
export const lockTable = (all: readonly LockState[]): string => {
  if (all.length === 0) return "no network is locked";
  const extents = { netns: "all of network namespace", sockets: "sockets in network namespace" } as const;
  return all
    .map(({ id, extent, netns, images, pid, time, dropped, orphan }) => {
      const counts = dropped && `dropped ${dropped.in} in, ${dropped.out} out, ${dropped.forwarded} forwarded`;
      return [
        `${id}  ${extents[extent]} ${netns}`,
        `  since ${time}, process ${pid}, images in ${images.replace(/[\p{Cc}\p{Cf}]/gu, "?")}`,
        `  ${orphan === undefined ? (counts ?? "") : `serves nobody: ${orphan} (cryoshim lock clear --orphans)`}`,
      ].join("\n");
    })
    .join("\n");
};

/**
 * Clears locks: those named, the orphans, or all. Returns what was, or would be, cleared. Throws ERR_LOCK for an id that
 * there is not.
 */
export const clearLocks = (
  ids: readonly string[],
  { orphans = false, all = false, dryRun = false }: { orphans?: boolean; all?: boolean; dryRun?: boolean },
): LockState[] => {
  if (ids.length === 0 && !orphans && !all)
    throw new CryoshimError("ERR_USAGE", {
      what: "cannot clear locks",
      why: "none is named",
      fix: "name ids of `cryoshim lock list`, or --orphans, or --all",
    });
  const known = locks();
  const unknown = ids.find((id) => !known.some((lock) => lock.id === id));
  if (unknown !== undefined)
    throw new CryoshimError("ERR_LOCK", {
      what: `cannot clear the lock \`${unknown}\``,
      why: "there is none of this id",
      fix: "see `cryoshim lock list`; a restore takes its lock away itself",
    });
  const chosen = known.filter(({ id, orphan }) => all || ids.includes(id) || (orphans && orphan !== undefined));
  if (!dryRun) for (const { id } of chosen) clearKept(id);
  return chosen;
};
