// SPDX-License-Identifier: Apache-2.0
// doctor --pid, --container: what of a running tree of processes is special, looked at from outside. No task is stopped
// or touched: /proc and the X-ray alone are read, so what changes while we look may be told half.

import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { basename } from "node:path";
import { execa } from "execa";
import { socketProtocol } from "../../native/index.js";
import { DetachedFiles } from "../carriers/detached-dump.js";
import { Places } from "../carriers/detached-find.js";
import { admit, heldMounts, named } from "../carriers/remote-dump.js";
import { remoteMounts } from "../carriers/remote-mounts.js";
import { foresee } from "../carriers/uring.js";
import { inPath } from "../engine/choose.js";
import { DEFAULTS } from "../engine/launch-file.js";
import { CryoshimError, reason } from "../error.js";
import { O_PATH } from "../flags.js";
import { treeOf } from "../netlock/netlock.js";
import { type Found, findSpecial } from "../xray/find.js";
import { RingReader } from "../xray/rings.js";
import { findUses, type Use } from "../xray/uses.js";
import type { Finding, Verdict } from "./doctor.js";

/** What is known of a kind of object: docs/limits.md has the same. */
interface Kind {
  what: string;
  verdict: Verdict;
  /** Who takes it, or why nobody does. */
  says: string;
  fix?: string;
}

const refused = (what: string, fix = "close it before the checkpoint"): Kind => ({
  what,
  verdict: "fail",
  says: "CRIU refuses it",
  fix,
});
const option = (what: string, name: string): Kind => ({ what, verdict: "note", says: `CRIU takes it with ${name}` });

const MQUEUE: Kind = { what: "POSIX message queue", verdict: "ok", says: "carried by cryoshim (mqueue)" };
const CORKED: Kind = { what: "corked UDP socket", verdict: "ok", says: "carried by cryoshim (udp-cork)" };
const URING: Kind = { what: "io_uring", verdict: "ok", says: "carried by cryoshim (io-uring)" };
const FOREIGN = refused("file on a mount that no process of the tree has");
const REOPENED: Kind = {
  what: "file on a mount that has been unmounted",
  verdict: "ok",
  says: "carried by cryoshim (detached)",
};
const DETACHED = refused(
  "file on a mount that has been unmounted",
  "close it before the checkpoint, or mount its file system",
);
const BOUND: Kind = {
  what: "unix socket whose name is on a mount that has been unmounted",
  verdict: "ok",
  says: "carried by cryoshim (detached)",
};

/** By what /proc/PID/fd/N points to. */
const LINKS: readonly [link: RegExp, kind: Kind][] = [
  [
    /^anon_inode:\[io_uring\]$/,
    refused("io_uring", "run the program without io_uring, or on a kernel with BPF iterators"),
  ],
  [/^anon_inode:\[userfaultfd\]$/, refused("userfaultfd")],
  [/^anon_inode:bpf-prog$/, refused("BPF program")],
  [/^anon_inode:bpf-map$/, refused("BPF map", "close it, or use a CRIU that was built with libbpf")],
  [/^anon_inode:bpf.link$/, refused("BPF link")],
  [/^anon_inode:\[perf_event\]$/, refused("performance counter")],
  [/^anon_inode:\[landlock-ruleset\]$/, refused("Landlock ruleset")],
  [/^anon_inode:seccomp notify$/, refused("listener of a seccomp filter")],
  [/^anon_inode:\[fscontext\]$/, refused("file system context")],
  [/^anon_inode:kvm-/, refused("virtual machine (KVM)", "checkpoint it with its own tool")],
  [/^\/dev\/fuse$/, refused("FUSE file system's server")],
  [/^\/secretmem/, refused("secret memory")],
];

/** The protocols whose sockets CRIU knows, in the kernel's words (/proc/protocols; include/uapi/linux families of criu/sockets.c). */
const PROTOCOLS = /^(TCP|UDP|UDP-?Lite|RAW|PING|UNIX|UNIX-STREAM|NETLINK|PACKET)(v6)?$/i;

const OF_XRAY: Record<Exclude<Found["kind"], "detached">, Kind> = {
  mqueue: MQUEUE,
  corked: CORKED,
  uring: URING,
  bound: BOUND,
};

