// SPDX-License-Identifier: Apache-2.0
// The network lock of one container: while it cannot answer, nobody may answer in its place. Everything is loaded and
// verified before the freeze; in the freeze only links are attached (0.1 ms). A link goes with its last descriptor or
// pin, so a lock cannot outlive those who hold it.

import { closeSync, openSync, readdirSync, readFileSync, statSync } from "node:fs";
import { artefact } from "../../native/index.js";
import { isSharedNamespace } from "../carriers/tasks.js";
import { runIterator, TASK_FILE } from "../xray/iterator.js";
import { bpf, CMD, closeAll } from "./bpf.js";
import { type LoadedObject, loadObject, type ProgramKind } from "./bpf-object.js";

/** Packets dropped while locked, by hook. */
export interface Dropped {
  in: number;
  out: number;
  forwarded: number;
}

/**
 * `netns`: nothing enters or leaves the network namespace. `sockets`: it is shared with others (the host, a pod), and
 * what belongs to the container's sockets is dropped.
 */
export type Extent = "netns" | "sockets";

/** What is attached, as descriptors. */
export interface Attached {
  extent: Extent;
  links: number[];
  maps: { dropped: number; flows: number; armed: number };
}

// enum bpf_prog_type, enum bpf_attach_type, enum nf_inet_hooks, NFPROTO_*
const [NETFILTER, ATTACH_NETFILTER] = [32, 45];
const [LOCAL_IN, FORWARD, LOCAL_OUT] = [1, 2, 3];
const FAMILIES = [2, 10];
/** Before every filter; each lock in a namespace needs its own. */
const PRIORITIES = Array.from({ length: 64 }, (_, i) => -399 + i);

const netfilter = { type: NETFILTER, attach: ATTACH_NETFILTER };
const PROGRAMS: Record<Extent, Record<string, ProgramKind>> = {
  netns: { "netfilter/all": netfilter },
  sockets: {
    "netfilter/flows": netfilter,
    "iter/task_file": TASK_FILE,
  },
};

/** Loads the programs for an extent; throws where the kernel cannot (BPF netfilter links are of Linux 6.4). */
const load = (extent: Extent): LoadedObject => loadObject(readFileSync(artefact("lock.bpf.o")), PROGRAMS[extent]);

const hasCode = (error: unknown, ...codes: string[]): boolean =>
  codes.includes((error as { code?: string }).code ?? "");

const attach = (program: number, netns: number, hooks: readonly number[]): number[] => {
  for (const priority of PRIORITIES) {
    const links: number[] = [];
    try {
      for (const family of FAMILIES) {
        for (const hook of hooks) {
          const attr = { 0: program, 8: ATTACH_NETFILTER, 16: family, 20: hook, 24: priority };
          links.push(bpf(CMD.linkCreate, attr, false, netns));
        }
      }
      return links;
    } catch (error) {
      closeAll(links);
      if (!hasCode(error, "EBUSY")) throw error;
    }
  }
  throw new Error(`${PRIORITIES.length} network locks are in this namespace already (see \`cryoshim lock list\`)`);
};

/** A process and all that descend from it. */
export const treeOf = (root: number): number[] => {
  const pids = [root];
  for (const pid of pids) {
    try {
      for (const tid of readdirSync(`/proc/${pid}/task`))
        pids.push(...readFileSync(`/proc/${pid}/task/${tid}/children`, "utf8").split(" ").filter(Boolean).map(Number));
    } catch {
      // It has ended.
    }
  }
  return pids;
};

const netnsOf = (path: string): number | undefined => {
  try {
    return statSync(path).ino;
  } catch {
    return undefined;
  }
};

/** Whether processes beside those given are in a network namespace, named by a path. */
export const isShared = (path: string, pids: readonly number[]): boolean => {
  const netns = netnsOf(path);
  if (netns === undefined || netns === netnsOf("/proc/self/ns/net")) return true;
  return isSharedNamespace("net", netns, new Set(pids));
};

