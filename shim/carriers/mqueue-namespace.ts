// SPDX-License-Identifier: Apache-2.0
import { closeSync, openSync, readdirSync, statSync } from "node:fs";
import { addon, pidfdOpen } from "../../native/index.js";
import { CryoshimError } from "../error.js";

const [O_RDONLY, O_NONBLOCK] = [0, 0o4000];

/** Our image of queues. */
export const MQUEUE_IMAGE = "cryoshim-mqueue.img";

/** An error of this carrier. */
export const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_MQUEUE", { what, why, fix, cause });

/** The queues of an ipc namespace that have a name; `ns` is a pidfd of one of its tasks. */
export class Namespace {
  readonly #mount: number;

  constructor(ns: number) {
    this.#mount = addon.mqueueMount(ns);
  }

  static of(pid: number): Namespace {
    const task = pidfdOpen(pid);
    try {
      return new Namespace(task);
    } finally {
      closeSync(task);
    }
  }

  get dev(): number {
    return statSync(`/proc/self/fd/${this.#mount}/.`).dev;
  }

  /** Latin1: each byte a character. */
  names(): string[] {
    return readdirSync(`/proc/self/fd/${this.#mount}/.`, { encoding: "latin1" });
  }

  path(name: Buffer): Buffer {
    return Buffer.concat([Buffer.from(`/proc/self/fd/${this.#mount}/`), name]);
  }

  /** Opens a queue to look at it. */
  open(name: string): number {
    return openSync(this.path(Buffer.from(name, "latin1")), O_RDONLY | O_NONBLOCK);
  }

  close(): void {
    closeSync(this.#mount);
  }
}
