// SPDX-License-Identifier: Apache-2.0
// The X-ray of queues against what was sent into them, on this kernel.
import { closeSync, readFileSync, unlinkSync } from "node:fs";
import fc from "fast-check";
import { expect, test } from "vitest";
import { addon, pidfdOpen } from "../../native/index.js";
import { QueueReader } from "../../shim/xray/queues.js";

const ns = pidfdOpen(process.pid);
let made = 0;

/** A queue that nobody sees: unlinked at once. */
const makeQueue = (maxmsg: number, msgsize: number): number => {
  const name = Buffer.from(`cryoshim-test-${process.pid}-${made++}`);
  const fd = addon.mqueueCreate(ns, name, 0o600, maxmsg, msgsize);
  const mount = addon.mqueueMount(ns);
  unlinkAt(mount, name);
  closeSync(mount);
  return fd;
};

const unlinkAt = (mount: number, name: Buffer): void => unlinkSync(`/proc/self/fd/${mount}/${name}`);

/** As mq_receive(3) would give them: by priority, oldest first. */
const inOrder = <T extends { priority: number }>(messages: T[]): T[] =>
  [...messages].sort((a, b) => b.priority - a.priority);

const message = (most: number) =>
  fc.record({
    priority: fc.oneof(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 32767 })),
    data: fc.uint8Array({ maxLength: most, size: "max" }).map((bytes) => Buffer.from(bytes)),
  });

test("random queues are read as they were filled, and nothing is taken out", () => {
  const reader = new QueueReader();
  fc.assert(
    fc.property(fc.array(fc.array(message(200), { maxLength: 10 }), { minLength: 1, maxLength: 3 }), (queues) => {
      const fds = queues.map(() => makeQueue(10, 200));
      try {
        for (const [i, messages] of queues.entries())
          for (const { priority, data } of messages) addon.mqueueSend(fds[i]!, data, priority);
        for (const round of [1, 2]) {
          const read = reader.read();
          for (const [i, fd] of fds.entries())
            expect(read.get(fd)?.messages, `pass ${round}`).toEqual(inOrder(queues[i]!));
        }
      } finally {
        for (const fd of fds) closeSync(fd);
      }
    }),
    { numRuns: 50 },
  );
  reader.close();
});

test("queues larger than a pass are read in several, side by side; the limits of the namespace come back", () => {
  const limit = (): string => readFileSync("/proc/sys/fs/mqueue/msgsize_max", "utf8");
  const before = limit();
  const reader = new QueueReader();
  const [large, wide] = [makeQueue(5, 65536), makeQueue(10, 8192)];
  expect(limit()).toBe(before);
  const fill = (fd: number, count: number, size: number) => {
    const messages = Array.from({ length: count }, (_, i) => ({
      priority: i % 3,
      data: Buffer.alloc(size - i, `${i}-`),
    }));
    for (const { priority, data } of messages) addon.mqueueSend(fd, data, priority);
    return inOrder(messages);
  };
  const expected = new Map([
    [large, fill(large, 5, 65536)],
    [wide, fill(wide, 10, 8192)],
  ]);
  const read = reader.read();
  for (const [fd, messages] of expected) {
    expect(read.get(fd)?.messages.length).toBe(messages.length);
    for (const [i, { priority, data }] of messages.entries()) {
      expect(read.get(fd)?.messages[i]?.priority).toBe(priority);
      expect(read.get(fd)?.messages[i]?.data.equals(data)).toBe(true);
    }
  }
  reader.close();
  for (const fd of [large, wide]) closeSync(fd);
});

test("a name that leaves the namespace's directory is refused", () => {
  for (const name of ["a/b", "", "a\0b"])
    expect(() => addon.mqueueCreate(ns, Buffer.from(name), 0o600, 1, 1)).toThrow(/mqueueCreate/);
});
