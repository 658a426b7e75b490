// SPDX-License-Identifier: Apache-2.0
// The restore's side of remote file systems: whether each is there again, on this host, and as it was.
import { reason } from "../error.js";
import { named, refuse, shown } from "./remote-dump.js";
import type { RemoteFs, RemoteMount, RemoteNode } from "./remote-image.js";
import { look } from "./remote-look.js";
import { mountsOf, within } from "./remote-mounts.js";

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

const joined = (directory: string, path: string): string =>
  path === "" ? directory : directory === "/" ? `/${path}` : `${directory}/${path}`;

/** A directory of this host, and whether it is as it was recorded. */
export interface Place {
  /** Where the file system's base is, latin1. */
  path: string;
  /** Why it will not do. */
  wrong?: string;
}

/** What differs between a file as recorded and as it is, so that CRIU would refuse it; undefined: nothing. */
const differs = (node: RemoteNode, now: { mode: number; size: bigint } | string): string | undefined => {
  const name = `\`${shown(node.path)}\``;
  if (typeof now === "string") return `${name} is not there (${now})`;
  if ((now.mode & S_IFMT) !== (node.mode & S_IFMT)) return `${name} is of another type`;
  if ((node.mode & S_IFMT) !== S_IFREG) return undefined;
  if (now.size !== node.size) return `${name} has ${now.size} bytes and not ${node.size}`;
  return now.mode !== node.mode ? `${name} has mode ${(now.mode & 0o7777).toString(8)}` : undefined;
};

/** Where on this host a file system shows a directory of it: mounts of the same source. */
const candidates = ({ type, source, base }: RemoteFs): string[] =>
  mountsOf("self").flatMap((line) => {
    if (line.type !== type || line.source !== source) return [];
    const below = within(line.root, base);
    return below === undefined ? [] : [joined(line.point, below)];
  });

/** Looks whether everything recorded is below a directory. Never waits longer than `ms`. */
export const checkPlace = async (fs: RemoteFs, path: string, ms: number): Promise<Place> => {
  try {
    const files = fs.nodes.map((node) => node.path);
    const { top, files: found } = await look({ base: "/", top: path.slice(1), files }, ms);
    if (typeof top === "string") return { path, wrong: `\`${shown(path)}\` cannot be looked at (${top})` };
    for (const [i, node] of fs.nodes.entries()) {
      const wrong = differs(node, found[i]!);
      if (wrong !== undefined) return { path, wrong: `below \`${shown(path)}\` ${wrong}` };
    }
    return { path };
  } catch (error) {
    return { path, wrong: `\`${shown(path)}\`: ${reason(error)}` };
  }
};

/** The first place on this host where the file system is as it was; otherwise what is wrong with each. */
export const findPlace = async (fs: RemoteFs, more: readonly string[], ms: number): Promise<Place | string[]> => {
  const wrong: string[] = [];
  for (const path of new Set([...more, ...candidates(fs)])) {
    const place = await checkPlace(fs, path, ms);
    if (place.wrong === undefined) return place;
    wrong.push(place.wrong);
  }
  return wrong;
};

/** The path, at a place, that a mount of the file system shows as its root. */
export const pathFor = (fs: RemoteFs, { root }: RemoteMount, { path }: Pick<Place, "path">): string =>
  joined(path, within(fs.base, root) ?? "");

/** Thrown for a file system that only we can bring back and that is nowhere to be had. */
export const notThere = (fs: RemoteFs, wrong: readonly string[]): Error =>
  refuse(
    `cannot restore a container with ${named({ ...fs, point: fs.mounts[0]?.point ?? fs.base })}`,
    wrong.length === 0 ? "it is not mounted on this host" : wrong.join("; "),
    "mount it somewhere on this host, or name a directory for it in [[remote.mount]] of the configuration",
  );
