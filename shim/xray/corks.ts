// SPDX-License-Identifier: Apache-2.0
// Reads the datagrams that wait in corked UDP sockets, through descriptors of this process, and lets them say that they
// are not corked. The sockets themselves are not changed.
import { closeSync, openSync, readFileSync } from "node:fs";
import { addon, artefact, closeFd } from "../../native/index.js";
import { bpf, CMD } from "../netlock/bpf.js";
import { type LoadedObject, loadObject } from "../netlock/bpf-object.js";
import { runIterator, TASK_FILE } from "./iterator.js";
import { pageShift } from "./pages.js";

const [AF_INET, AF_INET6] = [2, 10];

/** A datagram that waits to be completed. Addresses and ports as they lie in memory; numbers as cmsg(3) takes them. */
export interface Pending {
  family: typeof AF_INET | typeof AF_INET6;
  data: Buffer;
  destination: Buffer;
  source: Buffer;
  port: number;
  /** The interface, 0: any. */
  oif: number;
  /** UDP_SEGMENT, 0: none. */
  segment: number;
  /** IPv4: undefined: the socket's own. */
  tos?: number;
  ttl?: number;
  options?: Buffer;
  /** IPv6. */
  hopLimit?: number;
  trafficClass?: number;
  flowLabel?: number;
}

export interface Cork {
  /** UDP_CORK is set; otherwise it was MSG_MORE. */
  corked: boolean;
  pending?: Pending;
}

// enum and structs of native/bpf/cork.bpf.c
const [CORK, PART, CORK_SIZE, PART_SIZE, WALK_SIZE] = [0x4b524f43, 0x54524150, 136, 12, 64];
// BPF_PROG_TYPE_CGROUP_SOCKOPT, BPF_CGROUP_GETSOCKOPT
const [SOCKOPT, GETSOCKOPT] = [25, 21];

/** Loaded before the freeze, used in it. */
export class CorkReader {
  readonly #object: LoadedObject;
  #shift: Buffer | undefined;
  #link: number | undefined;

  /** Throws where the kernel cannot: bpf_loop is of Linux 5.17. */
  constructor() {
    this.#object = loadObject(readFileSync(artefact("cork.bpf.o")), {
      "iter/task_file.corks": TASK_FILE,
      "cgroup/getsockopt": { type: SOCKOPT, attach: GETSOCKOPT },
    });
  }

  /** All corked sockets that this process has open, by descriptor. */
  read(): Map<number, Cork> {
    const corks = new Map<number, { cork: Cork; parts: Buffer[]; have: number; want: number }>();
    this.#shift ??= pageShift();
    const shift = this.#shift;
    for (let from = 0, more = true; more; ) {
      const walk = Buffer.alloc(WALK_SIZE);
      walk.writeBigUInt64LE(BigInt(from), 0);
      shift.copy(walk, 8);
      bpf(CMD.mapUpdate, { 0: this.#object.maps.walk!, 8: Buffer.alloc(4), 16: walk });
      const bytes = runIterator(this.#object.programs.corks!, process.pid);
      let got = Number.POSITIVE_INFINITY;
      more = false;
      let current: { parts: Buffer[]; have: number; want: number } | undefined;
      let before = 0;
      const ended = (): void => {
        if (current === undefined || current.have >= current.want) return;
        if (current.have === before) throw new Error(`a corked socket has ${current.have} of ${current.want} bytes`);
        more = true;
        got = Math.min(got, current.have);
      };
      for (let at = 0; at < bytes.length; ) {
        const magic = bytes.readUInt32LE(at);
        if (magic === CORK) {
          ended();
          const fd = bytes.readUInt32LE(at + 4);
          if (!corks.has(fd))
            corks.set(fd, { cork: corkAt(bytes, at), parts: [], have: 0, want: bytes.readUInt32LE(at + 16) });
          current = corks.get(fd)!;
          before = current.have;
          at += CORK_SIZE;
        } else if (magic === PART && current !== undefined) {
          const len = bytes.readUInt32LE(at + 4);
          if (bytes.readUInt32LE(at + 8) >= current.have) {
            current.parts.push(bytes.subarray(at + PART_SIZE, at + PART_SIZE + len));
            current.have += len;
          }
          at += PART_SIZE + len;
        } else throw new Error("the X-ray's records are damaged");
      }
      ended();
      from = got;
    }
    return new Map(
      [...corks].map(([fd, { cork, parts, have, want }]) => {
        if (have > want) throw new Error(`a corked socket has ${have} bytes, and says ${want}`);
        if (cork.pending !== undefined) cork.pending.data = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
        return [fd, cork];
      }),
    );
  }

  /** From now on these sockets, descriptors of ours, say that they are not corked, until close(). */
  hide(fds: Int32Array): void {
    addon.bpfMark(this.#object.maps.hidden!, fds);
    this.attach();
  }

  /** Before the freeze: what lets them say so is made ready, and is for no socket yet. */
  attach(): void {
    if (this.#link !== undefined) return;
    const mount = addon.cgroupRoot();
    // The kernel does not take a descriptor that only says where something is.
    let cgroup: number | undefined;
    try {
      cgroup = openSync(`/proc/self/fd/${mount}/.`, "r");
      this.#link = bpf(CMD.linkCreate, { 0: this.#object.programs.uncork!, 4: cgroup, 8: GETSOCKOPT });
    } finally {
      if (cgroup !== undefined) closeSync(cgroup);
      closeSync(mount);
    }
  }

  close(): void {
    if (this.#link !== undefined) closeFd(this.#link);
    this.#link = undefined;
    for (const fd of [...Object.values(this.#object.maps), ...Object.values(this.#object.programs)]) closeFd(fd);
  }
}

const corkAt = (bytes: Buffer, at: number): Cork => {
  const u32 = (offset: number): number => bytes.readUInt32LE(at + offset);
  const family = u32(8);
  const corked = u32(12) !== 0;
  if (family !== AF_INET && family !== AF_INET6) return { corked };
  const size = family === AF_INET ? 4 : 16;
  const pending: Pending = {
    family,
    data: Buffer.alloc(0),
    source: bytes.subarray(at + 64, at + 64 + size),
    destination: bytes.subarray(at + 80, at + 80 + size),
    port: bytes.readUInt16BE(at + 48),
    oif: bytes.readInt32LE(at + 44),
    segment: u32(20),
  };
  if (family === AF_INET6) {
    if (u32(60) !== 0) throw new Error("it has IPv6 extension headers");
    return { corked, pending: { ...pending, hopLimit: u32(32), trafficClass: u32(36), flowLabel: u32(40) } };
  }
  const [tos, ttl, length] = [bytes.readInt32LE(at + 24), u32(28), u32(52)];
  if (u32(56) !== 0 || length > 40) throw new Error("it has a source route");
  if (tos >= 0) pending.tos = tos;
  if (ttl !== 0) pending.ttl = ttl;
  if (length > 0) pending.options = bytes.subarray(at + 96, at + 96 + length);
  return { corked, pending };
};
