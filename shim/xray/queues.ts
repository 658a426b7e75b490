// SPDX-License-Identifier: Apache-2.0
// Reads POSIX message queues without taking anything out of them, through descriptors of this process.
import { closeFd } from "../../native/index.js";
import { bpf, CMD } from "../netlock/bpf.js";
import type { LoadedObject } from "../netlock/bpf-object.js";
import { loadIterator, runIterator } from "./iterator.js";

/** A queue as the kernel has it. */
export interface Queue {
  maxmsg: bigint;
  msgsize: bigint;
  /** How many messages it says to have. */
  curmsgs: bigint;
  /** A registration of mq_notify(3): whose, sigev_*, and of SIGEV_THREAD the inode of the socket and the cookie. */
  notify?: { pid: number; method: number; signo: number; value: bigint; sock: bigint; cookie: Buffer };
  /** In the order in which they would be received. */
  messages: { priority: number; data: Buffer }[];
}

// enum of native/bpf/xray.bpf.c, and its structs' sizes
const [QUEUE, PART, CURSOR] = [0x51455551, 0x54524150, 0x53525543];
const [QUEUE_SIZE, PART_SIZE, CURSOR_SIZE] = [112, 16, 56];

const damaged = (): Error => new Error("the X-ray's records are damaged");

/** What one pass has written, and which queue it went on with. */
interface Pass {
  bytes: Buffer;
  fd: number;
}

/** Queues as one moment had them. */
export interface Taken {
  /** All that was open, by descriptor; their messages are still to be read. */
  queues: Map<number, Queue>;
  /** Reads the messages, whenever. Throws where some are missing. */
  fill(): void;
}

/** The reader of queues: loaded before the freeze, used in it. */
export class QueueReader {
  readonly #object: LoadedObject;

  /** Throws where the kernel cannot: bpf_loop is of Linux 5.17. */
  constructor() {
    this.#object = loadIterator("iter/task_file.queues");
  }

  /** All queues that this process has open, by descriptor. */
  read(): Map<number, Queue> {
    const { queues, fill } = this.take();
    fill();
    return queues;
  }

  /** The same, while tasks stand still: what can be done later is left to `fill`. */
  take(): Taken {
    const queues = new Map<number, Queue>();
    const passes: Pass[] = [];
    const pending: (Buffer | undefined)[] = [undefined];
    for (const cursor of pending) {
      this.#cursor(cursor ?? Buffer.alloc(CURSOR_SIZE));
      const bytes = this.#run();
      passes.push({ bytes, fd: cursor?.readUInt32LE(4) ?? -1 });
      readHeads(bytes, queues, pending);
    }
    const fill = (): void => {
      for (const pass of passes.splice(0)) readMessages(pass, queues);
      for (const [fd, { messages, curmsgs }] of queues) {
        if (BigInt(messages.length) !== curmsgs)
          throw new Error(`queue at descriptor ${fd}: it says ${curmsgs} messages, ${messages.length} were found`);
      }
    };
    return { queues, fill };
  }

  close(): void {
    for (const fd of [...Object.values(this.#object.maps), ...Object.values(this.#object.programs)]) closeFd(fd);
  }

  #run(): Buffer {
    return runIterator(this.#object.programs.queues!, process.pid);
  }

  #cursor(value: Buffer): void {
    bpf(CMD.mapUpdate, { 0: this.#object.maps.cursor!, 8: Buffer.alloc(4), 16: value });
  }
}

/** Queues, and where the next passes go on. */
const readHeads = (bytes: Buffer, queues: Map<number, Queue>, pending: (Buffer | undefined)[]): void => {
  for (let at = 0; at < bytes.length; ) {
    const magic = bytes.readUInt32LE(at);
    if (magic === PART) at += PART_SIZE + bytes.readUInt32LE(at + 12);
    else if (magic === QUEUE) {
      queues.set(bytes.readUInt32LE(at + 4), queueAt(bytes, at));
      at += QUEUE_SIZE;
    } else if (magic === CURSOR) {
      pending.push(bytes.subarray(at, at + CURSOR_SIZE));
      at += CURSOR_SIZE;
    } else throw damaged();
  }
};

const readMessages = ({ bytes, fd }: Pass, queues: ReadonlyMap<number, Queue>): void => {
  let current = queues.get(fd);
  for (let at = 0; at < bytes.length; ) {
    const magic = bytes.readUInt32LE(at);
    if (magic === QUEUE) {
      current = queues.get(bytes.readUInt32LE(at + 4));
      at += QUEUE_SIZE;
    } else if (magic === PART && current !== undefined) {
      const len = bytes.readUInt32LE(at + 12);
      const part = bytes.subarray(at + 16, at + 16 + len);
      addPart(current, bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at + 8), part);
      at += PART_SIZE + len;
    } else if (magic === CURSOR) at += CURSOR_SIZE;
    else throw damaged();
  }
};

const queueAt = (bytes: Buffer, at: number): Queue => {
  const pid = bytes.readInt32LE(at + 48);
  const queue: Queue = {
    maxmsg: bytes.readBigUInt64LE(at + 16),
    msgsize: bytes.readBigUInt64LE(at + 24),
    curmsgs: bytes.readBigUInt64LE(at + 32),
    messages: [],
  };
  if (pid !== 0)
    queue.notify = {
      pid,
      method: bytes.readInt32LE(at + 52),
      signo: bytes.readInt32LE(at + 56),
      value: bytes.readBigUInt64LE(at + 64),
      sock: bytes.readBigUInt64LE(at + 72),
      cookie: Buffer.from(bytes.subarray(at + 80, at + QUEUE_SIZE)),
    };
  return queue;
};

/** How much of the newest message of a queue is there. */
const filled = new WeakMap<Queue, number>();

const addPart = (queue: Queue, priority: number, size: number, part: Buffer): void => {
  const newest = queue.messages.at(-1);
  const have = filled.get(queue) ?? 0;
  if (newest !== undefined && have < newest.data.length) {
    part.copy(newest.data, have);
    filled.set(queue, have + part.length);
    return;
  }
  const data = Buffer.alloc(size);
  part.copy(data);
  queue.messages.push({ priority, data });
  filled.set(queue, part.length);
};
