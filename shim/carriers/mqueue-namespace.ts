// SPDX-License-Identifier: Apache-2.0
import { closeSync, readdirSync, statSync } from "node:fs";
import { addon } from "../../native/index.js";
import { CryoshimError } from "../error.js";

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

  get dev(): number {
    return statSync(`/proc/self/fd/${this.#mount}/.`).dev;
  }

  names(): Buffer[] {
    return readdirSync(`/proc/self/fd/${this.#mount}/.`, { encoding: "buffer" }) as unknown as Buffer[];
  }

  path(name: Buffer): Buffer {
    return Buffer.concat([Buffer.from(`/proc/self/fd/${this.#mount}/`), name]);
  }

  close(): void {
    closeSync(this.#mount);
  }
}
