// SPDX-License-Identifier: Apache-2.0
// What of a dump is on unmounted mounts, where it is found again, and what is written of it.
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  statSync,
} from "node:fs";
import type { CryoshimError } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import type { Found } from "../xray/find.js";
import type { Use } from "../xray/uses.js";
import { claimFiles, fileKey, OtherUse } from "./claim.js";
import { type Place, type Places, unescaped } from "./detached-find.js";
import { type FileEntry, type Gone, type MountEntry, writeDetached } from "./detached-image.js";
import { refuse } from "./detached-refuse.js";
import { canBeMade, openForContents } from "./detached-restore.js";
import { depthOf, namespaceOf, taskName } from "./tasks.js";

const { S_IFMT, S_IFREG } = constants;
const O_PATH = 0o10000000;
/** MNT_* to MOUNT_ATTR_*: read-only, no set-user-ID, no devices, no execution. */
const ATTRIBUTES: readonly [flag: number, attribute: number][] = [
  [0x40, 1],
  [0x01, 2],
  [0x02, 4],
  [0x04, 8],
];
/** Directories that a container has and does not use: one is covered while CRIU opens files (see MountEntry.base). */
const BASES = ["/proc/driver", "/proc/tty", "/proc/fs", "/sys/module"];

/** Something of a task on an unmounted mount: a descriptor, or another use of a file. */
interface Held {
  pid: number;
  mntId: number;
  dev: number;
  mntFlags: number;
  /** Leads to it: /proc/PID/... */
  link: string;
  /** As a person says it. */
  what: string;
  use?: Use;
}

const WORDS = { cwd: "the working directory", root: "the root", exe: "the program", mapping: "a mapped file" } as const;

const heldBy = (found: readonly Found[], uses: readonly Use[]): Held[] => [
  ...found
    .filter(({ kind }) => kind === "detached")
    .map(({ pid, mntId, dev, mntFlags, fd }) => {
      const [link, what] = [`/proc/${pid}/fd/${fd}`, `descriptor ${fd}`];
      return { pid, mntId, dev, mntFlags, link, what };
    }),
  ...uses.map((use) => ({ ...use, what: WORDS[use.kind], use })),
];

interface Saved {
  key: string;
  held: Held;
  place: Place;
  mode: number;
  ino: bigint;
  gone?: Gone;
  /** A descriptor of ours for the contents of a file without a name. */
  contents?: number;
  /** Tasks that have it otherwise than by a descriptor. */
  users: Set<number>;
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

/** A directory that can be covered in a task's mount namespace, and a mount that CRIU knows there: its root. */
const coverIn = (pid: number): { base: string; mntId: number } | undefined => {
  const lines = readFileSync(`/proc/${pid}/mountinfo`, "latin1").split("\n");
  const mounts = new Map(
    lines.map((line) => line.split(" ")).map(([id, , , , point = ""]) => [unescaped(point), Number(id)]),
  );
  const mntId = mounts.get("/");
  const base = BASES.find((path) => {
    try {
      return !mounts.has(path) && statSync(`/proc/${pid}/root${path}`).isDirectory();
    } catch {
      return false;
    }
  });
  return base === undefined || mntId === undefined ? undefined : { base, mntId };
};

/** What of a dump is on unmounted mounts, one for each inode. */
export class DetachedFiles {
  readonly saved: Saved[] = [];
  /** What cannot be carried, and why. */
  readonly refused: CryoshimError[] = [];
  readonly #root: number;
  readonly #places: () => Places;
  readonly #cover: ReturnType<typeof coverIn>;

  /** `root`: of the tree. `search`: also what takes long, before the freeze. */
  constructor(root: number, found: readonly Found[], uses: readonly Use[], places: () => Places, search: boolean) {
    this.#root = root;
    this.#places = places;
    this.#cover = uses.length === 0 ? undefined : coverIn(root);
    const byKey = new Map<string, Saved | undefined>();
    for (const held of heldBy(found, uses)) {
      const fd = openSync(held.link, O_PATH);
      try {
        const st = fstatSync(fd, { bigint: true });
        const key = fileKey(held.mntId, st.ino);
        if (!byKey.has(key)) byKey.set(key, this.#save(key, held, fd, st, search));
        const saved = byKey.get(key);
        if (saved !== undefined && held.use !== undefined) this.#use(saved, held);
      } finally {
        closeSync(fd);
      }
    }
  }

  #refuse({ pid, what, link }: Held, why: string): undefined {
    const name = readlinkSync(link);
    this.refused.push(
      refuse(
        `cannot carry ${what} of process ${pid}, \`${name}\` on a mount that has been unmounted`,
        why,
        "close it before the checkpoint, or mount its file system on the host",
      ),
    );
  }

