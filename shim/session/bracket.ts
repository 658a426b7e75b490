// SPDX-License-Identifier: Apache-2.0
// What a session does around the engine's work whichever way it was asked for: a freeze without CRIU's 100 ms steps,
// and the network lock in place of CRIU's.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { nanoid } from "nanoid/non-secure";
import type { NetworkLock } from "../engine/launch-file.js";
import { CryoshimError, reason } from "../error.js";
import { flowsOf } from "../netlock/images.js";
import { isMounted, keep, sweep, type TakenLock, take } from "../netlock/kept.js";
import { type Dropped, isShared, NetLock, netnsInode, treeOf } from "../netlock/netlock.js";
import { type Freezer, freeze, thaw } from "./freezer.js";
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
  /** What the caller asked for. */
  asked?: LockMethod | undefined;
}

export interface Bracket {
  /** What CRIU itself shall do; undefined: what it was asked for. */
  readonly method: LockMethod | undefined;
  /** There is a lock of ours, now or as soon as the namespace is there. */
  readonly locks: boolean;
  /** The engine begins; nothing is stopped yet. */
  begin(): void;
  /** All tasks of a dump are stopped. */
  seized(pid: number): void;
  /** The root task of a restore exists, with its namespaces. */
  namespaces(pid: number): void;
  /** All sockets of a restore are back, none of them sends yet. */
  socketsAreBack(): void;
  /** The engine tells how its work ended; tasks are still stopped. */
  finished(ok: boolean): void;
  /** The engine's answer is here: the tasks may run. */
  answered(): void;
  /** Whatever happened: nothing of this session stays locked or frozen. */
  close(): void;
}

const readRecord = (dir: string): Partial<Record> | undefined => {
  try {
    return JSON.parse(readFileSync(join(dir, RECORD), "utf8")) as Partial<Record>;
  } catch {
    return undefined;
  }
};

/** Opens the bracket of one piece of work. Throws where the configuration demands what this kernel cannot. */
export const openBracket = (work: Work, wish: NetworkLock, log: Log): Bracket => {
  let lock: NetLock | undefined;
  let taken: TakenLock | undefined;
  let frozen = false;
  let method: LockMethod | undefined;

  /**
   * A restore's lock. A namespace of its own is locked as soon as it is known; in one that others use it is the sockets in
   * the images, unless a lock of the dump still holds.
   */
  const lockForRestore = (): NetLock | undefined => {
    if (taken !== undefined) return undefined;
    if (work.netns === undefined) return new NetLock("netns");
    const shared = isShared(work.netns, []);
    const flows = shared ? flowsOf(work.imagesDir) : [];
    if (shared && flows.length === 0) return undefined;
    const made = new NetLock(shared ? "sockets" : "netns");
    made.lockNetns(work.netns, flows);
    return made;
  };

  // Whoever locks from now on: what the dump has locked ends with this restore.
  const id = work.kind === "restore" ? readRecord(work.imagesDir)?.networkLock?.kept : undefined;
  if (typeof id === "string") taken = take(id);

  if (wish === "iptables" || wish === "nftables") method = wish;
  else if (wish === "none") method = "skip";
  // Who asked for no lock gets none.
  else if (wish !== "caller" && work.kind !== "pre-dump" && work.asked !== "skip") {
    try {
      if (work.kind === "dump" && work.pid !== undefined)
        lock = new NetLock(isShared(`/proc/${work.pid}/ns/net`, treeOf(work.pid)) ? "sockets" : "netns");
      else if (work.kind === "restore") lock = lockForRestore();
      method = "skip";
    } catch (error) {
      if (wish === "bpf")
        throw new CryoshimError("ERR_NETWORK_LOCK", {
          what: "cannot lock the network by BPF",
          why: reason(error),
          fix: 'it needs Linux 6.4; set [network] lock = "auto" to let CRIU lock where it cannot',
          cause: error,
        });
      log("Warn ", `no BPF network lock here (${reason(error)}): CRIU locks as it was asked to`);
    }
  }
  if (lock !== undefined) sweep();

  const unlock = (): Dropped | undefined => {
    const dropped = lock?.locked ? lock.dropped() : undefined;
    lock?.unlock();
    return dropped;
  };

  const record = (networkLock: Record["networkLock"]): void => {
    try {
      writeFileSync(join(work.imagesDir, RECORD), `${JSON.stringify({ version: 1, networkLock } satisfies Record)}\n`, {
        mode: 0o600,
      });
    } catch (error) {
      log("Warn ", `cannot write ${RECORD}: ${reason(error)}`);
    }
  };

  /** Ends the lock of a dump, or keeps it for the restore where packets could still arrive. */
  const endDump = (ok: boolean): void => {
    if (lock === undefined || !lock.locked) return;
    const { attached, extent } = lock;
    const dropped = lock.dropped();
    const pid = work.pid ?? 0;
    let kept: string | undefined;
    if (ok && !work.lives && pid > 0) {
      const netns = netnsInode(`/proc/${pid}/ns/net`);
      if (extent === "sockets" || isMounted(netns)) {
        const id = nanoid();
        try {
          keep(attached, { id, extent, netns, images: work.imagesDir, pid });
          kept = id;
        } catch (error) {
          log("Warn ", `the network lock ends with the dump, it cannot be kept: ${reason(error)}`);
        }
      }
    }
    lock.unlock();
    if (ok) record({ extent, ...(kept === undefined ? {} : { kept }), dropped });
  };

  return {
    method,
    get locks() {
      return lock !== undefined || taken !== undefined;
    },
    begin() {
      if (work.freezer !== undefined && work.kind !== "restore") frozen = freeze(work.freezer);
    },
    seized(pid) {
      if (work.kind === "dump") lock?.lockTree(work.pid ?? pid);
    },
    namespaces(pid) {
      if (lock === undefined || lock.locked || taken !== undefined) return;
      const netns = `/proc/${pid}/ns/net`;
      if (netnsInode(netns) !== netnsInode("/proc/self/ns/net")) return lock.lockNetns(netns);
      // The host's: others use it.
      const flows = flowsOf(work.imagesDir);
      if (flows.length === 0) return;
      lock.close();
      lock = new NetLock("sockets");
      lock.lockNetns(netns, flows);
    },
    socketsAreBack() {
      unlock();
      taken?.close();
      taken = undefined;
    },
    finished(ok) {
      if (work.kind === "dump") endDump(ok);
    },
    answered() {
      if (frozen && work.freezer !== undefined) thaw(work.freezer);
      frozen = false;
    },
    close() {
      this.answered();
      taken?.close();
      taken = undefined;
      lock?.close();
      lock = undefined;
    },
  };
};
