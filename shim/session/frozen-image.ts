// SPDX-License-Identifier: Apache-2.0
// CRIU keeps the state of the freezer in cgroup.img, and restores it: a cgroup that we have frozen before CRIU looked
// would come back frozen. The image shall say what was true before this session.
import { readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { decodeCgroupImage, encodeCgroupImage } from "../../crit/cgroup-image.js";
import type { Freezer } from "./freezer.js";
import { replaceFile } from "./replace-file.js";

interface Property {
  name: string;
  value: string;
}
interface Dir {
  dir_name: string;
  children?: Dir[];
  properties?: Property[];
}

/** Puts right what a tree of cgroups says; returns whether anything was wrong. */
const mend = (dir: Dir, above: string, frozen: string): boolean => {
  const path = join(above, dir.dir_name);
  let mended = false;
  for (const property of dir.properties ?? []) {
    // v1: there is one, of the cgroup that CRIU was told to freeze. v2: each cgroup has its own.
    const v1 = property.name === "freezer.state" && property.value.startsWith("FR");
    const v2 = property.name === "cgroup.freeze" && property.value.startsWith("1") && frozen.endsWith(path);
    if (!v1 && !v2) continue;
    property.value = v1 ? "THAWED" : "0";
    mended = true;
  }
  for (const child of dir.children ?? []) if (mend(child, path, frozen)) mended = true;
  return mended;
};

/** Takes this session's freeze out of the images. Throws ERR_IMAGE or what the file system says. */
export const forgetFreeze = (imagesDir: string, freezer: Freezer): void => {
  const path = join(imagesDir, "cgroup.img");
  if (statSync(path, { throwIfNoEntry: false }) === undefined) return;
  const entries = decodeCgroupImage(readFileSync(path));
  let mended = false;
  for (const { message } of entries)
    for (const { dirs } of (message.controllers ?? []) as unknown as { dirs?: Dir[] }[])
      for (const dir of dirs ?? []) if (mend(dir, "/", dirname(freezer.file))) mended = true;
  if (!mended) return;
  replaceFile(path, encodeCgroupImage(entries));
};
