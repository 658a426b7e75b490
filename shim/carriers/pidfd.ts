// SPDX-License-Identifier: Apache-2.0
// pidfds that CRIU refuses: of threads (PIDFD_THREAD), and of processes outside of the tree. CRIU takes those of processes of the
// tree, and those of what has ended. No task is touched in a dump: of each pidfd the engine plugin asks us before CRIU does.

import { closeSync, fstatSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { addon } from "../../native/index.js";
import type { Engine } from "../control/engine.js";
import { CryoshimError, reason } from "../error.js";
import { treeOf } from "../netlock/netlock.js";
import type { Carrier, CarrierContext } from "./carrier.js";
import { readPidfds, type SavedPidfd, settlePidfds, type Watch, writePidfds } from "./pidfd-image.js";
import { allProcesses } from "./tasks.js";

const [O_NONBLOCK, PIDFD_THREAD] = [0o4000, 0o200];
const [MMAP, MUNMAP, EPOLL_CTL] = [9, 11, 233];
const [EPOLL_CTL_ADD, EPOLL_CTL_DEL] = [1n, 2n];

const refuse = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_PIDFD", { what, why, fix, cause });

const field = (text: string, name: string): string => new RegExp(`^${name}:\\s+(.*)$`, "m").exec(text)?.[1] ?? "";
const status = (pid: number): string => readFileSync(`/proc/${pid}/status`, "utf8");
const innermost = (numbers: string): number => Number(numbers.split(/\s+/).at(-1));
const bootId = (): string => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();

/** When a process or thread was started, in clock ticks since boot (proc_pid_stat(5), field 22). */
const startOf = (pid: number): bigint => {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  return BigInt(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]!);
};

/** Since Linux 6.9 each process and thread has an inode of its own in pidfs; before, all pidfds are one anonymous inode. */
const inodeOf = (fd: number): bigint =>
  readlinkSync(`/proc/self/fd/${fd}`).startsWith("pidfd:") ? fstatSync(fd, { bigint: true }).ino : 0n;

/** What a pidfd is of, and undefined where CRIU takes it. */
const lookAt = (fd: number, id: number, tree: () => ReadonlySet<number>): SavedPidfd | undefined => {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, "latin1");
  const flags = Number.parseInt(field(info, "flags"), 8) & (O_NONBLOCK | PIDFD_THREAD);
  const isThread = (flags & PIDFD_THREAD) !== 0;
  const pid = Number(field(info, "Pid"));
  const saved: SavedPidfd = { id, flags, of: { kind: "dead" }, places: [], watches: [] };
  if (pid === -1) return isThread ? saved : undefined;
  if (pid === 0)
    throw refuse(
      "cannot carry a pidfd",
      "its process cannot be seen from the pid namespace in which the checkpoint is taken",
      "take the checkpoint from the host",
    );
  const process = Number(field(status(pid), "Tgid"));
  if (!tree().has(process)) {
    saved.of = { kind: "outside", pid, start: startOf(pid), ino: inodeOf(fd), boot: bootId() };
    return saved;
  }
  if (!isThread) return undefined;
  const [leader, thread] = [process, pid].map((number) => innermost(field(status(number), "NSpid")));
  saved.of = { kind: "inside", process: leader!, thread: thread! };
  return saved;
};

const ON_ITS_WAY: [what: string, why: string, fix: string] = [
  "cannot carry a pidfd of a thread",
  "it is in a message on its way through a socket, and threads exist only after those have been restored",
  "let the program receive it before the checkpoint",
];

/** Whether a task of the tree has the file open, as a descriptor. */
const isHeld = (fd: number, tree: ReadonlySet<number>): boolean =>
  [...tree].some((pid) =>
    readdirSync(`/proc/${pid}/fd`).some(
      (name) =>
        /^(anon_inode:\[pidfd\]|pidfd:)/.test(readlinkSync(`/proc/${pid}/fd/${name}`)) &&
        addon.sameFile(pid, Number(name), fd),
    ),
  );

/** One whose thread is there only when everything else is. */
const isLate = ({ of }: SavedPidfd): boolean => of.kind === "inside" && of.thread !== of.process;

/** A pidfd of a process outside, if it is still that one and no other by its number; else of one that has ended. */
const reopen = (of: SavedPidfd["of"] & { kind: "outside" }, flags: number, task: number): number => {
  try {
    if (of.boot === bootId() && startOf(of.pid) === of.start) {
      const fd = addon.pidfdOpenAs(of.pid, flags);
      const ino = inodeOf(fd);
      if (of.ino === 0n || ino === 0n || ino === of.ino) return fd;
      closeSync(fd);
    }
  } catch (error) {
    if (!["ENOENT", "ESRCH", "EINVAL"].includes((error as { code?: string }).code ?? "")) throw error;
  }
  return addon.deadPidfd(flags, task);
};

/** The processes of a restored container, by their numbers in its pid namespace. */
const processesOf = (task: number): Map<number, number> => {
  const namespace = readlinkSync(`/proc/${task}/ns/pid`);
  const found = new Map<number, number>();
  for (const pid of allProcesses()) {
    try {
      if (readlinkSync(`/proc/${pid}/ns/pid`) === namespace) found.set(innermost(field(status(pid), "NSpid")), pid);
    } catch {
      // It has ended.
    }
  }
  return found;
};

const threadOf = (pid: number, inner: number): number => {
  const tid = readdirSync(`/proc/${pid}/task`).find(
    (name) => innermost(field(status(Number(name)), "NSpid")) === inner,
  );
  if (tid === undefined) throw new Error(`process ${pid} has no thread ${inner}`);
  return Number(tid);
};