/** What is on unmounted mounts: carried where it is found again. */
const unmounted = (root: number, found: readonly Found[], uses: readonly Use[]): Finding[] => {
  if (uses.length === 0 && !found.some(({ kind }) => kind === "detached")) return [];
  let places: Places | undefined;
  const loaded = (): Places => {
    places ??= new Places(root);
    return places;
  };
  const { largest } = DEFAULTS.detached;
  const files = new DetachedFiles(root, found, uses, loaded, { search: true, running: true, largest, tell: true });
  try {
    files.measure();
    const all = files.held.map(({ pid, what, error }) =>
      finding(pid, what, error === undefined ? REOPENED : { ...DETACHED, says: error.why }),
    );
    const large = files.refused.find((error) => !files.held.some((held) => held.error === error));
    return large === undefined ? all : [...all, finding(root, "tree", { ...DETACHED, says: large.why })];
  } finally {
    files.close();
    places?.close();
  }
};

const GHOST_LIMIT = 1 << 20;

/** What does not exist any more says nothing. */
const quietly = <T>(ask: () => T, otherwise: T): T => {
  try {
    return ask();
  } catch {
    return otherwise;
  }
};

const text = (path: string): string => quietly(() => readFileSync(path, "utf8"), "");

const finding = (pid: number, where: string, { what, verdict, says, fix }: Kind): Finding => {
  const name = text(`/proc/${pid}/comm`).trim();
  const found: Finding = { subject: `${pid} ${name}`, verdict, finding: `${where}: ${what}: ${says}` };
  if (fix !== undefined) found.fix = fix;
  return found;
};

const O_DIRECT = 0o40000;
/** O_EXCL (include/uapi/linux/pidfd.h) */
const PIDFD_THREAD = 0o200;
const mountOf = (info: string): string => /^mnt_id:\s+(\d+)$/m.exec(info)?.[1] ?? "";
const descriptorFlags = (info: string): number => Number.parseInt(/^flags:\s+(\d+)$/m.exec(info)?.[1] ?? "0", 8);

/** A pidfd, by its fdinfo (fs/pidfs.c); undefined for those that CRIU takes. */
const pidfdKind = (info: string, tree: ReadonlySet<number>): Kind | undefined => {
  const pid = Number(/^Pid:\s+(-?\d+)$/m.exec(info)?.[1]);
  const carried = (what: string): Kind => ({ what, verdict: "ok", says: "carried by cryoshim (pidfd)" });
  if ((descriptorFlags(info) & PIDFD_THREAD) !== 0) return carried("pidfd of a thread");
  return pid > 0 && !tree.has(pid) ? carried(`pidfd of process ${pid}, which is not in the tree`) : undefined;
};

/** A file whose name is gone. */
const deletedKind = (path: string): Kind | undefined => {
  const st = quietly(() => statSync(path), undefined);
  if (st?.isFile() !== true) return undefined;
  if (st.nlink > 0) return option("file whose name is gone, but not its other link", "--link-remap");
  return st.size > GHOST_LIMIT ? option(`deleted file of ${st.size} bytes`, "--ghost-limit") : undefined;
};

/** The ids of all mounts that the tree has. */
const mountIds = (tree: readonly number[]): Set<string> => {
  const ids = new Set<string>();
  const namespaces = new Set<string>();
  for (const pid of tree) {
    const namespace = quietly(() => readlinkSync(`/proc/${pid}/ns/mnt`), "");
    if (namespace === "" || namespaces.has(namespace)) continue;
    namespaces.add(namespace);
    for (const [, id] of text(`/proc/${pid}/mountinfo`).matchAll(/^(\d+) /gm)) ids.add(id!);
  }
  return ids;
};

const TCP_ESTABLISHED = "01";

/** Inodes of established connections in a process's network namespace. */
const established = (pid: number): Set<string> =>
  new Set(
    ["tcp", "tcp6"].flatMap((name) =>
      text(`/proc/${pid}/net/${name}`)
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter((columns) => columns[3] === TCP_ESTABLISHED)
        .map((columns) => columns[9]!),
    ),
  );

/** What its protocol says of a socket. */
const socketKind = (link: string): Kind | undefined => {
  const protocol = quietly(() => socketProtocol(link), undefined);
  if (protocol === undefined || PROTOCOLS.test(protocol)) return undefined;
  const fix = protocol.startsWith("MPTCP") ? "have it use TCP: for a Go program, GODEBUG=multipathtcp=0" : undefined;
  return refused(`${protocol} socket`, fix);
};