/** One end of a connection: addresses of 16 bytes (IPv4 mapped), ports in host order, zeros where there is none. */
export interface Flow {
  local: Buffer;
  remote: Buffer;
  localPort: number;
  remotePort: number;
  protocol: number;
}

/**
 * One lock. `attach` comes before the freeze and changes nothing yet; `arm` and `disarm` are one store each; `close`
 * takes the links away.
 */
export class NetLock {
  readonly extent: Extent;
  readonly #object: LoadedObject;
  #links: number[] = [];
  #armed = false;

  /** Loads the programs. Throws where they cannot be. */
  constructor(extent: Extent) {
    this.extent = extent;
    this.#object = load(extent);
  }

  /** The program that drops, as a descriptor of the lock's. */
  get program(): number {
    const { lock_all, lock_flows } = this.#object.programs;
    return (this.extent === "netns" ? lock_all : lock_flows)!;
  }

  get attached(): boolean {
    return this.#links.length > 0;
  }

  get armed(): boolean {
    return this.#armed;
  }

  /** Attaches in a network namespace, named by a path. */
  attach(path: string): void {
    const hooks = this.extent === "netns" ? [LOCAL_IN, FORWARD, LOCAL_OUT] : [LOCAL_IN, LOCAL_OUT];
    const netns = openSync(path, "r");
    try {
      this.#links = attach(this.program, netns, hooks);
    } finally {
      closeSync(netns);
    }
    // Once without effect: what is done for the first time takes longer, and the next time is in the freeze.
    this.disarm();
  }

  /** Locks. Of `sockets`, those that were named and those of the open files of `pids`. */
  arm(pids: readonly number[] = []): void {
    this.#switch(1);
    // It writes nothing: running it enters the sockets of a process into `flows`.
    if (this.extent === "sockets") for (const pid of pids) runIterator(this.#object.programs.collect!, pid);
    this.#armed = true;
  }

  /** Unlocks; can be armed again. */
  disarm(): void {
    this.#switch(0);
    this.#armed = false;
  }

  #switch(value: number): void {
    bpf(CMD.mapUpdate, { 0: this.#object.maps.armed!, 8: Buffer.alloc(4), 16: Buffer.from([value, 0, 0, 0]) });
  }

  /** Names sockets to be locked. */
  add(flows: readonly Flow[]): void {
    for (const flow of flows) this.#add(flow);
  }

  #add({ local, remote, localPort, remotePort, protocol }: Flow): void {
    const key = Buffer.alloc(40);
    local.copy(key, 0);
    remote.copy(key, 16);
    key.writeUInt16BE(localPort, 32);
    key.writeUInt16BE(remotePort, 34);
    key.writeUInt16LE(protocol, 36);
    bpf(CMD.mapUpdate, { 0: this.#object.maps.flows!, 8: key, 16: Buffer.from([1, 0, 0, 0]) });
  }

  /** What is attached; the descriptors stay the lock's. */
  get parts(): Attached {
    const { dropped, flows, armed } = this.#object.maps;
    return { extent: this.extent, links: [...this.#links], maps: { dropped: dropped!, flows: flows!, armed: armed! } };
  }

  dropped(): Dropped {
    return countDropped(this.#object.maps.dropped!);
  }

  /** Unlocks, detaches, and gives the programs back; what is pinned stays. */
  close(): void {
    closeAll(this.#links.splice(0));
    closeAll(Object.values(this.#object.programs));
    closeAll(Object.values(this.#object.maps));
  }
}

/** Reads the counters of a lock by its map. */
export const countDropped = (map: number): Dropped => {
  const count = (hook: number): number => {
    const key = Buffer.alloc(4);
    const value = Buffer.alloc(8);
    key.writeUInt32LE(hook);
    bpf(CMD.mapLookup, { 0: map, 8: key, 16: value });
    return Number(value.readBigUInt64LE());
  };
  return { in: count(LOCAL_IN), out: count(LOCAL_OUT), forwarded: count(FORWARD) };
};

/** The inode of a network namespace, by which a kept lock knows it. */
export const netnsInode = (path: string): number => statSync(path).ino;
