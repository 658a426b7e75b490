// SPDX-License-Identifier: Apache-2.0
// POSIX message queues. CRIU is told that they are external; we read them by X-ray, make them anew in the restored ipc
// namespace and hand tasks their descriptors. No task is touched at a dump, so there is nothing to undo.
import { closeSync, fstatSync, openSync, readFileSync, readlinkSync, type Stats, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import { type Found, findSpecial, statDev } from "../xray/find.js";
import { type Queue, QueueReader } from "../xray/queues.js";
import type { Carrier, CarrierContext, Seized } from "./carrier.js";
import { type ClaimedFile, claimFiles, fileKey } from "./claim.js";
import { MQUEUE_IMAGE, Namespace, refuse } from "./mqueue-namespace.js";
import { QueueRestore } from "./mqueue-restore.js";
import { depthOf, fdOfSocket, isSharedNamespace, namespaceOf, taskName } from "./tasks.js";
import { type Wait, waitsOf } from "./waits.js";

const [O_RDONLY, O_NONBLOCK, SIGEV_SIGNAL, SIGEV_THREAD] = [0, 0o4000, 0, 2];
const S_IFMT = 0o170000;

/** A queue of the dump, while the tasks stand still. */
interface Saved {
  name: Buffer | undefined;
  shared: boolean;
  found: Found[];
  /** Files that are in no task's hands. */
  sent: Pick<Found, "mntId" | "ino">[];
  /** A descriptor of ours, and what fstat(2) said of it. */
  fd: number;
  st: Pick<Stats, "mode" | "uid" | "gid">;
}

/** Keys by which CRIU knows its files. */
const keysOf = ({ found, sent }: Saved): string[] => [...found, ...sent].map(({ mntId, ino }) => fileKey(mntId, ino));

/** Finds and reads all queues that a dump must carry. */
class Dump {
  readonly waits: Wait[] = [];
  readonly #saved: Saved[] = [];
  #contents = new Map<number, Queue>();
  #notify = new Map<number, Message>();

  /** Nothing is changed here. Throws ERR_MQUEUE where a queue cannot be carried. */
  async find({ root, found }: Seized, reader: () => QueueReader, { engine, log }: CarrierContext): Promise<void> {
    const queues = found.filter(({ kind }) => kind === "mqueue");
    const pids = [root, ...new Set(queues.map(({ pid }) => pid))];
    const seen = new Map<number, number>();
    for (const pid of pids) {
      const ipc = namespaceOf(pid, "ipc");
      if (seen.has(ipc)) continue;
      seen.set(ipc, pid);
      if (seen.size > 1 && queues.length > 0)
        throw refuse(
          `cannot carry the POSIX queues of process ${pid}`,
          "the tasks are in several ipc namespaces",
          "checkpoint a container whose tasks share one",
        );
    }
    const shared = once(() => isSharedNamespace("ipc", namespaceOf(root, "ipc"), new Set(treeOf(root))));
    try {
      this.#collect(root, queues, shared);
    } catch (error) {
      if (queues.length > 0) throw error;
      // A kernel without queues, say: who has none open must not fail for them.
      log("Warn ", `POSIX queues that nobody has open are not looked for: ${reason(error)}`);
      this.close();
    }
    if (this.#saved.length === 0) return;
    this.#contents = reader().read();
    const depth = depthOf(root);
    for (const saved of this.#saved) this.#register(saved, depth);
    for (const pid of new Set(queues.map((file) => file.pid)))
      this.waits.push(...(await waitsOf(pid, taskName(pid, depth), engine)));
  }

  /** Adds a queue that is in a message on its way, by a descriptor that is lent; it may be nowhere else. Returns its key. */
  add(lent: number, root: number, reader: () => QueueReader): string {
    const { dev, ino, nlink } = fstatSync(lent, { bigint: true });
    const info = readFileSync(`/proc/self/fdinfo/${lent}`, "latin1");
    const mntId = Number(/^mnt_id:\s+(\d+)$/m.exec(info)?.[1]);
    let saved = this.#saved.find(({ fd }) => fstatSync(fd, { bigint: true }).ino === ino);
    if (saved === undefined) {
      if (Number(dev) !== deviceOf(root))
        throw refuse(
          "cannot carry a POSIX queue that is in a message on its way through a socket",
          "it is of another ipc namespace",
          "let the program receive it, and close it, before the checkpoint",
        );
      const path = `/proc/self/fd/${lent}`;
      const named = nlink > 0n;
      // One with a name is known, unless others use the namespace.
      const name = named ? Buffer.from(basename(readlinkSync(path)), "utf8") : undefined;
      saved = { name, shared: named, found: [], sent: [], ...opened(openSync(path, O_RDONLY | O_NONBLOCK)) };
      this.#saved.push(saved);
      this.#contents = reader().read();
      this.#register(saved, depthOf(root));
    }
    saved.sent.push({ mntId, ino });
    return fileKey(mntId, ino);
  }

  get empty(): boolean {
    return this.#saved.length === 0;
  }

  /** Keys by which CRIU knows the descriptors. */
  get keys(): Set<string> {
    return new Set(this.#saved.flatMap(keysOf));
  }

  #collect(root: number, found: readonly Found[], isShared: () => boolean): void {
    const pidfd = pidfdOpen(root);
    let ns: Namespace | undefined;
    try {
      ns = new Namespace(pidfd);
      const dev = ns.dev;
      const foreign = found.find((file) => statDev(file.dev) !== dev);
      if (foreign !== undefined)
        throw refuse(
          `cannot carry descriptor ${foreign.fd} of process ${foreign.pid}`,
          "it is a POSIX queue of another ipc namespace",
          "close it before the checkpoint",
        );
      const byIno = groupByIno(found);
      for (const name of ns.names()) {
        const { fd, st } = opened(openSync(ns.path(name), O_RDONLY | O_NONBLOCK));
        const ino = BigInt(st.ino);
        const files = byIno.get(ino) ?? [];
        byIno.delete(ino);
        // What nobody of ours has open in a namespace of others is theirs.
        if (files.length === 0 && isShared()) closeSync(fd);
        else this.#saved.push({ name, shared: isShared(), found: files, sent: [], fd, st });
      }
      for (const files of byIno.values()) {
        const holder = pidfdOpen(files[0]!.pid);
        try {
          this.#saved.push({
            name: undefined,
            shared: false,
            found: files,
            sent: [],
            ...opened(pidfdGetfd(holder, files[0]!.fd)),
          });
        } finally {
          closeSync(holder);
        }
      }
    } finally {
      ns?.close();
      closeSync(pidfd);
    }
  }

  #register({ fd, found }: Saved, depth: number): void {
    const notify = this.#contents.get(fd)?.notify;
    // Somebody outside waits for it: his affair.
    const file = found.find(({ pid }) => pid === notify?.pid);
    if (notify === undefined || file === undefined) return;
    const { pid, method, signo, value, sock, cookie } = notify;
    // The kernel fills in the two for signals alone (ipc/mqueue.c:do_mq_notify).
    const signal = method === SIGEV_SIGNAL ? { signo, value } : { signo: 0, value: 0n };
    const message: Message = { task: taskName(pid, depth), fd: file.fd, method, ...signal };
    if (method === SIGEV_THREAD) {
      const at = fdOfSocket(pid, (link) => link === `socket:[${sock}]`);
      if (at === undefined)
        throw refuse(
          `cannot carry the mq_notify(3) of process ${pid}`,
          "the socket that it writes to is open nowhere in it",
          "let the program register again",
        );
      Object.assign(message, { sock_fd: at, cookie });
    }
    this.#notify.set(fd, message);
  }

  /**
   * Does before the freeze what `find` and `write` do in it, and throws the result away: what runs for the first time
   * takes ten times as long.
   */
  rehearse(root: number, found: readonly Found[], reader: QueueReader): void {
    this.#collect(root, found, () => false);
    this.#contents = reader.read();
    this.#encode(new Map());
  }

  /** Writes the image; `imagesDir` has all of CRIU's. Looks at no task and no queue any more. */
  write(imagesDir: string): void {
    writeFileSync(join(imagesDir, MQUEUE_IMAGE), this.#encode(claimFiles(imagesDir, this.keys)), {
      mode: 0o600,
      flag: "wx",
    });
  }

  #encode(files: ReadonlyMap<string, ClaimedFile[]>): Uint8Array {
    const entries: Message[] = [];
    for (const saved of this.#saved) {
      const { name, shared, fd } = saved;
      const { mode, uid, gid } = saved.st;
      const { maxmsg, msgsize, messages } = this.#contents.get(fd)!;
      const keys = new Set(keysOf(saved));
      const queue: Message = { mode: mode & ~S_IFMT, uid, gid, maxmsg, msgsize, shared };
      queue.files = [...keys].flatMap((key) => files.get(key) ?? []).map(({ id, flags }) => ({ id, flags }));
      if (name !== undefined) queue.name = new Uint8Array(name);
      const notify = this.#notify.get(fd);
      if (notify !== undefined) queue.notify = notify;
      entries.push({ queue });
      for (const { priority, data } of messages) entries.push({ message: { priority, data: new Uint8Array(data) } });
    }
    for (const { task, address, left } of this.waits) entries.push({ wait: { task, address, nanoseconds_left: left } });
    return encodeImage({ kind: "CRYOSHIM_MQUEUE", entries: entries.map((message) => ({ message })) });
  }

  close(): void {
    for (const { fd } of this.#saved.splice(0)) closeSync(fd);
  }
}