/** A namespace that is held open and in which no task of the tree lives. */
const namespaceKind = (link: string, tree: ReadonlySet<number>): Kind | undefined => {
  const type = /^(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]$/.exec(link)?.[1];
  if (type === undefined) return undefined;
  const within = [...tree].some((pid) => quietly(() => readlinkSync(`/proc/${pid}/ns/${type}`), "") === link);
  return within ? undefined : refused(`${type} namespace in which no process of the tree lives`);
};

/** The ids of mounts whose files are on a server. */
const remoteIds = (pid: number): Set<string> =>
  new Set(quietly(() => remoteMounts(pid), []).map(({ id }) => String(id)));

const descriptors = (
  pid: number,
  tree: ReadonlySet<number>,
  ids: ReadonlySet<string>,
  told: ReadonlySet<string>,
): Finding[] => {
  const tcp = established(pid);
  const remote = remoteIds(pid);
  return quietly(() => readdirSync(`/proc/${pid}/fd`), []).flatMap((fd) => {
    const path = `/proc/${pid}/fd/${fd}`;
    const link = quietly(() => readlinkSync(path), "");
    const socket = /^socket:\[(\d+)\]$/.exec(link)?.[1];
    let kind = LINKS.find(([pattern]) => pattern.test(link))?.[1];
    const info = (): string => text(`/proc/${pid}/fdinfo/${fd}`);
    if (/^(anon_inode:\[pidfd\]|pidfd:)/.test(link)) kind = pidfdKind(info(), tree);
    else if (socket !== undefined)
      kind = tcp.has(socket) ? option("established TCP connection", "--tcp-established") : socketKind(path);
    else if (link.startsWith("pipe:"))
      kind = descriptorFlags(info()) & O_DIRECT ? refused("pipe in packet mode") : undefined;
    // A server that does not answer is not waited for.
    else if (kind === undefined && link.endsWith(" (deleted)"))
      kind = remote.has(mountOf(info())) ? undefined : deletedKind(path);
    else if (
      descriptorFlags(info()) & O_PATH &&
      !remote.has(mountOf(info())) &&
      quietly(() => statSync(path).isSocket(), false)
    )
      kind = refused("file of a UNIX socket, opened with O_PATH");
    else
      kind ??= namespaceKind(link, tree) ?? (link.startsWith("/") && !ids.has(mountOf(info())) ? FOREIGN : undefined);
    return kind === undefined || told.has(`${pid} ${fd}`) ? [] : [finding(pid, `descriptor ${fd}`, kind)];
  });
};

const lockHolders = (): Set<number> =>
  new Set(
    text("/proc/locks")
      .split("\n")
      .map((line) => Number(line.trim().split(/\s+/)[4])),
  );

/** Mounts whose files are on a server, and what would keep a checkpoint from being taken of them now. */
const mounts = async (root: number, tree: readonly number[]): Promise<Finding[]> => {
  const found = quietly(() => heldMounts(root, tree), []).map((mount) =>
    finding(mount.pid, `mount ${named(mount)}`, {
      what: "its files are on a server",
      verdict: "ok",
      says: mount.host ? "CRIU leaves it as it is" : "carried by cryoshim (remote)",
    }),
  );
  try {
    await admit(root, new Map(), DEFAULTS.remote.answer_within * 1000);
  } catch (error) {
    if (!(error instanceof CryoshimError)) throw error;
    const { what, why, fix } = error;
    found.push({ subject: `${root}`, verdict: "fail", finding: `${what}: ${why}`, ...(fix !== undefined && { fix }) });
  }
  return found;
};

const taskFindings = (
  pid: number,
  tree: ReadonlySet<number>,
  ids: ReadonlySet<string>,
  locks: ReadonlySet<number>,
  told: ReadonlySet<string>,
): Finding[] => {
  const found = descriptors(pid, tree, ids, told);
  const tracer = Number(/^TracerPid:\s+(\d+)$/m.exec(text(`/proc/${pid}/status`))?.[1] ?? 0);
  if (tracer !== 0)
    found.push(
      finding(pid, "process", refused(`it is traced by process ${tracer}`, "detach the tracer (a debugger, strace)")),
    );
  if (locks.has(pid)) found.push(finding(pid, "process", option("file locks", "--file-locks")));
  if (/ \/secretmem \(deleted\)$/m.test(text(`/proc/${pid}/maps`)))
    found.push(finding(pid, "memory", refused("secret memory", "unmap it before the checkpoint")));
  return found;
};

