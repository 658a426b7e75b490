// SPDX-License-Identifier: Apache-2.0
// What of a dump is on unmounted mounts, where it is found again, and what is written of it.

import { type BigIntStats, closeSync, constants, fstatSync, openSync, readFileSync, readlinkSync } from "node:fs";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { addon } from "../../native/index.js";
import type { Engine } from "../control/engine.js";
import { CryoshimError } from "../error.js";
import { O_PATH } from "../flags.js";
import { treeOf } from "../netlock/netlock.js";
import { replaceFile } from "../session/replace-file.js";
import type { Found } from "../xray/find.js";
import type { Use } from "../xray/uses.js";
import { type ClaimedFile, claimFiles, descriptorIds, fileKey, NOBODY, OtherUse, type Uses } from "./claim.js";
import { join, type Place, type Places, unescaped } from "./detached-find.js";
import { BASES, boundAs, type FileEntry, type Gone, type MountEntry, writeDetached } from "./detached-image.js";
import { linkOf, namesOf } from "./detached-inode.js";
import { refuse } from "./detached-refuse.js";
import { canBeMade, openForContents } from "./detached-restore.js";
import { contentsBelow, type Node, nodesOf, type Tree, tmpfsOf, typeOf, walk } from "./detached-tree.js";
import { depthOf, inMountNamespace, namespaceOf, take, taskName } from "./tasks.js";

const { S_IFMT, S_IFREG, S_IFDIR, S_IFIFO, S_IFLNK, O_WRONLY } = constants;
/** MNT_* to MOUNT_ATTR_*: read-only, no set-user-ID, no devices, no execution. */
const ATTRIBUTES: readonly [flag: number, attribute: number][] = [
  [0x40, 1],
  [0x01, 2],
  [0x02, 4],
  [0x04, 8],
];

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
  directory: boolean;
  use?: Use;
  /** Of a descriptor: its number, and the kernel's of the inode. */
  fd?: number;
  ino?: bigint;
}

/** A file of a file system of which no directory can be looked at. */
interface LoneFile {
  path: string;
  at: string;
  st: BigIntStats;
}

export interface DetachedOptions {
  /** Also what takes long, before the freeze. */
  search: boolean;
  /** MiB that may be saved of file systems that are mounted nowhere else. */
  largest: number;
  /** The tasks run. */
  running?: boolean;
  /** Whether somebody wants to know all that is held. */
  tell?: boolean;
  /** What was found before the freeze: there it is looked first. */
  known?: KnownFiles;
}

/** Files that were found by a name, by the descriptors that they were found for. */
type KnownFiles = ReadonlyMap<string, Saved>;
const knownAs = ({ pid, mntId, fd, ino }: Held): string => `${pid} ${mntId} ${fd} ${ino}`;

/** What waits in FIFOs, by their inodes. */
type Pipes = Map<string, NonNullable<FileEntry["pipe"]>>;
const pipeOf = ({ dev, ino }: Saved): string => `${dev} ${ino}`;
const readsFifo = ({ kind, mode, flags }: Found): boolean =>
  kind === "detached" && (mode & S_IFMT) === S_IFIFO && (flags & (O_PATH | O_WRONLY)) === 0;

const WORDS = { cwd: "the working directory", root: "the root", exe: "the program", mapping: "a mapped file" } as const;

const heldBy = (found: readonly Found[], uses: readonly Use[]): Held[] => [
  ...found
    .filter(({ kind }) => kind === "detached")
    .map(({ pid, mntId, dev, mntFlags, fd, ino, mode }) => {
      const [link, what, directory] = [`/proc/${pid}/fd/${fd}`, `descriptor ${fd}`, (mode & S_IFMT) === S_IFDIR];
      return { pid, mntId, dev, mntFlags, link, what, directory, fd, ino };
    }),
  ...uses.map((use) => {
    const directory = use.kind === "cwd" || use.kind === "root";
    return { ...use, what: WORDS[use.kind], directory, use };
  }),
];

