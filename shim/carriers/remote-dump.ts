// SPDX-License-Identifier: Apache-2.0
// The dump's side of remote file systems: which mounts of them a tree of tasks has, whether their servers answer, what CRIU
// must be told of them, and the record of what a restore will ask.

import { constants, openSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { decodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { addon } from "../../native/index.js";
import { CryoshimError, reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import { behind, spfsOf } from "../remote/state.js";
import { latinOf, type RemoteFs, type RemoteMount, type RemoteNode } from "./remote-image.js";
import { type Answers, type Looked, look, NoAnswer } from "./remote-look.js";
import {
  type MountLine,
  minorOf,
  mountsOf,
  publicOptions,
  remoteMounts,
  served,
  sharesMounts,
  within,
} from "./remote-mounts.js";
import { namespacesOf } from "./tasks.js";

export const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_REMOTE", { what, why, fix, cause });

/** A remote mount of a tree, by a process that has it. */
export interface HeldMount extends MountLine {
  pid: number;
  /** The process is in the mount namespace of the tree's root, the only one in which CRIU takes external mounts. */
  ofRoot: boolean;
  /** The process has the mounts of the host. */
  host: boolean;
}

/** For people: terminals and logs get no control characters. */
export const shown = (text: string): string =>
  Buffer.from(text, "latin1")
    .toString("utf8")
    .replace(/[\p{Cc}\p{Cf}]/gu, "?");
export const named = ({ type, source, point }: Pick<MountLine, "type" | "source" | "point">): string =>
  `\`${shown(point)}\` (${type}, ${shown(source)})`;

const quietly = <T>(ask: () => T, otherwise: T): T => {
  try {
    return ask();
  } catch {
    return otherwise;
  }
};

/** The numbers of mounts, and the paths, that a process uses. Nothing here asks a server. */
const usedBy = (pid: number, ids: Set<number>, paths: Set<string>): void => {
  for (const fd of quietly(() => readdirSync(`/proc/${pid}/fdinfo`), []))
    ids.add(
      Number(/^mnt_id:\s+(\d+)$/m.exec(quietly(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, "latin1"), ""))?.[1]),
    );
  for (const link of ["cwd", "root", "exe"])
    paths.add(quietly(() => readlinkSync(`/proc/${pid}/${link}`, "latin1"), "/"));
  const maps = quietly(() => readFileSync(`/proc/${pid}/maps`, "latin1"), "");
  for (const [, path] of maps.matchAll(/^(?:\S+ +){5}(\/.*)$/gm)) paths.add(path!);
};

/** What of these mounts the tree has something open on, or stands in. */
export const usedMounts = (held: readonly HeldMount[], tree: readonly number[]): Set<HeldMount> => {
  const ids = new Set<number>();
  const paths = new Set<string>();
  if (held.length > 0) for (const pid of tree) usedBy(pid, ids, paths);
  const all = [...paths];
  return new Set(held.filter(({ id, point }) => ids.has(id) || all.some((path) => within(point, path) !== undefined)));
};

/** The remote mounts of a tree; of those of the host, the ones that it uses. */
export const heldMounts = (root: number, tree: readonly number[] = treeOf(root)): HeldMount[] => {
  // Where a process has ended meanwhile, CRIU tells of it.
  const rootNs = quietly(() => readlinkSync(`/proc/${root}/ns/mnt`), undefined);
  return [...namespacesOf("mnt", tree).values()].flatMap((pid) => {
    const host = quietly(() => sharesMounts(pid), false);
    const ofRoot = quietly(() => readlinkSync(`/proc/${pid}/ns/mnt`), "") === rootNs;
    const held = quietly(() => remoteMounts(pid), []).map((line): HeldMount => ({ ...line, pid, ofRoot, host }));
    return host ? [...usedMounts(held, tree)] : held;
  });
};

/** Knows of a tree without remote mounts whether it still has none: in the freeze that is one call, and not a look at all mounts. */
export class NoRemoteMounts {
  readonly #fds: Int32Array;

  private constructor(fds: readonly number[]) {
    this.#fds = Int32Array.from(fds);
  }

  /** Undefined where there are some. Throws when a process has ended meanwhile. */
  static of(root: number): NoRemoteMounts | undefined {
    const fds: number[] = [];
    let some = true;
    try {
      // Opened first: what changes while they are read has changed.
      const pids = [...namespacesOf("mnt", treeOf(root)).values()];
      for (const pid of pids) fds.push(openSync(`/proc/${pid}/mountinfo`, constants.O_RDONLY));
      some = pids.some((pid) => remoteMounts(pid).length > 0);
      return some ? undefined : new NoRemoteMounts(fds);
    } finally {
      if (some) addon.closeFds(Int32Array.from(fds));
    }
  }

  /**
   * A namespace made since is not known: what is mounted in it alone CRIU refuses, as a look before the freeze would have
   * (see `admit`).
   */
  get still(): boolean {
    return !addon.haveChanged(this.#fds);
  }

  close(): void {
    addon.closeFds(this.#fds);
  }
}

/** The state letter of a thread, where it waits in the kernel, and how often it has been switched. */
const waitOf = (pid: number, tid: string): string | undefined => {
  const dir = `/proc/${pid}/task/${tid}`;
  const wait = readFileSync(`${dir}/wchan`, "latin1");
  if (!/^(request_wait_answer|__?fuse|fuse_|rpc_wait_bit_killable|nfs|cifs|p9_|ceph|wait_for_response)/.test(wait))
    return undefined;
  return `${wait} ${/^voluntary_ctxt_switches:\s+(\d+)$/m.exec(readFileSync(`${dir}/status`, "latin1"))?.[1]}`;
};

/** Threads that wait for a server now, and for what. */
const waiting = (tree: readonly number[]): Map<string, string> => {
  const found = new Map<string, string>();
  for (const pid of tree)
    for (const tid of quietly(() => readdirSync(`/proc/${pid}/task`), [])) {
      const wait = quietly(() => waitOf(pid, tid), undefined);
      if (wait !== undefined) found.set(tid, wait);
    }
  return found;
};

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** A thread that has waited for its server all the time; such a task cannot be frozen. */
const stuck = async (tree: readonly number[], ms: number): Promise<string | undefined> => {
  let first = waiting(tree);
  for (const end = Date.now() + ms; first.size > 0; await pause(20)) {
    const now = waiting(tree);
    first = new Map([...first].filter(([tid, wait]) => now.get(tid) === wait));
    if (Date.now() >= end) return [...first.keys()][0];
  }
  return undefined;
};

/** What keeps a mount from being dumped: that its server is within the container, or does not answer. */
const checkServer = async (mount: HeldMount, answerWithin: number): Promise<void> => {
  let top: Answers["top"];
  try {
    ({ top } = await look({ base: `/proc/${mount.pid}/root`, top: mount.point.slice(1), files: [] }, answerWithin));
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    throw refuse(
      `cannot checkpoint a container with ${named(mount)}`,
      reason(error),
      "try again when it does; [remote] answer_within says how long it may take",
      error,
    );
  }
  if (typeof top !== "string") return;
  const why = top === "ENOTCONN" ? "its server is gone (ENOTCONN)" : `it cannot be looked at (${top})`;
  const fix =
    top === "EACCES"
      ? "mount it with allow_other, so that root may look at it"
      : "start its server again, or unmount it";
  throw refuse(`cannot checkpoint a container with ${named(mount)}`, why, fix);
};

/** SPFS that waits for its server lets CRIU wait, too. */
const checkStandIn = async (mount: HeldMount): Promise<void> => {
  const id = spfsOf(mount);
  if (id === undefined) return;
  const { openSpfs } = await import("../../spfs/control.js");
  const { phase, blocked } = await (await openSpfs(id)).status();
  if (phase === "proxy") return;
  throw refuse(
    `cannot checkpoint a container with ${named(behind(mount))}`,
    `SPFS stands for it, and its server is not back: ${blocked} calls wait for it`,
    `see \`cryoshim spfs list\`, and try again when it is`,
  );
};

/**
 * Whether a dump may begin; nothing is stopped yet, and nothing here waits longer than `answerWithin` ms. `given`: the
 * mounts that the caller has told CRIU of. Throws ERR_REMOTE.
 */
export const admit = async (root: number, given: ReadonlyMap<string, string>, answerWithin: number): Promise<void> => {
  const tree = treeOf(root);
  const held = heldMounts(root, tree);
  if (held.length === 0) return;
  const servers = served(tree);
  const own = held.find(
    ({ type, dev }) =>
      type.startsWith("fuse") &&
      servers.some(({ connection }) => connection === undefined || connection === minorOf(dev)),
  );
  if (own !== undefined)
    throw refuse(
      `cannot checkpoint a container with ${named(own)}`,
      `process ${servers[0]!.pid} of the container serves it, and would be frozen while CRIU asks it`,
      "run the server outside of the container, or unmount it before the checkpoint",
    );
  const rootDevs = new Set(held.filter(({ ofRoot }) => ofRoot).map(({ dev }) => dev));
  const nested = held.find(({ dev, host }) => !host && !rootDevs.has(dev));
  if (nested !== undefined)
    throw refuse(
      `cannot checkpoint a container with ${named(nested)}`,
      `it is mounted in the mount namespace of process ${nested.pid} alone, and not in that of the container's first process`,
      "mount it in the container itself, too",
    );
  await Promise.all(held.map(checkStandIn));
  const used = usedMounts(held, tree);
  // What nobody uses and the caller takes care of is no affair of ours.
  const asked = held.filter((mount) => used.has(mount) || (!mount.host && !given.has(mount.point)));
  const visible = asked.filter(({ pid, id, point }) => !isCovered(pid, id, point));
  await Promise.all(visible.map((mount) => checkServer(mount, answerWithin)));
  const tid = await stuck(tree, answerWithin);
  if (tid !== undefined)
    throw refuse(
      "cannot checkpoint the container",
      `thread ${tid} waits for the server of ${named(held[0]!)}, and cannot be frozen while it does`,
      "try again when the server answers",
    );
};

/** Whether something else is mounted at the same place, over it. */
const isCovered = (pid: number, id: number, point: string): boolean =>
  quietly(() => mountsOf(pid), []).some((other) => other.parent === id && other.point === point);

/** The key of a mount that only we know. */
const OURS = "cryoshim-remote-";

/** What CRIU must be told: the keys of mounts that nobody else has told it of. */
export const externalKeys = (held: readonly HeldMount[], given: ReadonlyMap<string, string>): string[] =>
  held
    .filter(({ ofRoot, host, point }) => ofRoot && !host && !given.has(point))
    .map(({ point }, i) => `mnt[${point}]:${OURS}${i}`);

const imagesOf = (imagesDir: string, pattern: RegExp): Message[] =>
  readdirSync(imagesDir)
    .filter((name) => pattern.test(name))
    .flatMap((name) => decodeImage(readFileSync(join(imagesDir, name)), name).entries.map(({ message }) => message));

/** What CRIU has found at a path, and will compare with what is there at the restore. */
type Compared = Pick<Looked, "mode" | "size"> | undefined;

/** In a dump of tasks without mounts of their own CRIU does not say on which mount a file is. */
const NO_MOUNT = -1;

/** The mount of this host that a path is on: the last that is mounted nearest to it. */
const hostMountOf = (path: string, mounts: readonly MountLine[]): number | undefined => {
  let [best, depth] = [undefined as number | undefined, -1];
  for (const { id, point } of mounts)
    if (within(point, path) !== undefined && point.length >= depth) [best, depth] = [id, point.length];
  return best;
};

/** Which paths on which mounts the images name: all that CRIU opens by a path has one of these. */
const pathsInImages = (imagesDir: string): Map<number, Map<string, Compared>> => {
  const paths = new Map<number, Map<string, Compared>>();
  const add = (mntId: unknown, path: string, compared?: Compared): void => {
    if (!path.startsWith("/")) return;
    const id = typeof mntId === "number" ? mntId : NO_MOUNT;
    const known = paths.get(id) ?? new Map<string, Compared>();
    paths.set(id, known.set(path, compared));
  };
  // Open files whose names are gone: CRIU makes them anew from another one (NFS: .nfs..., from link_remap.N), and removes both.
  const remaps = imagesOf(imagesDir, /^remap-fpath\.img$/) as { orig_id: number; remap_id: number }[];
  const remapped = new Map(remaps.map(({ orig_id, remap_id }) => [orig_id, remap_id]));
  const files = imagesOf(imagesDir, /^files\.img$/) as { [type: string]: Message | undefined }[];
  const mounts = new Map<unknown, unknown>();
  for (const { reg } of files) if (reg !== undefined) mounts.set(remapped.get(reg.id as number), reg.mnt_id);
  for (const { reg, usk } of files) {
    // That other name has no mount of its own (criu/files-reg.c:create_link_remap).
    if (reg !== undefined && mounts.has(reg.id)) add(mounts.get(reg.id), latinOf(reg.name));
    else if (reg !== undefined && !remapped.has(reg.id as number)) {
      const { mode, size } = reg as { mode?: number; size?: bigint | number };
      const compared = mode === undefined || size === undefined ? undefined : { mode, size: BigInt(size) };
      add(reg.mnt_id, latinOf(reg.name), compared);
    }
    // A name ends at its first NUL; an abstract one begins with it.
    if (usk !== undefined) add(usk.mnt_id, latinOf(usk.name).split("\0")[0]!);
  }
  return paths;
};

const joined = (directory: string, path: string): string =>
  path === "" ? directory : directory === "/" ? `/${path}` : `${directory}/${path}`;

/** The directory that is above all of these, or is all of them. */
export const commonBase = (paths: readonly string[]): string => {
  const parts = paths.map((path) => path.split("/").filter(Boolean));
  const [first = []] = parts;
  let depth = 0;
  while (depth < first.length && parts.every((each) => each[depth] === first[depth])) depth++;
  return `/${first.slice(0, depth).join("/")}`;
};

/** A path and all directories above it; "" is where they begin. */
export const withParents = (path: string): string[] => {
  const parts = path.split("/").filter(Boolean);
  return ["", ...parts.map((_, i) => parts.slice(0, i + 1).join("/"))];
};

/** What is recorded of one file system: its mounts, and the paths on it that count, from its own root on. */
interface Gathered {
  fs: RemoteFs;
  paths: Map<string, Compared>;
  held: HeldMount[];
}

const gather = (held: readonly HeldMount[], imagesDir: string): Gathered[] => {
  const keys = new Map<number, string>();
  for (const { mnt_id, ext_key } of imagesOf(imagesDir, /^mountpoints-\d+\.img$/))
    if (ext_key !== undefined) keys.set(mnt_id as number, latinOf(ext_key));
  const paths = pathsInImages(imagesDir);
  const unplaced = paths.get(NO_MOUNT) ?? new Map<string, Compared>();
  const hosts = unplaced.size > 0 && held.some(({ host }) => host) ? mountsOf("self") : [];
  const all = new Map<string, Gathered>();
  for (const mount of held) {
    const { pid, id, dev, point, flags, host } = mount;
    const { type, source, options, root } = behind(mount);
    const key = keys.get(id);
    const placed = host ? [...unplaced].filter(([path]) => hostMountOf(path, hosts) === id) : [];
    const used = [...(paths.get(id) ?? []), ...placed].flatMap(([path, compared]): [string, Compared][] => {
      const below = within(point, path);
      return below === undefined ? [] : [[below, compared]];
    });
    if (host && used.length === 0) continue;
    const known = all.get(dev) ?? {
      fs: { type, source, options: publicOptions(options), base: root, dev, mounts: [], nodes: [] },
      paths: new Map<string, Compared>(),
      held: [],
    };
    all.set(dev, known);
    const entry: RemoteMount = { mntId: id, key, ours: key?.startsWith(OURS) === true, root, point, flags };
    known.fs.mounts.push(entry);
    known.held.push(mount);
    // Where other mounts stand on it, CRIU mounts them again.
    const below = mountsOf(pid).filter(({ parent }) => parent === id);
    for (const { point: at } of below) used.push([within(point, at) ?? "", undefined]);
    for (const [path, compared] of [["", undefined] as const, ...used])
      known.paths.set(joined(root, path), compared ?? known.paths.get(joined(root, path)));
  }
  return [...all.values()];
};

const dirname = (path: string): string => path.slice(0, path.lastIndexOf("/")) || "/";
const IS_DIR = 0o040000;
const isDir = (mode: number): boolean => (mode & 0o170000) === IS_DIR;

/** Looks at what was gathered of one file system. */
const record = async ({ fs, paths, held }: Gathered, answerWithin: number): Promise<RemoteFs> => {
  const seen = new Map<string, Looked>();
  const bases: string[] = [];
  for (const mount of held) {
    const { pid, point } = mount;
    const { root } = behind(mount);
    const shown = [...paths.keys()].filter((path) => within(root, path) !== undefined);
    const files = [...new Set(shown.flatMap((path) => withParents(within(root, path)!)))];
    const { top, files: answers } = await look({ base: `/proc/${pid}/root`, top: point.slice(1), files }, answerWithin);
    // The mount of a single file shows no directory: what holds it is the base.
    const single = typeof top !== "string" && !isDir(top.mode);
    bases.push(single ? dirname(root) : root);
    if (single) seen.set(root, top);
    else
      files.forEach((path, i) => {
        const found = answers[i]!;
        // What CRIU keeps as a ghost has no name any more.
        if (typeof found !== "string") seen.set(joined(root, path), found);
      });
  }
  fs.base = commonBase(bases);
  const nodes = new Map<string, RemoteNode>();
  for (const [path, { dev: _, mntId: __, ...node }] of seen) {
    const below = within(fs.base, path);
    if (below === undefined) continue;
    nodes.set(below, { path: below, ...node, ...paths.get(path) });
    // Directories between the base and what was mounted: nobody has seen them.
    for (const above of withParents(below))
      if (!nodes.has(above) && !seen.has(joined(fs.base, above)))
        nodes.set(above, { path: above, ...unseen(nodes.size) });
  }
  fs.nodes = [...nodes.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  return fs;
};

/** A directory of which nothing is known. */
const unseen = (n: number): Omit<RemoteNode, "path"> => ({
  ...{ mode: IS_DIR | 0o755, nlink: 2, uid: 0, gid: 0, rdev: 0, size: 4096n },
  ino: BigInt(0x7fff0000 + n),
  ...{ atime: 0n, mtime: 0n, ctime: 0n },
});

/** The record of a dump whose images are written; its tasks still stand still. Throws ERR_REMOTE when a server does not answer. */
export const recordAll = async (
  held: readonly HeldMount[],
  imagesDir: string,
  answerWithin: number,
): Promise<RemoteFs[]> => {
  const all: RemoteFs[] = [];
  for (const gathered of gather(held, imagesDir)) {
    try {
      all.push(await record(gathered, answerWithin));
    } catch (error) {
      throw refuse(
        `cannot record the files of ${named(gathered.held[0]!)}`,
        reason(error),
        "try again when its server answers",
        error,
      );
    }
  }
  return all;
};