/** What the images hold, put back into the restored tasks. */
class Restore {
  readonly #byId: ReadonlyMap<number, SavedPidfd>;
  #processes: Map<number, number> | undefined;

  constructor(imagesDir: string) {
    this.#byId = new Map(readPidfds(imagesDir).map((saved) => [saved.id, saved]));
  }

  /** A descriptor for the file with this id; for a late one, of its process for the time being. */
  open(id: number, task: number): number | undefined {
    const saved = this.#byId.get(id);
    if (saved === undefined) return undefined;
    const { of, flags } = saved;
    if (of.kind === "dead") return addon.deadPidfd(flags, task);
    if (of.kind === "outside") return reopen(of, flags, task);
    // All processes are there before the first file is opened (criu/cr-restore.c); of a task we know the pidfd.
    this.#processes ??= processesOf(Number(field(readFileSync(`/proc/self/fdinfo/${task}`, "latin1"), "Pid")));
    return addon.pidfdOpenAs(this.#process(of.process), isLate(saved) ? flags & O_NONBLOCK : flags);
  }

  #process(inner: number): number {
    const pid = this.#processes?.get(inner);
    if (pid === undefined)
      throw refuse("cannot restore a pidfd", `there is no process ${inner}`, "report this with the images");
    return pid;
  }

  /** All threads are there: late ones get what they are of. */
  async resume(pid: number, { engine }: CarrierContext): Promise<void> {
    const late = [...this.#byId.values()].filter(isLate);
    if (late.length === 0) return;
    const inner = innermost(field(status(pid), "NSpid"));
    this.#processes ??= processesOf(pid);
    for (const saved of late) {
      const places = saved.places.filter(({ task }) => task === inner);
      if (places.length === 0) continue;
      const watches = saved.watches.filter(({ task }) => task === inner);
      const real = this.#real(saved);
      for (const watch of watches) await epoll(engine, pid, EPOLL_CTL_DEL, watch);
      for (const { fd, cloexec } of places) await engine.swapFd(pid, fd, real, cloexec);
      for (const watch of watches) await epoll(engine, pid, EPOLL_CTL_ADD, watch);
    }
  }

  readonly #opened = new Map<number, number>();

  /** One for all its places: they shared it. */
  #real({ id, flags, of }: SavedPidfd): number {
    if (of.kind !== "inside") throw new Error("it is of no thread");
    const known = this.#opened.get(id);
    if (known !== undefined) return known;
    const fd = addon.pidfdOpenAs(threadOf(this.#process(of.process), of.thread), flags);
    this.#opened.set(id, fd);
    return fd;
  }

  close(): void {
    for (const fd of this.#opened.values()) closeSync(fd);
    this.#opened.clear();
  }
}

/** epoll_ctl(2) by the task itself, with a page of its own for the moment. */
const epoll = async (
  engine: Engine,
  pid: number,
  op: bigint,
  { epoll: at, fd, events, data }: Watch,
): Promise<void> => {
  const page = BigInt(await engine.syscall(pid, MMAP, 0n, 4096n, 3n, 0x22n, -1n, 0n));
  try {
    // struct epoll_event is packed on x86-64.
    const event = Buffer.alloc(12);
    event.writeUInt32LE(events, 0);
    event.writeBigUInt64LE(data, 4);
    await engine.writeMemory(pid, page, event);
    const ret = await engine.syscall(pid, EPOLL_CTL, BigInt(at), op, BigInt(fd), page);
    if (ret < 0)
      throw refuse(
        `cannot restore the pidfd at descriptor ${fd} of process ${pid}`,
        `epoll_ctl: errno ${-ret}`,
        "report this with the images",
      );
  } finally {
    await engine.syscall(pid, MUNMAP, page, 4096n);
  }
};

/** The carrier of one session. */
export const pidfdCarrier = (): Carrier => {
  const saved: SavedPidfd[] = [];
  let root = 0;
  let tree: ReadonlySet<number> | undefined;
  let restore: Restore | undefined;
  return {
    name: "pidfd",
    async admit(_, { engine, log }) {
      try {
        await engine.intercept("pidfd");
      } catch (error) {
        log("Warn ", `pidfds are CRIU's alone: ${reason(error)}`);
      }
    },
    async seized(seized) {
      root = seized.root;
    },
    async dumpKnown(kind, fd, id) {
      if (kind !== "pidfd") return false;
      const all = (): ReadonlySet<number> => {
        tree ??= new Set(treeOf(root));
        return tree;
      };
      const pidfd = lookAt(fd, id, all);
      if (pidfd === undefined) return false;
      if (isLate(pidfd) && !isHeld(fd, all())) throw refuse(...ON_ITS_WAY);
      saved.push(pidfd);
      return true;
    },
    needed: () => saved.length > 0,
    async dumped(ok, { imagesDir }) {
      if (!ok || saved.length === 0) return undefined;
      const late = new Set(saved.filter(isLate));
      return () => {
        // Open, and on its way as well.
        if (settlePidfds(imagesDir, saved, late).size > 0) throw refuse(...ON_ITS_WAY);
        writePidfds(imagesDir, saved);
      };
    },
    async restoring({ imagesDir }) {
      restore = new Restore(imagesDir);
    },
    async restoreFile(id, task) {
      return restore?.open(id, task);
    },
    async resume(pid, context) {
      await restore?.resume(pid, context);
    },
    close() {
      restore?.close();
    },
  };
};
