// SPDX-License-Identifier: Apache-2.0
// What a session does around the engine's work whichever way it was asked for: a freeze without CRIU's 100 ms steps,
// and the network lock in place of CRIU's.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { hasKernelClients } from "../carriers/remote-mounts.js";
import type { NetworkLock } from "../engine/launch-file.js";
import { CryoshimError, reason } from "../error.js";
import { newId } from "../id.js";
import { closeAll } from "../netlock/bpf.js";
import { flowsOf } from "../netlock/images.js";
import { clearKept, isLockId, isMounted, keep, sweep, type TakenLock, take } from "../netlock/kept.js";
import { keepKit } from "../netlock/kit.js";
import { type Dropped, type Flow, isShared, NetLock, netnsInode, treeOf } from "../netlock/netlock.js";
import { type Freezer, freeze, thaw } from "./freezer.js";
import { forgetFreeze } from "./frozen-image.js";
import type { Guard } from "./guard.js";
import type { Log } from "./log.js";

/** criu_network_lock_method of rpc.proto; the names are --network-lock's. */
export const LOCK_METHOD = { iptables: 1, nftables: 2, skip: 3 } as const;
export type LockMethod = keyof typeof LOCK_METHOD;

/** The record beside the images of what was done for them; `cryoshim show` reads it. */
export const RECORD = "cryoshim.json";

export interface Record {
  version: 1;
  networkLock: {
    extent: "netns" | "sockets";
    /** A lock that waits for the restore, on the host that made it. */
    kept?: string;
    dropped: Dropped;
    /** Milliseconds that locking, and unlocking at the end of the dump, took of the freeze. */
    lockMs: number;
    unlockMs: number;
  };
}

/** One dump, pre-dump or restore as the bracket needs to know it. */
export interface Work {
  kind: "dump" | "pre-dump" | "restore";
  imagesDir: string;
  /** The root task of a dump. */
  pid?: number;
  /** After the dump the tasks live on, running or stopped. */
  lives?: boolean;
  freezer?: Freezer | undefined;
  /** A path of the network namespace that a restore goes to, where it is known from the start. */
  netns?: string | undefined;
  /** Links that lock the namespace of a restore already; they become the bracket's. */
  early?: number[];
  /** What the caller asked for. */
  asked?: LockMethod | undefined;
}

export interface Bracket {
  /** What CRIU itself shall do; undefined: what it was asked for. */
  readonly method: LockMethod | undefined;
  /** There is a lock of ours, now or as soon as the namespace is there. */
  readonly locks: boolean;
  /** The engine has its request: what a restore needs is made ready while it works. */
  requested(): void;
  /** The engine begins; nothing is stopped yet. */
  begin(): void;
  /** All tasks of a dump are stopped. */
  seized(pid: number): void;
  /** See CarrierContext. */
  cutOff(flow: Flow): { before: boolean; silent: boolean } | undefined;
  /** The root task of a restore exists, with its namespaces. */
  namespaces(pid: number): void;
  /** All sockets of a restore are back, none of them sends yet. */
  socketsAreBack(): void;
  /** The engine tells how its work ended; tasks are still stopped. */
  finished(ok: boolean): void;
  /** All images are written: they shall say nothing of the freeze. Before the caller hears of their end. */
  imagesAreWritten(): void;
  /** The engine's answer is here: the tasks may run. */
  answered(): void;
  /** Whatever happened: nothing of this session stays locked or frozen. */
  close(): void;
}

/** Milliseconds that something takes. */
const timed = (what: () => void): number => {
  const start = process.hrtime.bigint();
  what();
  return Number(process.hrtime.bigint() - start) / 1e6;
};

/** Whether CRIU can lock with nftables here: as the engine's probe (shim/engine/probe.ts) has found, or asked now. */
const nftablesWorks = (engine: string): boolean => {
  try {
    const probe = JSON.parse(readFileSync("/run/cryoshim/probe", "utf8")) as { features?: { [name: string]: unknown } };
    return probe.features?.network_lock_nftables === true;
  } catch {
    // Loaded for this case alone.
    const { spawnSync } = createRequire(__filename)("node:child_process") as typeof import("node:child_process");
    const options = { stdio: "ignore", timeout: 5000 } as const;
    return spawnSync(engine, ["check", "--feature", "network_lock_nftables"], options).status === 0;
  }
};

const readRecord = (dir: string): Partial<Record> | undefined => {
  try {
    return JSON.parse(readFileSync(join(dir, RECORD), "utf8")) as Partial<Record>;
  } catch {
    return undefined;
  }
};

