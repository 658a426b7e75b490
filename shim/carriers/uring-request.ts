// SPDX-License-Identifier: Apache-2.0
// A request in flight as it goes into the image: the submission queue entry that would ask for the rest of it.
import { type Request, WHERE } from "../xray/uring-inflight.js";

/** IORING_OP_* (include/uapi/linux/io_uring.h). */
export const OP = {
  nop: 0,
  readv: 1,
  writev: 2,
  fsync: 3,
  readFixed: 4,
  writeFixed: 5,
  pollAdd: 6,
  pollRemove: 7,
  sendmsg: 9,
  recvmsg: 10,
  timeout: 11,
  timeoutRemove: 12,
  accept: 13,
  asyncCancel: 14,
  linkTimeout: 15,
  close: 19,
  read: 22,
  write: 23,
  send: 26,
  recv: 27,
  epollCtl: 29,
  shutdown: 34,
  msgRing: 40,
  readMultishot: 49,
  waitid: 50,
  futexWait: 51,
  futexWaitv: 53,
  epollWait: 59,
} as const;

const NAMES =
  `NOP READV WRITEV FSYNC READ_FIXED WRITE_FIXED POLL_ADD POLL_REMOVE SYNC_FILE_RANGE SENDMSG RECVMSG TIMEOUT
TIMEOUT_REMOVE ACCEPT ASYNC_CANCEL LINK_TIMEOUT CONNECT FALLOCATE OPENAT CLOSE FILES_UPDATE STATX READ WRITE FADVISE MADVISE
SEND RECV OPENAT2 EPOLL_CTL SPLICE PROVIDE_BUFFERS REMOVE_BUFFERS TEE SHUTDOWN RENAMEAT UNLINKAT MKDIRAT SYMLINKAT LINKAT
MSG_RING FSETXATTR SETXATTR FGETXATTR GETXATTR SOCKET URING_CMD SEND_ZC SENDMSG_ZC READ_MULTISHOT WAITID FUTEX_WAIT
FUTEX_WAKE FUTEX_WAITV FIXED_FD_INSTALL FTRUNCATE BIND LISTEN RECV_ZC EPOLL_WAIT READV_FIXED WRITEV_FIXED PIPE`.split(
    /\s+/,
  );
/** As the kernel's headers have it, without the prefix. */
export const opName = (opcode: number): string => NAMES[opcode] ?? `opcode ${opcode}`;

/** IOSQE_* */
export const IOSQE = {
  fixedFile: 1 << 0,
  drain: 1 << 1,
  link: 1 << 2,
  hardlink: 1 << 3,
  async: 1 << 4,
  bufferSelect: 1 << 5,
  cqeSkip: 1 << 6,
} as const;

/** IORING_TIMEOUT_* */
const TIMEOUT = { abs: 1 << 0, realtime: 1 << 3, update: 1 << 1, linkUpdate: 1 << 4, multishot: 1 << 6 } as const;

export const isMultishotTimeout = ({ opcode, opFlags }: Request): boolean =>
  opcode === OP.timeout && (opFlags & TIMEOUT.multishot) !== 0;

/** cryoshim_uring_request (crit/schema/cryoshim.ts). */
export interface SavedRequest {
  /** The thread that submits it, by its number in its own pid namespace. */
  thread: number;
  user_data: bigint;
  /** struct io_uring_sqe without what it points to; not there: it completes with ECANCELED. */
  sqe?: Uint8Array;
  /** Nanoseconds for a timespec that it points to. */
  nanoseconds?: bigint;
  /** An iovec that it points to: addresses and lengths by turns; of FUTEX_WAITV addresses, and values (upper half) with flags. */
  vectors?: readonly bigint[];
  /** The value of a futex is looked up: it waits for the next wake. */
  futex?: boolean;
  /** An epoll_event that it points to. */
  event?: Uint8Array;
  /** struct msghdr that it points to: name, name_len, control, control_len. */
  message?: readonly bigint[];
}

/** Offsets in struct io_uring_sqe. */
const AT = {
  flags: 1,
  ioprio: 2,
  fd: 4,
  off: 8,
  addr: 16,
  len: 24,
  op: 28,
  data: 32,
  buf: 40,
  personality: 42,
  file: 44,
  addr3: 48,
};
export const SQE_SIZE = 64;

/** The entry's pointer to what `nanoseconds`, `vectors`, `event` or `message` stand for. */
export const pointAt = (sqe: Buffer, opcode: number, address: bigint): void => {
  // An update has its timespec in addr2.
  sqe.writeBigUInt64LE(address, opcode === OP.timeoutRemove ? AT.off : AT.addr);
};

