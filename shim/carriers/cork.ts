// SPDX-License-Identifier: Apache-2.0
// Corked UDP sockets (UDP_CORK, MSG_MORE). CRIU dumps them once they say that they are not corked; the datagram that waits
// in one is read by X-ray and put back after the restore. The sockets of a dump are not touched, and nothing is sent.
import { closeSync } from "node:fs";
import { addon, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { CryoshimError, reason } from "../error.js";
import { CorkReader, type Pending } from "../xray/corks.js";
import { type Found, findSpecial } from "../xray/find.js";
import type { Carrier } from "./carrier.js";
import { readCorks, type SavedCork, writeCorks } from "./cork-image.js";
import { depthOf, taskName } from "./tasks.js";

const [AF_INET, AF_INET6] = [2, 10];
const [SOL_SOCKET, SO_DOMAIN, SO_SNDBUF, SO_SNDBUFFORCE] = [1, 39, 7, 32];
const [SOL_UDP, UDP_CORK, UDP_SEGMENT] = [17, 1, 103];
const [SOL_IP, IP_TOS, IP_TTL, IP_RETOPTS, IP_PKTINFO] = [0, 1, 2, 7, 8];
const [SOL_IPV6, IPV6_FLOWINFO, IPV6_PKTINFO, IPV6_HOPLIMIT, IPV6_TCLASS] = [41, 11, 50, 52, 67];
const [MSG_DONTWAIT, MSG_MORE] = [0x40, 0x8000];
/** More than any datagram and its pages need. */
const ENOUGH = 1 << 20;

const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_CORK", { what, why, fix, cause });

const int = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

/** struct cmsghdr and its data. */
const control = (level: number, type: number, data: Buffer): Buffer => {
  const message = Buffer.alloc(16 + ((data.length + 7) & ~7));
  message.writeBigUInt64LE(BigInt(16 + data.length), 0);
  message.writeInt32LE(level, 8);
  message.writeInt32LE(type, 12);
  data.copy(message, 16);
  return message;
};

/** struct sockaddr_in or sockaddr_in6, by the socket's family: an IPv6 socket's IPv4 datagram goes to a mapped address. */
const sockaddr = (domain: number, { family, destination, port, oif }: Pending): Buffer => {
  const address = Buffer.alloc(domain === AF_INET6 ? 28 : 16);
  address.writeUInt16LE(domain, 0);
  address.writeUInt16BE(port, 2);
  if (domain === AF_INET) destination.copy(address, 4);
  else if (family === AF_INET6) {
    destination.copy(address, 8);
    address.writeUInt32LE(oif, 24);
  } else {
    address.writeUInt16LE(0xffff, 18);
    destination.copy(address, 20);
  }
  return address;
};

/** What was given with the first piece; `source`: also the address that it comes from. */
const controls = (pending: Pending, source: boolean): Buffer => {
  const { family, tos, ttl, options, hopLimit, trafficClass, flowLabel, segment, oif } = pending;
  const parts: Buffer[] = [];
  if (family === AF_INET) {
    if (tos !== undefined) parts.push(control(SOL_IP, IP_TOS, int(tos)));
    if (ttl !== undefined) parts.push(control(SOL_IP, IP_TTL, int(ttl)));
    if (options !== undefined) parts.push(control(SOL_IP, IP_RETOPTS, options));
    if (source) parts.push(control(SOL_IP, IP_PKTINFO, Buffer.concat([int(oif), pending.source, Buffer.alloc(4)])));
  } else {
    if (hopLimit !== undefined) parts.push(control(SOL_IPV6, IPV6_HOPLIMIT, int(hopLimit)));
    if (trafficClass !== undefined) parts.push(control(SOL_IPV6, IPV6_TCLASS, int(trafficClass)));
    if (flowLabel) parts.push(control(SOL_IPV6, IPV6_FLOWINFO, int(flowLabel)));
    if (source) parts.push(control(SOL_IPV6, IPV6_PKTINFO, Buffer.concat([pending.source, int(oif)])));
  }
  if (segment !== 0) {
    const size = Buffer.alloc(2);
    size.writeUInt16LE(segment);
    parts.push(control(SOL_UDP, UDP_SEGMENT, size));
  }
  return Buffer.concat(parts);
};

const errnoOf = (error: unknown): string => (error as { code?: string }).code ?? "";

/** Gives a datagram to a socket, and keeps it there. */
const fill = (fd: number, pending: Pending): void => {
  const address = sockaddr(addon.getSocketOption(fd, SOL_SOCKET, SO_DOMAIN), pending);
  const send = (source: boolean): void =>
    addon.sendTo(fd, MSG_MORE | MSG_DONTWAIT, address, controls(pending, source), pending.data);
  const withSource = (): void => {
    try {
      send(true);
    } catch (error) {
      // Restored where the host has another address: then it comes from that one.
      if (!["EINVAL", "EADDRNOTAVAIL", "ENODEV", "ENETUNREACH", "EHOSTUNREACH"].includes(errnoOf(error))) throw error;
      send(false);
    }
  };
  try {
    withSource();
  } catch (error) {
    if (!["EAGAIN", "ENOBUFS"].includes(errnoOf(error))) throw error;
    // As much room as its own pieces did not need.
    const before = addon.getSocketOption(fd, SOL_SOCKET, SO_SNDBUF);
    addon.setSocketOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, ENOUGH);
    try {
      withSource();
    } finally {
      addon.setSocketOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, before >> 1);
    }
  }
};

