// SPDX-License-Identifier: Apache-2.0
// Looks at files whose server may not answer: another process does (native/launcher/look.c), and is given up when it takes
// too long. No call of this process's ever waits for a server.
import type { ChildProcess } from "node:child_process";
import { getSystemErrorName } from "node:util";
import { helper } from "../session/helpers.js";

/** What there is of a file; times in nanoseconds. */
export interface Looked {
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  /** As stat(2) splits it: "0:53". */
  dev: string;
  /** 20 bits of minor number, as the kernel has it. */
  rdev: number;
  ino: bigint;
  size: bigint;
  mntId: number;
  atime: bigint;
  mtime: bigint;
  ctime: bigint;
  /** Of a symbolic link, latin1. */
  target?: string;
}

/** struct looked of native/launcher/look.h */
const SIZE = 88;

/** A question: a directory, and files below it; paths latin1, none with a "..". */
export interface Question {
  /** What `top` is relative to, as /proc/PID/root; links are followed. */
  base: string;
  top: string;
  files: readonly string[];
}

/** A file, or the name of the error. */
export type Answer = Looked | string;

export interface Answers {
  top: Answer;
  files: Answer[];
}

/** Thrown when the server has not answered in time. */
export class NoAnswer extends Error {
  constructor(ms: number) {
    super(`its server has not answered within ${ms} ms`);
  }
}

const answer = (bytes: Buffer, at: number): { answer: Answer; next: number } | undefined => {
  if (bytes.length < at + SIZE) return undefined;
  const word = (i: number): number => bytes.readUInt32LE(at + 4 * i);
  const length = word(9);
  const next = at + SIZE + length;
  if (bytes.length < next) return undefined;
  if (word(0) !== 0) return { answer: getSystemErrorName(-word(0)), next };
  const looked: Looked = {
    mode: word(1),
    nlink: word(2),
    uid: word(3),
    gid: word(4),
    dev: `${word(5)}:${word(6)}`,
    rdev: ((word(7) << 20) | word(8)) >>> 0,
    ino: bytes.readBigUInt64LE(at + 40),
    size: bytes.readBigUInt64LE(at + 48),
    mntId: Number(bytes.readBigUInt64LE(at + 56)),
    atime: bytes.readBigInt64LE(at + 64),
    mtime: bytes.readBigInt64LE(at + 72),
    ctime: bytes.readBigInt64LE(at + 80),
  };
  if (length > 0) looked.target = bytes.toString("latin1", at + SIZE, next);
  return { answer: looked, next };
};

/** Starts a process and gathers what it says until its output ends; gives it up after `ms`. */
const said = (child: ChildProcess, input: Buffer, ms: number): Promise<Buffer> =>
  new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    const end = (settle: () => void): void => {
      clearTimeout(timer);
      child.kill("SIGKILL");
      // It may never die: nobody waits for it.
      child.stdout?.destroy();
      child.unref();
      settle();
    };
    const timer = setTimeout(() => end(() => reject(new NoAnswer(ms))), ms);
    child.once("error", (error) => end(() => reject(error)));
    child.stdout!.on("data", (data: Buffer) => parts.push(data));
    child.stdout!.once("end", () => end(() => resolve(Buffer.concat(parts))));
    child.stdin!.on("error", () => {});
    child.stdin!.end(input);
  });

/**
 * Looks at files. `ms`: how long the server may take for all of them. Throws NoAnswer, or what keeps the process from
 * starting.
 */
export const look = async ({ base, top, files }: Question, ms: number): Promise<Answers> => {
  const commands = [`P${base}`, `R${top === "" ? "." : top}`, ...files.map((path) => `S${path === "" ? "." : path}`)];
  // Loaded for the few sessions that meet such a mount.
  const { spawn } = process.getBuiltinModule("node:child_process");
  const child = spawn(helper("cryoshim-look"), [], { stdio: ["pipe", "pipe", "ignore"], env: {}, cwd: "/" });
  const bytes = await said(child, Buffer.from(commands.map((line) => `${line}\0`).join(""), "latin1"), ms);
  const answers: Answer[] = [];
  for (let at = 0; ; ) {
    const one = answer(bytes, at);
    if (one === undefined) break;
    answers.push(one.answer);
    at = one.next;
  }
  if (answers.length !== commands.length) throw new Error("the process that looks at files has died");
  const [first, second] = answers as [Answer, Answer];
  return { top: typeof first === "string" ? first : second, files: answers.slice(2) };
};
