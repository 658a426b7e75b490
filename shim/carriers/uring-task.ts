// SPDX-License-Identifier: Apache-2.0
// What the io_uring carrier has a stopped task do: io_uring's system calls, with their arguments in memory of its own.

import { readFileSync } from "node:fs";
import type { Engine } from "../control/engine.js";
import { MAX_DATA } from "../control/wire.js";
import { O_CLOEXEC } from "../flags.js";

export const CALL = {
  close: 3,
  lseek: 8,
  mmap: 9,
  munmap: 11,
  madvise: 28,
  fcntl: 72,
  prctl: 157,
  epollCtl: 233,
  openat: 257,
  dup3: 292,
  setup: 425,
  enter: 426,
  register: 427,
  pidfdOpen: 434,
  pidfdGetfd: 438,
} as const;

/** IORING_REGISTER_* and IORING_UNREGISTER_* */
export const REGISTER = {
  buffers: 0,
  files: 2,
  eventfd: 4,
  eventfdAsync: 7,
  personality: 9,
  unregisterPersonality: 10,
  restrictions: 11,
  enableRings: 12,
  files2: 13,
  buffers2: 15,
  iowqAff: 17,
  iowqMaxWorkers: 19,
  ringFds: 20,
  unregisterRingFds: 21,
  pbufRing: 22,
  fileAllocRange: 25,
  pbufStatus: 26,
  napi: 27,
  clock: 29,
  memRegion: 34,
} as const;

/** Where a task has room, and not next to rings: a part of one that is not mapped any more must stay free until it is put back. */
const AWAY = 2 ** 32;

/** Whether a descriptor of a process is close-on-exec. */
export const closesOnExec = (pid: number, fd: number): boolean => {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8"))?.[1] ?? "0";
  return (Number.parseInt(flags, 8) & O_CLOEXEC) !== 0;
};

/** What the call that failed was for, and the errno. */
export class CallFailed extends Error {
  readonly errno: number;
  constructor(what: string, errno: number) {
    super(`${what}: errno ${errno}`);
    this.errno = errno;
  }
}

const [PROT_RW, MAP_PRIVATE_ANONYMOUS] = [3n, 0x22n];

/** A thread that does system calls for us, with memory for their arguments. */
export class Hand {
  readonly tid: number;
  readonly #engine: Engine;
  #memory = { at: 0n, length: 0 };

  constructor(tid: number, engine: Engine) {
    this.tid = tid;
    this.#engine = engine;
  }

  /** Throws CallFailed. */
  async call(what: string, number: number, ...args: (bigint | number)[]): Promise<number> {
    const ret = await this.#engine.syscall(this.tid, number, ...args.map(BigInt));
    if (ret < 0 && ret >= -4095) throw new CallFailed(what, -ret);
    return ret;
  }

  /** Puts bytes where the task can give them to a call; good until the next time. */
  async lend(bytes: Buffer): Promise<bigint> {
    if (this.#memory.length < bytes.length) {
      await this.end();
      const length = Math.ceil(bytes.length / 4096) * 4096;
      const at = await this.call("mmap", CALL.mmap, AWAY, length, PROT_RW, MAP_PRIVATE_ANONYMOUS, -1, 0);
      this.#memory = { at: BigInt(at), length };
    }
    await this.writeAll(this.#memory.at, bytes);
    return this.#memory.at;
  }

  async read(at: bigint, length: number): Promise<Buffer> {
    return this.#engine.readMemory(this.tid, at, length);
  }

  /** Any amount of the task's memory. */
  async readAll(at: bigint, length: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let done = 0; done < length; done += MAX_DATA)
      parts.push(await this.read(at + BigInt(done), Math.min(MAX_DATA, length - done)));
    return Buffer.concat(parts);
  }

  async writeAll(at: bigint, bytes: Buffer): Promise<void> {
    for (let done = 0; done < bytes.length; done += MAX_DATA)
      await this.#engine.writeMemory(this.tid, at + BigInt(done), bytes.subarray(done, done + MAX_DATA));
  }

  /** See Engine.submit. */
  async submit(
    pid: number,
    fd: number,
    len: number,
    at: { sqTail: number; cqHead: number; cqTail: number },
    [each, times]: [each: number, times: number],
  ): Promise<void> {
    await this.#engine.submit(pid, this.tid, fd, len, at, each, times);
  }

  /** io_uring_register(2) on a descriptor of the task's. */
  async register(what: string, fd: number, op: number, bytes: Buffer | undefined, count: number): Promise<number> {
    return this.call(what, CALL.register, fd, op, bytes === undefined ? 0 : await this.lend(bytes), count);
  }

  /** Leaves nothing behind. */
  async end(): Promise<void> {
    const { at, length } = this.#memory;
    this.#memory = { at: 0n, length: 0 };
    if (length > 0) await this.call("munmap", CALL.munmap, at, length);
  }
}
