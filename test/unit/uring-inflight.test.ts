// SPDX-License-Identifier: Apache-2.0
// Requests of io_uring rings that are in flight, read by X-ray on the real kernel.
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { closeFd, pidfdGetfd, pidfdOpen } from "../../native/index.js";
import { inOrder, whyNot } from "../../shim/carriers/uring-inflight.js";
import { OP, savedRequest } from "../../shim/carriers/uring-request.js";
import type { Ring } from "../../shim/carriers/uring-ring.js";
import { InFlightReader, type Request, WHERE } from "../../shim/xray/uring-inflight.js";

let child: ChildProcess | undefined;
let reader: InFlightReader | undefined;
const fds: number[] = [];
const dirs: string[] = [];
afterEach(() => {
  child?.kill("SIGKILL");
  for (const fd of fds.splice(0)) closeFd(fd);
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true });
  reader?.close();
  reader = undefined;
});

/** The rings of test/workloads/inflight.c, as soon as all is in flight, and what is in flight in each. */
const look = async (...args: string[]) => {
  const dir = mkdtempSync(join(tmpdir(), "inflight-"));
  dirs.push(dir);
  const out = join(dir, "out");
  const program = new URL("../../build/workloads/inflight", import.meta.url).pathname;
  child = spawn(program, [out, join(dir, "go"), ...args], { stdio: "inherit" });
  const said = (): string => {
    try {
      return readFileSync(out, "utf8");
    } catch {
      return "";
    }
  };
  while (!said().includes("ready")) {
    expect(child.exitCode).toBeNull();
    await sleep(20);
  }
  expect(said()).not.toContain("BAD");
  const pid = child.pid!;
  const pidfd = pidfdOpen(pid);
  const rings = readdirSync(`/proc/${pid}/fd`)
    .filter((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`) === "anon_inode:[io_uring]")
    .map((fd) => pidfdGetfd(pidfd, Number(fd)));
  fds.push(...rings);
  closeFd(pidfd);
  reader = new InFlightReader();
  return { pid, reads: rings.map((fd) => reader!.read(fd)) };
};

/** SQPOLL's thread is told apart. */
describe.each([
  ["plain", "0"],
  ["DEFER_TASKRUN", "0x3000"],
  ["SQPOLL", "2"],
])("%s", (_, flags) => {
  test("every request is found, as often as the kernel says that there are any, with what it asked for", async () => {
    const { pid, reads } = await look(flags);
    const [main, counted, drained, aside] = reads;
    const byName = new Map(main!.requests.map((request) => [Number(request.userData), request]));
    expect([...byName.keys()].sort((a, b) => a - b)).toEqual(
      expect.arrayContaining([
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30,
      ]),
    );
    const name = (data: number): Request => byName.get(data)!;
    expect(name(1)).toMatchObject({ opcode: OP.pollAdd, len: 0, where: WHERE.poll });
    expect(name(1).opFlags & 1).toBe(1);
    expect(name(2)).toMatchObject({ opcode: OP.pollAdd, len: 1 });
    expect(readlinkSync(`/proc/${pid}/fd/${name(2).fd}`)).toBe("anon_inode:[eventfd]");
    expect(name(3)).toMatchObject({ opcode: OP.accept, opFlags: 0o2000000 });
    expect(name(4)).toMatchObject({ opcode: OP.accept, ioprio: 1 });
    expect(name(5)).toMatchObject({ opcode: OP.recv, len: 64, ioprio: 0 });
    expect(name(6)).toMatchObject({ opcode: OP.recv, ioprio: 1 });
    expect(name(7).vectors.map(({ len }) => len)).toEqual([3n, 40n]);
    expect(name(9).vectors.map(({ len }) => len)).toEqual([4n, 20n]);
    expect(name(12).interval).toBe(3_600_000_000_000n);
    expect(name(12).left).toBeLessThan(3_600_000_000_000n);
    expect(name(12).left).toBeGreaterThan(3_500_000_000_000n);
    expect(name(14).left).toBeLessThan(3_000_000_000n);
    expect(name(21)).toMatchObject({ opcode: OP.read, len: 5, behind: name(20).address, where: WHERE.linked });
    expect(name(22)).toMatchObject({ opcode: OP.write, len: 6, behind: name(21).address });
    expect(name(24)).toMatchObject({ opcode: OP.linkTimeout, behind: name(23).address });
    expect(name(24).where & WHERE.linkTimeout).toBe(WHERE.linkTimeout);
    // The number that was given is closed, or another file's: the one that is left is found.
    for (const data of [27, 28]) expect(readlinkSync(`/proc/${pid}/fd/${name(data).fd}`)).toMatch(/^pipe:/);
    expect(name(29)).toMatchObject({ opcode: OP.send, len: 4, done: 0 });
    expect(counted!.requests).toMatchObject([{ opcode: OP.timeout, off: 1n }]);
    expect(inOrder(drained!.requests).map(({ userData }) => userData)).toEqual([1n, 2n, 3n, 4n]);
    expect(drained!.requests.filter(({ where }) => where & WHERE.defer)).toHaveLength(3);
    expect(aside!.requests).toMatchObject([{ opcode: OP.read, pid: flags === "2" ? expect.any(Number) : pid }]);
    // Nothing is on no list: what each thread has in flight is what was found.
    for (const { tid, inFlight } of reads.flatMap(({ tasks }) => tasks).filter((task) => task.inFlight > 0))
      expect(reads.flatMap(({ requests }) => requests).filter((request) => request.tid === tid)).toHaveLength(inFlight);
  });
});

test("a ring with more in flight than one pass can tell", async () => {
  const { reads } = await look("0", "1000");
  expect(reads[0]!.requests).toHaveLength(1000);
  expect(new Set(reads[0]!.requests.map(({ address }) => address)).size).toBe(1000);
  expect(reads[0]!.tasks).toMatchObject([{ inFlight: 1000 }]);
});

const ring: Ring = { fd: -1, fdInTask: 3, pid: 7, tid: 7, flags: 0, sqEntries: 8, cqEntries: 16, sqHead: 0, cqTail: 0 };
let next = 1n;
const request = (fields: Partial<Request>): Request => ({
  where: WHERE.poll,
  address: next++,
  userData: 5n,
  known: true,
  opcode: OP.read,
  flags: 0,
  ioprio: 0,
  fd: 4,
  off: 0n,
  addr: 0n,
  len: 0,
  opFlags: 0,
  buffer: 0,
  fileIndex: 0,
  addr3: 0n,
  interval: 0n,
  done: 0,
  failed: false,
  holdsBuffer: false,
  personality: 0,
  pid: 7,
  tid: 7,
  vectors: [],
  vectorCount: 0,
  vectorOffset: 0n,
  name: 0n,
  nameLen: 0n,
  control: 0n,
  controlLen: 0n,
  ...fields,
});

describe("what cannot be submitted again", () => {
  const why = (fields: Partial<Request>): string | undefined => whyNot(request(fields), new Map(), ring);
  test.each<[string, Partial<Request>, RegExp | undefined]>([
    ["a read that waits", {}, undefined],
    ["one that a worker is at", { where: WHERE.running }, /worker/],
    ["one that a driver has", { where: WHERE.cmd, opcode: 46 }, /driver/],
    ["half of a message", { opcode: OP.send, done: 10 }, /10 bytes/],
    ["a connection that is being made", { opcode: 16, known: false }, /CONNECT/],
    ["one whose file is gone", { fd: -1 }, /no descriptor/],
    ["a timeout has none", { fd: -1, opcode: OP.timeout, where: WHERE.timeout }, undefined],
    ["a buffer that it has taken", { holdsBuffer: true }, /buffer/],
    ["another process's", { pid: 8 }, /process 8/],
  ])("%s", (_, fields, expected) => {
    if (expected === undefined) expect(why(fields)).toBeUndefined();
    else expect(why(fields)).toMatch(expected);
  });
});

describe("an entry that asks for the rest", () => {
  const flagsOf = (one: Request, all: Request[]): number => savedRequest(one, all, 1).sqe![1]!;
  test("links what follows, and nothing that does not", () => {
    const head = request({ flags: 4 });
    const follows = request({ where: WHERE.linked, behind: head.address });
    expect(flagsOf(head, [head, follows])).toBe(4);
    expect(flagsOf(head, [head])).toBe(0);
  });
  test("what has begun waits for no others any more", () => {
    expect(flagsOf(request({ flags: 2 | 16 }), [])).toBe(0);
    expect(flagsOf(request({ flags: 2 | 16, where: WHERE.defer }), [])).toBe(2);
  });
  test("a timeout is set for what is left of it, but by the clock on the wall for when that says so", () => {
    const timeout = { opcode: OP.timeout, where: WHERE.timeout, interval: 100n, left: 40n };
    expect(savedRequest(request(timeout), [], 1).nanoseconds).toBe(40n);
    expect(savedRequest(request({ ...timeout, opFlags: 1 }), [], 1).nanoseconds).toBe(40n);
    expect(savedRequest(request({ ...timeout, opFlags: 1 | 8 }), [], 1).nanoseconds).toBe(100n);
    expect(savedRequest(request({ ...timeout, opFlags: 64 }), [], 1).nanoseconds).toBe(100n);
  });
});
