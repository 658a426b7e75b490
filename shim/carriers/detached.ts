// SPDX-License-Identifier: Apache-2.0
// Files on mounts that are in no namespace any more. CRIU is told that they are external; at the restore they are opened
// in a copy of another mount of their file system, and that copy, too, is in no namespace. No task is touched at a dump.
import { chownSync, closeSync, constants, fchmodSync, fstatSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { addon, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { CryoshimError, reason } from "../error.js";
import { type Found, findSpecial } from "../xray/find.js";
import type { Carrier } from "./carrier.js";
import { claimFiles, fileKey, OtherUse } from "./claim.js";
import { type Place, Places } from "./detached-find.js";

const IMAGE = "cryoshim-detached.img";
const { S_IFMT, S_IFREG, S_IFDIR, O_RDWR } = constants;
const O_TMPFILE = 0o20200000;
/** What a descriptor was opened with and still has. O_DIRECTORY is as good as said, and O_PATH allows no others. */
const KEPT =
  0o3 | constants.O_APPEND | constants.O_NONBLOCK | constants.O_DSYNC | constants.O_SYNC | 0o40000 | 0o1000000;
const O_PATH = 0o10000000;
/** MNT_* to MOUNT_ATTR_*: read-only, no set-user-ID, no devices, no execution. */
const ATTRIBUTES: readonly [flag: number, attribute: number][] = [
  [0x40, 1],
  [0x01, 2],
  [0x02, 4],
  [0x04, 8],
];
const ALL_ATTRIBUTES = 15;
/** A file without a name is saved whole. */
const MOST = 16 << 20;

interface Saved {
  found: Found;
  place: Place;
  mode: number;
  /** Of a file without a name. */
  gone?: { uid: number; gid: number; data: Buffer };
}
interface LoadedMount {
  host: boolean;
  path: string;
  attributes: number;
}
interface LoadedFile {
  mount: LoadedMount;
  path: string;
  mode: number;
  gone?: { uid: number; gid: number; data: Uint8Array };
  open: Map<number, { flags: number; pos: bigint }>;
}

const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_DETACHED", { what, why, fix, cause });

const attributesOf = (mntFlags: number): number =>
  ATTRIBUTES.reduce((all, [flag, attribute]) => (mntFlags & flag ? all | attribute : all), 0);

/** A file of a dump, by a pidfd of who has it; undefined where it must be left to CRIU, which refuses it. */
const save = (found: Found, task: number, places: Places): Saved | undefined => {
  const file = pidfdGetfd(task, found.fd);
  try {
    const { mode, nlink, uid, gid, size } = fstatSync(file);
    const gone = nlink === 0;
    if (gone && ((mode & S_IFMT) !== S_IFREG || size > MOST)) return undefined;
    const place = places.of(found, file, gone);
    if (place === undefined || !gone) return place && { found, place, mode };
    return { found, place, mode, gone: { uid, gid, data: readFileSync(`/proc/self/fd/${file}`) } };
  } finally {
    closeSync(file);
  }
};

/** The files that are carried, one descriptor for each inode. */
export const carriedFiles = (found: readonly Found[], places: () => Places): { saved: Saved[]; left: Found[] } => {
  const detached = found.filter(({ kind }) => kind === "detached");
  const saved: Saved[] = [];
  const left: Found[] = [];
  const seen = new Set<string>();
  for (const pid of new Set(detached.map((each) => each.pid))) {
    const task = pidfdOpen(pid);
    try {
      for (const each of detached.filter((other) => other.pid === pid)) {
        const key = fileKey(each.mntId, each.ino);
        if (seen.has(key)) continue;
        seen.add(key);
        const type = each.mode & S_IFMT;
        const one = type === S_IFREG || type === S_IFDIR ? save(each, task, places()) : undefined;
        if (one === undefined) left.push(each);
        else saved.push(one);
      }
    } finally {
      closeSync(task);
    }
  }
  return { saved, left };
};

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "latin1"));

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
  const keys = new Set(saved.map(({ found }) => fileKey(found.mntId, found.ino)));
  const claimed = claim(imagesDir, keys);
  const mounts = new Map<string, Message>();
  const files = saved.map(({ found, place, mode, gone }): Message => {
    // Files of one mount that were found in different places are on different mounts afterwards.
    const { host, root } = place;
    const key = `${found.mntId} ${host} ${root}`;
    const mount = mounts.get(key) ?? {
      id: mounts.size,
      host,
      path: bytes(root),
      attributes: attributesOf(found.mntFlags),
    };
    mounts.set(key, mount);
    const open = claimed.get(fileKey(found.mntId, found.ino)) ?? [];
    return {
      mount: mount.id,
      path: bytes(place.path),
      mode,
      ino: found.ino,
      ids: open.map(({ id }) => id),
      flags: open.map(({ flags }) => flags),
      positions: open.map(({ pos }) => pos),
      ...(gone !== undefined && { uid: gone.uid, gid: gone.gid, data: new Uint8Array(gone.data) }),
    };
  });
  const entries = [...[...mounts.values()].map((mount) => ({ mount })), ...files.map((file) => ({ file }))];
  const image = encodeImage({ kind: "CRYOSHIM_DETACHED", entries: entries.map((message) => ({ message })) });
  writeFileSync(join(imagesDir, IMAGE), image, { mode: 0o600, flag: "wx" });
};

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

