// SPDX-License-Identifier: Apache-2.0
// POSIX message queues. CRIU is told that they are external; we read them by X-ray, make them anew in the restored ipc
// namespace and hand tasks their descriptors. No task is touched at a dump, so there is nothing to undo.
import { closeSync, fstatSync, openSync, readlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { addon, type FdStat, pidfdGetfd, pidfdOpen, statFds } from "../../native/index.js";
import { reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import { type Found, findSpecial, statDev } from "../xray/find.js";
import { QueueReader, type Taken } from "../xray/queues.js";
import type { Carrier, CarrierContext, Seized } from "./carrier.js";
import { type ClaimedFile, claimFiles, fileKey } from "./claim.js";
import { MQUEUE_IMAGE, Namespace, refuse } from "./mqueue-namespace.js";
import { QueueRestore } from "./mqueue-restore.js";
import { depthOf, fdOfSocket, isSharedNamespace, mountIdOf, namespaceOf, taskName } from "./tasks.js";
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
  st: FdStat;
}

/** What is opened before the freeze, and looked at again in it. */
class Ahead {
  /** The ipc namespace, by its inode. */
  readonly ipc: number;
  readonly namespace: Namespace;
  /** Queues by their names. */
  readonly fds = new Map<string, number>();
  /** Whether others than the tree are in the namespace. */
  shared: boolean | undefined;

  constructor(root: number) {
    this.ipc = namespaceOf(root, "ipc");
    this.namespace = Namespace.of(root);
  }

  /** Queues cannot be renamed: one that still has a name has this one. */
  open(name: string): number {
    return this.fds.get(name) ?? this.reopen(name);
  }

  reopen(name: string): number {
    const known = this.fds.get(name);
    if (known !== undefined) closeSync(known);
    this.fds.delete(name);
    const fd = this.namespace.open(name);
    this.fds.set(name, fd);
    return fd;
  }

  close(): void {
    for (const fd of this.fds.values()) closeSync(fd);
    this.fds.clear();
    this.namespace.close();
  }
}

/** Keys by which CRIU knows its files. */
const keysOf = ({ found, sent }: Saved): string[] => [...found, ...sent].map(({ mntId, ino }) => fileKey(mntId, ino));

/** Finds and reads all queues that a dump must carry. */
class Dump {
  readonly waits: Wait[] = [];
  readonly #saved: Saved[] = [];
  /** Descriptors that are the dump's alone. */
  readonly #mine: number[] = [];
  #contents: Taken = { queues: new Map(), fill: () => {} };
  #notify = new Map<number, Message>();

  /** Nothing is changed here. Throws ERR_MQUEUE where a queue cannot be carried. */
  async find(
    { root, found }: Seized,
    ahead: () => Ahead,
    reader: () => QueueReader,
    { engine, log }: CarrierContext,
  ): Promise<void> {
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
    try {
      this.#collect(root, queues, ahead());
    } catch (error) {
      if (queues.length > 0) throw error;
      // A kernel without queues, say: who has none open must not fail for them.
      log("Warn ", `POSIX queues that nobody has open are not looked for: ${reason(error)}`);
      this.close();
    }
    if (this.#saved.length === 0) return;
    this.#contents = reader().take();
    const depth = depthOf(root);
    for (const saved of this.#saved) this.#register(saved, depth);
    for (const pid of new Set(queues.map((file) => file.pid)))
      this.waits.push(...(await waitsOf(pid, taskName(pid, depth), engine)));
  }

  /** Adds a queue that is in a message on its way, by a descriptor that is lent; it may be nowhere else. Returns its key. */
  add(lent: number, root: number, reader: () => QueueReader): string {
    const { dev, ino, nlink } = fstatSync(lent, { bigint: true });
    const mntId = mountIdOf(lent);
    let saved = this.#saved.find(({ st }) => st.ino === ino);
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
      this.#mine.push(saved.fd);
      this.#saved.push(saved);
      this.#contents = reader().take();
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

  #collect(root: number, found: readonly Found[], ahead: Ahead): void {
    const { namespace } = ahead;
    const dev = namespace.dev;
    const foreign = found.find((file) => statDev(file.dev) !== dev);
    if (foreign !== undefined)
      throw refuse(
        `cannot carry descriptor ${foreign.fd} of process ${foreign.pid}`,
        "it is a POSIX queue of another ipc namespace",
        "close it before the checkpoint",
      );
    const byIno = groupByIno(found);
    const names = namespace.names();
    const fds = names.map((name) => ahead.open(name));
    const stats = statFds(fds);
    for (const [i, name] of names.entries()) {
      let [fd, st] = [fds[i]!, stats[i]!];
      // Opened before, and its name is another queue's by now.
      if (st.nlink === 0n) ({ fd, st } = opened(ahead.reopen(name)));
      const files = byIno.get(st.ino) ?? [];
      byIno.delete(st.ino);
      const shared = this.#isShared(root, ahead);
      // What nobody of ours has open in a namespace of others is theirs.
      if (files.length > 0 || !shared)
        this.#saved.push({ name: Buffer.from(name, "latin1"), shared, found: files, sent: [], fd, st });
    }
    for (const files of byIno.values()) {
      const holder = pidfdOpen(files[0]!.pid);
      try {
        const fd = pidfdGetfd(holder, files[0]!.fd);
        this.#mine.push(fd);
        this.#saved.push({ name: undefined, shared: false, found: files, sent: [], ...opened(fd) });
      } finally {
        closeSync(holder);
      }
    }
  }

  /** Asked when the answer is needed, and then no more, also not in the freeze: it takes a walk over all processes. */
  #isShared(root: number, ahead: Ahead): boolean {
    ahead.shared ??= isSharedNamespace("ipc", ahead.ipc, new Set(treeOf(root)));
    return ahead.shared;
  }

  #register({ fd, found }: Saved, depth: number): void {
    const notify = this.#contents.queues.get(fd)?.notify;
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
   * Does before the freeze what `find` does in it, and throws the result away: what runs for the first time takes ten times as long.
   * The queues stay open.
   */
  rehearse(root: number, found: readonly Found[], ahead: Ahead, reader: QueueReader | undefined): void {
    this.#collect(root, found, ahead);
    reader?.take();
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
    this.#contents.fill();
    for (const saved of this.#saved) {
      const { name, shared, fd } = saved;
      const [mode, uid, gid] = [saved.st.mode, saved.st.uid, saved.st.gid].map(Number) as [number, number, number];
      const { maxmsg, msgsize, messages } = this.#contents.queues.get(fd)!;
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
    this.#saved.length = 0;
    addon.closeFds(Int32Array.from(this.#mine.splice(0)));
  }
}

const opened = (fd: number): { fd: number; st: FdStat } => ({ fd, st: statFds([fd])[0]! });

const groupByIno = (found: readonly Found[]): Map<bigint, Found[]> => {
  const groups = new Map<bigint, Found[]>();
  for (const file of found) groups.set(file.ino, [...(groups.get(file.ino) ?? []), file]);
  return groups;
};

/** The device of the queues of a task's ipc namespace. */
const deviceOf = (root: number): number => {
  const namespace = Namespace.of(root);
  try {
    return namespace.dev;
  } finally {
    namespace.close();
  }
};

/** The carrier of one session. */
export const mqueueCarrier = (): Carrier => {
  let reader: QueueReader | undefined;
  let dump: Dump | undefined;
  let restore: QueueRestore | undefined;
  let root = 0;
  let ahead: Ahead | undefined;
  /** What was opened before, where the task is still in that namespace. */
  const lookAhead = (): Ahead => {
    if (ahead?.ipc === namespaceOf(root, "ipc")) return ahead;
    ahead?.close();
    ahead = new Ahead(root);
    return ahead;
  };
  return {
    name: "mqueue",
    prepare(pid) {
      root = pid;
      const found = findSpecial(root).filter(({ kind }) => kind === "mqueue");
      const all = lookAhead();
      if (found.length > 0 || all.namespace.names().length > 0) reader ??= new QueueReader();
      const rehearsal = new Dump();
      try {
        rehearsal.rehearse(root, found, all, reader);
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
      await dump.find(seized, lookAhead, () => (reader ??= new QueueReader()), context);
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
      ahead?.close();
      ahead = undefined;
      restore?.close();
      reader?.close();
    },
  };
};
