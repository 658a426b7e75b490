// SPDX-License-Identifier: Apache-2.0
// The lock's programs on the real kernel, in this network namespace: only sockets of the tests are locked.
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Flow, isShared, NetLock, treeOf } from "../../shim/netlock/netlock.js";

const HERE = "/proc/self/ns/net";
const mapped = (address: string): Buffer =>
  Buffer.concat([Buffer.from("00000000000000000000ffff", "hex"), Buffer.from(address.split(".").map(Number))]);

let server: Server;
const sockets: Socket[] = [];
const port = (): number => (server.address() as { port: number }).port;

beforeEach(async () => {
  server = createServer((socket) => {
    sockets.push(socket);
    socket.pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
});
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  server.close();
});

/** A connection to the server, and what has come back over it. */
const open = async (): Promise<{ socket: Socket; back: () => string }> => {
  const socket = connect(port(), "127.0.0.1");
  sockets.push(socket);
  await once(socket, "connect");
  let text = "";
  socket.setEncoding("utf8").on("data", (data: string) => {
    text += data;
  });
  return { socket, back: () => text };
};

/** The server's end of a connection. */
const flowOf = (socket: Socket): Flow => ({
  local: mapped("127.0.0.1"),
  remote: mapped("127.0.0.1"),
  localPort: port(),
  remotePort: socket.localPort!,
  protocol: 6,
});

test("a locked connection delivers nothing, its neighbour everything, and after the unlock all arrives", async () => {
  const [locked, free] = [await open(), await open()];
  const lock = new NetLock("sockets");
  try {
    lock.add([flowOf(locked.socket)]);
    lock.attach(HERE);
    locked.socket.write("not armed: ");
    await expect.poll(locked.back).toBe("not armed: ");
    lock.arm();
    locked.socket.write("held back");
    free.socket.write("goes on");
    await expect.poll(free.back).toBe("goes on");
    await sleep(100);
    expect(locked.back()).toBe("not armed: ");
    expect(lock.dropped().in).toBeGreaterThan(0);
  } finally {
    lock.close();
  }
  await expect.poll(locked.back, { timeout: 10_000 }).toBe("not armed: held back");
});

test("a locked listener refuses nobody: who connects waits", async () => {
  const lock = new NetLock("sockets");
  const zeros = Buffer.alloc(16);
  lock.add([{ local: zeros, remote: zeros, localPort: port(), remotePort: 0, protocol: 6 }]);
  lock.attach(HERE);
  lock.arm();
  const here = port();
  const late = connect(here, "127.0.0.1");
  sockets.push(late);
  const events: string[] = [];
  late.on("connect", () => events.push("connected")).on("error", (error) => events.push(error.message));
  await sleep(200);
  expect(events).toEqual([]);
  lock.close();
  await expect.poll(() => events, { timeout: 10_000 }).toEqual(["connected"]);
});

test("several locks hold in one namespace at the same time, each for itself", async () => {
  const all = [await open(), await open(), await open()];
  const locks = all.map(({ socket }) => {
    const lock = new NetLock("sockets");
    lock.add([flowOf(socket)]);
    lock.attach(HERE);
    lock.arm();
    return lock;
  });
  for (const { socket } of all) socket.write("x");
  await sleep(100);
  for (const [i, { back }] of all.entries()) {
    expect(back()).toBe("");
    locks[i]!.close();
    await expect.poll(back, { timeout: 10_000 }).toBe("x");
  }
  expect(locks.every(({ attached }) => !attached)).toBe(true);
});

test("the sockets of a process are found by its open files: connections, listeners and their addresses", async () => {
  const { socket, back } = await open();
  const lock = new NetLock("sockets");
  try {
    // Both ends are ours: this process is the tree.
    lock.attach(HERE);
    lock.arm(treeOf(process.pid));
    socket.write("held back");
    await sleep(100);
    expect(back()).toBe("");
    expect(lock.dropped().in + lock.dropped().out).toBeGreaterThan(0);
  } finally {
    lock.close();
  }
  await expect.poll(back, { timeout: 10_000 }).toBe("held back");
});

test("this namespace counts as shared, and a tree begins with its root", () => {
  expect(isShared(HERE, [])).toBe(true);
  expect(treeOf(process.pid)[0]).toBe(process.pid);
});

test("an object that is none is refused", async () => {
  const { loadObject } = await import("../../shim/netlock/bpf-object.js");
  expect(() => loadObject(Buffer.from("nonsense"), {})).toThrow("not an ELF file for BPF");
});
