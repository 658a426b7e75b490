// SPDX-License-Identifier: Apache-2.0
// The shim's word to its guard, the process that settles what a sudden death of engine or shim leaves behind.
// Messages: native/launcher/guard.h.
import { closeFd, isAgain, receiveMessage, sendMessage, watchReadable } from "../../native/index.js";
import { newId } from "../id.js";
import type { Freezer } from "./freezer.js";

/** GUARD_MAX without the letter. */
const MAX_ANSWER = (64 << 10) - 1;

/** How a death shall be settled. */
export type Armed =
  /** The engine may end by itself; what it froze is thawed. */
  | "dump"
  /** Without the shim the client would never get its answer: engine and restored tasks are killed. */
  | "restore";

/** GUARD_KNOWS */
const KNOWS = "b";

/** The engine's environment variable that names the session. */
export const SESSION = "CRYOSHIM_SESSION";

const LETTER = { dump: "D", restore: "R" } as const;

export interface Guard {
  /** From here to the answer. `workDir` is where CRIU works and logs; the freezers are those that CRIU may use. */
  arm(kind: Armed, workDir: string, freezers: readonly Freezer[]): void;
  /** In the engine's environment: by it the guard knows children that outlive the engine. */
  readonly session: string;
  /** A network lock waits for the restore of what this dump of a task ends: if that lives on after all, it is lifted. */
  kept(id: string, pid: number): void;
  /** A restore takes a waiting network lock over, which must not outlast it. */
  taking(id: string): void;
  /** The root task of a restore is there, and will run when its engine ends, even by a sudden death. */
  made(pid: number): void;
  /**
   * A swap is about to be made in a task of a dump: resolves when the guard can undo it, and only then it may be made. `order`
   * is its message to the engine plugin, the descriptors are lent. Throws when there is no guard.
   */
  swap(order: Buffer, fds: number[]): Promise<void>;
  /**
   * A process of a dump is about to be stopped while something is swapped in it: resolves to whether it may be, which is when the guard
   * will let it go on. In a restore it may not.
   */
  hold(pid: number): Promise<boolean>;
  /** A socket over which the engine tells what it is doing in a task of a dump; lent. */
  record(fd: number): void;
  /** A restore makes a mount, in a directory of its own: if it fails both are to go. Before it is made. */
  mounting(path: string): void;
  /** All swaps have been undone, or are to stay. */
  settled(): void;
  /** Disarms, and sends the answer to the client. Returns false when there is no guard to do so. */
  answer(data: Buffer): boolean;
  /** The engine has died in its work: resolves when all is settled. */
  fail(): Promise<void>;
  /** Ends the guard, if it is not armed. */
  close(): void;
}

/** Takes the descriptor over. A guard that is gone is no error: then there is none, as with CRIU alone. */
export const openGuard = (fd: number): Guard => {
  let open = true;
  /** Those who wait for an answer, in the order of what they said. */
  const waiting: ((answer: string | undefined) => void)[] = [];
  let stop: (() => void) | undefined;
  const tell = (letter: string, data: Buffer | string = "", fds: number[] = []): boolean => {
    if (!open) return false;
    try {
      sendMessage(fd, Buffer.concat([Buffer.from(letter), Buffer.from(data)]), fds);
      return true;
    } catch {
      return false;
    }
  };
  const unwatch = (): void => {
    stop?.();
    stop = undefined;
  };
  const end = (): void => {
    unwatch();
    for (const answer of waiting.splice(0)) answer(undefined);
  };
  const watch = (): void => {
    stop ??= watchReadable(fd, () => {
      try {
        const message = receiveMessage(fd);
        if (message === undefined) return end();
        waiting.shift()?.(message.data.toString());
        if (waiting.length === 0) unwatch();
      } catch (error) {
        if (!isAgain(error)) end();
      }
    });
  };
  const close = (): void => {
    if (!open) return;
    open = false;
    end();
    closeFd(fd);
  };
  const session = newId();
  /** What it answers; undefined: there is none. */
  const ask = async (letter: string, data: Buffer | string, fds: number[] = []): Promise<string | undefined> =>
    tell(letter, data, fds)
      ? new Promise((resolve) => {
          waiting.push(resolve);
          watch();
        })
      : undefined;
  tell("S", `${SESSION}=${session}`);
  return {
    session,
    arm(kind, workDir, freezers) {
      tell("L", `${workDir}/cryoshim.log`);
      tell("Y", workDir);
      for (const { file, thawed } of freezers) tell("T", `${thawed} ${file}`);
      tell(LETTER[kind]);
    },
    kept(id, pid) {
      tell("P", String(pid));
      tell("K", id);
    },
    made(pid) {
      tell("M", String(pid));
    },
    mounting(path) {
      tell("U", Buffer.from(path, "latin1"));
    },
    taking(id) {
      tell("K", id);
    },
    async swap(order, fds) {
      if ((await ask("B", order, fds)) !== KNOWS)
        throw new Error("there is no guard that could undo a swap: nothing is swapped");
    },
    record(fd) {
      tell("J", "", [fd]);
    },
    hold: async (pid) => (await ask("H", String(pid))) === KNOWS,
    settled() {
      tell("N");
    },
    answer: (data) => data.length <= MAX_ANSWER && tell("A", data),
    async fail() {
      if (!tell("F")) return;
      // It says nothing more, and ends when all is settled.
      await new Promise<void>((resolve) => {
        waiting.push(() => resolve());
        watch();
      });
    },
    close,
  };
};