/** A path that says what it says: without "..", and with no byte that ends it. */
const textOf = (value: unknown, at: number, absolute: boolean): string => {
  const text = value instanceof Uint8Array ? Buffer.from(value).toString("latin1") : "";
  const parts = text.split("/");
  if (
    text === "" ||
    text.length > 4000 ||
    text.includes("\0") ||
    parts.includes("..") ||
    text.startsWith("/") !== absolute
  )
    throw wrong(at, "its path is none that cryoshim writes");
  return text;
};

/** What the images say, checked: they may come from anywhere. Throws ERR_IMAGE. */
const read = (imagesDir: string): LoadedFile[] => {
  const { kind, entries } = decodeImage(readFileSync(join(imagesDir, IMAGE)), IMAGE);
  if (kind !== "CRYOSHIM_DETACHED") throw wrong(0, `it is an image of kind ${kind}`);
  const mounts = new Map<number, LoadedMount>();
  const files: LoadedFile[] = [];
  for (const [at, { message }] of entries.entries()) {
    const mount = message.mount as Message | undefined;
    const file = message.file as Message | undefined;
    if (mount !== undefined) {
      const attributes = mount.attributes as number;
      if (typeof attributes !== "number" || attributes > ALL_ATTRIBUTES)
        throw wrong(at, "its attributes are none of a mount");
      mounts.set(mount.id as number, { host: mount.host === true, path: textOf(mount.path, at, true), attributes });
    } else if (file !== undefined) {
      const of = mounts.get(file.mount as number);
      const {
        ids = [],
        flags = [],
        positions = [],
        mode,
        data,
        uid,
        gid,
      } = file as Record<string, unknown[]> & Message;
      if (of === undefined) throw wrong(at, "it is of a mount that is not there");
      if (typeof mode !== "number" || ids.length !== flags.length || ids.length !== positions.length)
        throw wrong(at, "it is no file");
      const loaded: LoadedFile = {
        mount: of,
        path: textOf(file.path, at, false),
        mode,
        open: new Map(ids.map((id, i) => [id as number, { flags: flags[i] as number, pos: positions[i] as bigint }])),
      };
      if ((data as unknown) instanceof Uint8Array)
        loaded.gone = { uid: Number(uid ?? 0), gid: Number(gid ?? 0), data: data as unknown as Uint8Array };
      files.push(loaded);
    } else throw wrong(at, "it says nothing that this version knows");
  }
  return files;
};

