// SPDX-License-Identifier: Apache-2.0
// The end of a container: nothing that was made for it outlives it. What a later restore needs is in the images.

import { reason } from "../shim/error.js";
import { sweep as sweepLocks } from "../shim/netlock/kept.js";
import { recall } from "../shim/remote/state.js";
import { listSpfs, openSpfs } from "../spfs/control.js";
import { madeAt, type Name, processOf, readRecord, recorded, removeRecord } from "./record.js";

/** Each step is tried whatever became of the others; what failed is told. */
const all = async (steps: (() => void | Promise<void>)[], tell: (text: string) => void): Promise<void> => {
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      tell(reason(error));
    }
  }
};

/** Another hook may be about to write it. */
const YOUNG_MS = 60_000;

/** Whether a container is over though nobody has told: a start that failed, or an import of podman's, has no poststop. */
const isOver = (name: Name): boolean => {
  const record = readRecord(name);
  if (record === undefined) return Date.now() - madeAt(name) > YOUNG_MS;
  const { process } = record;
  return process === undefined || processOf(process.pid)?.startTime !== process.startTime;
};

/** Takes away what was made for a container. */
export const cleanUp = (name: Name, tell: (text: string) => void): Promise<void> =>
  all([() => removeRecord(name)], tell);

/**
 * SPFS goes with the mounts of its container, and its keeper with it; but not while somebody else holds one of them, as a process that
 * has outlived the container, or the host, where it was put by hand.
 */
const stopSpfs = async (id: string): Promise<void> => {
  const root = recall(id)?.root;
  if (root !== undefined && processOf(root) === undefined) await (await openSpfs(id)).stop();
};

/** Takes away what serves nobody any more: of containers that are over, and network locks of namespaces that are gone. */
export const sweep = async (tell: (text: string) => void): Promise<void> => {
  const over = recorded().filter(isOver);
  const steps = over.map((name) => () => cleanUp(name, tell));
  await all([...steps, sweepLocks, ...listSpfs().map((id) => () => stopSpfs(id))], tell);
};
