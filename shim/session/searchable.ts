// SPDX-License-Identifier: Apache-2.0
import { chmodSync, readdirSync, statSync } from "node:fs";

const [OWNER_SEARCHES, MODE] = [0o100, 0o7777];

/**
 * Lets the owner of a directory of images search it, where a user namespace is to be restored: CRIU's first task opens
 * timens-0.img in it before the namespace has its maps (criu/cr-restore.c:restore_task_with_children, 4.2), and whoever has no ids
 * yet has no capabilities over files, either. podman's directory is rw for root, and no more: with luck the maps are there in time.
 */
export const makeSearchable = (imagesDir: string): void => {
  if (!readdirSync(imagesDir).some((name) => /^userns-\d+\.img$/.test(name))) return;
  const mode = statSync(imagesDir).mode & MODE;
  if ((mode & OWNER_SEARCHES) === 0) chmodSync(imagesDir, mode | OWNER_SEARCHES);
};
