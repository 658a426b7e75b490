// SPDX-License-Identifier: Apache-2.0
// The end of a container: nothing that was made for it outlives it. What a later restore needs is in the images.
import { reason } from "../shim/error.js";
import { sweep as sweepLocks } from "../shim/netlock/kept.js";
import { madeAt, type Name, processOf, readRecord, recorded, removeRecord } from "./record.js";

/** Each step is tried whatever became of the others; what failed is told. */
const all = (steps: (() => void)[], tell: (text: string) => void): void => {
  for (const step of steps) {
    try {
      step();
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
export const cleanUp = (name: Name, tell: (text: string) => void): void => all([() => removeRecord(name)], tell);

/** Takes away what serves nobody any more: of containers that are over, and network locks of namespaces that are gone. */
export const sweep = (tell: (text: string) => void): void => {
  const over = recorded().filter(isOver);
  all([...over.map((name) => () => cleanUp(name, tell)), sweepLocks], tell);
};