/** IOSQE_* with which a request is to be submitted again. */
const flagsFor = ({ where, flags, address }: Request, requests: readonly Request[]): number => {
  const follows = requests.some(({ behind }) => behind === address);
  let kept = flags & ~(IOSQE.link | IOSQE.hardlink);
  if (follows) kept |= flags & IOSQE.hardlink ? IOSQE.hardlink : IOSQE.link;
  // What has been begun waits for nobody any more, and what is deferred is said to be asynchronous by the kernel itself.
  if ((where & (WHERE.defer | WHERE.linked)) === 0 || where & (WHERE.poll | WHERE.linkTimeout)) kept &= ~IOSQE.drain;
  if ((where & WHERE.linked) === 0 || where & WHERE.poll) kept &= ~IOSQE.async;
  return kept;
};

const VECTORED: ReadonlySet<number> = new Set([OP.readv, OP.writev]);
const MESSAGES: ReadonlySet<number> = new Set([OP.recvmsg, OP.sendmsg]);

/** `requests`: all of its ring; `thread`: see SavedRequest. */
export const savedRequest = (request: Request, requests: readonly Request[], thread: number): SavedRequest => {
  const { opcode, userData, left, interval } = request;
  const sqe = Buffer.alloc(SQE_SIZE);
  let opFlags = request.opFlags;
  const saved: SavedRequest = { thread, user_data: userData };
  if (opcode === OP.timeout || opcode === OP.linkTimeout) {
    saved.nanoseconds = interval;
    // By the clock on the wall it goes off when that says so; a restored task's other clocks are not the kernel's.
    const onTheWall = (opFlags & (TIMEOUT.abs | TIMEOUT.realtime)) === (TIMEOUT.abs | TIMEOUT.realtime);
    if (left !== undefined && !onTheWall && !(opFlags & TIMEOUT.multishot)) {
      opFlags &= ~TIMEOUT.abs;
      saved.nanoseconds = left;
    }
  }
  if (opcode === OP.timeoutRemove && opFlags & (TIMEOUT.update | TIMEOUT.linkUpdate)) saved.nanoseconds = interval;
  if ((opcode === OP.futexWait || opcode === OP.futexWaitv) && request.where & WHERE.futex) saved.futex = true;
  if (request.event !== undefined) saved.event = new Uint8Array(request.event);
  if (opcode === OP.futexWaitv) saved.vectors = request.vectors.flatMap(({ base, len }) => [base, len]);
  if ((VECTORED.has(opcode) || MESSAGES.has(opcode)) && !(request.flags & IOSQE.bufferSelect))
    saved.vectors = request.vectors.flatMap(({ base, len }) => [base, len]);
  // Into a buffer that the kernel chooses: of at most so many bytes.
  else if (MESSAGES.has(opcode)) saved.vectors = request.len === 0 ? [] : [0n, BigInt(request.len)];
  if (MESSAGES.has(opcode)) saved.message = [request.name, request.nameLen, request.control, request.controlLen];
  sqe[0] = opcode;
  sqe[AT.flags] = flagsFor(request, requests);
  sqe.writeUInt16LE(request.ioprio & 0xffff, AT.ioprio);
  sqe.writeInt32LE(request.fd, AT.fd);
  sqe.writeBigUInt64LE(request.off, AT.off);
  sqe.writeBigUInt64LE(request.addr, AT.addr);
  // A single piece of memory is one without a vector, to the kernel.
  sqe.writeUInt32LE(VECTORED.has(opcode) && saved.vectors !== undefined ? request.vectors.length : request.len, AT.len);
  sqe.writeUInt32LE(opFlags >>> 0, AT.op);
  sqe.writeBigUInt64LE(userData, AT.data);
  sqe.writeUInt16LE(request.buffer, AT.buf);
  sqe.writeUInt16LE(request.personality, AT.personality);
  sqe.writeUInt32LE(request.fileIndex >>> 0, AT.file);
  sqe.writeBigUInt64LE(request.addr3, AT.addr3);
  if (!WITH_BUFFER.has(opcode) && !(request.flags & IOSQE.bufferSelect)) sqe.writeUInt16LE(0, AT.buf);
  if (WITHOUT_FILE.has(opcode)) sqe.writeInt32LE(-1, AT.fd);
  saved.sqe = new Uint8Array(sqe);
  return saved;
};

const WITH_BUFFER: ReadonlySet<number> = new Set([OP.readFixed, OP.writeFixed]);
const WITHOUT_FILE: ReadonlySet<number> = new Set([OP.nop, OP.timeout, OP.linkTimeout, OP.timeoutRemove]);
