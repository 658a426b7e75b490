// SPDX-License-Identifier: Apache-2.0
// The surgeon alone, without CRIU: tasks that it has seized itself.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { addon } from "../../native/index.js";

const surgeon = addon as unknown as {
  seize(tid: number): void;
  release(tid: number): void;
  inject(tid: number, call: bigint[]): bigint;
  readMemory(tid: number, addr: bigint, len: number): Buffer;
  writeMemory(tid: number, addr: bigint, data: Buffer): void;
  swapFd(tid: number, fd: number, ours: number, cloexec: boolean): number;
  swapMapping(tid: number, addr: bigint, len: bigint, prot: number, flags: number, ours: number, off: bigint): void;
};
const [GETPID, GETTID, MMAP, MUNMAP] = [39n, 186n, 9n, 11n];
const call = (tid: number, ...args: bigint[]): bigint =>
  surgeon.inject(tid, [...args, 0n, 0n, 0n, 0n, 0n, 0n, 0n].slice(0, 7));

let dir = "";
let patient: ChildProcess;
const out = (): string[] => readFileSync(join(dir, "out"), "utf8").trim().split("\n");
const complaints = (): string[] => out().filter((line) => line.startsWith("BAD"));
const admit = async (kind: string): Promise<number> => {
  patient = spawn("build/workloads/patient", [join(dir, "out"), kind], { stdio: "ignore" });
  await sleep(300);
  return patient.pid!;
};
const threads = (pid: number): number[] => readdirSync(`/proc/${pid}/task`).map(Number);
const isWell = async (): Promise<void> => {
  const before = out().length;
  await sleep(400);
  expect(patient.exitCode).toBeNull();
  expect(patient.signalCode).toBeNull();
  expect(out().length).toBeGreaterThan(before);
  expect(complaints()).toEqual([]);
};

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "cryoshim-surgeon-"));
});
afterEach(() => {
  patient?.kill("SIGKILL");
  rmSync(dir, { recursive: true, force: true });
});

test("every thread of a computing task takes a hundred injected calls and computes on", async () => {
  const pid = await admit("threads");
  const tids = threads(pid);
  expect(tids).toHaveLength(4);
  for (let round = 0; round < 25; round++)
    for (const tid of tids) {
      surgeon.seize(tid);
      expect(call(tid, GETTID)).toBe(BigInt(tid));
      expect(call(tid, GETPID)).toBe(BigInt(pid));
      surgeon.release(tid);
    }
  await isWell();
});

test("a sleep, a poll and a futex wait go on with the time that was left", async () => {
  const pid = await admit("restart");
  for (let round = 0; round < 20; round++) {
    for (const tid of threads(pid)) {
      surgeon.seize(tid);
      call(tid, GETPID);
      surgeon.release(tid);
    }
    await sleep(50);
  }
  await sleep(1600);
  expect(out().filter((line) => line.startsWith("ok")).length).toBeGreaterThanOrEqual(3);
  expect(complaints()).toEqual([]);
});

test("a filter that kills for any other system call does not see what is injected", async () => {
  const pid = await admit("seccomp");
  expect(readFileSync(`/proc/${pid}/status`, "utf8")).toMatch(/^Seccomp:\t2$/m);
  surgeon.seize(pid);
  expect(call(pid, GETPID)).toBe(BigInt(pid));
  surgeon.release(pid);
  await isWell();
});

test("memory of the task is written and read, what is not mapped is an error", async () => {
  const pid = await admit("threads");
  surgeon.seize(pid);
  const page = BigInt.asUintN(64, call(pid, MMAP, 0n, 4096n, 1n, 0x22n, 2n ** 64n - 1n, 0n));
  surgeon.writeMemory(pid, page, Buffer.from("into a page that the task may only read"));
  expect(surgeon.readMemory(pid, page, 11).toString()).toBe("into a page");
  expect(call(pid, MUNMAP, page, 4096n)).toBe(0n);
  expect(() => surgeon.readMemory(pid, page, 1)).toThrow(expect.objectContaining({ errno: expect.any(Number) }));
  surgeon.release(pid);
  await isWell();
});

test("a descriptor is swapped and put back, and nothing stays behind in the task", async () => {
  const pid = await admit("files");
  const fds = readdirSync(`/proc/${pid}/fd`);
  const maps = (): number => readFileSync(`/proc/${pid}/maps`, "utf8").split("\n").length;
  const before = maps();
  writeFileSync(join(dir, "fake"), "fake");
  const fake = openSync(join(dir, "fake"), "r+");
  surgeon.seize(pid);
  const real = surgeon.swapFd(pid, 50, fake, false);
  expect(readFileSync(`/proc/${pid}/fd/50`, "utf8")).toBe("fake");
  closeSync(surgeon.swapFd(pid, 50, real, false));
  expect(readFileSync(`/proc/${pid}/fd/50`, "utf8").slice(0, 4)).toBe("real");
  surgeon.release(pid);
  closeSync(real);
  closeSync(fake);
  await isWell();
  expect(readdirSync(`/proc/${pid}/fd`)).toEqual(fds);
  expect(maps()).toBe(before);
});

test("a mapping is swapped and put back at its place", async () => {
  const pid = await admit("files");
  writeFileSync(join(dir, "fake"), Buffer.alloc(4096, "fake"));
  const fake = openSync(join(dir, "fake"), "r+");
  const real = openSync(join(dir, "out.real"), "r+");
  surgeon.seize(pid);
  surgeon.swapMapping(pid, 0x10000000n, 4096n, 3, 1, fake, 0n);
  expect(surgeon.readMemory(pid, 0x10000000n, 4).toString()).toBe("fake");
  surgeon.swapMapping(pid, 0x10000000n, 4096n, 3, 1, real, 0n);
  surgeon.release(pid);
  closeSync(fake);
  closeSync(real);
  await isWell();
  expect(statSync(join(dir, "out.real")).size).toBe(4096);
});

test("a task that is not there is an error with its name", () => {
  expect(() => surgeon.seize(2 ** 30)).toThrow(expect.objectContaining({ code: "ESRCH", syscall: "PTRACE_SEIZE" }));
});