interface Saved {
  key: string;
  held: Held;
  place: Place;
  mode: number;
  ino: bigint;
  /** As stat(2) has it. */
  dev: bigint;
  gone?: Gone;
  /** Of a socket: the path that it was bound by. */
  bound?: string;
  /** A descriptor of ours for the contents of a file without a name. */
  contents?: number;
  /** Where tasks have it open. */
  descriptors: [pid: number, fd: number][];
  /** Tasks that have it otherwise than by a descriptor, and those whose root it is. */
  users: Set<number>;
  rooted: Set<number>;
}

/** The device of a file system that there is not. */
const NOWHERE = -1;

/** What a unix socket of a process is bound to, by a descriptor, and the path that it was bound by. */
const boundBy = (pid: number, number: number): { fd: number; name: string } => {
  const socket = take(pid, number);
  try {
    return { name: addon.boundName(socket), fd: addon.boundFile(socket) };
  } finally {
    closeSync(socket);
  }
};

const attributesOf = (mntFlags: number): number =>
  ATTRIBUTES.reduce((all, [flag, attribute]) => (mntFlags & flag ? all | attribute : all), 0);

/** One file: on btrfs those of several subvolumes may have one number, and be on one mount. */
const identityOf = (key: string, dev: bigint): string => `${key} ${dev}`;

const goneOf = ({ uid, gid, size, rdev, atimeNs, mtimeNs }: BigIntStats): Gone => ({
  uid: Number(uid),
  gid: Number(gid),
  size,
  rdev,
  atime: atimeNs,
  mtime: mtimeNs,
});

const CAP_SYS_CHROOT = 18n;

const canChangeRoot = (pid: number): boolean => {
  const effective = /^CapEff:\s+(\w+)$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1] ?? "0";
  return ((BigInt(`0x${effective}`) >> CAP_SYS_CHROOT) & 1n) === 1n;
};

/** Terminals CRIU has its own ways with. */
const isTerminal = (mode: number, rdev: bigint): boolean =>
  (mode & S_IFMT) === constants.S_IFCHR && rdev >> 8n >= 136n && rdev >> 8n <= 143n;

