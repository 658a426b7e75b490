// SPDX-License-Identifier: Apache-2.0
// A program of the lock that stays loaded and always locks, for the launcher: a restore is locked by it at once, before
// Node has started (native/launcher/launcher.c:early_lock). Attached by nobody it does nothing.
import { lstatSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { bpf, CMD } from "./bpf.js";
import { pinRoot } from "./kept.js";
import { NetLock } from "./netlock.js";

/** Pins the program unless that is done; the number changes with what the launcher expects of it. */
export const keepKit = (): void => {
  const dir = join(pinRoot(), "kit1");
  const path = join(dir, "lock_all");
  if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) return;
  const lock = new NetLock("netns");
  try {
    lock.arm();
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    bpf(CMD.objPin, { 0: Buffer.from(`${path}\0`), 8: lock.program });
  } finally {
    lock.close();
  }
};
