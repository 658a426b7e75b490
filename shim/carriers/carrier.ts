// SPDX-License-Identifier: Apache-2.0
import type { Engine } from "../control/engine.js";
import type { Known } from "../control/wire.js";
import type { Flow } from "../netlock/netlock.js";
import type { Annotations } from "../session/annotations.js";
import type { Log } from "../session/log.js";
import type { Found } from "../xray/find.js";

/** What a carrier is called with. */
export interface CarrierContext {
  /** The hand in the stopped tasks; only usable until the call's promise settles. */
  engine: Engine;
  /** Where CRIU's images are, and ours go. */
  imagesDir: string;
  /** What the container asks for. */
  annotations: Annotations;
  /** The mounts that the caller has told CRIU of, latin1: a dump's mountpoints and their keys, a restore's keys and paths. */
  given: ReadonlyMap<string, string>;
  /** The caller wants connections of TCP to be dumped, too. */
  established: boolean;
  /**
   * Locks a socket of a dump that no task has a descriptor of. Undefined: the network is not locked by us. `before`: it was locked already, with all
   * of its network. `silent`: its peer hears of nothing either when the dump has ended, and its tasks with it.
   */
  cutOff(flow: Flow): { before: boolean; silent: boolean } | undefined;
  /** Before a restore makes a mount in a directory of its own: whoever is killed, both go if the restore fails. */
  mounting(path: string): void;
  log: Log;
}

/** What is known when the tasks of a dump stand still. */
export interface Seized {
  /** The root of the tree that is dumped. */
  root: number;
  /** What the X-ray found in it. */
  found: readonly Found[];
}

/**
 * What of a dump is left when no task need stand still for it: it changes or writes images, and looks at no task. Throwing makes
 * the dump fail.
 */
export type Rest = () => void;

/**
 * One kind of kernel object that CRIU refuses or does badly. A carrier has only the steps that it needs: each that it
 * has makes the engine stop and ask, so a carrier that finds nothing before the freeze should not be in the session.
 * A step that throws makes CRIU's operation fail, and everything is undone.
 */
export interface Carrier {
  /** As in the image's name and in doctor's table. */
  name: string;
  /** Before the freeze: what takes long is made ready here. Throwing costs the carrier, not the dump. */
  prepare?(root: number): void;
  /** A dump begins and nothing is stopped yet. Throwing refuses it, and the tasks go on as if nobody had asked. */
  admit?(root: number, context: CarrierContext): Promise<void>;
  /** Before the freeze: tasks may have threads of io_uring's, which CRIU must not see. */
  hasKernelThreads?(): boolean;
  /** All tasks of the tree stand still, nothing has been collected: once, with what the X-ray has found. */
  seized?(seized: Seized, context: CarrierContext): Promise<void>;
  /** As `seized`, for each task: find, save and hide this task's objects. */
  checkpoint?(pid: number, context: CarrierContext): Promise<void>;
  /**
   * The dump has ended and all images are written; tasks still stand still. Swaps are undone afterwards whatever this
   * does. Throwing makes a dump fail that CRIU believes to be done. What can wait until the tasks go on is returned.
   */
  dumped?(ok: boolean, context: CarrierContext): Promise<Rest | undefined>;
  /** Whether a restore of these images will need this carrier. */
  needed?(): boolean;
  /** How a restore has ended. */
  restored?(ok: boolean, context: CarrierContext): void | Promise<void>;
  /** The session is over, whatever became of it. */
  close?(): void | Promise<void>;
  /** A restore begins; no task has been forked yet. */
  restoring?(context: CarrierContext): Promise<void>;
  /**
   * The root task of a restore has its namespaces, with all their mounts; no other task has been forked, no file opened.
   * Throwing fails the restore. Only where the root task has a namespace of its own.
   */
  namespaces?(pid: number): void;
  /** All tasks have opened their files; they still stand still. Throwing fails the restore. Only after `namespaces`. */
  opened?(pid: number): void;
  /** The task is restored and stands before its first instruction: put the real objects back. Throwing kills it. */
  resume?(pid: number, context: CarrierContext): Promise<void>;
  /** CRIU met a file that it does not know; true: this carrier restores it, by the same id. `fd` is lent. */
  dumpFile?(fd: number, id: number, context: CarrierContext): Promise<boolean>;
  /**
   * CRIU is about to dump a file that it knows, and that `engine.intercept` has named: as `dumpFile`. In files.img it is then a
   * file of a plugin; its descriptors (fdinfo-*.img) are left to the carrier.
   */
  dumpKnown?(kind: Known, fd: number, id: number, context: CarrierContext): Promise<boolean>;
  /**
   * A restoring task, lent as a pidfd, needs the file with this id: a descriptor of ours, undefined when it is another
   * carrier's.
   */
  restoreFile?(id: number, task: number, context: CarrierContext): Promise<number | undefined>;
  /**
   * After `engine.bound`: a restoring task, lent as a pidfd, has CRIU bind the unix socket with this number, whose name in the images is
   * `name`. True when this carrier has bound it.
   */
  bindSocket?(name: string, fd: number, task: number, context: CarrierContext): Promise<boolean>;
  /** The file that the socket of this name was bound to, for who connects to it: a descriptor of ours; undefined: it is another carrier's. */
  boundFile?(name: string): number | undefined;
  /** CRIU met a mount that it cannot resolve; true: this carrier mounts it at restore, by the same id. */
  dumpMount?(mountpoint: string, id: number, context: CarrierContext): Promise<boolean>;
  /** True when this carrier has mounted it. */
  restoreMount?(mountpoint: string, id: number, context: CarrierContext): Promise<boolean>;
}
