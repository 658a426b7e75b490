// SPDX-License-Identifier: Apache-2.0
// The network lock of one container: while it cannot answer, nobody may answer in its place. Everything is loaded and
// verified before the freeze; in the freeze only links are attached (0.1 ms). A link goes with its last descriptor or
// pin, so a lock cannot outlive those who hold it.
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { artefact } from "../../native/index.js";
import { bpf, CMD, closeAll } from "./bpf.js";
import { type LoadedObject, loadObject } from "./bpf-object.js";

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
  maps: { dropped: number; flows: number };
}

// enum bpf_prog_type, enum bpf_attach_type, enum nf_inet_hooks, NFPROTO_*
const [NETFILTER, TRACING] = [32, 26];
const [ATTACH_NETFILTER, ATTACH_ITER] = [45, 28];
const [LOCAL_IN, FORWARD, LOCAL_OUT] = [1, 2, 3];
const FAMILIES = [2, 10];
/** Before every filter; each lock in a namespace needs its own. */
const PRIORITIES = Array.from({ length: 64 }, (_, i) => -399 + i);

const KINDS = {
  "netfilter/all": { type: NETFILTER, attach: ATTACH_NETFILTER },
  "netfilter/flows": { type: NETFILTER, attach: ATTACH_NETFILTER },
  "iter/task_file": { type: TRACING, attach: ATTACH_ITER, target: "bpf_iter_task_file" },
};

/** Loads the programs; throws where the kernel cannot (BPF netfilter links are of Linux 6.4). */
export const load = (): LoadedObject => loadObject(readFileSync(artefact("lock.bpf.o")), KINDS);

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

/** Enters the sockets of a process's open files into `flows`. */
const collect = (program: number, pid: number): void => {
  const info = Buffer.alloc(16);
  info.writeUInt32LE(pid, 4);
  const link = bpf(CMD.linkCreate, { 0: program, 8: ATTACH_ITER, 16: info, 24: info.length });
  try {
    const iterator = bpf(CMD.iterCreate, { 0: link });
    try {
      // The program writes nothing: reading to the end is what runs it.
      readFileSync(iterator);
    } finally {
      closeSync(iterator);
    }
  } finally {
    closeSync(link);
  }
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

const netnsOf = (pid: number | "self"): string | undefined => {
  try {
    return readlinkSync(`/proc/${pid}/ns/net`);
  } catch {
    return undefined;
  }
};

/** Whether processes beside the tree are in its network namespace. */
const isShared = (pids: readonly number[]): boolean => {
  const netns = netnsOf(pids[0]!);
  if (netns === netnsOf("self")) return true;
  const ours = new Set(pids.map(String));
  return readdirSync("/proc").some((name) => /^\d+$/.test(name) && !ours.has(name) && netnsOf(Number(name)) === netns);
};

export class NetLock {
  readonly #object: LoadedObject;
  #links: number[] = [];
  #extent: Extent = "netns";

  /** Loads the programs. Throws where they cannot be. */
  constructor() {
    this.#object = load();
  }

  get locked(): boolean {
    return this.#links.length > 0;
  }

  get extent(): Extent {
    return this.#extent;
  }

  /** Locks what a container can be reached by; its tasks stand still. */
  lockTree(root: number): void {
    const pids = treeOf(root);
    if (isShared(pids)) this.lockSockets(root, pids);
    else this.lockNetns(`/proc/${root}/ns/net`);
  }

  /** Locks a network namespace as a whole, named by a path. */
  lockNetns(path: string): void {
    this.#extent = "netns";
    this.#attach(path, this.#object.programs.lock_all!, [LOCAL_IN, FORWARD, LOCAL_OUT]);
  }

  /** Locks the sockets of processes in a namespace that they share. */
  lockSockets(root: number, pids: readonly number[]): void {
    this.#extent = "sockets";
    // First attached, with no socket known yet: so that none of them can answer while the others are collected.
    this.#attach(`/proc/${root}/ns/net`, this.#object.programs.lock_flows!, [LOCAL_IN, LOCAL_OUT]);
    for (const pid of pids) collect(this.#object.programs.collect!, pid);
  }

  #attach(path: string, program: number, hooks: readonly number[]): void {
    const netns = openSync(path, "r");
    try {
      this.#links = attach(program, netns, hooks);
    } finally {
      closeSync(netns);
    }
  }

  /** What is attached; the descriptors stay the lock's. */
  get attached(): Attached {
    const { dropped, flows } = this.#object.maps;
    return { extent: this.#extent, links: [...this.#links], maps: { dropped: dropped!, flows: flows! } };
  }

  dropped(): Dropped {
    return countDropped(this.#object.maps.dropped!);
  }

  /** Lets go; pinned links stay. */
  unlock(): void {
    closeAll(this.#links.splice(0));
  }

  /** Unlocks and gives the programs back. */
  close(): void {
    this.unlock();
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
