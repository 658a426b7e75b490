// SPDX-License-Identifier: Apache-2.0
// What has no path of its own but may keep hold of a mount: epoll, inotify, io_uring, sockets.
import { closeSync, openSync } from "node:fs";
import type { Mounts, Other } from "./retire-find.js";
import { deviceOf } from "./retire-mounts.js";
import { verbs } from "./retire-native.js";
import { inodeOf, type Task } from "./retire-tasks.js";

export interface Left {
  pid: number;
  what: string;
  why: string;
}

/** A registration in an epoll, as its fdinfo tells it. */
export interface Registration {
  task: Task;
  epfd: number;
  fd: number;
  events: bigint;
  data: bigint;
}

/** As the kernel itself writes a device into fdinfo. */
const kernelDevice = (dev: string): string => {
  const [major, minor] = dev.split(":").map(Number) as [number, number];
  return (major * 2 ** 20 + minor).toString(16);
};

const devicesOf = (mounts: Mounts): Set<string> =>
  new Set(mounts.replacements.map(({ mount: { dev } }) => kernelDevice(dev)));

const TFD = /^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)\s.*sdev:([0-9a-f]+)$/gm;

/** Files of the mounts that epolls watch. */
export const registrationsOf = (mounts: Mounts, others: readonly Other[]): Registration[] => {
  const devices = devicesOf(mounts);
  return others
    .filter(({ seen }) => seen.path === "anon_inode:[eventpoll]")
    .flatMap(({ task, seen }) =>
      [...seen.note.matchAll(TFD)]
        .filter(([, , , , dev]) => devices.has(dev!))
        .map(([, fd, events, data]) => ({
          task,
          epfd: seen.fd,
          fd: Number(fd),
          events: BigInt(`0x${events}`),
          data: BigInt(`0x${data}`),
        })),
    );
};

/** Links of unix sockets that are bound to paths on the mounts, in all network namespaces of these processes. */
const boundSockets = (mounts: Mounts, pids: readonly number[]): Set<string> => {
  const devices = new Set(mounts.replacements.map(({ mount: { dev } }) => deviceOf(dev)));
  const bound = new Set<string>();
  const seen = new Set<bigint>();
  for (const pid of pids) {
    let fd = -1;
    try {
      const ino = inodeOf(`/proc/${pid}/ns/net`);
      if (seen.has(ino)) continue;
      seen.add(ino);
      fd = openSync(`/proc/${pid}/ns/net`, "r");
      const { ino: sockets, dev } = verbs.boundSockets(fd);
      for (const [i, socket] of sockets.entries()) if (devices.has(dev[i]!)) bound.add(`socket:[${socket}]`);
    } catch {
      // It has ended.
    } finally {
      if (fd >= 0) closeSync(fd);
    }
  }
  return bound;
};

/** What cannot be exchanged: it stays, and is told. */
export const leftOf = (mounts: Mounts, others: readonly Other[], pids: readonly number[]): Left[] => {
  const devices = devicesOf(mounts);
  const bound = others.some(({ seen }) => seen.path.startsWith("socket:")) ? boundSockets(mounts, pids) : new Set();
  return others.flatMap(({ task, seen: { fd, path, note } }) => {
    const left = (what: string, why: string): Left[] => [{ pid: task.pid, what: `descriptor ${fd}: ${what}`, why }];
    const on = [...note.matchAll(/sdev:([0-9a-f]+)/g)].some(([, dev]) => devices.has(dev!));
    if (/inotify/.test(path) && on)
      return left("inotify", "its watches stay on files of the old mount: their numbers cannot be given again");
    if (/fanotify/.test(path) && on) return left("fanotify", "its marks stay on files of the old mount");
    if (/io_uring/.test(path) && /^UserFiles:\s+[1-9]/m.test(note))
      return left("io_uring", "files that are registered with it are not exchanged, wherever they are");
    if (/^scm_fds:\s+[1-9]/m.test(note))
      return left("unix socket", "descriptors are on their way through it, and are not exchanged, wherever they lead");
    if (bound.has(path))
      return left("unix socket", "it is bound to a path on the old mount: by that path nobody reaches it any more");
    return [];
  });
};

/** Whether a process serves one of the mounts: it cannot be stopped while files are closed there. */
export const serverAmong = (mounts: Mounts, others: readonly Other[]): number | undefined => {
  const connections = new Set(mounts.replacements.map(({ mount: { dev } }) => dev.split(":")[1]));
  return others.find(({ seen: { path, note } }) => {
    if (path !== "/dev/fuse") return false;
    const connection = /^fuse_connection:\s*(\d+)$/m.exec(note)?.[1];
    // An old kernel does not tell which.
    return connection === undefined || connections.has(connection);
  })?.task.pid;
};
