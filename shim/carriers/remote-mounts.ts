// SPDX-License-Identifier: Apache-2.0
// Mounts whose files are on a server: which there are, and where. Text of mountinfo is latin1: each byte a character.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { behind } from "../remote/state.js";

/** A line of /proc/PID/mountinfo (man 5 proc_pid_mountinfo). */
export interface MountLine {
  id: number;
  parent: number;
  /** As stat(2) splits it: "0:53". */
  dev: string;
  /** What part of the file system it shows, and where in its namespace. */
  root: string;
  point: string;
  /** Of the mount, and of the file system. */
  flags: string;
  options: string;
  type: string;
  source: string;
}

/** Its blanks and backslashes are in octal. */
const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** The lines of a mountinfo. */
export const mountLines = (text: string): MountLine[] =>
  text
    .split("\n")
    .filter(Boolean)
    .map((line) => {
      const columns = line.split(" ");
      const [type = "", source = "", options = ""] = columns.slice(columns.indexOf("-") + 1);
      return {
        id: Number(columns[0]),
        parent: Number(columns[1]),
        dev: columns[2]!,
        root: unescaped(columns[3]!),
        point: unescaped(columns[4]!),
        flags: columns[5]!,
        options,
        type,
        source: unescaped(source),
      };
    });

/** The mounts of a process's namespace. Throws when there is no such process. */
export const mountsOf = (pid: number | "self"): MountLine[] =>
  mountLines(readFileSync(`/proc/${pid}/mountinfo`, "latin1"));

/** lxcfs and the like are the host's own view of itself, and stand again before any container does. */
const NOT_REMOTE = /^fuse\.(lxcfs|portal|gvfsd-fuse|fuse-overlayfs)$/;
const REMOTE = /^(nfs4?|cifs|smb3|ceph|9p|afs|lustre|fuse(blk)?(\..+)?)$/;

/** Whether the files of a file system of this type are on a server. */
export const isRemote = (type: string): boolean => REMOTE.test(type) && !NOT_REMOTE.test(type);

/** sshfs and the like number their files anew each time that they are mounted; elsewhere a number is a file. */
export const keepsInodes = (type: string): boolean => !type.startsWith("fuse");

/** Whether locks on files of it are its server's, for all of its clients. */
export const locksAtServer = ({ type, options }: { type: string; options: string }): boolean =>
  /^(nfs4?|cifs|smb3|ceph|lustre|afs)$/.test(type) && !/(^|,)(nolock|local_lock=all|nobrl)(,|$)/.test(options);

/** A source as a mapping names it: `*` stands for anything. */
export const matches = (pattern: string, source: string): boolean =>
  new RegExp(`^${pattern.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*")}$`, "s").test(source);

/** The remote mounts of a process's namespace; its root itself is the runtime's to restore. */
export const remoteMounts = (pid: number | "self"): MountLine[] =>
  mountsOf(pid).filter(({ type, point }) => isRemote(type) && point !== "/");

/** Options by which somebody could mount in its owner's place. */
const SECRET = /^(pass(word)?|secret|key|credentials|cred|.*secret.*|.*passw.*)(=|$)/i;
/** Descriptors and the like that mean nothing to anybody else. */
const MEANINGLESS = /^(fd|rootmode|user_id|group_id|clientaddr|ticket|mountaddr|mountport)=/;

/** The options of a file system without its secrets, and without what is of this mount alone. */
export const publicOptions = (options: string): string =>
  options
    .split(",")
    .filter((option) => !SECRET.test(option) && !MEANINGLESS.test(option))
    .join(",");

/** The kernel's own number of a device, split as mountinfo has it. */
export const minorOf = (dev: string): number => Number(dev.split(":")[1]);

/** Whether a process has the mounts of this one. */
export const sharesMounts = (pid: number): boolean =>
  readlinkSync(`/proc/${pid}/ns/mnt`) === readlinkSync("/proc/self/ns/mnt");

/** What FUSE file systems the processes of a tree serve: the connection's number, undefined where the kernel does not say. */
export const served = (tree: readonly number[]): { pid: number; connection: number | undefined }[] =>
  tree.flatMap((pid) => {
    try {
      return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
        if (!readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("/dev/fuse")) return [];
        const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, "latin1");
        const connection = /^fuse_connection:\s+(\d+)$/m.exec(info)?.[1];
        return [{ pid, connection: connection === undefined ? undefined : Number(connection) }];
      });
    } catch {
      return [];
    }
  });

/** A directory or file of a file system as a mount of it shows it; undefined where it does not. */
export const within = (root: string, path: string): string | undefined => {
  if (path === root) return "";
  const before = root === "/" ? "" : root;
  return path.startsWith(`${before}/`) ? path.slice(before.length + 1) : undefined;
};

/** Whether a process has mounts on which an open file whose name is gone has another one (fs/nfs: "silly rename"). */
export const needsLinkRemap = (pid: number): boolean => {
  try {
    // SPFS has the names of what it stands for.
    return remoteMounts(pid).some((mount) => /^nfs4?$/.test(behind(mount).type));
  } catch {
    return false;
  }
};

/** Whether a process has mounts whose server the kernel itself speaks with, over a network that may be the process's. */
export const hasKernelClients = (pid: number): boolean => {
  try {
    return !sharesMounts(pid) && remoteMounts(pid).some(({ type }) => !type.startsWith("fuse"));
  } catch {
    return false;
  }
};
