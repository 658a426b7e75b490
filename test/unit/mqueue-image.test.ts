// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { loadQueues } from "../../shim/carriers/mqueue-image.js";

const QUEUE = { name: Buffer.from("q"), mode: 0o600, uid: 0, gid: 0, maxmsg: 2n, msgsize: 8n };
const NOTIFY = { task: "1", fd: 3, method: 2, signo: 0, value: 0n, sock_fd: 4, cookie: Buffer.alloc(32) };
const MESSAGE = { message: { priority: 1, data: Buffer.from("12345678") } };

/** What is read of an image with these entries. */
const load = (...entries: Message[]): ReturnType<typeof loadQueues> => {
  const dir = mkdtempSync(join(tmpdir(), "cryoshim-test-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const image = encodeImage({ kind: "CRYOSHIM_MQUEUE", entries: entries.map((message) => ({ message })) });
  writeFileSync(join(dir, "cryoshim-mqueue.img"), image);
  return loadQueues(dir);
};

test("queues, their messages and those who wait are read as they were written", () => {
  const wait = { task: "1:2", address: 4096n, nanoseconds_left: -1n };
  const files = [{ id: 7, flags: 2 }];
  const { queues, waits } = load({ queue: { ...QUEUE, files, notify: NOTIFY } }, MESSAGE, { wait });
  expect(queues).toHaveLength(1);
  expect(queues[0]).toMatchObject({ maxmsg: 2n, files, messages: [{ priority: 1 }], notify: { sock_fd: 4 } });
  expect(waits).toEqual([wait]);
});

test.each<[string, Message[]]>([
  ["a name with a directory", [{ queue: { ...QUEUE, name: Buffer.from("../q") } }]],
  ["the name of a directory", [{ queue: { ...QUEUE, name: Buffer.from("..") } }]],
  ["no name at all where there is one", [{ queue: { ...QUEUE, name: Buffer.alloc(0) } }]],
  ["more messages than the kernel allows", [{ queue: { ...QUEUE, maxmsg: 65537n } }]],
  ["a mode that is a file type", [{ queue: { ...QUEUE, mode: 0o100600 } }]],
  ["a message before any queue", [MESSAGE]],
  ["a message larger than its queue's", [{ queue: { ...QUEUE, msgsize: 7n } }, MESSAGE]],
  ["more messages than the queue holds", [{ queue: { ...QUEUE, maxmsg: 1n } }, MESSAGE, MESSAGE]],
  ["a priority that does not exist", [{ queue: QUEUE }, { message: { priority: 32768, data: Buffer.alloc(1) } }]],
  ["a cookie of another length", [{ queue: { ...QUEUE, notify: { ...NOTIFY, cookie: Buffer.alloc(33) } } }]],
  ["a task that is none", [{ queue: { ...QUEUE, notify: { ...NOTIFY, task: "../1" } } }]],
  [
    "one file of two queues",
    [{ queue: { ...QUEUE, files: [{ id: 1, flags: 0 }] } }, { queue: { ...QUEUE, files: [{ id: 1, flags: 0 }] } }],
  ],
  ["an entry of no kind", [{}]],
])("an image with %s is refused, and the entry named", (_, entries) => {
  expect(() => load(...entries)).toThrow(
    expect.objectContaining({ code: "ERR_IMAGE", message: expect.stringContaining(`entry ${entries.length - 1} of`) }),
  );
});
