// SPDX-License-Identifier: Apache-2.0
import { closeSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

/** A watched descriptor, opaque. */
export type WatchHandle = { readonly __watch: never };

/** One message of a SOCK_SEQPACKET socket; whoever receives `fds` owns them. */
export interface SocketMessage {
  data: Buffer;
  fds: number[];
}

/** The addon as C exports it (native/addon.c); the surgeon's verbs are typed in shim/control/. */
interface Addon {
  seqpacketPair(): [number, number];
  sendMessage(fd: number, data: Buffer, fds: number[]): number;
  receiveMessage(fd: number, max: number, peek: boolean): SocketMessage | undefined;
  peerPid(fd: number): number;
  openBeneath(dir: number, path: string, flags: number, mode: number): number;
  isBeneath(dir: number, path: string, fd: number): boolean;
  areAt(
    dir: number,
    pid: number,
    fds: Int32Array,
    paths: string[],
    words: BigInt64Array,
    handles: (Buffer | undefined)[],
  ): Uint8Array;
  seek(fd: number, position: number): void;
  nextData(fd: number, from: number): [start: number, end: number] | undefined;
  setPipeSize(fd: number, bytes: number): void;
  peekPipe(fd: number): [size: number, data: Buffer];
  setBlocking(fd: number): void;
  setAttributes(path: string, mode: number, atime: bigint, mtime: bigint): void;
  makeNode(dir: number, name: string, mode: number, rdev: number): void;
  fileHandle(fd: number): Buffer | undefined;
  fileId(fd: number): Buffer | undefined;
  fileSystemId(fd: number): Buffer;
  openHandle(mount: number, handle: Buffer, flags: number): number;
  findInode(dir: number, ino: bigint, most: number, id: Buffer | undefined): string | undefined;
  attachMounts(ns: number, base: string, paths: string[]): number[];
  detachMounts(ns: number, base: string): void;
  attachFile(ns: number, fd: number, at: string, directory: boolean, set: number, tree: number, name: string): void;
  newTmpfs(options: string): number;
  setTimes(path: string, atime: bigint, mtime: bigint): void;
  xattrs(path: string, follow: boolean): [name: string, value: Buffer][];
  setXattr(path: string, name: string, value: Buffer): void;
  storedNamespaces(pid: number): number[];
  setMount(ns: number, tree: number, set: number, clear: number): void;
  bindBelow(root: number, start: string, socket: number, name: string): void;
  boundName(socket: number): string;
  boundFile(socket: number): number;
  mountInfo(ns: number): string;
  openIn(ns: number, path: string): number;
  cloneMount(ns: number, path: string): number;
  unmount(path: string): void;
  socketProtocol(path: string): string;
  getSocketOption(fd: number, level: number, name: number): number;
  setSocketOption(fd: number, level: number, name: number, value: number): void;
  /** Closes the sockets of a connection of TCP in a network namespace, a descriptor; also those that nobody has open any more. */
  destroyConnection(
    netns: number,
    family: number,
    localPort: number,
    local: Uint8Array,
    remotePort: number,
    remote: Uint8Array,
  ): void;
  setUpLoopback(ns: number): void;
  sendTo(fd: number, flags: number, address: Uint8Array, control: Uint8Array, data: Uint8Array): void;
  pidfdOpen(pid: number): number;
  pidfdGetfd(pidfd: number, fd: number): number;
  pidfdOpenAs(pid: number, flags: number): number;
  deadPidfd(flags: number, task: number): number;
  sameFile(pid: number, fd: number, ours: number): boolean;
  pidfdGetfds(pidfd: number, fds: Int32Array): Int32Array;
  closeFds(fds: Int32Array): void;
  bpfMark(map: number, fds: Int32Array): void;
  statFds(fds: Int32Array): BigInt64Array;
  haveChanged(fds: Int32Array): boolean;
  memfd(name: string): number;
  cgroupRoot(): number;
  mqueueMount(ns: number): number;
  mqueueCreate(ns: number, name: Uint8Array, mode: number, maxmsg: number, msgsize: number): number;
  mqueueSend(fd: number, data: Uint8Array, priority: number): void;
  seqpacketConnect(path: string): number;
  uringRead(fd: number, offset: bigint, length: number): Buffer;
  uringWrite(fd: number, offset: bigint, at: number, data: Uint8Array): void;
  uringSetup(entries: number, params: Uint8Array): number;
  /** The same for a user who is charged for what is locked: by what the kernel numbers him. */
  uringSetupFor(entries: number, params: Uint8Array, uid: number): number;
  uringRegisterAs(fd: number, credentials: Uint8Array): number;
  eventfd(count: number): number;
  uringPost(fd: number, completions: Uint8Array): void;
  uringAdvance(
    fd: number,
    pid: number,
    params: Uint8Array,
    submissions: number,
    completions: number,
    unread: number,
    stop: Uint8Array,
  ): Promise<void>;
  watchReadable(fd: number, callback: () => void): WatchHandle;
  unwatch(handle: WatchHandle): void;
  [verb: string]: unknown;
}

// The package's root: one above dist/ for the bundles, one above native/ for the sources (vitest).
const here = typeof __filename === "string" ? __filename : new URL(import.meta.url).pathname;
/** The directory of the installed package. */
export const packageRoot = dirname(dirname(here));

/** The loaded addon: a prebuild, or what node-gyp built. */
export const addon: Addon = createRequire(here)("node-gyp-build")(packageRoot) as Addon;

/** The largest message that is accepted: CRIU itself sets no limit, a request of a real runtime has a few KiB. */
export const MAX_MESSAGE = 16 << 20;

/** Whether an error is the kernel's "nothing there yet". */
export const isAgain = (error: unknown): boolean => (error as { code?: string }).code === "EAGAIN";

/** A connected pair of SOCK_SEQPACKET sockets, close-on-exec; SO_PEERCRED of either end names this process. */
export const seqpacketPair = (): [number, number] => addon.seqpacketPair();

/** A connection to a SOCK_SEQPACKET server that listens at a path, close-on-exec. Throws ENOENT, ECONNREFUSED. */
export const seqpacketConnect = (path: string): number => addon.seqpacketConnect(path);

/** Sends one message, with descriptors. Throws EPIPE when the peer is gone. */
export const sendMessage = (fd: number, data: Buffer, fds: number[] = []): void => {
  addon.sendMessage(fd, data, fds);
};

/** Takes one message; undefined at the end of the connection. Throws EAGAIN when none is there, EMSGSIZE. */
export const receiveMessage = (fd: number, max = MAX_MESSAGE): SocketMessage | undefined =>
  addon.receiveMessage(fd, max, false);

/** Looks at the next message and leaves it there. */
export const peekMessage = (fd: number, max = MAX_MESSAGE): SocketMessage | undefined =>
  addon.receiveMessage(fd, max, true);

/** Calls back while fd is readable or hung up; the returned function ends it, and must run before fd is closed. */
export const watchReadable = (fd: number, callback: () => void): (() => void) => {
  const handle = addon.watchReadable(fd, callback);
  let watching = true;
  return () => {
    if (!watching) return;
    watching = false;
    addon.unwatch(handle);
  };
};

/** A descriptor for a process; readable once the process has ended. Throws ESRCH. */
export const pidfdOpen = (pid: number): number => addon.pidfdOpen(pid);

/** A duplicate of another process's descriptor (Linux 5.6). */
export const pidfdGetfd = (pidfd: number, fd: number): number => addon.pidfdGetfd(pidfd, fd);

/** What statFds() gives for each descriptor, in this order. */
const STAT = ["ino", "nlink", "mode", "uid", "gid"] as const;
/** Some of what stat(2) tells of one. */
export type FdStat = Record<(typeof STAT)[number], bigint>;

/** fstat(2) of descriptors of ours, in one call. Throws what that does. */
export const statFds = (fds: readonly number[]): FdStat[] => {
  const words = addon.statFds(Int32Array.from(fds));
  return fds.map((_, n) => {
    const [ino, nlink, mode, uid, gid] = words.subarray(n * STAT.length);
    return { ino: ino!, nlink: nlink!, mode: mode!, uid: uid!, gid: gid! };
  });
};

/** The process that made the peer's end of a unix socket; 0 when it is in a pid namespace that is not seen from here. */
export const peerPid = (fd: number): number => addon.peerPid(fd);

/** The protocol of a socket of any process, in the kernel's words (/proc/protocols: TCP, MPTCP, UNIX-STREAM, XDP...), by its
 * link in /proc/PID/fd. Throws ENODATA for what is no socket. */
export const socketProtocol = (link: string): string => addon.socketProtocol(link);

/** Closes a descriptor of ours; one that is closed already is a defect, and throws EBADF. */
export const closeFd = (fd: number): void => closeSync(fd);

/** Path of a native artefact that lies beside the addon. */
export const artefact = (
  name:
    | "criu"
    | "spfs"
    | "engine-plugin.so"
    | `${"lock" | "xray" | "cork" | "pages" | "mount" | "uring" | "uring-inflight" | "direct"}.bpf.o`,
): string => {
  const path = (createRequire(here)("node-gyp-build") as { path(dir: string): string }).path(packageRoot);
  return join(dirname(path), name);
};
