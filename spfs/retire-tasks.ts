// SPDX-License-Identifier: Apache-2.0
// The tasks of a container, and their freeze by ptrace: all threads stand, and no new one can appear.
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { namespaceOf } from "../shim/carriers/tasks.js";
import { CryoshimError } from "../shim/error.js";
import { KCMP, verbs } from "./retire-native.js";

/** One thread that stands for all that share something with it. */
export interface Task {
  pid: number;
  tid: number;
}

export interface Credentials {
  uid: number;
  gid: number;
  groups: Int32Array;
}

/** How long a task may take to stop: one in an uninterruptible sleep waits for its file system. */
const PATIENCE_MS = 2000;
const ATTEMPTS = 3;

export const refusal = (what: string, why: string, fix: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_RETIRE", { what, why, fix, cause });

const read = (path: string): string => {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return "";
  }
};

const field = (status: string, name: string): string => new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)?.[1] ?? "";
const statusOf = (pid: number, tid = pid): string => read(`/proc/${pid}/task/${tid}/status`);
const parentOf = (pid: number): number => Number(/\) . (\d+) /.exec(read(`/proc/${pid}/stat`))?.[1] ?? 0);
const isGone = (status: string): boolean => status === "" || /^State:\s*[ZX]/m.test(status);

const namespace = (pid: number, kind: string): number | undefined => {
  try {
    return namespaceOf(pid, kind);
  } catch {
    return undefined;
  }
};

/** The cgroup2 of a task, else its v1 cgroup for processes; undefined for a root. */
const cgroupOf = (pid: number): string | undefined => {
  const lines = read(`/proc/${pid}/cgroup`).trim().split("\n");
  const line =
    lines.find((each) => each.startsWith("0::/") && each !== "0::/") ?? lines.find((l) => /:pids:\/./.test(l));
  return line?.slice(line.indexOf("/"));
};

/** By cgroup2, or by the freezer of version 1. */
const isFrozen = (pid: number): boolean => {
  const cgroup = cgroupOf(pid);
  const freezer = /^\d+:(?:[^:]*,)?freezer(?:,[^:]*)?:(\/.*)$/m.exec(read(`/proc/${pid}/cgroup`))?.[1];
  return (
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].some(
      (base) => cgroup !== undefined && /^frozen 1$/m.test(read(`${base}${cgroup}/cgroup.events`)),
    ) ||
    // FREEZING, FROZEN; what is above counts, too.
    (freezer !== undefined && read(`/sys/fs/cgroup/freezer${freezer}/freezer.state`).startsWith("FR"))
  );
};

/** What credentials files are opened with. */
export const credentialsOf = (pid: number): Credentials => {
  const status = statusOf(pid);
  const last = (name: string): number => Number(field(status, name).split(/\s+/)[3] ?? 0);
  const groups = field(status, "Groups").trim();
  return {
    uid: last("Uid"),
    gid: last("Gid"),
    groups: Int32Array.from(groups === "" ? [] : groups.split(/\s+/).map(Number)),
  };
};

/** Who belongs to the container of a task: by pid and mount namespace, by cgroup, and by descent. */
export class Container {
  readonly root: number;
  readonly #pidns: number | undefined;
  readonly #mntns: number | undefined;
  readonly #cgroup: string | undefined;
  #members: ReadonlySet<number> = new Set();
  /** We ourselves, and who waits for us, are never in it; others, who are not, are remembered. */
  readonly #never = new Set<number>([0, 1, 2]);

  constructor(root: number) {
    this.root = root;
    if (isGone(statusOf(root)))
      throw refusal(`cannot retire a mount of task ${root}`, "there is no such task", "name a task that runs");
    for (let pid = process.pid; pid > 1; pid = parentOf(pid)) this.#never.add(pid);
    const own = (kind: string): number | undefined => {
      const ns = namespace(root, kind);
      return ns === namespace(process.pid, kind) || ns === namespace(1, kind) ? undefined : ns;
    };
    this.#pidns = own("pid");
    this.#mntns = own("mnt");
    const cgroup = cgroupOf(root);
    const [ours, first] = [cgroupOf(process.pid), cgroupOf(1)];
    this.#cgroup = cgroup === undefined || ours?.startsWith(cgroup) || first?.startsWith(cgroup) ? undefined : cgroup;
  }