/** Opens the bracket of one piece of work. Throws where the configuration demands what this kernel cannot. */
export const openBracket = (work: Work, wish: NetworkLock, engine: string, log: Log, guard: Guard): Bracket => {
  let lock: NetLock | undefined;
  let taken: TakenLock | undefined;
  let frozen = false;
  /** There was a freeze, and the images may tell of it. */
  let froze = false;
  let lockMs = 0;
  let method: LockMethod | undefined;

  let restoring = false;
  const early = work.early?.splice(0) ?? [];

  /**
   * A restore's lock. A namespace of its own is locked as soon as it is known; in one that others use it is the sockets in
   * the images.
   */
  const lockForRestore = (path: string | undefined): void => {
    if (!restoring || lock?.attached || early.length > 0) return;
    try {
      const shared = path !== undefined && isShared(path, path === work.netns ? [] : [Number(path.split("/")[2])]);
      const flows = shared ? flowsOf(work.imagesDir) : [];
      if (shared && flows.length === 0) return;
      const extent = shared ? "sockets" : "netns";
      if (lock !== undefined && lock.extent !== extent) lock.close();
      if (lock?.extent !== extent) lock = new NetLock(extent);
      if (path === undefined) return;
      lock.add(flows);
      lock.attach(path);
      lock.arm();
    } catch (error) {
      restoring = false;
      log("Warn ", `the restore is not locked by BPF: ${reason(error)}`);
    }
  };

  /** A dump's network namespace is used by others, too. */
  let shared = false;

  /**
   * A dump's lock, attached but not armed. The kernel's own sockets, those of a mount of NFS and the like, are no task's: with them
   * cut off CRIU would wait for the server without end, so it is the tasks' sockets that are locked then.
   */
  const lockForDump = (pid: number): NetLock => {
    const netns = `/proc/${pid}/ns/net`;
    shared = isShared(netns, treeOf(pid));
    const made = new NetLock(shared || hasKernelClients(pid) ? "sockets" : "netns");
    try {
      made.attach(netns);
    } catch (error) {
      made.close();
      throw error;
    }
    return made;
  };

  // Whoever locks from now on: what the dump has locked ends with this restore.
  const id = work.kind === "restore" ? readRecord(work.imagesDir)?.networkLock?.kept : undefined;
  if (typeof id === "string" && isLockId(id)) {
    guard.taking(id);
    taken = take(id);
  }

  if (wish === "iptables" || wish === "nftables") method = wish;
  else if (wish === "none") method = "skip";
  // Who asked for no lock gets none; of a task that is not there CRIU tells.
  else if (wish !== "caller" && work.kind !== "pre-dump" && work.asked !== "skip" && !isGone(work)) {
    try {
      if (work.kind === "dump" && work.pid !== undefined) lock = lockForDump(work.pid);
      restoring = work.kind === "restore" && !covers(taken, work.netns);
      method = "skip";
    } catch (error) {
      if (wish === "bpf")
        throw new CryoshimError("ERR_NETWORK_LOCK", {
          what: "cannot lock the network by BPF",
          why: reason(error),
          fix: 'it needs Linux 6.4; set [network] lock = "auto" to let CRIU lock where it cannot',
          cause: error,
        });
      if (work.kind === "dump" && work.asked === undefined && nftablesWorks(engine)) method = "nftables";
      const how = method === undefined ? "as it was asked to" : "with nftables";
      log("Warn ", `no BPF network lock here (${reason(error)}): CRIU locks ${how}`);
    }
  }
  if (lock !== undefined || restoring) sweep();

  const record = (networkLock: Record["networkLock"]): void => {
    try {
      writeFileSync(join(work.imagesDir, RECORD), `${JSON.stringify({ version: 1, networkLock } satisfies Record)}\n`, {
        mode: 0o600,
      });
    } catch (error) {
      log("Warn ", `cannot write ${RECORD}: ${reason(error)}`);
    }
  };

  /** Whether the lock of a dump that ends its tasks stays: where packets could still arrive. */
  const isKept = (netns: number): boolean => shared || isMounted(netns);
  /** The same, asked for each of many sockets in the freeze. */
  let kept: boolean | undefined;

  /** Pins the lock of a dump that ends its container, where packets could still arrive. Returns its id. */
  const keepFor = (made: NetLock, pid: number): string | undefined => {
    const netns = netnsInode(`/proc/${pid}/ns/net`);
    if (!isKept(netns)) return undefined;
    const id = newId();
    try {
      guard.kept(id, pid);
      keep(made.parts, { id, extent: made.extent, netns, images: work.imagesDir, pid });
      return id;
    } catch (error) {
      log("Warn ", `the network lock ends with the dump, it cannot be kept: ${reason(error)}`);
      return undefined;
    }
  };

  /** What is left to do once the tasks of a dump need not wait for it. */
  let afterwards = (): void => {};

  const endDump = (ok: boolean): void => {
    const made = lock;
    if (made === undefined || !made.armed) return;
    const ends = ok && !work.lives;
    const kept = ends && work.pid !== undefined ? keepFor(made, work.pid) : undefined;
    // One that ends its tasks stays locked until they are dead.
    const unlockMs = ends ? 0 : timed(() => made.disarm());
    afterwards = () => {
      afterwards = () => {};
      // A post-dump script may have refused: then they live on.
      const refused = ends && netnsOf(work.pid) !== undefined;
      if (refused && kept !== undefined) clearKept(kept);
      if (refused) made.disarm();
      const { extent } = made;
      const waits = refused || kept === undefined ? {} : { kept };
      if (ok) record({ extent, ...waits, dropped: made.dropped(), lockMs, unlockMs });
    };
  };

  /** For the next restore's sake, now that nobody waits. */
  const prepareNext = (): void => {
    try {
      keepKit();
    } catch (error) {
      log("Warn ", `the next restore is locked a little later: ${reason(error)}`);
    }
  };

  // Who wants no lock of ours gets none of the launcher's either.
  if (method !== "skip" || wish === "none") closeAll(early.splice(0));

  return {
    method,
    get locks() {
      return lock !== undefined || taken !== undefined || restoring;
    },
    requested() {
      lockForRestore(work.netns);
    },
    begin() {
      if (work.freezer !== undefined && work.kind !== "restore") frozen = froze = freeze(work.freezer);
    },
    seized(pid) {
      if (work.kind !== "dump" || lock === undefined) return;
      const made = lock;
      lockMs = timed(() => made.arm(made.extent === "sockets" ? treeOf(work.pid ?? pid) : []));
    },
    cutOff(flow) {
      if (work.kind !== "dump" || work.pid === undefined || lock?.armed !== true) return undefined;
      const before = lock.extent === "netns";
      if (!before) lock.add([flow]);
      if (work.lives !== true) kept ??= isKept(netnsInode(`/proc/${work.pid}/ns/net`));
      return { before, silent: work.lives === true || kept === true };
    },
    namespaces(pid) {
      lockForRestore(`/proc/${pid}/ns/net`);
    },
    socketsAreBack() {
      closeAll(early.splice(0));
      lock?.disarm();
      taken?.close();
      taken = undefined;
    },
    finished(ok) {
      if (work.kind === "dump") endDump(ok);
    },
    imagesAreWritten() {
      if (!froze || work.freezer === undefined) return;
      froze = false;
      try {
        forgetFreeze(work.imagesDir, work.freezer);
      } catch (error) {
        log("Error", `cgroup.img says that the cgroup is frozen, restored it would be: ${reason(error)}`);
      }
    },
    answered() {
      if (frozen && work.freezer !== undefined) thaw(work.freezer);
      frozen = false;
      this.imagesAreWritten();
      afterwards();
    },
    close() {
      restoring = false;
      this.answered();
      closeAll(early.splice(0));
      if (method === "skip" && wish !== "none" && work.kind === "dump") prepareNext();
      taken?.close();
      taken = undefined;
      lock?.close();
      lock = undefined;
    },
  };
};

/** Whether a lock of the dump holds where the restore goes to: podman restores into a namespace that it has just made. */
const covers = (taken: TakenLock | undefined, netns: string | undefined): boolean => {
  if (taken === undefined || (netns === undefined && taken.lock.extent === "netns")) return false;
  try {
    return netnsInode(netns ?? "/proc/self/ns/net") === taken.lock.netns;
  } catch {
    return false;
  }
};

/** Whether there is nothing to dump. */
const isGone = (work: Work): boolean =>
  work.kind === "dump" && work.pid !== undefined && netnsOf(work.pid) === undefined;

/** The inode of the network namespace of a living process. */
const netnsOf = (pid: number | undefined): number | undefined => {
  try {
    return pid === undefined ? undefined : netnsInode(`/proc/${pid}/ns/net`);
  } catch {
    return undefined;
  }
};
