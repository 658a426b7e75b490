// SPDX-License-Identifier: Apache-2.0
// The control socket's messages as native/control.h declares them (test/unit/control.test.ts holds the two together).

export const MAGIC = 0x31534343;
export const VERSION = 7;
export const MAX_DATA = 64 << 10;
/** sizeof(struct control_msg) */
export const SIZE = 112;

export const TYPE = {
  HELLO: 1,
  HOOK: 2,
  EXIT: 3,
  DONE: 4,
  RESULT: 5,
  END: 6,
  INJECT: 10,
  READ: 11,
  WRITE: 12,
  SWAP_FD: 13,
  SWAP_MAPPING: 14,
  ROLLBACK: 15,
  FORGET: 16,
  LOG: 17,
  EXTERNAL: 18,
  INHERIT: 19,
  NO_FS_DUMP: 20,
  SWAP_CWD: 21,
  SWAP_ROOT: 22,
  MAP: 23,
  INTERCEPT: 24,
  SUBMIT: 25,
  RESTART: 26,
  GIVE: 27,
  BOUND: 28,
  HOLD: 30,
} as const;

/** Files that CRIU knows, and of which it refuses some: enum control_known. */
export const KNOWN = { pidfd: 1, mqueue: 2, udp: 3 } as const;
export type Known = keyof typeof KNOWN;

/** SWAP_MAPPING: the placeholder is private memory of no file; what is there is a mapping of the task's own descriptor. */
export const ANONYMOUS = 2;
export const OWN_FD = 4;
/** SWAP_FD: what is there now is taken from the task, as it can be sent over no socket. */
export const TAKE = 8;

/** DONE: without the shim the images of this dump are not complete. */
export const NEEDED = 1;
/** DONE, of EXIT: they are complete when END is answered. */
export const LATER = 2;

/** Where each field lies in the struct. */
export const OFFSET = {
  magic: 0,
  type: 4,
  hook: 6,
  seq: 8,
  pid: 12,
  ret: 16,
  err: 24,
  fd: 28,
  addr: 32,
  len: 40,
  data_len: 48,
  flags: 52,
  a0: 56,
  a1: 64,
  a2: 72,
  a3: 80,
  a4: 88,
  a5: 96,
  a6: 104,
} as const;

/** CRIU's plugin hooks that the engine plugin offers, by their numbers (criu/include/criu-plugin.h). */
export const HOOK = {
  dumpExtFile: 2,
  restoreExtFile: 3,
  dumpExtMount: 4,
  restoreExtMount: 5,
  resumeDevicesLate: 9,
  checkpointDevices: 11,
  /** Our own (CONTROL_HOOK_KNOWN). */
  knownFile: 100,
  /** CONTROL_HOOK_BIND, CONTROL_HOOK_CONNECT */
  bind: 101,
  connect: 102,
} as const;

export const STAGE = ["dump", "pre-dump", "restore"] as const;

/** A message of the plugin, or for it. What is not given is zero. */
export interface ControlMessage {
  type: number;
  hook?: number;
  seq?: number;
  pid?: number;
  ret?: number;
  err?: number;
  fd?: number;
  addr?: bigint;
  len?: bigint;
  flags?: number;
  /** a0 to a6. */
  args?: readonly bigint[];
  data?: Buffer;
}

const ARGS = ["a0", "a1", "a2", "a3", "a4", "a5", "a6"] as const;

export const encodeControl = (m: ControlMessage): Buffer => {
  const data = m.data ?? Buffer.alloc(0);
  if (data.length > MAX_DATA) throw new RangeError(`a control message carries at most ${MAX_DATA} bytes`);
  const head = Buffer.alloc(SIZE);
  head.writeUInt32LE(MAGIC, OFFSET.magic);
  head.writeUInt16LE(m.type, OFFSET.type);
  head.writeUInt16LE(m.hook ?? 0, OFFSET.hook);
  head.writeUInt32LE(m.seq ?? 0, OFFSET.seq);
  head.writeInt32LE(m.pid ?? 0, OFFSET.pid);
  head.writeBigInt64LE(BigInt(m.ret ?? 0), OFFSET.ret);
  head.writeInt32LE(m.err ?? 0, OFFSET.err);
  head.writeInt32LE(m.fd ?? 0, OFFSET.fd);
  head.writeBigUInt64LE(m.addr ?? 0n, OFFSET.addr);
  head.writeBigUInt64LE(m.len ?? 0n, OFFSET.len);
  head.writeUInt32LE(data.length, OFFSET.data_len);
  head.writeUInt32LE(m.flags ?? 0, OFFSET.flags);
  m.args?.forEach((arg, i) => {
    head.writeBigUInt64LE(BigInt.asUintN(64, arg), OFFSET[ARGS[i]!]);
  });
  return Buffer.concat([head, data]);
};

/** Reads a message. Throws RangeError on anything that is none. */
export const decodeControl = (bytes: Buffer): Required<ControlMessage> => {
  if (bytes.length < SIZE || bytes.readUInt32LE(OFFSET.magic) !== MAGIC) throw new RangeError("not a control message");
  const data = bytes.subarray(SIZE);
  if (data.length !== bytes.readUInt32LE(OFFSET.data_len))
    throw new RangeError("a control message of the wrong length");
  return {
    type: bytes.readUInt16LE(OFFSET.type),
    hook: bytes.readUInt16LE(OFFSET.hook),
    seq: bytes.readUInt32LE(OFFSET.seq),
    pid: bytes.readInt32LE(OFFSET.pid),
    ret: Number(bytes.readBigInt64LE(OFFSET.ret)),
    err: bytes.readInt32LE(OFFSET.err),
    fd: bytes.readInt32LE(OFFSET.fd),
    addr: bytes.readBigUInt64LE(OFFSET.addr),
    len: bytes.readBigUInt64LE(OFFSET.len),
    flags: bytes.readUInt32LE(OFFSET.flags),
    args: ARGS.map((name) => bytes.readBigUInt64LE(OFFSET[name])),
    data,
  };
};