/** Rings that are not carried after all, and those whose restore takes long. */
const rings = (root: number, special: readonly Found[]): Finding[] => {
  if (!special.some(({ kind }) => kind === "uring")) return [];
  const reader = new RingReader();
  try {
    return foresee(root, special, reader).map(({ pid, fd, why, seconds }) => {
      const where = fd === undefined ? "threads" : `descriptor ${fd}`;
      if (why !== undefined) return finding(pid, where, { ...refused("io_uring"), says: `not carried: ${why}` });
      const says = `bringing its counters on takes a restore about ${seconds} s`;
      return finding(pid, where, { what: "io_uring", verdict: "note", says });
    });
  } finally {
    reader.close();
  }
};

/** What is special in the tree of a process. Throws ERR_PROCESS where there is none of this number. */
export const examineTree = async (root: number): Promise<Finding[]> => {
  if (text(`/proc/${root}/stat`) === "")
    throw new CryoshimError("ERR_PROCESS", {
      what: `cannot look at process ${root}`,
      why: "there is none of this number",
      fix: "name a process that runs, by its number outside of the container",
    });
  const tree = treeOf(root).filter((pid) => pid !== process.pid);
  const [pids, ids, locks] = [new Set(tree), mountIds(tree), lockHolders()];
  const found: Finding[] = [];
  const told = new Set<string>();
  try {
    const special = findSpecial(root);
    for (const each of special) {
      told.add(`${each.pid} ${each.fd}`);
      if (each.kind !== "detached") found.push(finding(each.pid, `descriptor ${each.fd}`, OF_XRAY[each.kind]));
    }
    found.push(...rings(root, special));
    found.push(
      ...unmounted(
        root,
        special,
        quietly(() => findUses(tree), []),
      ),
    );
  } catch (error) {
    found.push({
      subject: "X-ray",
      verdict: "note",
      finding: `queues, corked sockets, rings and detached mounts are not looked for: ${reason(error)}`,
    });
  }
  for (const pid of tree) found.push(...taskFindings(pid, pids, ids, locks, told));
  found.push(...(await mounts(root, tree)));
  const summary: Finding = {
    subject: `${root} ${text(`/proc/${root}/comm`).trim()}`,
    verdict: "ok",
    finding: `${tree.length} process${tree.length === 1 ? "" : "es"}; ${found.length === 0 ? "nothing special" : `${found.length} special`}`,
  };
  return [summary, ...found];
};

/** How each runtime tells a container's first process. */
const ASK: readonly [runtime: string, args: (name: string) => string[], pid: (said: string) => number][] = [
  ["podman", (name) => ["container", "inspect", "--format", "{{.State.Pid}}", "--", name], Number],
  ["docker", (name) => ["container", "inspect", "--format", "{{.State.Pid}}", "--", name], Number],
  ["runc", (name) => ["state", "--", name], (said) => Number((JSON.parse(said) as { pid?: number }).pid)],
  ["crun", (name) => ["state", "--", name], (said) => Number((JSON.parse(said) as { pid?: number }).pid)],
  ["lxc-info", (name) => ["-p", "-H", "-n", name], Number],
];

/** The first process of a running container of whichever runtime. Throws ERR_CONTAINER. */
export const pidOfContainer = async (name: string): Promise<number> => {
  const asked: string[] = [];
  for (const [runtime, args, pid] of ASK) {
    const file = inPath(runtime, process.env.PATH)[0];
    if (file === undefined) continue;
    asked.push(basename(file));
    const { stdout, failed } = await execa(file, args(name), { reject: false, timeout: 30_000, stdin: "ignore" });
    const found = failed ? 0 : quietly(() => pid(stdout.trim()), 0);
    if (Number.isSafeInteger(found) && found > 0) return found;
  }
  throw new CryoshimError("ERR_CONTAINER", {
    what: `cannot find the container \`${name}\``,
    why: asked.length === 0 ? "no runtime is in PATH" : `none that runs is known to ${asked.join(", ")}`,
    fix: "start it, correct its name, or give its first process with --pid",
  });
};
