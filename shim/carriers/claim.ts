// SPDX-License-Identifier: Apache-2.0
// What CRIU was told to be external it writes as a regular file that somebody else opens before tasks exist. Ours are
// opened by the tasks' side, in their namespaces: in the images they become files of a plugin (FD_TYPES__EXT).
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { replaceFile } from "../session/replace-file.js";

const [REG, EXT] = [1, 16];

/** A file of the images: the id that tasks' descriptors name, and its O_* flags. */
export interface ClaimedFile {
  id: number;
  flags: number;
}

/** The key under which CRIU looks for an external file (criu/files-reg.c:dump_one_reg_file). */
export const fileKey = (mntId: number, ino: bigint): string => `file[${mntId.toString(16)}:${ino.toString(16)}]`;

/** Makes the external files with these keys ours. Returns them by key. Throws ERR_IMAGE or what the file system says. */
export const claimFiles = (imagesDir: string, keys: ReadonlySet<string>): Map<string, ClaimedFile[]> => {
  const claimed = new Map<string, ClaimedFile[]>();
  if (keys.size === 0) return claimed;
  const path = join(imagesDir, "files.img");
  const files = decodeImage(readFileSync(path), "files.img");
  const ids = new Set<number>();
  for (const { message } of files.entries) {
    const reg = message.reg as Message | undefined;
    if (reg?.ext !== true || !keys.has(reg.name as string)) continue;
    const id = reg.id as number;
    ids.add(id);
    const known = claimed.get(reg.name as string) ?? [];
    claimed.set(reg.name as string, [...known, { id, flags: reg.flags as number }]);
    message.ext = { id, fown: reg.fown };
    message.type = EXT;
    delete message.reg;
  }
  if (ids.size === 0) return claimed;
  // Descriptors first: whatever has been changed when this ends early, the file itself still says what it was.
  for (const name of readdirSync(imagesDir)) {
    if (!/^fdinfo-\d+\.img$/.test(name)) continue;
    const image = decodeImage(readFileSync(join(imagesDir, name)), name);
    const ours = image.entries.filter(({ message }) => message.type === REG && ids.has(message.id as number));
    for (const { message } of ours) message.type = EXT;
    if (ours.length > 0) replaceFile(join(imagesDir, name), encodeImage(image));
  }
  replaceFile(path, encodeImage(files));
  return claimed;
};
