// SPDX-License-Identifier: Apache-2.0
// The files of the images are opened again, on copies of mounts that are in no namespace.

import { randomUUID } from "node:crypto";
import {
  chownSync,
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  rmdirSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { addon } from "../../native/index.js";
import type { Engine } from "../control/engine.js";
import { CryoshimError, reason } from "../error.js";
import { O_PATH } from "../flags.js";
import { boundAs, DetachedImage, type FileEntry, type MountEntry } from "./detached-image.js";
import { cloneElsewhere, locate, markOf, openInode } from "./detached-inode.js";
import { refuse } from "./detached-refuse.js";
import { bindAgain } from "./detached-socket.js";
import { makeTree, type Tree } from "./detached-tree.js";

const { S_IFMT, S_IFREG, S_IFDIR, S_IFIFO, S_IFLNK, O_RDONLY, O_RDWR, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW } = constants;
const O_TMPFILE = 0o20200000;
/** What a descriptor was opened with and still has. O_DIRECTORY is as good as said, and O_PATH allows no others. */
const KEPT = 0o3 | constants.O_APPEND | O_NONBLOCK | constants.O_DSYNC | constants.O_SYNC | 0o40000 | 0o1000000;

/** Opens the files of the images again. */
export class Reopen {
  readonly #image: DetachedImage;
  readonly #files: FileEntry[];
  /** Mount namespaces of file systems that were made anew. */
  readonly #fresh = new Map<Tree, number>();
  readonly #trees = new Map<MountEntry, number>();
  /** Descriptors by which files without a name were made anew. */
  readonly #made = new Map<FileEntry, number>();
  /** Where the copies are mounted. */
  #namespace: number | undefined;
  /** FIFOs, by both ends: what is in one is lost with its last descriptor. */
  readonly #fifos = new Map<FileEntry, number>();
  /** Names, or handles, that files have now. */
  readonly #found = new Map<FileEntry, string | Buffer>();

  /** Copies of mounts that show the very directory that the unmounted ones did. */
  readonly #same = new Set<MountEntry>();
  /** Files of sockets that have been bound. */
  readonly #bound = new Map<FileEntry, number>();

  /** Throws ERR_IMAGE. */
  constructor(imagesDir: string) {
    this.#image = new DetachedImage(imagesDir);
    this.#files = this.#image.files;
  }

  /** What CRIU opens itself and is there before tasks exist it inherits, under the name that it was dumped by. */
  async handIn(engine: Engine): Promise<void> {
    for (const file of this.#files) {
      if (file.key === undefined || file.mount.base !== undefined) continue;
      const fd = this.#told(file, () => this.#one(file, O_PATH, -1));
      try {
        await engine.inherit(fd, file.key);
      } finally {
        closeSync(fd);
      }
    }
  }

  /** Mounts the copies in which CRIU opens files by their names. `root`: the root task, which is not there yet itself. */
  attach(root: number): void {
    const base = this.#base;
    if (base === undefined) return;
    const [namespace, ...others] = addon.storedNamespaces(root);
    this.#namespace = namespace;
    if (namespace === undefined || others.length > 0) {
      for (const other of others) closeSync(other);
      throw refuse(
        "cannot bring back what was used on a mount that had been unmounted",
        `CRIU keeps ${others.length + (namespace === undefined ? 0 : 1)} mount namespaces where one was expected`,
        "restore with the version of CRIU that took the checkpoint",
      );
    }
    const mounts = [...new Set(this.#files.map(({ mount }) => mount))].filter((mount) => mount.base === base);
    const trees = addon.attachMounts(
      namespace,
      base,
      mounts.map(({ path }) => path),
    );
    for (const [i, mount] of mounts.entries()) this.#has(mount, trees[i]!, namespace);
    for (const file of this.#files) if (isNamed(file)) this.#told(file, () => this.#stays(file));
    for (const [i, mount] of mounts.entries()) this.#complete(mount, trees[i]!);
  }

  /** CRIU has opened all: the copies go out of the namespace. */
  detach(): void {
    const base = this.#base;
    if (base === undefined || this.#namespace === undefined) return;
    addon.detachMounts(this.#namespace, base);
  }

  get #base(): string | undefined {
    return this.#files.find(({ mount }) => mount.base !== undefined)?.mount.base;
  }

  /** Makes what has no name on a copy of a mount, which then becomes as the unmounted one was. */
  #complete(mount: MountEntry, tree: number): void {
    for (const file of this.#files) {
      if (file.mount !== mount) continue;
      if (file.gone !== undefined && file.bound === undefined) this.#told(file, () => this.#make(file, tree));
      if (isExposed(file)) this.#told(file, () => this.#expose(file, tree));
    }
    if (mount.attributes !== 0) addon.setMount(this.#namespaceOf(mount), tree, mount.attributes, 0);
  }

  /** Where a copy is mounted; -1: nowhere. */
  #namespaceOf({ base }: MountEntry): number {
    return base === undefined ? -1 : this.#namespace!;
  }

  /** A place where CRIU finds what has no name: a mount of its own, beside the others. */
  #expose(file: FileEntry, tree: number): void {
    const fd = this.#again(file, O_PATH, tree);
    try {
      const directory = (file.mode & S_IFMT) === S_IFDIR;
      const { base, attributes } = file.mount;
      addon.attachFile(this.#namespace!, fd, `${base}/${file.path}`, directory, attributes, tree, file.path);
    } finally {
      closeSync(fd);
    }
  }

  /** Whether something is to be let go of before the tasks run. */
  get holds(): boolean {
    return this.#files.some(({ mode }) => (mode & S_IFMT) === S_IFIFO);
  }

  /** Whether CRIU shall ask for sockets. */
  get binds(): boolean {
    return this.#files.some(({ bound }) => bound !== undefined);
  }

  #called(name: string): FileEntry | undefined {
    return this.#files.find(({ bound }, i) => bound !== undefined && name === boundAs(i));
  }

  /** Binds the socket `fd` of a task (as below). Undefined where it is none of ours; false: its file has not got its place. */
  bind(name: string, fd: number, task: number): boolean | undefined {
    const file = this.#called(name);
    if (file === undefined) return undefined;
    return this.#told(file, () => {
      const tree = this.#tree(file.mount, task);
      const socket = addon.pidfdGetfd(task, fd);
      const readOnly = file.mount.attributes & 1;
      const where = this.#namespaceOf(file.mount);
      try {
        if (readOnly !== 0) addon.setMount(where, tree, 0, readOnly);
        const { fd: made, placed } = bindAgain(file, tree, socket, this.#same.has(file.mount));
        const before = this.#bound.get(file);
        if (before !== undefined) closeSync(before);
        this.#bound.set(file, made);
        return placed;
      } finally {
        closeSync(socket);
        if (readOnly !== 0) addon.setMount(where, tree, readOnly, 0);
      }
    });
  }

  /** A descriptor, which becomes the caller's, of what a socket was bound to. */
  boundFile(name: string): number | undefined {
    const file = this.#called(name);
    const fd = file && this.#bound.get(file);
    return fd === undefined ? undefined : openSync(`/proc/self/fd/${fd}`, O_PATH);
  }

  /** `task` is a pidfd of a task in the restored mount namespace. */
  open(id: number, task: number): number | undefined {
    const file = this.#files.find(({ open }) => open.has(id));
    if (file === undefined) return undefined;
    const { flags, pos } = file.open.get(id)!;
    return this.#told(file, () => {
      const fd = this.#one(file, flags & O_PATH ? flags & (O_PATH | O_NOFOLLOW) : flags & KEPT, task);
      try {
        if (pos > 0n && (flags & O_PATH) === 0 && seeks(file)) addon.seek(fd, Number(pos));
        return fd;
      } catch (error) {
        closeSync(fd);
        throw error;
      }
    });
  }

  #told<T>(file: FileEntry, work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (error instanceof CryoshimError && error.code === "ERR_DETACHED") throw error;
      const { host, elsewhere, tree } = file.mount;
      if (tree !== undefined)
        throw refuse(
          `cannot make the tmpfs again that had \`${file.path}\` on a mount that had been unmounted`,
          reason(error),
          "see what the reason says; a file system is made of cryoshim-detached.img alone",
          error,
        );
      throw refuse(
        this.#cannot(file),
        reason(error),
        `see that the file system is mounted there ${elsewhere ? "in some process's mount namespace" : host ? "on the host" : "in the container"} before the restore`,
        error,
      );
    }
  }

  #one(file: FileEntry, flags: number, task: number): number {
    const tree = this.#tree(file.mount, task);
    const fifo = (file.mode & S_IFMT) === S_IFIFO;
    if (fifo && !this.#fifos.has(file)) this.#fifos.set(file, this.#hold(file, tree));
    const how = flags | O_NOCTTY | (fifo && (flags & O_PATH) === 0 ? O_NONBLOCK : 0);
    const fd = this.#again(file, how & ~(flags & O_PATH ? O_NOCTTY : 0), tree);
    try {
      if ((fstatSync(fd).mode & S_IFMT) !== (file.mode & S_IFMT)) throw new Error("what is there is of another type");
      // It was opened so that it waits for nobody.
      if (fifo && (flags & (O_NONBLOCK | O_PATH)) === 0) addon.setBlocking(fd);
      return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Opens a file by its name, its handle, or the descriptor by which it was made. */
  #again(file: FileEntry, flags: number, tree: number): number {
    if (file.gone !== undefined) return openSync(`/proc/self/fd/${this.#make(file, tree)}`, flags);
    const where = file.handle ?? this.#where(file, tree);
    return typeof where === "string"
      ? addon.openBeneath(tree, where, flags, 0)
      : openInode(tree, where, flags & O_PATH ? flags | O_NOFOLLOW : flags);
  }

  /** Its name, unless that is another's by now: of a copy of the file system, or of the container's files, the name is all there is. */
  #where(file: FileEntry, tree: number): string | Buffer {
    const known = this.#found.get(file);
    if (known !== undefined) return known;
    const where =
      this.#same.has(file.mount) && file.inode !== undefined
        ? locate(tree, file.path, file.inode, file.ino)
        : file.path;
    if (where === undefined)
      throw refuse(
        this.#cannot(file),
        "it has been deleted since the checkpoint",
        "restore with the file system as it was, or take the checkpoint again",
      );
    this.#found.set(file, where);
    return where;
  }

  /** CRIU opens what is in the container's mounts by its name. */
  #stays(file: FileEntry): void {
    if (this.#where(file, this.#trees.get(file.mount)!) !== file.path)
      throw refuse(
        this.#cannot(file),
        "it has another name since the checkpoint, and CRIU opens it by the old one",
        "give it its name back before the restore",
      );
  }

  #cannot({ path, mount }: FileEntry): string {
    return `cannot open \`${path}\` below \`${mount.path}\` again, which was on a mount that had been unmounted`;
  }

  #hold(file: FileEntry, tree: number): number {
    const fd = this.#again(file, O_RDWR | O_NONBLOCK, tree);
    try {
      const contents = file.pipe;
      if (contents !== undefined) {
        if (contents.size > 0) addon.setPipeSize(fd, contents.size);
        const { atimeNs, mtimeNs } = fstatSync(fd, { bigint: true });
        if (contents.data.length > 0 && writeSync(fd, contents.data) < contents.data.length)
          throw new Error("what was in it does not fit into it again");
        // Nobody has written into it.
        if (fstatSync(fd, { bigint: true }).mtimeNs !== mtimeNs)
          addon.setAttributes(`/proc/self/fd/${fd}`, file.mode & 0o7777, atimeNs, mtimeNs);
      }
      return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Makes a file without a name anew. Returns an O_PATH descriptor. */
  #make(file: FileEntry, tree: number): number {
    let fd = this.#made.get(file);
    if (fd !== undefined) return fd;
    const { uid, gid, rdev, atime, mtime } = file.gone!;
    const type = file.mode & S_IFMT;
    if (type === S_IFREG) fd = this.#makeRegular(file, tree);
    else if (type === S_IFDIR && isExposed(file)) {
      // It loses its name when it is exposed.
      addon.makeNode(tree, file.path, S_IFDIR | 0o700, 0);
      fd = addon.openBeneath(tree, file.path, O_PATH, 0);
    } else fd = nameless(tree, type, Number(rdev));
    this.#made.set(file, fd);
    chownSync(`/proc/self/fd/${fd}`, uid, gid);
    addon.setAttributes(`/proc/self/fd/${fd}`, file.mode & 0o7777, atime, mtime);
    return fd;
  }

  #makeRegular(file: FileEntry, tree: number): number {
    const fd = addon.openBeneath(tree, ".", O_TMPFILE | O_RDWR, 0o600);
    try {
      ftruncateSync(fd, Number(file.gone!.size));
      this.#image.contents(file, (bytes, offset) => {
        for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at, bytes.length - at, offset + at);
      });
      // One that may write would keep the mount from becoming read-only.
      return openSync(`/proc/self/fd/${fd}`, O_PATH);
    } finally {
      closeSync(fd);
    }
  }

  #tree(mount: MountEntry, task: number): number {
    let tree = this.#trees.get(mount);
    if (tree !== undefined) return tree;
    if (mount.elsewhere) {
      tree = cloneElsewhere(mount.path, mount.mark!);
      this.#trees.set(mount, tree);
      this.#same.add(mount);
    } else {
      const where = mount.tree === undefined ? (mount.host ? -1 : task) : this.#fileSystem(mount.tree);
      tree = addon.cloneMount(where, mount.path);
      this.#has(mount, tree, where);
    }
    this.#complete(mount, tree);
    return tree;
  }

  /** Keeps a copy of a mount. `ns`: where it is a copy from, -1: here. */
  #has(mount: MountEntry, tree: number, ns: number): void {
    this.#trees.set(mount, tree);
    if (mount.mark !== undefined && markOf(tree, ".", ns)?.equals(mount.mark)) this.#same.add(mount);
  }

  /** A file system that was mounted nowhere else is made once. */
  #fileSystem(tree: Tree): number {
    let ns = this.#fresh.get(tree);
    if (ns !== undefined) return ns;
    ns = makeTree(tree, (node, piece) => this.#image.contents(node, piece));
    this.#fresh.set(tree, ns);
    return ns;
  }

  /** All files are open: tasks will see the ends of FIFOs that nobody else has. */
  letGo(): void {
    for (const fd of this.#fifos.values()) closeSync(fd);
    this.#fifos.clear();
  }

  close(): void {
    this.letGo();
    for (const fd of [...this.#made.values(), ...this.#bound.values(), ...this.#trees.values()]) closeSync(fd);
    for (const ns of this.#fresh.values()) closeSync(ns);
    this.#fresh.clear();
    if (this.#namespace !== undefined) closeSync(this.#namespace);
    this.#namespace = undefined;
    this.#made.clear();
    this.#bound.clear();
    this.#trees.clear();
  }
}

/** Whether CRIU opens it by a name that it does not have. */
const isExposed = ({ mount, key, gone, handle }: FileEntry): boolean =>
  mount.base !== undefined && key !== undefined && (gone ?? handle) !== undefined;

/** Whether CRIU opens it by the name that it had. */
const isNamed = (file: FileEntry): boolean =>
  file.mount.base !== undefined && file.key !== undefined && !isExposed(file);

const seeks = ({ mode }: FileEntry): boolean => {
  const type = mode & S_IFMT;
  return type === S_IFREG || type === S_IFDIR;
};

/** Makes something that is no regular file, and takes its name away. Returns an O_PATH descriptor. */
const nameless = (tree: number, type: number, rdev: number): number => {
  const name = `.cryoshim-${randomUUID()}`;
  addon.makeNode(tree, name, type | 0o700, rdev);
  try {
    return addon.openBeneath(tree, name, O_PATH | O_NOFOLLOW, 0);
  } finally {
    const path = `/proc/self/fd/${tree}/${name}`;
    if (type === S_IFDIR) rmdirSync(path);
    else unlinkSync(path);
  }
};

/** What can be made anew without a name. */
export const canBeMade = (mode: number): boolean =>
  (mode & S_IFMT) !== S_IFLNK && (mode & S_IFMT) !== constants.S_IFSOCK;

/** How contents are read that will be made anew. */
export const openForContents = (path: string): number => openSync(path, O_RDONLY | O_NONBLOCK);
