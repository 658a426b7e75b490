// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more. CRIU is told that they are external; at the restore they are opened
// in a copy of another mount of their file system, and that copy, too, is in no namespace. No task is touched at a dump.
import { type BigIntStats, closeSync, constants, fstatSync, openSync } from "node:fs";
import { type Found, findSpecial } from "../xray/find.js";
import type { Carrier } from "./carrier.js";
import { claimFiles, fileKey, OtherUse } from "./claim.js";
import { type Place, Places } from "./detached-find.js";
import { type FileEntry, type Gone, type MountEntry, writeDetached } from "./detached-image.js";
import { refuse } from "./detached-refuse.js";
import { canBeMade, openForContents, Reopen } from "./detached-restore.js";

const { S_IFMT, S_IFREG } = constants;
const O_PATH = 0o10000000;
/** MNT_* to MOUNT_ATTR_*: read-only, no set-user-ID, no devices, no execution. */
const ATTRIBUTES: readonly [flag: number, attribute: number][] = [
  [0x40, 1],
  [0x01, 2],
  [0x02, 4],
  [0x04, 8],
];

interface Saved {
  key: string;
  found: Found;
  place: Place;
  mode: number;
  ino: bigint;
  gone?: Gone;
  /** A descriptor of ours for the contents of a file without a name. */
  contents?: number;
}

const attributesOf = (mntFlags: number): number =>
  ATTRIBUTES.reduce((all, [flag, attribute]) => (mntFlags & flag ? all | attribute : all), 0);

const goneOf = ({ uid, gid, size, rdev, atimeNs, mtimeNs }: BigIntStats): Gone => ({
  uid: Number(uid),
  gid: Number(gid),
  size,
  rdev,
  atime: atimeNs,
  mtime: mtimeNs,
});

/** A file of a dump; undefined where it must be left to CRIU, which refuses it. */
const save = (found: Found, places: Places, search: boolean): Saved | undefined => {
  const link = `/proc/${found.pid}/fd/${found.fd}`;
  const fd = openSync(link, O_PATH);
  try {
    const st = fstatSync(fd, { bigint: true });
    const sought = { found, link, fd, st };
    if (search) places.search(sought);
    const at = places.of(sought);
    const mode = Number(st.mode);
    if (at === undefined || (at.gone && !canBeMade(mode))) return undefined;
    const saved: Saved = { key: fileKey(found.mntId, st.ino), found, place: at.place, mode, ino: st.ino };
    if (!at.gone) return saved;
    saved.gone = goneOf(st);
    if ((mode & S_IFMT) === S_IFREG) saved.contents = openForContents(link);
    return saved;
  } finally {
    closeSync(fd);
  }
};

/** What of a dump is on unmounted mounts, one descriptor for each inode. */
export class DetachedFiles {
  readonly saved: Saved[] = [];
  /** What cannot be found again. */
  readonly left: Found[] = [];

  /** `search`: also what takes long, before the freeze. */
  constructor(found: readonly Found[], places: () => Places, search: boolean) {
    const seen = new Set<string>();
    for (const each of found) {
      const key = `${each.mntId} ${each.ino}`;
      if (each.kind !== "detached" || seen.has(key)) continue;
      seen.add(key);
      const one = save(each, places(), search);
      if (one === undefined) this.left.push(each);
      else this.saved.push(one);
    }
  }

  close(): void {
    for (const saved of this.saved) {
      if (saved.contents !== undefined) closeSync(saved.contents);
      delete saved.contents;
    }
  }
}

const claim = (imagesDir: string, keys: ReadonlySet<string>): ReturnType<typeof claimFiles> => {
  try {
    return claimFiles(imagesDir, keys);
  } catch (error) {
    if (!(error instanceof OtherUse)) throw error;
    throw refuse(
      `cannot carry ${error.key} on a mount that has been unmounted`,
      error.message,
      "unmap it, or leave it, before the checkpoint",
      error,
    );
  }
};

/** Writes the image; the files' ids are known now. */
const write = (imagesDir: string, saved: readonly Saved[]): void => {
  const claimed = claim(imagesDir, new Set(saved.map(({ key }) => key)));
  const mounts = new Map<string, MountEntry>();
  const contents = new Map<FileEntry, number>();
  const files = saved.map((each): FileEntry => {
    const { key, found, place, mode, ino, gone } = each;
    // Files of one mount that were found in different places are on different mounts afterwards.
    const { host, root, path, handle } = place;
    const id = `${found.mntId} ${host} ${root}`;
    const mount = mounts.get(id) ?? { host, path: root, attributes: attributesOf(found.mntFlags) };
    mounts.set(id, mount);
    const ids = claimed.get(key) ?? [];
    const open = new Map(ids.map(({ id, flags, pos }) => [id, { flags, pos }]));
    const file: FileEntry = { mount, path, mode, ino, open };
    if (handle !== undefined) file.handle = handle;
    const pipe = ids.find((claimed) => claimed.pipe !== undefined)?.pipe;
    if (pipe !== undefined) file.pipe = pipe;
    if (gone !== undefined) file.gone = gone;
    if (each.contents !== undefined) contents.set(file, each.contents);
    return file;
  });
  writeDetached(imagesDir, files, contents);
};

/** The carrier of one session. */
export const detachedCarrier = (): Carrier => {
  let places: Places | undefined;
  const loaded = (): Places => {
    places ??= new Places();
    return places;
  };
  let files: DetachedFiles | undefined;
  let reopen: Reopen | undefined;
  const carrier: Carrier = {
    name: "detached",
    prepare(root) {
      // Once before the freeze: the second time is faster.
      new DetachedFiles(findSpecial(root), loaded, true).close();
      // Mounts may change until the tasks stand still.
      places?.forget();
    },
    async seized({ found }, { engine, log }) {
      files = new DetachedFiles(found, loaded, false);
      for (const { pid, fd } of files.left)
        log("Warn ", `descriptor ${fd} of process ${pid} is on an unmounted file system that is mounted nowhere else`);
      if (files.saved.length > 0) await engine.external(new Set(files.saved.map(({ key }) => key)));
    },
    needed: () => files !== undefined && files.saved.length > 0,
    async dumped(ok, { imagesDir }) {
      if (ok && files !== undefined && files.saved.length > 0) write(imagesDir, files.saved);
    },
    async restoring({ imagesDir }) {
      const opened = new Reopen(imagesDir);
      reopen = opened;
      if (opened.holds)
        carrier.resume = async () => {
          opened.letGo();
        };
    },
    async restoreFile(id, task) {
      return reopen?.open(id, task);
    },
    close() {
      files?.close();
      places?.close();
      reopen?.close();
    },
  };
  return carrier;
};
