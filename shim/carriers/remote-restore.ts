// SPDX-License-Identifier: Apache-2.0
// The restore's side of remote file systems: whether each is there again, on this host, and as it was.
import { closeSync, fstatSync, readdirSync, readFileSync } from "node:fs";
import { addon } from "../../native/index.js";
import { verbs } from "../../spfs/retire-native.js";
import { reason } from "../error.js";
import { spfsOf } from "../remote/state.js";
import { named, refuse, shown } from "./remote-dump.js";
import type { RemoteFs, RemoteMount, RemoteNode } from "./remote-image.js";
import { look } from "./remote-look.js";
import { keepsInodes, type MountLine, mountsOf, within } from "./remote-mounts.js";

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

export const joined = (directory: string, path: string): string =>
  path === "" ? directory : directory === "/" ? `/${path}` : `${directory}/${path}`;

/** What differs between a file as recorded and as it is, so that CRIU would refuse it; undefined: nothing. */
const differs = (node: RemoteNode, now: { mode: number; size: bigint } | string): string | undefined => {
  const name = `\`${shown(node.path)}\``;
  if (typeof now === "string") return `${name} is not there (${now})`;
  if ((now.mode & S_IFMT) !== (node.mode & S_IFMT)) return `${name} is of another type`;
  if ((node.mode & S_IFMT) !== S_IFREG) return undefined;
  if (now.size !== node.size) return `${name} has ${now.size} bytes and not ${node.size}`;
  return now.mode !== node.mode ? `${name} has mode ${(now.mode & 0o7777).toString(8)}` : undefined;
};

/** Where on this host a file system of this type and source shows a directory of it; SPFS itself is none. */
export const placesOf = ({ type, source, base }: Pick<RemoteFs, "type" | "source" | "base">): string[] =>
  mountsOf("self").flatMap((line) => {
    if (line.type !== type || line.source !== source) return [];
    const below = within(line.root, base);
    return below === undefined ? [] : [joined(line.point, below)];
  });

/** The mount of this host that a path is on, by its number. */
const mountAt = (id: number): MountLine | undefined => mountsOf("self").find((line) => line.id === id);

/**
 * What is wrong with a path of this host as the place of a directory `part` of what was recorded; undefined: nothing. `tell` is
 * given what is not as it was, although CRIU does not mind.
 */
export const wrongWith = async (
  fs: RemoteFs,
  part: string,
  path: string,
  ms: number,
  tell?: (what: string) => void,
): Promise<string | undefined> => {
  const nodes = fs.nodes.flatMap((node) => {
    const below = within(`/${part}`.replace(/\/$/, "") || "/", `/${node.path}`.replace(/(.)\/$/, "$1"));
    return below === undefined ? [] : [{ node, below }];
  });
  try {
    const files = nodes.map(({ below }) => below);
    const { top, files: found } = await look({ base: "/", top: path.slice(1), files }, ms);
    if (typeof top === "string") return `\`${shown(path)}\` cannot be looked at (${top})`;
    const mount = mountAt(top.mntId);
    if (mount !== undefined && spfsOf(mount) !== undefined) return `\`${shown(path)}\` is SPFS's`;
    const replaced: string[] = [];
    for (const [i, { node }] of nodes.entries()) {
      const now = i === 0 && node.path === part ? top : found[i]!;
      const wrong = differs(node, now);
      if (wrong !== undefined) return `below \`${shown(path)}\` ${wrong}`;
      if (typeof now !== "string" && (now.mode & S_IFMT) === S_IFREG && now.ino !== node.ino) replaced.push(node.path);
    }
    // On another server's copy all numbers are others.
    if (keepsInodes(fs.type) && nodes[0]?.node.ino === top.ino)
      for (const name of replaced)
        tell?.(`below \`${shown(path)}\` \`${shown(name)}\` has been replaced by another file`);
    return undefined;
  } catch (error) {
    return `\`${shown(path)}\`: ${reason(error)}`;
  }
};

/** The first place on this host where the file system is as it was; otherwise what is wrong with each. */
export const findPlace = async (
  fs: RemoteFs,
  more: readonly string[],
  ms: number,
  tell?: (what: string) => void,
): Promise<string | string[]> => {
  const wrong: string[] = [];
  for (const path of new Set([...more, ...placesOf(fs)])) {
    const why = await wrongWith(fs, "", path, ms, tell);
    if (why === undefined) return path;
    wrong.push(why);
  }
  return wrong;
};

/** A path of this host whose mount SPFS already serves, made ready for the restore. */
export const standsAt = async (path: string, ms: number): Promise<string | undefined> => {
  const { top } = await look({ base: "/", top: path.slice(1), files: [] }, ms);
  const mount = typeof top === "string" ? undefined : mountAt(top.mntId);
  return mount === undefined ? undefined : spfsOf(mount);
};

/** The part of a file system, below its base, that a mount shows as its root. */
export const partOf = (fs: Pick<RemoteFs, "base">, { root }: Pick<RemoteMount, "root">): string =>
  within(fs.base, root) ?? "";

/** Thrown for a file system that only we can bring back, that is nowhere to be had, and that SPFS shall not stand for. */
export const notThere = (fs: RemoteFs, wrong: readonly string[]): Error =>
  refuse(
    `cannot restore a container with ${named({ ...fs, point: fs.mounts[0]?.point ?? fs.base })}`,
    wrong.length === 0 ? "it is not mounted on this host" : wrong.join("; "),
    "mount it somewhere on this host, or let SPFS stand for it ([remote] policy)",
  );

/**
 * Directories of FUSE that a restored task has read a part of are read up to there again. CRIU has only set the position, and
 * a server need not know one that it has not told whoever has opened the directory: sshfs ends itself over it
 * (sshfs.c:sftp_readdir_async). Gives what could not be read.
 */
export const readAgain = (pid: number): string[] => {
  const ids = new Set(
    mountsOf(pid).flatMap((line) => (line.type.startsWith("fuse") && spfsOf(line) === undefined ? [line.id] : [])),
  );
  if (ids.size === 0) return [];
  const task = addon.pidfdOpen(pid);
  try {
    return readdirSync(`/proc/${pid}/fdinfo`).flatMap((fd) => {
      const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, "latin1");
      const field = (name: string): string => new RegExp(`^${name}:\\s+(\\d+)$`, "m").exec(info)?.[1] ?? "0";
      const position = BigInt(field("pos"));
      if (position === 0n || !ids.has(Number(field("mnt_id")))) return [];
      // The same open file: its position is the task's.
      const copy = addon.pidfdGetfd(task, Number(fd));
      try {
        if (fstatSync(copy).isDirectory()) readUpTo(copy, position);
        return [];
      } catch (error) {
        return [`directory ${fd} of task ${pid} cannot be read again: ${reason(error)}`];
      } finally {
        closeSync(copy);
      }
    });
  } finally {
    closeSync(task);
  }
};

const readUpTo = (fd: number, position: bigint): void => {
  verbs.setPosition(fd, 0n);
  try {
    verbs.listDirectory(fd);
  } finally {
    verbs.setPosition(fd, position);
  }
};
