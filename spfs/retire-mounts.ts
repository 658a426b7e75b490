// SPDX-License-Identifier: Apache-2.0
// The mounts that are replaced, in every namespace of the container's, and the exchange itself.
import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";
import { mountIdOf } from "../shim/carriers/tasks.js";
import { codeOf, MOUNT_WORK, verbs } from "./retire-native.js";
import { linkOf, mountNamespace, refusal } from "./retire-tasks.js";

/** A line of /proc/PID/mountinfo; paths are latin1, as seen from the root of the namespace. */
export interface Mount {
  id: number;
  parent: number;
  dev: string;
  root: string;
  point: string;
  options: string[];
  shared: string | undefined;
  master: string | undefined;
  type: string;
}

/** A mount that is to go, and what comes in its place. */
export interface Replacement {
  ns: number;
  mount: Mount;
  /** Mounts that stand on it. */
  children: Mount[];
  /** The part of the real directory that it shows, "" being all. */
  part: string;
  /** A copy of the real directory's mount, with the old one's attributes; undefined: it will come by propagation. */
  tree: number | undefined;
  /** It will be opened only when it is in its place: it comes by propagation, or an earlier attempt has put it beneath. */
  later: "propagated" | "beneath" | undefined;
  /** The id of what has come; known once it is in its place. */
  newId?: number;
}

export interface Namespace {
  ino: number;
  fd: number;
  pids: number[];
  table: Mount[];
}

const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

export const parseTable = (text: string): Mount[] =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const words = line.split(" ");
      const dash = words.indexOf("-", 6);
      const tag = (name: string): string | undefined =>
        words
          .slice(6, dash)
          .find((word) => word.startsWith(`${name}:`))
          ?.slice(name.length + 1);
      return {
        id: Number(words[0]),
        parent: Number(words[1]),
        dev: words[2]!,
        root: unescaped(words[3]!),
        point: unescaped(words[4]!),
        options: words[5]!.split(","),
        shared: tag("shared"),
        master: tag("master"),
        type: words[dash + 1]!,
      };
    });

/** What is below a directory in a path: "" for itself, undefined where it is not below. */
export const below = (directory: string, path: string): string | undefined => {
  if (path === directory) return "";
  const before = directory === "/" ? "" : directory;
  return path.startsWith(`${before}/`) ? path.slice(before.length + 1) : undefined;
};

/** The kernel's number of a device, as it is in /proc/PID/maps and stat(2). */
export const deviceOf = (dev: string): bigint => {
  const [major, minor] = dev.split(":").map(BigInt) as [bigint, bigint];
  return ((major & 0xfffn) << 8n) | (minor & 0xffn) | ((minor & 0xfff00n) << 12n) | ((major & ~0xfffn) << 32n);
};

/** A device of mountinfo as /proc/PID/maps and /proc/locks have it. */
export const hexDevice = (dev: string): string =>
  dev
    .split(":")
    .map((number) => Number(number).toString(16).padStart(2, "0"))
    .join(":");

const ATTRIBUTES: Record<string, number> = { ro: 1, nosuid: 2, nodev: 4, noexec: 8, noatime: 0x10, nodiratime: 0x80 };
/** MOUNT_ATTR__ATIME is a field of its own: cleared first, relatime being 0, strictatime 0x20. */
const [ATIME, STRICT, ALL] = [0x70, 0x20, 0xff];
const [MS_PRIVATE, MS_SHARED] = [1 << 18, 1 << 20];

const attributesOf = (options: string[]): number => {
  const atime = options.includes("noatime") || options.includes("relatime") ? 0 : STRICT;
  return options.reduce((all, option) => all | (ATTRIBUTES[option] ?? 0), atime);
};

export const cloneOf = (dir: number, part: string, options: string[]): number =>
  verbs.cloneTree(dir, part, attributesOf(options), ALL | ATIME, MS_PRIVATE);

