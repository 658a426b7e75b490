// SPDX-License-Identifier: Apache-2.0
// The queues of the images are made anew in the restored ipc namespace, and tasks get their descriptors.
import { chownSync, closeSync, openSync, readFileSync, rmSync, unlinkSync } from "node:fs";
import { addon, pidfdOpen } from "../../native/index.js";
import { reason } from "../error.js";
import type { CarrierContext } from "./carrier.js";
import { type LoadedQueue, type LoadedWait, loadQueues, type Notify } from "./mqueue-image.js";
import { Namespace, refuse } from "./mqueue-namespace.js";
import { depthOf, taskName } from "./tasks.js";
import { waitOn } from "./waits.js";

const [O_RDONLY, O_NONBLOCK, O_ACCMODE, SIGEV_SIGNAL, SIGEV_THREAD] = [0, 0o4000, 3, 0, 2];
const SYS_MQ_NOTIFY = 244;

/** `/proc/PID/syscall` of a stopped task ends in its stack pointer and program counter. */
const stackPointer = (pid: number): bigint =>
  BigInt(readFileSync(`/proc/${pid}/syscall`, "utf8").trim().split(" ").at(-2)!);

/** Makes the queues of the images anew. */
export class QueueRestore {
  readonly #queues: LoadedQueue[];
  readonly #waits: LoadedWait[];
  /** By the id of a file: whose descriptor it is, and its O_* flags. */
  readonly #files = new Map<number, { queue: LoadedQueue; flags: number }>();
  /** Names that were not there before, in a namespace of others. */
  readonly #new: Buffer[] = [];
  #made = false;
  #ns: Namespace | undefined;
  #depth: number | undefined;

  /** Throws ERR_IMAGE. */
  constructor(imagesDir: string) {
    const { queues, waits } = loadQueues(imagesDir);
    for (const queue of queues) for (const { id, flags } of queue.files ?? []) this.#files.set(id, { queue, flags });
    this.#queues = queues;
    this.#waits = waits;
  }

  /** A descriptor for the file with this id; `task` is a pidfd of a task in the restored ipc namespace. */
  open(id: number, task: number): number | undefined {
    const file = this.#files.get(id);
    if (file === undefined) return undefined;
    this.make(task);
    return openSync(`/proc/self/fd/${file.queue.fd}`, file.flags & (O_ACCMODE | O_NONBLOCK));
  }

  /** Makes what is not there yet. */
  make(task: number): void {
    if (this.#made) return;
    this.#made = true;
    const ns = new Namespace(task);
    try {
      for (const [index, queue] of this.#queues.entries()) {
        try {
          queue.fd = this.#one(queue, index, task, ns);
        } catch (error) {
          const name = queue.name === undefined ? "an unlinked queue" : `queue /${Buffer.from(queue.name)}`;
          throw refuse(
            `cannot make ${name} with ${queue.maxmsg} messages of ${queue.msgsize} bytes`,
            reason(error),
            "raise /proc/sys/fs/mqueue/* and the limit on the bytes of queues (ulimit -q), then restore again",
            error,
          );
        }
      }
    } finally {
      this.#ns = ns;
    }
  }

  /** A restore that failed, or whose engine died, leaves nothing behind where others can see it. */
  settle(ok: boolean): void {
    for (const path of this.#new.splice(0)) if (!ok) rmSync(path, { force: true });
  }

  #one(queue: LoadedQueue, index: number, task: number, ns: Namespace): number {
    const { mode, uid, gid, maxmsg, msgsize } = queue;
    if (queue.name !== undefined && queue.shared) {
      // Others may have kept it: then it is theirs as much as ours, and has its messages.
      try {
        return openSync(ns.path(Buffer.from(queue.name)), O_RDONLY | O_NONBLOCK);
      } catch (error) {
        if ((error as { code?: string }).code !== "ENOENT") throw error;
      }
    }
    const name = Buffer.from(queue.name ?? Buffer.from(`.cryoshim-${process.pid}-${index}`));
    const fd = addon.mqueueCreate(task, name, mode, Number(maxmsg), Number(msgsize));
    try {
      if (queue.name === undefined) unlinkSync(ns.path(name));
      else if (queue.shared) this.#new.push(ns.path(name));
      chownSync(`/proc/self/fd/${fd}`, uid, gid);
      for (const { priority, data } of queue.messages) addon.mqueueSend(fd, data, priority);
      return fd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** What only the restored process itself can do. The first that is asked about is the root (criu/cr-restore.c). */
  async resume(pid: number, { engine }: CarrierContext): Promise<void> {
    if (!this.#made) {
      const task = pidfdOpen(pid);
      try {
        this.make(task);
      } finally {
        closeSync(task);
      }
    }
    this.#depth ??= depthOf(pid);
    const name = taskName(pid, this.#depth);
    const mine = (task: string): boolean => task === name;
    for (const { notify } of this.#queues) if (notify && mine(notify.task)) await this.#notify(pid, notify, engine);
    for (const { task, address, nanoseconds_left } of this.#waits) {
      if (!mine(task)) continue;
      await waitOn(pid, { address, left: nanoseconds_left }, engine);
    }
  }

  async #notify(pid: number, notify: Notify, engine: CarrierContext["engine"]): Promise<void> {
    // struct sigevent (64 bytes), and behind it the cookie; below the red zone of the stack, and put back afterwards.
    const sp = stackPointer(pid);
    const at = (sp - 1024n) & ~63n;
    const before = await engine.readMemory(pid, at, 128);
    const event = Buffer.alloc(128);
    event.writeBigUInt64LE(notify.method === SIGEV_THREAD ? at + 64n : notify.value, 0);
    event.writeInt32LE(notify.method === SIGEV_THREAD ? notify.sock_fd! : notify.signo, 8);
    event.writeInt32LE(notify.method, 12);
    if (notify.cookie !== undefined) Buffer.from(notify.cookie).copy(event, 64);
    await engine.writeMemory(pid, at, event);
    const ret = await engine.syscall(pid, SYS_MQ_NOTIFY, BigInt(notify.fd), at);
    await engine.writeMemory(pid, at, before);
    if (ret < 0)
      throw refuse(
        `cannot register process ${pid} with mq_notify(3) again`,
        `errno ${-ret} for descriptor ${notify.fd}${notify.method === SIGEV_SIGNAL ? `, signal ${notify.signo}` : ""}`,
        "report this with the images",
      );
  }

  close(): void {
    this.settle(false);
    for (const queue of this.#queues) {
      if (queue.fd !== undefined) closeSync(queue.fd);
      delete queue.fd;
    }
    this.#ns?.close();
    this.#ns = undefined;
  }
}