const opened = (fd: number): { fd: number; st: Stats } => ({ fd, st: fstatSync(fd) });

/** A question that is asked when its answer is needed, and then no more: this one walks all processes. */
const once = (ask: () => boolean): (() => boolean) => {
  let answer: boolean | undefined;
  return () => (answer ??= ask());
};

const groupByIno = (found: readonly Found[]): Map<bigint, Found[]> => {
  const groups = new Map<bigint, Found[]>();
  for (const file of found) groups.set(file.ino, [...(groups.get(file.ino) ?? []), file]);
  return groups;
};

/** The device of the queues of a task's ipc namespace. */
const deviceOf = (root: number): number => {
  const pidfd = pidfdOpen(root);
  let ns: Namespace | undefined;
  try {
    ns = new Namespace(pidfd);
    return ns.dev;
  } finally {
    ns?.close();
    closeSync(pidfd);
  }
};

/** Whether an ipc namespace has queues with names. */
const hasNames = (root: number): boolean => {
  const pidfd = pidfdOpen(root);
  try {
    const ns = new Namespace(pidfd);
    try {
      return ns.names().length > 0;
    } finally {
      ns.close();
    }
  } finally {
    closeSync(pidfd);
  }
};

/** The carrier of one session. */
export const mqueueCarrier = (): Carrier => {
  let reader: QueueReader | undefined;
  let dump: Dump | undefined;
  let restore: QueueRestore | undefined;
  let root = 0;
  return {
    name: "mqueue",
    prepare(root) {
      const found = findSpecial(root).filter(({ kind }) => kind === "mqueue");
      if (found.length === 0 && !hasNames(root)) return;
      reader ??= new QueueReader();
      const rehearsal = new Dump();
      try {
        rehearsal.rehearse(root, found, reader);
      } catch {
        // The tasks still run: what it saw may have been half done.
      } finally {
        rehearsal.close();
      }
    },
    async admit(_, { engine, log }) {
      try {
        await engine.intercept("mqueue");
      } catch (error) {
        log("Warn ", `POSIX queues that are in messages on their way are CRIU's alone: ${reason(error)}`);
      }
    },
    async dumpKnown(kind, fd, _, { engine }) {
      if (kind !== "mqueue" || dump === undefined) return false;
      // From here on it is CRIU's external file, as those that tasks have open.
      await engine.external([dump.add(fd, root, () => (reader ??= new QueueReader()))]);
      return false;
    },
    async seized(seized, context) {
      root = seized.root;
      dump = new Dump();
      await dump.find(seized, () => (reader ??= new QueueReader()), context);
      if (dump.empty) return;
      await context.engine.external(dump.keys);
      // A mount of the queues may stand in the container: its contents are ours.
      await context.engine.noFsDump("mqueue");
    },
    needed: () => dump !== undefined && !dump.empty,
    async dumped(ok, { imagesDir }) {
      const made = dump;
      return !ok || made === undefined || made.empty ? undefined : () => made.write(imagesDir);
    },
    async restoring({ imagesDir }) {
      restore = new QueueRestore(imagesDir);
    },
    async restoreFile(id, task) {
      return restore?.open(id, task);
    },
    async resume(pid, context) {
      await restore?.resume(pid, context);
    },
    restored(ok) {
      restore?.settle(ok);
    },
    close() {
      dump?.close();
      restore?.close();
      reader?.close();
    },
  };
};