/** The namespaces of mounts in which the container's tasks are; the root task's comes first. */
export const namespacesOf = (root: number, pids: readonly number[]): Namespace[] => {
  const all = new Map<number, Namespace>();
  for (const pid of [root, ...pids.filter((each) => each !== root)]) {
    const ino = mountNamespace(pid);
    if (ino === undefined) continue;
    const known = all.get(ino);
    if (known !== undefined) known.pids.push(pid);
    else {
      const fd = openSync(`/proc/${pid}/ns/mnt`, "r");
      all.set(ino, { ino, fd, pids: [pid], table: parseTable(verbs.mountTable(fd)) });
    }
  }
  return [...all.values()];
};

/** The topmost mount at a path: nothing is mounted on it there. */
const mountAt = (table: readonly Mount[], point: string): Mount | undefined =>
  table.findLast(
    (mount) => mount.point === point && !table.some((other) => other.parent === mount.id && other.point === point),
  );

/** The mount that the request names. */
export const namedMount = (root: number, mountpoint: string, table: readonly Mount[]): Mount => {
  const what = `cannot retire the mount at \`${mountpoint}\` of task ${root}`;
  const within = linkOf(`/proc/${root}/root`) ?? "/";
  const point = mountpoint.length > 1 ? mountpoint.replace(/\/+$/, "") : mountpoint;
  const mount = mountAt(table, point) ?? (within === "/" ? undefined : mountAt(table, within + point));
  if (mount === undefined)
    throw refusal(
      what,
      "nothing is mounted there",
      "name the mount point as the container's /proc/self/mountinfo does",
    );
  if (point === "/" || !table.some(({ id }) => id === mount.parent))
    throw refusal(what, "it is the root of its namespace", "only mounts below the root can be retired");
  return mount;
};

/** What of its file system a directory of ours is, as mountinfo writes it. */
const rootOf = (directory: number): string | undefined => {
  const id = mountIdOf(directory);
  const mount = parseTable(verbs.mountTable(-1)).find((each) => each.id === id);
  const part = mount && below(mount.point, linkOf(`/proc/self/fd/${directory}`) ?? "");
  return mount && part !== undefined ? joined(mount.root, part) : undefined;
};

const joined = (root: string, part: string): string =>
  part === "" ? root : root === "/" ? `/${part}` : `${root}/${part}`;

/** All mounts of the same part of the same file system, in all of the namespaces. */
export const replacementsFor = (named: Mount, namespaces: readonly Namespace[], real: number): Replacement[] => {
  const realRoot = rootOf(real);
  const realDev = fstatSync(real, { bigint: true }).dev;
  const all: Replacement[] = [];
  const parents = new Map<string, Mount>();
  for (const { fd: ns, table } of namespaces)
    for (const mount of table) {
      const part = mount.dev === named.dev ? below(named.root, mount.root) : undefined;
      // One that is under another at its place is seen by nobody, and cannot be reached.
      if (part === undefined || mountAt(table, mount.point) !== mount) continue;
      const parent = table.find(({ id }) => id === mount.parent);
      // A parent in the group of another's, at the same place: what is mounted there comes here by itself.
      const propagated = [parent?.shared, parent?.master].some(
        (group) => group !== undefined && parents.has(`${group} ${mount.root}`),
      );
      if (parent?.shared !== undefined) parents.set(`${parent.shared} ${mount.root}`, parent);
      const children = table.filter((each) => each.parent === mount.id);
      const isReal =
        parent?.point === mount.point &&
        realRoot !== undefined &&
        parent.root === joined(realRoot, part) &&
        deviceOf(parent.dev) === realDev &&
        children.length === 0;
      const later = propagated ? "propagated" : isReal ? "beneath" : undefined;
      const tree = later === undefined ? cloneOf(real, part, mount.options) : undefined;
      all.push({ ns, mount, part, later, children, tree });
    }
  return all;
};

