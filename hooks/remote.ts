// SPDX-License-Identifier: Apache-2.0
// Which mounts of a container have their files on a server. No path of theirs is touched: a server that hangs would hang
// whoever looks, and with him the container's start.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod/mini";
import {
  isRemote,
  type MountLine,
  mountLines,
  mountsOf,
  publicOptions,
  within,
} from "../shim/carriers/remote-mounts.js";
import type { OciMount } from "./state.js";

export const remoteMount = z.object({
  /** Where the container has it. */
  destination: z.string(),
  /** What the host mounted, as mountinfo has it. */
  type: z.string(),
  source: z.string(),
  /** Without secrets. */
  options: z.string(),
});
export type RemoteRecord = z.infer<typeof remoteMount>;

/** Text of mountinfo is latin1, JSON's is UTF-8. */
const utf8 = (text: string): string => Buffer.from(text, "latin1").toString("utf8");
const latin1 = (text: string): string => Buffer.from(text, "utf8").toString("latin1");

const described = (destination: string, { type, source, options }: MountLine): RemoteRecord => ({
  destination,
  type,
  source: utf8(source),
  options: utf8(publicOptions(options)),
});

/** The mount that a path of the host lies on: the last of the longest. */
const mountOf = (path: string, lines: readonly MountLine[]): MountLine | undefined =>
  lines
    .filter(({ point }) => within(point, path) !== undefined)
    .reduce<MountLine | undefined>(
      (best, line) => (line.point.length >= (best?.point.length ?? 0) ? line : best),
      undefined,
    );

/** Of what a configuration asks for: binds of remote mounts of the host, and remote file systems of the container's own. */
export const remoteIn = (mounts: readonly OciMount[], lines = mountsOf("self")): RemoteRecord[] =>
  mounts.flatMap(({ destination, type, source }) => {
    if (source === undefined) return [];
    if (type !== undefined && isRemote(type)) return [{ destination, type, source, options: "" }];
    const line = source.startsWith("/") ? mountOf(latin1(source), lines) : undefined;
    return line !== undefined && isRemote(line.type) ? [described(destination, line)] : [];
  });

/** "SOURCE DESTINATION TYPE ..." of an LXC configuration, as fstab has it. */
export const lxcEntries = (text: string): OciMount[] =>
  [...text.matchAll(/^\s*lxc\.mount\.entry\s*=\s*(\S+)\s+(\S+)\s+(\S+)/gm)].map(([, source, destination, type]) => ({
    source: source!,
    destination: join("/", destination!),
    type: type!,
  }));

/** What LXC's mount hooks saw: mounts of the container's own are those that were not there before. Throws without them. */
export const remoteBetween = (dir: string, root: string): RemoteRecord[] => {
  const read = (name: string): MountLine[] => mountLines(readFileSync(join(dir, name), "latin1"));
  const before = new Set(read("mounts-before").map(({ id }) => id));
  return read("mounts").flatMap((line) => {
    const place = within(root, line.point);
    return before.has(line.id) || place === undefined || !isRemote(line.type)
      ? []
      : [described(utf8(join("/", place)), line)];
  });
};
