// SPDX-License-Identifier: Apache-2.0
// Reads cryoshim-mqueue.img. It may come from anywhere: nothing of it is used that has not been looked at here.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { CryoshimError } from "../error.js";
import { MQUEUE_IMAGE } from "./mqueue-namespace.js";

export interface Notify {
  task: string;
  fd: number;
  method: number;
  signo: number;
  value: bigint;
  sock_fd?: number;
  cookie?: Uint8Array;
}

/** A queue of the images, and once it is made a descriptor of it. */
export interface LoadedQueue {
  name?: Uint8Array;
  mode: number;
  uid: number;
  gid: number;
  maxmsg: bigint;
  msgsize: bigint;
  shared?: boolean;
  notify?: Notify;
  files?: { id: number; flags: number }[];
  messages: { priority: number; data: Uint8Array }[];
  fd?: number;
}

export interface LoadedWait {
  task: string;
  address: bigint;
  nanoseconds_left: bigint;
}

// include/uapi/linux/mqueue.h and ipc/mqueue.c: HARD_MSGMAX, HARD_MSGSIZEMAX, MQ_PRIO_MAX, NOTIFY_COOKIE_LEN
const [MSG_MAX, MSGSIZE_MAX, PRIO_MAX, COOKIE_LEN] = [65536n, 16n << 20n, 32768, 32];
const [SIGEV_THREAD, NSIG] = [2, 64];

type Check = (value: unknown) => boolean;
const upTo =
  (max: number): Check =>
  (value) =>
    typeof value === "number" && value >= 0 && value <= max;
const word = upTo(0xffffffff);
const between =
  (min: bigint, max: bigint): Check =>
  (value) =>
    typeof value === "bigint" && value >= min && value <= max;
const optional =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);
/** A process by its numbers, as carriers/tasks.ts names it. */
const task: Check = (value) => typeof value === "string" && /^\d+(:\d+)*$/.test(value);
/** A file name: of a queue there is no directory. */
const fileName: Check = (value) =>
  value instanceof Uint8Array &&
  value.length > 0 &&
  value.length <= 255 &&
  !value.includes(0) &&
  !value.includes(0x2f) &&
  ![".", ".."].includes(Buffer.from(value).toString("latin1"));

const QUEUE: Record<string, Check> = {
  name: optional(fileName),
  mode: upTo(0o7777),
  uid: word,
  gid: word,
  maxmsg: between(1n, MSG_MAX),
  msgsize: between(1n, MSGSIZE_MAX),
};
const NOTIFY: Record<string, Check> = {
  task,
  fd: upTo(0x7fffffff),
  method: upTo(SIGEV_THREAD),
  signo: upTo(NSIG),
  value: (value) => typeof value === "bigint",
};
const THREAD: Record<string, Check> = {
  sock_fd: upTo(0x7fffffff),
  cookie: (value) => value instanceof Uint8Array && value.length === COOKIE_LEN,
};
const FILE: Record<string, Check> = { id: word, flags: word };
const WAIT: Record<string, Check> = {
  task,
  address: (value) => typeof value === "bigint",
  nanoseconds_left: (value) => typeof value === "bigint",
};
const PRIORITY = upTo(PRIO_MAX - 1);

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${MQUEUE_IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

/** What the images say of POSIX message queues. Throws ERR_IMAGE. */
export const loadQueues = (imagesDir: string): { queues: LoadedQueue[]; waits: LoadedWait[] } => {
  const queues: LoadedQueue[] = [];
  const waits: LoadedWait[] = [];
  const ids = new Set<number>();
  const { kind, entries } = decodeImage(readFileSync(join(imagesDir, MQUEUE_IMAGE)), MQUEUE_IMAGE);
  if (kind !== "CRYOSHIM_MQUEUE") throw wrong(0, `it is an image of kind ${kind}`);
  for (const [at, { message }] of entries.entries()) {
    const check = (what: Message, checks: Record<string, Check>): void => {
      for (const [field, fits] of Object.entries(checks))
        if (!fits(what[field])) throw wrong(at, `its ${field} is missing or is not one that the kernel has`);
    };
    if (message.queue !== undefined) {
      const queue = message.queue as Message;
      check(queue, QUEUE);
      for (const file of (queue.files ?? []) as Message[]) {
        check(file, FILE);
        if (ids.has(file.id as number)) throw wrong(at, `file ${file.id as number} is of another queue already`);
        ids.add(file.id as number);
      }
      if (queue.notify !== undefined) {
        const notify = queue.notify as Message;
        check(notify, notify.method === SIGEV_THREAD ? { ...NOTIFY, ...THREAD } : NOTIFY);
      }
      queues.push({ ...(queue as unknown as LoadedQueue), messages: [] });
    } else if (message.message !== undefined) {
      const { priority, data } = message.message as Message;
      const queue = queues.at(-1);
      const fits = data instanceof Uint8Array && queue !== undefined && BigInt(data.length) <= queue.msgsize;
      if (!fits || !PRIORITY(priority) || BigInt(queue.messages.length) >= queue.maxmsg)
        throw wrong(at, "the queue before it cannot hold such a message");
      queue.messages.push({ priority: priority as number, data });
    } else if (message.wait !== undefined) {
      check(message.wait as Message, WAIT);
      waits.push(message.wait as unknown as LoadedWait);
    } else throw wrong(at, "it says nothing that this version knows");
  }
  return { queues, waits };
};
