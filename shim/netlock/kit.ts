// SPDX-License-Identifier: Apache-2.0
// A program of the lock that stays loaded and always locks, for the launcher: a restore is locked by it at once, before
// Node has started (native/launcher/launcher.c:early_lock). Attached by nobody it does nothing.
import { lstatSync } from "node:fs";
import { kitPin, pinInKit } from "./kept.js";
import { NetLock } from "./netlock.js";

/** Pins the program unless that is done. */
export const keepKit = (): void => {
  if (lstatSync(kitPin("lock_all"), { throwIfNoEntry: false }) !== undefined) return;
  const lock = new NetLock("netns");
  try {
    lock.arm();
    pinInKit("lock_all", lock.program);
  } finally {
    lock.close();
  }
};