/** Linux 6.5 has MOVE_MOUNT_BENEATH; EINVAL says both that a kernel does not know it and that it cannot be. */
const knowsBeneath = (): boolean => {
  const [major = 0, minor = 0] = readFileSync("/proc/sys/kernel/osrelease", "utf8").split(/[.-]/).map(Number);
  return major > 6 || (major === 6 && minor >= 5);
};

/** Puts the new mount beneath the old one: nobody sees it yet. Throws, with nothing changed. */
export const putBeneath = ({ ns, mount, tree, children, later }: Replacement): void => {
  if (later === "beneath") return;
  if (!knowsBeneath()) {
    if (children.length > 0)
      throw refusal(
        `cannot retire the mount at \`${mount.point}\``,
        `a mount stands on it at \`${children[0]!.point}\`, and kernels before 6.5 cannot take that along`,
        "unmount that first",
      );
    return;
  }
  verbs.workOnMount(ns, MOUNT_WORK.beneath, mount.point, mount.id, tree!, 0);
};

/** Takes mounts that stand on the old one along to the new one. Throws; then those that were taken are back. */
const moveChildren = (replacement: Replacement, openReal: (part: string) => number): void => {
  const { ns, mount, children } = replacement;
  if (children.length === 0) return;
  // Mounts on a shared mount cannot be moved.
  if (mount.shared !== undefined || mount.master !== undefined)
    verbs.workOnMount(ns, MOUNT_WORK.set, mount.point, mount.id, -1, MS_PRIVATE);
  const moved: { from: number; child: number }[] = [];
  const opened: number[] = [];
  const open = (fd: number): number => {
    opened.push(fd);
    return fd;
  };
  try {
    for (const each of children) {
      const part = below(mount.point, each.point)!;
      // The directory under the child, for the way back, cannot be named while the child is on it: its parent can.
      const child = open(verbs.openPlace(ns, each.point, each.id));
      verbs.moveMount(ns, child, open(openReal(part)));
      moved.push({ child, from: open(verbs.openPlace(ns, each.point, mount.id)) });
    }
  } catch (error) {
    for (const { child, from } of moved.reverse()) verbs.moveMount(ns, child, from);
    throw error;
  } finally {
    for (const fd of opened) closeSync(fd);
  }
};

/** The old mount goes, the new one is there: one step, in which every path leads to the one or the other. */
export const takePlace = (replacement: Replacement, openReal: (part: string) => number): void => {
  const { ns, mount, tree, later } = replacement;
  if (knowsBeneath()) {
    moveChildren(replacement, openReal);
    verbs.workOnMount(ns, MOUNT_WORK.unmount, mount.point, mount.id, -1, 0);
  } else {
    // All tasks of the container stand still: they see no moment without a mount.
    verbs.workOnMount(ns, MOUNT_WORK.unmount, mount.point, mount.id, -1, 0);
    verbs.workOnMount(ns, MOUNT_WORK.onTop, mount.point, mount.parent, tree!, 0);
  }
  if (later === "beneath") return;
  replacement.newId = mountIdOf(tree!);
  // As shared as the old one was.
  if (mount.shared !== undefined) verbs.workOnMount(ns, MOUNT_WORK.set, mount.point, replacement.newId, -1, MS_SHARED);
};

/** What could not be opened before it was in its place: opened, as the tree that it is. */
export const openLate = (replacement: Replacement): void => {
  const { ns, mount } = replacement;
  const now = mountAt(parseTable(verbs.mountTable(ns)), mount.point);
  if (now === undefined || now.id === mount.id)
    throw refusal(
      `cannot retire the mount at \`${mount.point}\``,
      "the new mount has not come",
      "look at /proc/self/mountinfo there",
    );
  replacement.tree = verbs.openPlace(ns, mount.point, now.id);
  replacement.newId = now.id;
};

export const isRefused = (error: unknown): boolean => ["EINVAL", "EPERM", "EBUSY"].includes(codeOf(error));
