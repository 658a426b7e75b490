// SPDX-License-Identifier: Apache-2.0
// The control socket's messages and the record as spfs/wire.h declares them (test/unit/spfs-wire.test.ts holds the two together).

export const MAGIC = 0x31465053;
export const VERSION = 1;
export const MAX_DATA = 8192;
/** sizeof(struct spfs_msg), sizeof(struct spfs_node), sizeof(struct spfs_record) */
export const SIZE = 88;
export const NODE_SIZE = 64;
export const RECORD_SIZE = 16;

export const TYPE = {
  STUB: 1,
  PROXY: 2,
  STATUS: 3,
  STOP: 4,
  OWN: 5,
  KEEP: 6,
  KEPT: 7,
  RESULT: 10,
  DIFFERS: 11,
} as const;

export const OFFSET = {
  magic: 0,
  type: 4,
  flags: 6,
  seq: 8,
  err: 12,
  data_len: 16,
  version: 20,
  a0: 24,
  a1: 32,
  a2: 40,
  a3: 48,
  a4: 56,
  a5: 64,
  a6: 72,
  a7: 80,
} as const;

export const NODE_OFFSET = {
  ino: 0,
  size: 8,
  atime: 16,
  mtime: 24,
  ctime: 32,
  mode: 40,
  nlink: 44,
  uid: 48,
  gid: 52,
  rdev: 56,
  path_len: 60,
  target_len: 62,
} as const;

/** enum spfs_proxy, enum spfs_own */
export const PROXY = { GONE_WAITS: 1, SAME_INODES: 2, NO_PASSTHROUGH: 4 } as const;
export const OWN = { MOUNT: 1, DIRECTORY: 2, PREPARED: 4 } as const;

/** enum spfs_phase, enum spfs_differs */
export const PHASE = ["restore", "stub", "proxy"] as const;
export const DIFFERS = ["gone", "type", "size", "grown", "mtime", "made", "replaced"] as const;

/** One path below the mount as the checkpoint saw it. */
export interface RecordedNode {
  /** Relative to the mount's root; empty: the root itself. */
  path: Uint8Array;
  ino: bigint;
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  size: bigint;
  /** Nanoseconds since 1970, as the two below. */
  atime: bigint;
  mtime: bigint;
  ctime: bigint;
  /** Of a symbolic link. */
  target?: Uint8Array;
}

export interface Message {
  type: number;
  flags: number;
  seq: number;
  err: number;
  /** a0 to a7. */
  args: number[];
  data: Buffer;
}

const ARGS = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"] as const;

/** A command; none carries data. */
export const encodeCommand = (type: number, seq: number, flags = 0): Buffer => {
  const bytes = Buffer.alloc(SIZE);
  bytes.writeUInt32LE(MAGIC, OFFSET.magic);
  bytes.writeUInt16LE(type, OFFSET.type);
  bytes.writeUInt16LE(flags, OFFSET.flags);
  bytes.writeUInt32LE(seq, OFFSET.seq);
  bytes.writeUInt32LE(VERSION, OFFSET.version);
  return bytes;
};

/** Reads an answer. Throws RangeError on anything that is none. */
export const decodeAnswer = (bytes: Buffer): Message => {
  if (
    bytes.length < SIZE ||
    bytes.readUInt32LE(OFFSET.magic) !== MAGIC ||
    bytes.readUInt32LE(OFFSET.version) !== VERSION ||
    bytes.readUInt32LE(OFFSET.data_len) !== bytes.length - SIZE
  )
    throw new RangeError("not an answer of spfs");
  return {
    type: bytes.readUInt16LE(OFFSET.type),
    flags: bytes.readUInt16LE(OFFSET.flags),
    seq: bytes.readUInt32LE(OFFSET.seq),
    err: bytes.readInt32LE(OFFSET.err),
    args: ARGS.map((name) => Number(bytes.readBigUInt64LE(OFFSET[name]))),
    data: bytes.subarray(SIZE),
  };
};

const encodeNode = (node: RecordedNode): Buffer => {
  const target = node.target ?? new Uint8Array(0);
  if (node.path.length > 0xffff || target.length > 0xffff) throw new RangeError("a path is longer than any can be");
  const head = Buffer.alloc(NODE_SIZE);
  head.writeBigUInt64LE(node.ino, NODE_OFFSET.ino);
  head.writeBigUInt64LE(node.size, NODE_OFFSET.size);
  head.writeBigInt64LE(node.atime, NODE_OFFSET.atime);
  head.writeBigInt64LE(node.mtime, NODE_OFFSET.mtime);
  head.writeBigInt64LE(node.ctime, NODE_OFFSET.ctime);
  head.writeUInt32LE(node.mode, NODE_OFFSET.mode);
  head.writeUInt32LE(node.nlink, NODE_OFFSET.nlink);
  head.writeUInt32LE(node.uid, NODE_OFFSET.uid);
  head.writeUInt32LE(node.gid, NODE_OFFSET.gid);
  head.writeUInt32LE(node.rdev, NODE_OFFSET.rdev);
  head.writeUInt16LE(node.path.length, NODE_OFFSET.path_len);
  head.writeUInt16LE(target.length, NODE_OFFSET.target_len);
  return Buffer.concat([head, node.path, target]);
};

/** The record as the server reads it. Throws RangeError on numbers that its fields cannot hold. */
export const encodeRecord = (nodes: Iterable<RecordedNode>): Buffer => {
  const parts = Array.from(nodes, encodeNode);
  const head = Buffer.alloc(RECORD_SIZE);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt32LE(VERSION, 4);
  head.writeBigUInt64LE(BigInt(parts.length), 8);
  return Buffer.concat([head, ...parts]);
};