  #save(key: string, held: Held, fd: number, st: BigIntStats, search: boolean): Saved | undefined {
    const sought = { found: held, link: held.link, fd, st };
    const places = this.#places();
    if (search) places.search(sought);
    const at = places.of(sought);
    const mode = Number(st.mode);
    if (at === undefined) return this.#refuse(held, "its file system is mounted nowhere else, or it is not there");
    if (at.gone && !canBeMade(mode)) return this.#refuse(held, "it has no name any more, and cannot be made anew");
    const saved: Saved = { key, held, place: at.place, mode, ino: st.ino, users: new Set() };
    this.saved.push(saved);
    if (!at.gone) return saved;
    saved.gone = goneOf(st);
    if ((mode & S_IFMT) === S_IFREG) saved.contents = openForContents(held.link);
    return saved;
  }

  /** CRIU itself opens what is no descriptor: it must be there when it does. */
  #use(saved: Saved, held: Held): void {
    const { host } = saved.place;
    if (!host && this.#cover === undefined) this.#refuse(held, "the container has no directory that can be covered");
    else if (!host && this.#namespaces().size > 1)
      this.#refuse(held, "the container's processes are in several mount namespaces");
    else saved.users.add(held.pid);
  }

  #namespaces(): Set<number> {
    return new Set(treeOf(this.#root).map((pid) => namespaceOf(pid, "mnt")));
  }

  get keys(): Set<string> {
    return new Set(this.saved.map(({ key }) => key));
  }

  /** Writes the image; the files' ids are known now. Throws ERR_DETACHED for what has become mapped meanwhile. */
  write(imagesDir: string): void {
    const depth = depthOf(this.#root);
    const mounts = new Map<string, MountEntry>();
    const entries = new Map(this.saved.map((saved) => [saved.key, this.#entry(saved, mounts)]));
    const attached = [...mounts.values()].filter(({ base }) => base !== undefined);
    const claimed = this.#claim(imagesDir, {
      tasks: new Set(
        this.saved.flatMap(({ users }) => [...users].map((pid) => Number(taskName(pid, depth).split(":")[0]))),
      ),
      place: (key) => {
        const { mount, path } = entries.get(key)!;
        if (mount.base === undefined) return undefined;
        return { name: `${mount.base}/${attached.indexOf(mount)}/${path}`, mntId: this.#cover!.mntId };
      },
    });
    const contents = new Map<FileEntry, number>();
    for (const saved of this.saved) {
      const file = entries.get(saved.key)!;
      const ids = claimed.get(saved.key) ?? [];
      file.open = new Map(ids.map(({ id, flags, pos }) => [id, { flags, pos }]));
      const pipe = ids.find((each) => each.pipe !== undefined)?.pipe;
      if (pipe !== undefined) file.pipe = pipe;
      if (saved.contents !== undefined) contents.set(file, saved.contents);
    }
    writeDetached(imagesDir, [...entries.values()], contents);
  }

  #claim(imagesDir: string, uses: Parameters<typeof claimFiles>[2]): ReturnType<typeof claimFiles> {
    try {
      return claimFiles(imagesDir, this.keys, uses);
    } catch (error) {
      if (!(error instanceof OtherUse)) throw error;
      const { held } = this.saved.find(({ key }) => key === error.key)!;
      throw refuse(
        `cannot carry \`${readlinkSync(held.link)}\` of process ${held.pid} on a mount that has been unmounted`,
        error.message,
        "take the checkpoint again",
        error,
      );
    }
  }

  #entry({ key, held, place, mode, ino, gone, users }: Saved, mounts: Map<string, MountEntry>): FileEntry {
    const { host, root, path, handle } = place;
    // Files of one mount that were found in different places are on different mounts afterwards.
    const id = `${held.mntId} ${host} ${root}`;
    const mount = mounts.get(id) ?? { host, path: root, attributes: attributesOf(held.mntFlags) };
    mounts.set(id, mount);
    const used = users.size > 0;
    if (used && !host) mount.base = this.#cover!.base;
    const file: FileEntry = { mount, path, mode, ino, open: new Map() };
    // What has no name any more gets one for as long as CRIU needs it.
    if (used && !host && (gone !== undefined || handle !== undefined)) file.path = `.cryoshim-${held.mntId}-${ino}`;
    if (used) file.key = key;
    if (handle !== undefined) file.handle = handle;
    if (gone !== undefined) file.gone = gone;
    return file;
  }

  close(): void {
    for (const saved of this.saved) {
      if (saved.contents !== undefined) closeSync(saved.contents);
      delete saved.contents;
    }
  }
}