const restoreOne = (pid: number, { fd, corked, pending }: SavedCork): void => {
  const task = pidfdOpen(pid);
  let socket: number | undefined;
  try {
    socket = pidfdGetfd(task, fd);
    if (corked) addon.setSocketOption(socket, SOL_UDP, UDP_CORK, 1);
    if (pending !== undefined) fill(socket, pending);
  } catch (error) {
    throw refuse(
      `cannot cork the UDP socket at descriptor ${fd} of process ${pid} again${pending === undefined ? "" : `, with ${pending.data.length} bytes that wait in it`}`,
      reason(error),
      "see that the container's network is there before the restore, with a route to where the datagram goes",
      error,
    );
  } finally {
    if (socket !== undefined) closeSync(socket);
    closeSync(task);
  }
};

/** One descriptor for each socket. */
const socketsOf = (found: readonly Found[]): Found[] => [
  ...new Map(found.filter(({ kind }) => kind === "corked").map((each) => [each.file, each])).values(),
];

/** The carrier of one session. */
export const corkCarrier = (): Carrier => {
  let reader: CorkReader | undefined;
  let saved: SavedCork[] = [];
  let restore: SavedCork[] | undefined;
  let depth: number | undefined;
  let mine = new Int32Array(0);
  const giveBack = (): void => {
    addon.closeFds(mine);
    mine = new Int32Array(0);
  };
  const finish = (): void => {
    giveBack();
    reader?.close();
    reader = undefined;
  };
  /** Reads sockets through descriptors of ours, which `mine` keeps. */
  const read = (sockets: readonly Found[], root: number): SavedCork[] => {
    reader ??= new CorkReader();
    const depthOfRoot = depthOf(root);
    const byPid = new Map<number, number[]>();
    for (const { pid, fd } of sockets) {
      const fds = byPid.get(pid);
      if (fds === undefined) byPid.set(pid, [fd]);
      else fds.push(fd);
    }
    const byFd = new Map<number, { task: string; fd: number }>();
    for (const [pid, fds] of byPid) {
      const task = taskName(pid, depthOfRoot);
      const pidfd = pidfdOpen(pid);
      try {
        const dups = addon.pidfdGetfds(pidfd, Int32Array.from(fds));
        mine = Int32Array.of(...mine, ...dups);
        for (const [i, fd] of fds.entries()) byFd.set(dups[i]!, { task, fd });
      } finally {
        closeSync(pidfd);
      }
    }
    return [...reader.read()].flatMap(([fd, cork]) => {
      const place = byFd.get(fd);
      return place === undefined ? [] : [Object.assign(cork, place)];
    });
  };
  return {
    name: "udp-cork",
    prepare(root) {
      const sockets = socketsOf(findSpecial(root));
      if (sockets.length === 0) return;
      try {
        read(sockets, root);
        reader?.attach();
      } finally {
        giveBack();
      }
    },
    async seized({ root, found }) {
      const sockets = socketsOf(found);
      if (sockets.length === 0) return;
      try {
        saved = read(sockets, root);
        reader!.hide(mine);
      } catch (error) {
        const [{ pid, fd }] = sockets as [Found];
        throw refuse(
          `cannot carry the corked UDP socket at descriptor ${fd} of process ${pid}`,
          reason(error),
          "let the program send what waits in it before the checkpoint",
          error,
        );
      }
    },
    async admit(_, { engine, log }) {
      try {
        await engine.intercept("udp");
      } catch (error) {
        log("Warn ", `corked UDP sockets that are in messages on their way are CRIU's alone: ${reason(error)}`);
      }
    },
    async dumpKnown(kind, fd) {
      if (kind !== "udp") return false;
      reader ??= new CorkReader();
      // What is sent and still on its way out of the host is no cork.
      if (!reader.read().has(fd)) return false;
      throw refuse(
        "cannot carry a corked UDP socket",
        "it is in a message on its way through a socket, and in no task's hands",
        "let the program receive it before the checkpoint",
      );
    },
    needed: () => saved.length > 0,
    async dumped(ok, { imagesDir }) {
      // They say again what they are before the tasks run.
      finish();
      return ok && saved.length > 0 ? () => writeCorks(imagesDir, saved) : undefined;
    },
    async restoring({ imagesDir }) {
      restore = readCorks(imagesDir);
    },
    async resume(pid) {
      // The first that is asked about is the root (criu/cr-restore.c).
      depth ??= depthOf(pid);
      const name = taskName(pid, depth);
      for (const cork of restore ?? []) if (cork.task === name) restoreOne(pid, cork);
    },
    close: finish,
  };
};
