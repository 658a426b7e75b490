// SPDX-License-Identifier: Apache-2.0
// A backend, its record, and tasks that use what is mounted. Tasks are processes of their own: a call that waits must not be ours.
import { type ChildProcess, spawn } from "node:child_process";
import {
  closeSync,
  constants,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import type { RecordedNode } from "../../spfs/control.js";

const O_PATH = 0o10000000;

/** What a checkpoint records of a path. */
export const recordOf = (root: string, path: string): RecordedNode => {
  const st = lstatSync(join(root, path), { bigint: true });
  return {
    path: Buffer.from(path),
    ino: st.ino,
    mode: Number(st.mode),
    nlink: Number(st.nlink),
    uid: Number(st.uid),
    gid: Number(st.gid),
    rdev: Number(st.rdev),
    size: st.size,
    atime: st.atimeNs,
    mtime: st.mtimeNs,
    ctime: st.ctimeNs,
    ...(st.isSymbolicLink() ? { target: Buffer.from(readlinkSync(join(root, path))) } : {}),
  };
};

/** All of a directory. */
export const recordAll = (root: string): RecordedNode[] => [
  recordOf(root, ""),
  ...readdirSync(root, { recursive: true, withFileTypes: true }).map((entry) =>
    recordOf(root, relative(root, join(entry.parentPath, entry.name))),
  ),
];

/** A directory with files to be the backend, and one to mount on. */
export const makePlaces = (files: Record<string, string | Uint8Array> = {}) => {
  const base = mkdtempSync(join(tmpdir(), "cryoshim-spfs-"));
  const backend = join(base, "backend");
  const mountpoint = join(base, "mnt");
  mkdirSync(backend);
  mkdirSync(mountpoint);
  for (const [path, contents] of Object.entries(files)) {
    mkdirSync(join(backend, path, ".."), { recursive: true });
    writeFileSync(join(backend, path), contents);
  }
  return {
    backend,
    mountpoint,
    remove: () => rmSync(base, { recursive: true, force: true }),
    /** Lends a descriptor of the backend's root. */
    async lend<T>(use: (fd: number) => Promise<T>): Promise<T> {
      const fd = openSync(backend, constants.O_DIRECTORY | O_PATH);
      try {
        return await use(fd);
      } finally {
        closeSync(fd);
      }
    },
  };
};

// Reads Python statements as JSON strings, a line each; what they leave in `r` is the answer.
const INTERPRETER = `
import sys, json, os, mmap, fcntl, errno, time, socket, struct, threading, ctypes
scope = dict(globals())
for line in sys.stdin:
    scope['r'] = None
    try:
        exec(json.loads(line), scope)
        answer = {'r': scope['r']}
    except OSError as e:
        answer = {'error': errno.errorcode.get(e.errno, str(e.errno))}
    except BaseException as e:
        answer = {'error': repr(e)}
    print(json.dumps(answer), flush=True)
`;

export interface Task {
  readonly pid: number;
  readonly process: ChildProcess;
  /** Runs Python statements; resolves to what they left in `r`, rejects with the errno's name as its message. */
  run(code: string): Promise<unknown>;
  /** Resolves to the signal or code that it ends with. */
  readonly ended: Promise<NodeJS.Signals | number | null>;
  kill(signal?: NodeJS.Signals): void;
}

const running = new Set<ChildProcess>();

/** A process that does what it is told. */
export const startTask = (): Task => {
  const child = spawn("python3", ["-c", INTERPRETER], { stdio: ["pipe", "pipe", "inherit"], cwd: "/" });
  const waiting: { resolve(value: unknown): void; reject(error: Error): void }[] = [];
  running.add(child);
  createInterface({ input: child.stdout! }).on("line", (line) => {
    const { r, error } = JSON.parse(line) as { r?: unknown; error?: string };
    const one = waiting.shift();
    if (error === undefined) one?.resolve(r);
    else one?.reject(new Error(error));
  });
  child.stdin!.on("error", () => {});
  const ended = new Promise<NodeJS.Signals | number | null>((resolve) => {
    child.on("exit", (code, signal) => {
      running.delete(child);
      for (const { reject } of waiting) reject(new Error("the task has ended"));
      resolve(signal ?? code);
    });
  });
  return {
    pid: child.pid!,
    process: child,
    ended,
    run: (code) =>
      new Promise((resolve, reject) => {
        waiting.push({ resolve, reject });
        child.stdin!.write(`${JSON.stringify(code)}\n`);
      }),
    kill: (signal = "SIGKILL") => child.kill(signal),
  };
};

/** Ends all tasks that a test has left. */
export const endTasks = (): void => {
  for (const child of running) child.kill("SIGKILL");
};

/** Whether a promise is still open after a while. */
export const isPending = async (promise: Promise<unknown>, ms = 150): Promise<boolean> => {
  const open = Symbol();
  return (await Promise.race([promise.catch(() => {}), sleep(ms, open)])) === open;
};

/** Waits until something holds; the test's own time limit is the bound. */
export const until = async (holds: () => boolean | Promise<boolean>): Promise<void> => {
  while (!(await holds())) await sleep(10);
};