/** A directory that can be covered in a task's mount namespace, and a mount that CRIU knows there: its root. */
const coverFrom = (ns: number): { base: string; mntId: number } | undefined => {
  const lines = addon.mountInfo(ns).split("\n");
  const mounts = new Map(
    lines.map((line) => line.split(" ")).map(([id, , , , point = ""]) => [unescaped(point), Number(id)]),
  );
  const mntId = mounts.get("/");
  const base = BASES.find((path) => {
    if (mounts.has(path)) return false;
    try {
      closeSync(addon.openIn(ns, path));
      return true;
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
  /** All of it, each thing of a process once, for who wants to be told. */
  readonly held: { pid: number; what: string; error: CryoshimError | undefined }[] = [];
  /** Unix sockets with names on unmounted mounts, by inode: what each is bound to, and descriptors of that. */
  readonly #bound = new Map<bigint, Saved>();
  readonly #files: number[] = [];
  readonly #root: number;
  readonly #places: () => Places;
  readonly #cover: ReturnType<typeof coverFrom>;
  readonly #options: DetachedOptions;
  /** Files that have their keys not for themselves. */
  readonly #twins = new Set<Saved>();
  /** File systems that are mounted nowhere else, by device. */
  readonly #trees = new Map<number, { tree: Tree; lone: LoneFile[] }>();
  /** Of FIFOs: a descriptor that can be read from. */
  readonly #readers: ReadonlyMap<string, { pid: number; fd: number }>;
  /** Each thing of a task that was looked at one by one. */
  readonly #found: [Held, Saved][] = [];
  /** Whether they are, as far as it was asked. */
  readonly #mounted = new Map<number, boolean>();

  /** `root`: of the tree. */
  constructor(
    root: number,
    found: readonly Found[],
    uses: readonly Use[],
    places: () => Places,
    options: DetachedOptions,
  ) {
    this.#root = root;
    this.#places = places;
    this.#options = options;
    this.#cover = uses.length === 0 ? undefined : inMountNamespace(root, coverFrom);
    this.#readers = new Map(
      found.filter(readsFifo).map(({ pid, fd, mntId, ino }) => [fileKey(mntId, ino), { pid, fd }]),
    );
    const all = heldBy(found, uses);
    for (const held of all)
      this.#ifThere(() => {
        if (held.directory && !this.#isMounted(held)) this.#offer(held);
      });
    const byKey = new Map<string, Saved | undefined>();
    for (const held of this.#takeKnown(all, byKey)) this.#ifThere(() => this.#look(held, byKey));
    this.#tellApart();
    for (const each of found) if (each.kind === "bound") this.#ifThere(() => this.#lookAtSocket(each, byKey));
  }

  /** CRIU knows files of a mount by their numbers: descriptors can be told apart nevertheless, other uses cannot. */
  #tellApart(): void {
    const known = new Map<string, Saved[]>();
    for (const saved of this.saved) known.set(saved.key, [...(known.get(saved.key) ?? []), saved]);
    for (const all of known.values()) {
      if (all.length === 1) continue;
      for (const saved of all) this.#twins.add(saved);
      const other = all.find(({ users, mode }) => users.size > 0 || (mode & S_IFMT) === S_IFIFO);
      if (other === undefined) continue;
      this.#refuse(
        other.held,
        "a file of another subvolume, on the same mount, has the same number, and CRIU takes them for one",
      );
      for (const saved of all) this.saved.splice(this.saved.indexOf(saved), 1);
    }
  }

  /** What a socket is bound to. Where that cannot be found again its name leads nowhere, but it has it. */
  #lookAtSocket(
    { pid, fd: number, ino: socket, mntId, dev, mntFlags }: Found,
    byKey: Map<string, Saved | undefined>,
  ): void {
    if (this.#bound.has(socket)) return;
    const { fd, name } = boundBy(pid, number);
    this.#files.push(fd);
    const st = fstatSync(fd, { bigint: true });
    const key = fileKey(mntId, st.ino);
    const identity = identityOf(key, st.dev);
    const known = byKey.get(identity);
    if (known?.bound !== undefined) {
      this.#bound.set(socket, known);
      return;
    }
    const what = `the name of socket ${number}`;
    const held: Held = { pid, mntId, dev, mntFlags, link: `/proc/self/fd/${fd}`, what, directory: false };
    const at = this.#place(held, fd, st);
    const { place, gone } =
      at?.place.handle === undefined && at !== undefined ? at : { place: this.#nowhere(), gone: true };
    const saved: Saved = {
      ...{ key, held, place, mode: Number(st.mode), ino: st.ino, dev: st.dev, gone: goneOf(st), bound: name },
      ...{ descriptors: [], users: new Set<number>(), rooted: new Set<number>() },
    };
    if (gone) place.path = ".";
    byKey.set(identity, saved);
    this.saved.push(saved);
    this.#bound.set(socket, saved);
  }

  /** A file system with nothing in it. */
  #nowhere(): Place {
    this.#trees.set(NOWHERE, { tree: { bytes: 0n, inodes: 0n, nodes: [] }, lone: [] });
    return { host: true, root: "/", path: ".", tree: NOWHERE };
  }

  #look(held: Held, byKey: Map<string, Saved | undefined>): void {
    const fd = openSync(held.link, O_PATH);
    try {
      const st = fstatSync(fd, { bigint: true });
      const key = fileKey(held.mntId, st.ino);
      const identity = identityOf(key, st.dev);
      if (!byKey.has(identity)) byKey.set(identity, this.#save(key, held, fd, st));
      const before = this.refused.length;
      const saved = byKey.get(identity);
      if (held.fd !== undefined) saved?.descriptors.push([held.pid, held.fd]);
      if (saved !== undefined) this.#found.push([held, saved]);
      if (saved !== undefined && held.use !== undefined) this.#use(saved, held);
      const error = this.refused[before] ?? (saved === undefined ? this.refused.at(-1) : undefined);
      this.#tell(held, error);
    } finally {
      closeSync(fd);
    }
  }

  /** Of tasks that run one may end at any moment, and others are looked at all the same. */
  #ifThere(look: () => void): void {
    try {
      look();
    } catch (error) {
      const { code = "" } = error as NodeJS.ErrnoException;
      if (!this.#options.running || !["ENOENT", "ESRCH"].includes(code)) throw error;
    }
  }

  /** What was found by a name, for a later look. */
  get known(): KnownFiles {
    return new Map(
      this.#found
        .filter(([{ fd }, { gone, place }]) => fd !== undefined && (gone ?? place.tree ?? place.handle) === undefined)
        .map(([held, saved]) => [knownAs(held), saved]),
    );
  }

  /** Takes what is still the file that it was, and where it was. Returns what is left. */
  #takeKnown(all: readonly Held[], byKey: Map<string, Saved | undefined>): readonly Held[] {
    const { known } = this.#options;
    if (known === undefined || known.size === 0) return all;
    const left: Held[] = [];
    const groups = new Map<string, [Held, Saved][]>();
    for (const held of all) {
      const before = held.use === undefined ? known.get(knownAs(held)) : undefined;
      if (before === undefined) {
        left.push(held);
        continue;
      }
      const { host, elsewhere, root } = before.place;
      const id = `${held.pid} ${held.mntId} ${host} ${elsewhere} ${root}`;
      const group = groups.get(id);
      if (group === undefined) groups.set(id, [[held, before]]);
      else group.push([held, before]);
    }
    for (const group of groups.values()) {
      let there: Uint8Array | undefined;
      this.#ifThere(() => {
        there = this.#areThere(group);
      });
      for (const [i, [held, { key, place, mode, ino, dev }]] of group.entries()) {
        if (there?.[i] !== 1) left.push(held);
        else {
          const identity = identityOf(key, dev);
          let saved = byKey.get(identity);
          if (saved === undefined) {
            saved = { key, held, place, mode, ino, dev, descriptors: [], users: new Set(), rooted: new Set() };
            byKey.set(identity, saved);
            this.saved.push(saved);
          }
          saved.descriptors.push([held.pid, held.fd!]);
        }
      }
    }
    return left;
  }

  /** Of descriptors of one process that were found on one mount. */
  #areThere(group: readonly [Held, Saved][]): Uint8Array | undefined {
    const [[held, { place }]] = group as [[Held, Saved]];
    const fd = openSync(held.link, O_PATH);
    try {
      const sought = { found: held, link: held.link, fd, st: fstatSync(fd, { bigint: true }) };
      const at = this.#places().again(sought, place);
      return (
        at &&
        addon.areAt(
          at.top,
          held.pid,
          Int32Array.from(group, ([each]) => each.fd!),
          group.map(([, saved]) => join(at.part, `/${saved.place.path}`).slice(1)),
          BigInt64Array.from(group.flatMap(([, { dev, ino, mode }]) => [dev, ino, BigInt(mode)])),
          group.map(([, saved]) => saved.place.inode),
        )
      );
    } finally {
      closeSync(fd);
    }
  }

  #tell({ pid, what, link }: Held, error: CryoshimError | undefined): void {
    if (this.#options.tell !== true) return;
    const name = `${what}, \`${readlinkSync(link)}\``;
    if (!this.held.some((held) => held.pid === pid && held.what === name)) this.held.push({ pid, what: name, error });
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

  #isMounted(held: Held): boolean {
    const mounted = this.#mounted.get(held.dev) ?? this.#places().isMounted(held);
    this.#mounted.set(held.dev, mounted);
    return mounted;
  }

  #offer(held: Held): void {
    const fd = openSync(held.link, O_PATH);
    try {
      if (tmpfsOf(`/proc/self/fd/${fd}`) !== undefined) this.#places().offer(held, fd);
    } finally {
      closeSync(fd);
    }
  }

  /** Where a file is found again, or made again with its whole file system. */
  #place(held: Held, fd: number, st: BigIntStats): ReturnType<Places["of"]> {
    const sought = { found: held, link: held.link, fd, st };
    const places = this.#places();
    if (this.#options.search) places.search(sought);
    const at = places.of(sought);
    if (at !== undefined) {
      if (at.place.tree !== undefined) this.#treeOf(held, fd);
      return at;
    }
    const link = (Number(st.mode) & S_IFMT) === S_IFLNK;
    if (link || this.#isMounted(held)) return undefined;
    const made = this.#treeOf(held, fd);
    if (made === undefined) return undefined;
    // No directory above it can be looked at: it comes back alone.
    const [name = "/"] = namesOf(linkOf(held.link));
    const place = { host: true, root: places.shown(held, fd), tree: held.dev };
    if (st.nlink === 0n) return { place: { ...place, path: "." }, gone: true };
    made.lone.push({ path: join(place.root, name).slice(1), at: held.link, st });
    return { place: { ...place, path: name.slice(1) }, gone: false };
  }

  #treeOf({ dev }: Held, fd: number): { tree: Tree; lone: LoneFile[] } | undefined {
    const known = this.#trees.get(dev);
    if (known !== undefined) return known;
    const limits = tmpfsOf(`/proc/self/fd/${fd}`);
    if (limits === undefined) return undefined;
    const made = { tree: { ...limits, nodes: [] }, lone: [] };
    this.#trees.set(dev, made);
    return made;
  }

  /** What is in file systems that are made again. Throws ERR_DETACHED where it is too much. */
  #fill(): void {
    let used = 0n;
    for (const [dev, { tree, lone }] of this.#trees) {
      const source = this.#places().source(dev);
      const all = source && walk(source.top);
      tree.nodes = nodesOf(source && { shown: source.shown, nodes: all!.nodes }, lone);
      used += all?.used ?? 0n;
      for (const { st } of lone) used += st.blocks * 512n;
    }
    const { largest } = this.#options;
    if (used > BigInt(largest) << 20n)
      throw refuse(
        "cannot carry what is on a tmpfs that has been unmounted and is mounted nowhere else",
        `it would be saved whole, ${used} bytes of it, and no more than ${largest} MiB may be`,
        "raise [detached] largest in the configuration, or close what is open there",
      );
  }

  /** Before the freeze: what runs for the first time in it takes four times as long. */
  rehearse(): void {
    if (this.saved.length === 0) return;
    const mounts = new Map<string, MountEntry>();
    const open = new Map([[1, { flags: 0, pos: 0n }]]);
    const some = this.saved.slice(0, 200);
    const entries = some.map((saved): FileEntry => ({ ...this.#entry(saved, mounts), open }));
    writeDetached(undefined, entries, new Map());
    const files = some.map(({ key, mode }, id) => {
      const reg = { id, flags: 0, pos: 0n, fown: NOBODY, name: key, ext: true, mode };
      return { message: { type: 1, id, reg } };
    });
    encodeImage(decodeImage(encodeImage({ kind: "FILES", entries: files })));
  }

  /** Before the freeze: whether it is too much is known then. */
  measure(): void {
    try {
      this.#fill();
    } catch (error) {
      if (!(error instanceof CryoshimError)) throw error;
      this.refused.push(error);
    }
  }

  #save(key: string, held: Held, fd: number, st: BigIntStats): Saved | undefined {
    const at = this.#place(held, fd, st);
    const mode = Number(st.mode);
    if (at === undefined && isTerminal(mode, st.rdev)) return undefined;
    if (at === undefined && this.#places().isRemade(held))
      return this.#refuse(
        held,
        "its file system is mounted in another mount namespace of the container's, and made anew there",
      );
    if (at === undefined && this.#isMounted(held))
      return this.#refuse(held, "no other mount of its file system shows it as well");
    if (at === undefined) return this.#refuse(held, "its file system is mounted nowhere else, and is no tmpfs");
    if (at.gone && !canBeMade(mode)) return this.#refuse(held, "it has no name any more, and cannot be made anew");
    const { ino, dev } = st;
    const saved: Saved = {
      ...{ key, held, place: at.place, mode, ino, dev },
      ...{ descriptors: [], users: new Set<number>(), rooted: new Set<number>() },
    };
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
    else if (held.use?.kind === "root" && !canChangeRoot(held.pid))
      this.#refuse(held, "the process may not change its root (CAP_SYS_CHROOT)");
    else saved.users.add(held.pid);
    if (held.use?.kind === "root") saved.rooted.add(held.pid);
  }

  /**
   * Gives tasks whose root is on an unmounted mount the root of their namespace while CRIU looks: it needs /proc in them.
   * The engine undoes it.
   */
  async hideRoots(engine: Engine): Promise<void> {
    for (const pid of new Set(this.saved.flatMap(({ rooted }) => [...rooted]))) {
      const root = inMountNamespace(pid, (ns) => addon.openIn(ns, "/"));
      try {
        await engine.swapRoot(pid, root);
      } finally {
        closeSync(root);
      }
    }
  }

  #namespaces(): Set<number> {
    return new Set(treeOf(this.#root).map((pid) => namespaceOf(pid, "mnt")));
  }

  get keys(): Set<string> {
    return new Set(this.saved.filter(({ bound }) => bound === undefined).map(({ key }) => key));
  }

  /** Sockets with relative names, by inode. */
  get relative(): bigint[] {
    return [...this.#bound].filter(([, { bound }]) => !bound!.startsWith("/")).map(([ino]) => ino);
  }

  /**
   * Writes the image; the files' ids are known now. Contents must be read while the tasks stand still: then it is done at once. Else
   * what is left to do is returned; undefined: nothing. Throws ERR_DETACHED for what has become mapped meanwhile.
   */
  writer(imagesDir: string): (() => void) | undefined {
    if (this.saved.length === 0) return undefined;
    const write = this.#writer(imagesDir);
    const now = this.#trees.size > 0 || this.saved.some(({ contents }) => contents !== undefined);
    if (now) write();
    return now ? undefined : write;
  }

  /** What is read of tasks is read here, what is left is returned. */
  #writer(imagesDir: string): () => void {
    const depth = depthOf(this.#root);
    const number = (pid: number): number => Number(taskName(pid, depth).split(":")[0]);
    const tasks = new Set(this.saved.flatMap(({ users }) => [...users].map(number)));
    const roots = new Map(
      this.saved.flatMap(({ key, mode, rooted }) => [...rooted].map((pid) => [number(pid), { key, mode }] as const)),
    );
    const pipes = this.#pipes();
    const twins = new Map(
      [...this.#twins].map((saved) => [saved, saved.descriptors.map(([pid, fd]) => [number(pid), fd] as const)]),
    );
    return () => {
      const mounts = new Map<string, MountEntry>();
      const entries = new Map(this.saved.map((saved) => [saved, this.#entry(saved, mounts)]));
      const used = new Map(this.saved.filter(({ users }) => users.size > 0).map((saved) => [saved.key, saved]));
      const attached = [...mounts.values()].filter(({ base }) => base !== undefined);
      const place = (key: string): ReturnType<Uses["place"]> => {
        const { mount, path, gone, handle } = entries.get(used.get(key)!)!;
        if (mount.base === undefined) return undefined;
        const within = (gone ?? handle) === undefined ? `${attached.indexOf(mount)}/${path}` : path;
        return { name: `${mount.base}/${within}`, mntId: this.#cover!.mntId };
      };
      this.#write(imagesDir, entries, pipes, twins, { tasks, roots, place });
    };
  }

  /** What waits in FIFOs; one that nobody can read from keeps nothing, as with CRIU (criu/pipes.c:dump_one_pipe_data). */
  #pipes(): Pipes {
    const pipes: Pipes = new Map();
    for (const saved of this.saved) {
      const at = this.#readers.get(saved.key);
      if (at === undefined || pipes.has(pipeOf(saved))) continue;
      const fd = take(at.pid, at.fd);
      try {
        const [size, data] = addon.peekPipe(fd);
        pipes.set(pipeOf(saved), { size, data });
      } finally {
        closeSync(fd);
      }
    }
    return pipes;
  }

  #write(
    imagesDir: string,
    entries: ReadonlyMap<Saved, FileEntry>,
    pipes: Pipes,
    twins: ReadonlyMap<Saved, (readonly [task: number, fd: number])[]>,
    uses: Uses,
  ): void {
    const claimed = this.#claim(imagesDir, uses);
    const apart = this.#idsOf(imagesDir, claimed, twins);
    this.#renameSockets(imagesDir);
    const contents = new Map<FileEntry | Node, () => number>();
    this.#fill();
    for (const [dev, { tree, lone }] of this.#trees) {
      const source = this.#places().source(dev);
      const links = new Map(lone.map(({ path, at }) => [path, at]));
      for (const node of tree.nodes) {
        if (typeOf(node) !== S_IFREG || node.link !== undefined) continue;
        const link = links.get(node.path);
        contents.set(node, () =>
          link === undefined ? contentsBelow(source!.top, source!.shown, node) : openForContents(link),
        );
      }
    }
    for (const saved of this.saved) {
      const file = entries.get(saved)!;
      const ids = apart.get(saved) ?? claimed.get(saved.key) ?? [];
      file.open = new Map(ids.map(({ id, flags, pos }) => [id, { flags, pos }]));
      const pipe = ids.some(({ fifo }) => fifo) ? pipes.get(pipeOf(saved)) : undefined;
      // Once, also where the same FIFO is open on two mounts.
      pipes.delete(pipeOf(saved));
      if (pipe !== undefined) file.pipe = pipe;
      if (saved.contents !== undefined) contents.set(file, () => openForContents(`/proc/self/fd/${saved.contents}`));
    }
    writeDetached(imagesDir, [...entries.values()], contents);
  }

  /** Which files of the images they are that share a key. */
  #idsOf(
    imagesDir: string,
    claimed: ReadonlyMap<string, ClaimedFile[]>,
    twins: ReadonlyMap<Saved, (readonly [task: number, fd: number])[]>,
  ): Map<Saved, ClaimedFile[]> {
    const apart = new Map<Saved, ClaimedFile[]>();
    if (twins.size === 0) return apart;
    const idAt = descriptorIds(imagesDir);
    const told = new Set<number>();
    for (const [saved, at] of twins) {
      const ids = new Set(at.map(([task, fd]) => idAt(task, fd)));
      const mine = (claimed.get(saved.key) ?? []).filter(({ id }) => ids.has(id));
      for (const { id } of mine) told.add(id);
      apart.set(saved, mine);
    }
    for (const { key, held } of twins.keys())
      if (claimed.get(key)?.some(({ id }) => !told.has(id)))
        throw refuse(
          `cannot carry what has the number of \`${readlinkSync(held.link)}\` of process ${held.pid} on a mount that has been unmounted`,
          "it is in a message on its way, and a file of another subvolume has the same number",
          "take the checkpoint when it has arrived",
        );
    return apart;
  }

  #claim(imagesDir: string, uses: Uses): ReturnType<typeof claimFiles> {
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

  #entry({ key, held, place, mode, ino, gone, bound, users }: Saved, mounts: Map<string, MountEntry>): FileEntry {
    const { host, elsewhere, root, path, handle, tree, mark, inode } = place;
    // Files of one mount that were found in different places are on different mounts afterwards.
    const id = `${held.mntId} ${host} ${elsewhere} ${tree} ${root}`;
    const mount = mounts.get(id) ?? { host, path: root, attributes: attributesOf(held.mntFlags) };
    if (tree !== undefined) mount.tree = this.#trees.get(tree)!.tree;
    if (mark !== undefined) mount.mark = mark;
    if (elsewhere) mount.elsewhere = true;
    mounts.set(id, mount);
    const used = users.size > 0;
    if (used && !host) mount.base = this.#cover!.base;
    const file: FileEntry = { mount, path, mode, ino, open: new Map() };
    // What has no name any more gets a place of its own for as long as CRIU needs it.
    if (used && !host && (gone ?? handle) !== undefined) file.path = `.cryoshim-${held.mntId}-${ino}`;
    if (used) file.key = key;
    if (handle !== undefined) file.handle = handle;
    if (inode !== undefined) file.inode = inode;
    if (gone !== undefined) file.gone = gone;
    if (bound !== undefined) file.bound = bound;
    return file;
  }

  /** CRIU would bind sockets by their names, on other mounts: it is to ask for them (native/plugin/bound.c). */
  #renameSockets(imagesDir: string): void {
    if (this.#bound.size === 0) return;
    const path = `${imagesDir}/files.img`;
    const image = decodeImage(readFileSync(path), "files.img");
    for (const { message } of image.entries) {
      const usk = message.usk as Message | undefined;
      const file = usk && this.#bound.get(BigInt(usk.ino as number));
      if (usk === undefined || file === undefined) continue;
      usk.name = new Uint8Array(Buffer.from(`\0${boundAs(this.saved.indexOf(file))}`));
      for (const field of ["deleted", "name_dir", "mnt_id", "file_perms"]) delete usk[field];
    }
    replaceFile(path, encodeImage(image));
  }

  close(): void {
    for (const saved of this.saved) {
      if (saved.contents !== undefined) closeSync(saved.contents);
      delete saved.contents;
    }
    for (const fd of this.#files.splice(0)) closeSync(fd);
  }
}