  #isIn(pid: number, members: ReadonlySet<number>): boolean {
    if (pid === this.root || members.has(parentOf(pid))) return true;
    if (this.#pidns !== undefined && namespace(pid, "pid") === this.#pidns) return true;
    if (this.#mntns !== undefined && namespace(pid, "mnt") === this.#mntns) return true;
    if (this.#cgroup === undefined) return false;
    const cgroup = cgroupOf(pid);
    return cgroup === this.#cgroup || cgroup?.startsWith(`${this.#cgroup}/`) === true;
  }

  /**
   * The processes that are there now. Who was once seen not to belong to it is not looked at again: only its own tasks make
   * new ones.
   */
  processes(): number[] {
    const pids = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => !this.#never.has(pid));
    const members = new Set(pids.filter((pid) => this.#members.has(pid)));
    const others = pids.filter((pid) => !members.has(pid));
    // A child may have a lower number than its parent.
    for (let before = -1; before !== members.size; ) {
      before = members.size;
      for (const pid of others) if (!members.has(pid) && this.#isIn(pid, members)) members.add(pid);
    }
    for (const pid of others) if (!members.has(pid)) this.#never.add(pid);
    this.#members = members;
    return [...members].sort((a, b) => a - b);
  }

  threads(pid: number): number[] {
    try {
      return readdirSync(`/proc/${pid}/task`).map(Number);
    } catch {
      return [];
    }
  }

  /** Throws for what must not be touched: before anything is. */
  check(): void {
    const fix = "end that first, and try again";
    for (const pid of this.processes()) {
      const status = statusOf(pid);
      if (isGone(status)) continue;
      for (const tid of this.threads(pid)) {
        const tracer = Number(field(statusOf(pid, tid), "TracerPid"));
        if (tracer > 0)
          throw refusal(
            `cannot retire a mount of task ${this.root}`,
            `task ${tid} is traced by process ${tracer}`,
            fix,
          );
      }
      if (field(status, "Seccomp") === "1")
        throw refusal(
          `cannot retire a mount of task ${this.root}`,
          `task ${pid} is in seccomp's strict mode and could not be operated on safely`,
          fix,
        );
      if (isCompat(pid))
        throw refusal(
          `cannot retire a mount of task ${this.root}`,
          `task ${pid} is a 32-bit program`,
          "the mount stays as it is; a proxied mount may stay for ever",
        );
    }
    if (isFrozen(this.root))
      throw refusal(`cannot retire a mount of task ${this.root}`, "its cgroup is frozen", "thaw or unpause it first");
  }
}

/** A 32-bit program: its auxiliary vector has entries of 8 bytes, and the last one ends it. */
const isCompat = (pid: number): boolean => {
  let auxv: Buffer;
  try {
    auxv = readFileSync(`/proc/${pid}/auxv`);
  } catch {
    return false;
  }
  for (let at = 0; at + 16 <= auxv.length; at += 16)
    // AT_PAGESZ
    if (auxv.readBigUInt64LE(at) === 6n) return auxv.readBigUInt64LE(at + 8) !== 4096n;
  return auxv.length > 0;
};

/** Tasks that stand still until thaw(). */
export class Frozen {
  readonly pids: number[];
  readonly #tids: Int32Array;
  readonly #since: bigint;

  constructor(pids: number[], tids: number[], since: bigint) {
    this.pids = pids;
    this.#tids = Int32Array.from(tids);
    this.#since = since;
  }

  /** Whether a thread stands: others are kernel threads of io_uring, or have ended. */
  has(tid: number): boolean {
    return this.#tids.includes(tid);
  }

  /** Lets all go on; gives the milliseconds that they stood. */
  thaw(): number {
    verbs.thaw(this.#tids);
    return Number(process.hrtime.bigint() - this.#since) / 1e6;
  }
}

class Stuck extends Error {}

/** Who did not stop in time stops when he leaves the kernel, and must then be let go. */
const thawLate = (): void => {
  const timer = setInterval(() => {
    if (verbs.thawLate() === 0) clearInterval(timer);
  }, 10);
  // If we end, the kernel lets them go.
  timer.unref();
};

const freezeOnce = (container: Container): Frozen => {
  const since = process.hrtime.bigint();
  const status = new Map<number, number>();
  const stopped = (): number[] => [...status].filter(([, code]) => code === 0).map(([tid]) => tid);
  let pids: number[] = [];
  try {
    // A listing that begins while all known threads stand, and finds no other, is complete.
    for (;;) {
      pids = container.processes();
      const fresh = pids.flatMap((pid) =>
        container
          .threads(pid)
          .filter((tid) => !status.has(tid))
          .map((tid) => [pid, tid] as const),
      );
      if (fresh.length === 0) return new Frozen(pids, stopped(), since);
      const codes = verbs.freeze(
        Int32Array.from(fresh, ([, tid]) => tid),
        PATIENCE_MS,
      );
      for (const [i, [pid, tid]] of fresh.entries()) {
        const code = codes[i]!;
        status.set(tid, code);
        if (code === 110) {
          thawLate();
          throw new Stuck(`task ${tid} waits in the kernel and cannot be stopped`);
        }
        if (code !== 1) continue;
        const now = statusOf(pid, tid);
        if (Number(field(now, "TracerPid")) === process.pid) throw new Stuck(`task ${tid} still waits in the kernel`);
        // Kernel threads of io_uring run no code of the program's.
        if (isGone(now) || field(now, "Name").startsWith("iou-")) continue;
        throw refusal(
          `cannot retire a mount of task ${container.root}`,
          `task ${tid} cannot be traced (tracer: ${field(now, "TracerPid")})`,
          "end the debugger first",
        );
      }
    }
  } catch (error) {
    verbs.thaw(Int32Array.from(stopped()));
    throw error;
  }
};

/** Stops all tasks of the container, or none. */
export const freeze = (container: Container): Frozen => {
  for (let attempt = 1; ; attempt++) {
    verbs.thawLate();
    try {
      return freezeOnce(container);
    } catch (error) {
      if (!(error instanceof Stuck)) throw error;
      if (attempt === ATTEMPTS)
        throw refusal(
          `cannot retire a mount of task ${container.root}`,
          error.message,
          "try again when its file system answers",
          error,
        );
    }
  }
};

/** One task for each table of descriptors (kind files), address space (vm), or set of directories (fs). */
export const sharers = (
  pids: readonly number[],
  kind: "files" | "vm" | "fs",
  threadsOf: (pid: number) => number[],
): Task[] => {
  const type = KCMP[kind];
  const tasks = pids.flatMap((pid) => {
    const all = threadsOf(pid);
    // A leader that has ended before its threads has nothing any more.
    const first =
      all.find((tid) => tid === pid && !isGone(statusOf(pid))) ?? all.find((tid) => !isGone(statusOf(pid, tid)));
    if (first === undefined) return [];
    // Threads nearly always share all with their leader.
    const apart = kind === "vm" ? [] : all.filter((tid) => tid !== first && differ(first, tid, type));
    return [first, ...apart].map((tid) => ({ pid, tid }));
  });
  const order = new Map<Task, number>(tasks.map((task, i) => [task, i]));
  const sorted = [...tasks].sort((a, b) => {
    const ret = compare(a.tid, b.tid, type);
    return ret === 0 ? order.get(a)! - order.get(b)! : ret;
  });
  return sorted.filter((task, i) => i === 0 || compare(sorted[i - 1]!.tid, task.tid, type) !== 0);
};

const compare = (a: number, b: number, type: number): number => {
  if (a === b) return 0;
  try {
    return [0, -1, 1][verbs.kcmp(a, b, type, 0, 0)] ?? a - b;
  } catch {
    return a - b;
  }
};

const differ = (a: number, b: number, type: number): boolean => {
  try {
    return verbs.kcmp(a, b, type, 0, 0) !== 0;
  } catch {
    return false;
  }
};

/** An inode of /proc/PID/ns. */
export const mountNamespace = (pid: number): number | undefined => namespace(pid, "mnt");

/** A link of /proc, undefined where there is none. */
export const linkOf = (path: string): string | undefined => {
  try {
    return readlinkSync(path, "latin1");
  } catch {
    return undefined;
  }
};

export const inodeOf = (path: string): bigint => statSync(path, { bigint: true }).ino;