/** Opens the files of the images again. */
class Reopen {
  readonly #files: LoadedFile[];
  readonly #trees = new Map<LoadedMount, number>();
  readonly #gone = new Map<LoadedFile, number>();

  constructor(imagesDir: string) {
    this.#files = read(imagesDir);
  }

  /** `task` is a pidfd of a task in the restored mount namespace. */
  open(id: number, task: number): number | undefined {
    const file = this.#files.find(({ open }) => open.has(id));
    if (file === undefined) return undefined;
    const { flags, pos } = file.open.get(id)!;
    try {
      const fd = this.#one(file, flags & O_PATH ? O_PATH : flags & KEPT, task);
      try {
        if ((fstatSync(fd).mode & S_IFMT) !== (file.mode & S_IFMT)) throw new Error("what is there is of another type");
        if (pos > 0n && (flags & O_PATH) === 0) addon.seek(fd, Number(pos));
        return fd;
      } catch (error) {
        closeSync(fd);
        throw error;
      }
    } catch (error) {
      const { host, path } = file.mount;
      throw refuse(
        `cannot open \`${file.path}\` below \`${path}\` again, which was on a mount that had been unmounted`,
        reason(error),
        `see that the file system is mounted there ${host ? "on the host" : "in the container"} before the restore`,
        error,
      );
    }
  }

  #one(file: LoadedFile, flags: number, task: number): number {
    const tree = this.#tree(file.mount, task);
    if (file.gone === undefined) return addon.openBeneath(tree, file.path, flags, 0);
    let fd = this.#gone.get(file);
    if (fd === undefined) {
      const { uid, gid, data } = file.gone;
      fd = addon.openBeneath(tree, ".", O_TMPFILE | O_RDWR, 0o600);
      this.#gone.set(file, fd);
      writeFileSync(fd, data);
      chownSync(`/proc/self/fd/${fd}`, uid, gid);
      fchmodSync(fd, file.mode & 0o7777);
    }
    return openSync(`/proc/self/fd/${fd}`, flags);
  }

  #tree(mount: LoadedMount, task: number): number {
    let tree = this.#trees.get(mount);
    if (tree !== undefined) return tree;
    const { host, path, attributes } = mount;
    tree = addon.cloneMount(host ? -1 : task, path, attributes, ALL_ATTRIBUTES & ~attributes);
    this.#trees.set(mount, tree);
    return tree;
  }

  close(): void {
    for (const fd of [...this.#gone.values(), ...this.#trees.values()]) closeSync(fd);
    this.#gone.clear();
    this.#trees.clear();
  }
}

/** The carrier of one session. */
export const detachedCarrier = (): Carrier => {
  let places: Places | undefined;
  const loaded = (): Places => {
    places ??= new Places();
    return places;
  };
  let saved: Saved[] = [];
  let reopen: Reopen | undefined;
  return {
    name: "detached",
    prepare(root) {
      // Once before the freeze: the second time is faster.
      carriedFiles(findSpecial(root), loaded);
      // Mounts may change until the tasks stand still.
      places?.forget();
    },
    async seized({ found }, { engine, log }) {
      const { saved: mine, left } = carriedFiles(found, loaded);
      for (const { pid, fd } of left)
        log("Warn ", `descriptor ${fd} of process ${pid} is on an unmounted file system that is mounted nowhere else`);
      saved = mine;
      if (saved.length > 0)
        await engine.external(new Set(saved.map(({ found: { mntId, ino } }) => fileKey(mntId, ino))));
    },
    needed: () => saved.length > 0,
    async dumped(ok, { imagesDir }) {
      if (ok && saved.length > 0) write(imagesDir, saved);
    },
    async restoring({ imagesDir }) {
      reopen = new Reopen(imagesDir);
    },
    async restoreFile(id, task) {
      return reopen?.open(id, task);
    },
    close() {
      places?.close();
      reopen?.close();
    },
  };
};
