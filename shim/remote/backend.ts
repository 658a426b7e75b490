// SPDX-License-Identifier: Apache-2.0
// The real file system, once its server is there again: found where it is mounted on this host, or mounted anew. What is
// mounted here is unmounted again once SPFS has it (MNT_DETACH): it is seen nowhere, and lasts as long as it is used.

import { closeSync, constants, mkdirSync, opendirSync, openSync, readFileSync, rmdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { addon } from "../../native/index.js";
import { look } from "../carriers/remote-look.js";
import { isRemote, type MountLine, matches, mountsOf, within } from "../carriers/remote-mounts.js";
import { joined, placesOf } from "../carriers/remote-restore.js";
import { mountIdOf } from "../carriers/tasks.js";
import type { RemoteMapping, RemoteSettings } from "../engine/launch-file.js";
import { reason } from "../error.js";
import { O_PATH } from "../flags.js";
import { stateDir } from "../session/plugin-dir.js";
import { type Remembered, spfsOf, type Treatment } from "./state.js";

/** A directory that shows what SPFS stands for. */
export interface Backend {
  /** O_PATH; whoever gets it closes it. */
  fd: number;
  /** For people. */
  from: string;
  mount: MountLine;
  /** Where it was mounted for this, and is to be seen no more. */
  seen?: string;
}

/** The mount of this namespace that a descriptor is of; undefined: it is none any more. */
export const mountOfFd = (fd: number): MountLine | undefined => {
  const id = mountIdOf(fd);
  return mountsOf("self").find((line) => line.id === id);
};

/** What is wrong with an opened directory as the file system that is looked for; undefined: nothing. */
type Unlike = (mount: MountLine, fd: number) => string | undefined;

/**
 * A directory whose server answers now. It is opened only then: an open would wait without end. What has been opened is then held
 * against what was looked for: a mount can go at any moment, and the directory below it is another, most often an empty one.
 */
const openAnswering = async (path: string, ms: number, unlike: Unlike): Promise<Pick<Backend, "fd" | "mount">> => {
  const { top } = await look({ base: "/", top: path.slice(1), files: [] }, ms);
  if (typeof top === "string") throw new Error(`\`${path}\` cannot be looked at (${top})`);
  if ((top.mode & 0o170000) !== 0o040000) throw new Error(`\`${path}\` is no directory`);
  const fd = openSync(Buffer.from(path, "latin1"), O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    const mount = mountOfFd(fd);
    if (mount === undefined) throw new Error(`\`${path}\` has just been unmounted`);
    const why = unlike(mount, fd);
    if (why !== undefined) throw new Error(`\`${path}\` ${why}`);
    return { fd, mount };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
};

const isEmpty = (fd: number): boolean => {
  const directory = opendirSync(`/proc/self/fd/${fd}`);
  try {
    return directory.readSync() === null;
  } finally {
    directory.closeSync();
  }
};

/** An empty directory below what is not mounted (yet) is not it. */
const notOnServer: Unlike = (mount) =>
  isRemote(mount.type) && spfsOf(mount) === undefined ? undefined : "is not on a server";

/** What somebody has named may be a directory of this host's own. */
const notNamed: Unlike = (mount, fd) => {
  if (spfsOf(mount) !== undefined) return "is SPFS's";
  return isRemote(mount.type) || !isEmpty(fd) ? undefined : "is empty, and nothing is mounted there";
};

/** Options of a file that root alone may read: they are not to be seen in a list of processes, so mount(8) gets the file. */
const secretOptions = (type: string, file: string): string => {
  const st = statSync(file);
  if (st.uid !== 0 || (st.mode & 0o077) !== 0) throw new Error(`others than root can read \`${file}\``);
  // mount.cifs reads it itself.
  return /^(cifs|smb3)$/.test(type)
    ? `credentials=${file}`
    : readFileSync(file, "utf8")
        .trim()
        .replaceAll(/\s*\n\s*/g, ",");
};

/** Options that mean something to the kernel alone, in mountinfo, and that mount(8) refuses. */
const KERNELS = /^(addr|local_lock|clientaddr|mountaddr|mountvers|mountproto|rw|ro|relatime|seclabel|lookupcache)(=|$)/;

const remountOptions = (options: string): string =>
  options
    .split(",")
    .filter((option) => option === "ro" || !KERNELS.test(option))
    .join(",");

/** Options of a list without those that another has, too: mount(8) refuses some that are there twice. */
const without = (options: string, others: string): string => {
  const keys = new Set(others.split(",").map(keyOf));
  return options
    .split(",")
    .filter((option) => !keys.has(keyOf(option)))
    .join(",");
};
const keyOf = (option: string): string => option.split("=")[0]!;

const MOUNT_MS = 30_000;

/** Mounts it, opens its base, and lets nobody see it. */
const mountUnseen = async (
  { id, fs, own, root }: Remembered,
  { type = fs.type, from = fs.source, options, credentials }: Omit<RemoteMapping, "source" | "path">,
  ms: number,
): Promise<Backend> => {
  const parent = join(stateDir(), "mounts");
  mkdirSync(parent, { recursive: true, mode: 0o700 });
  const dir = join(parent, `${id}.backend`);
  const secret = credentials === undefined ? "" : secretOptions(type, credentials);
  const all = [options ?? without(remountOptions(fs.options), secret), secret].filter((part) => part !== "").join(",");
  // In mount(8)'s words FUSE's own types are fuse.NAME.
  const command = ["mount", "-t", type, ...(all === "" ? [] : ["-o", all]), "--", from, dir];
  // A mount that the container made by its own network is made by that network again.
  const inside = own && root !== undefined ? ["nsenter", `--net=/proc/${root}/ns/net`, "--"] : [];
  const [program, ...args] = [...inside, ...command] as [string, ...string[]];
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  // A keeper that was killed has left it.
  unsee(dir, false);
  try {
    const { failed, stderr, timedOut } = await execa(program, args, {
      reject: false,
      timeout: MOUNT_MS,
      stdin: "ignore",
      extendEnv: true,
    });
    if (failed)
      throw new Error(timedOut ? "mount(8) takes too long" : stderr.trim().split("\n").at(-1) || "mount(8) failed");
    const place = joined(dir, within("/", fs.base) ?? "");
    const unlike: Unlike = ({ point }) => (point === dir ? undefined : "has just been unmounted");
    return { ...(await openAnswering(place, ms, unlike)), from, seen: dir };
  } catch (error) {
    unsee(dir, true);
    throw error;
  }
};

/** Takes a mount of ours away, which lasts as long as it is used; and the directory. */
const unsee = (dir: string, remove: boolean): void => {
  try {
    if (mountsOf("self").some(({ point }) => point === dir)) addon.unmount(dir);
    if (remove) rmdirSync(dir);
  } catch {
    // Something is still mounted there: the next try finds it so.
  }
};

/** Types that mount(8) mounts by what mountinfo says of them, with nothing else to be known. */
const BY_ITSELF = /^(nfs4?|9p)$/;

/**
 * The real file system. Tried in this order: what the annotation and the configuration name, what is mounted on this
 * host of the same type and source, what has been mounted again where a runtime binds it from, and for NFS a mount as it was.
 * Throws what was wrong with each.
 */
export const findBackend = async (remembered: Remembered, settings: RemoteSettings): Promise<Backend> => {
  const { fs, treatment, paths } = remembered;
  const ms = settings.answer_within * 1000;
  const wrong: string[] = [];
  const attempt = async (open: () => Promise<Backend>): Promise<Backend | undefined> => {
    try {
      return await open();
    } catch (error) {
      wrong.push(reason(error));
      return undefined;
    }
  };
  const directory = (path: string, unlike: Unlike) => async (): Promise<Backend> => ({
    ...(await openAnswering(path, ms, unlike)),
    from: path,
  });
  const another: Unlike = ({ type, source }) =>
    type === fs.type && source === fs.source ? undefined : "has just been unmounted";
  const ways: (() => Promise<Backend>)[] = [];
  for (const { source, here } of treatment.map)
    if (matches(source, fs.source))
      ways.push(here.startsWith("/") ? directory(here, notNamed) : () => mountUnseen(remembered, { from: here }, ms));
  for (const { source, path, ...how } of settings.mount)
    if (matches(source, fs.source))
      ways.push(path === undefined ? () => mountUnseen(remembered, how, ms) : directory(path, notNamed));
  const mapped = ways.length > 0;
  for (const path of placesOf(fs)) ways.push(directory(path, another));
  for (const path of paths) ways.push(directory(path, notOnServer));
  if (!mapped && BY_ITSELF.test(fs.type)) ways.push(() => mountUnseen(remembered, {}, ms));
  for (const way of ways) {
    const found = await attempt(way);
    if (found !== undefined) return found;
  }
  throw new Error(wrong.length === 0 ? "it is not mounted on this host" : wrong.join("; "));
};

/**
 * Whether files of this mount may be read and written past SPFS. Who does gets the errors of the mount itself: ENOTCONN for ever from
 * FUSE whose server has died, EIO from a soft mount. Where a loss is to be waited for only what waits by itself will do: a hard
 * mount, or what is on this host and has no server.
 */
export const mayPass = ({ onLoss }: Pick<Treatment, "onLoss">, { type, options }: MountLine): boolean =>
  onLoss === "eio" || !isRemote(type) || (!type.startsWith("fuse") && options.split(",").includes("hard"));

/** Gives it back: what SPFS, or the container, has of it stays. */
export const closeBackend = ({ fd, seen }: Pick<Backend, "fd" | "seen">): void => {
  closeSync(fd);
  if (seen !== undefined) unsee(seen, true);
};
