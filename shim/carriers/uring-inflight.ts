// SPDX-License-Identifier: Apache-2.0
// Requests of io_uring rings that are in flight. In the running kernel they stay where they are: they are read by X-ray, and
// a restore submits them again under their old names. What cannot be submitted twice is waited for, or refused.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { addon } from "../../native/index.js";
import type { UringSettings } from "../engine/launch-file.js";
import { InFlightReader, type Request, type RingTask, WHERE } from "../xray/uring-inflight.js";
import type { CarrierContext } from "./carrier.js";
import { offsetsHere, type RingOffsets } from "./uring-params.js";
import { IOSQE, isMultishotTimeout, OP, opName, type SavedRequest, savedRequest } from "./uring-request.js";
import { resubmit } from "./uring-resubmit.js";
import { type InFlight, type InFlightCarrier, type Ring, refuse, SETUP } from "./uring-ring.js";
import { innerNumber } from "./uring-threads.js";

const [SYS_GETPID, SYS_IO_URING_ENTER] = [39, 426];
const [ENTER_GETEVENTS, ENTER_REGISTERED_RING] = [1n << 0n, 1n << 4n];

/** These end soon, or have ended and their completion is not posted yet. */
const PASSING = WHERE.queued | WHERE.running | WHERE.taskWork | WHERE.iopoll;
/** Here a request waits for an event, and nothing is lost when it waits anew. */
const WAITING =
  WHERE.poll | WHERE.timeout | WHERE.linkTimeout | WHERE.defer | WHERE.waitid | WHERE.futex | WHERE.linked;

/** Why a request cannot be submitted again; undefined: it can. */
export const whyNot = (request: Request, requests: ReadonlyMap<bigint, Request>, ring: Ring): string | undefined => {
  const { where, opcode, behind } = request;
  if (where & WHERE.running) return "a worker of the kernel is at it, and it may change memory or files at any moment";
  if (where & WHERE.queued) return "it waits for a worker of the kernel";
  if (where & WHERE.iopoll) return "a device is at it";
  if (where & WHERE.taskWork) return "it is about to complete, and its task does not take the completion";
  if (where & WHERE.cmd || (where & WAITING) === 0) return "it is a command of a driver, which alone knows its state";
  if (!request.known) return `${opName(opcode)} cannot be told from what the kernel keeps of it`;
  // Each tick of a multishot timeout is a failure to the kernel, and it goes on.
  if (request.failed && !isMultishotTimeout(request)) return "it belongs to a chain that has failed";
  if (request.done > 0) return `${request.done} bytes of it are done already`;
  if (request.holdsBuffer) return "it has taken a provided buffer";
  if (request.personality < 0) return "it runs under credentials that are registered no more";
  if (request.fd < 0 && needsFile(request)) return "its file has been closed, and no descriptor for it is left";
  if (request.vectorCount > request.vectors.length) return `it is of ${request.vectorCount} pieces of memory`;
  if (request.vectorOffset > 0n) return "a part of it is done already";
  if (opcode === OP.send && request.name !== 0n) return "the kernel has forgotten the address that it goes to";
  if (opcode === OP.sendmsg && (request.name !== 0n || request.controlLen > 0n || request.nameLen > 0n))
    return "it has an address or ancillary data";
  if (opcode === OP.linkTimeout && (behind === undefined || !requests.has(behind)))
    return "it limits a request that was not found";
  if (request.pid !== ring.pid && !(ring.flags & SETUP.sqpoll)) return `process ${request.pid} has submitted it`;
  return undefined;
};

const FILELESS: ReadonlySet<number> = new Set([
  OP.nop,
  OP.timeout,
  OP.timeoutRemove,
  OP.linkTimeout,
  OP.asyncCancel,
  OP.pollRemove,
  OP.close,
  OP.epollCtl,
  OP.waitid,
  OP.futexWait,
  OP.futexWaitv,
]);
const needsFile = ({ opcode }: Request): boolean => !FILELESS.has(opcode);

const describe = ({ opcode, fd, userData, flags, known }: Request): string => {
  const file =
    !known || FILELESS.has(opcode) || fd < 0
      ? ""
      : flags & IOSQE.fixedFile
        ? ` of fixed file ${fd}`
        : ` of descriptor ${fd}`;
  return `${opName(opcode)}${file}, user_data 0x${userData.toString(16)}`;
};

/** What is in flight in a ring of the dump. */
interface Read {
  ring: Ring;
  requests: Request[];
  tasks: RingTask[];
}

/** How many requests of each thread are on no list that is read here: those that a device or a socket's buffer has. */
const unlisted = (reads: readonly Read[]): Map<number, number> => {
  const counts = new Map<number, number>();
  for (const { tasks } of reads) for (const { tid, inFlight } of tasks) if (tid > 0) counts.set(tid, inFlight);
  for (const { requests } of reads)
    for (const { tid } of requests) if (counts.has(tid)) counts.set(tid, counts.get(tid)! - 1);
  return new Map([...counts].filter(([, count]) => count > 0));
};

const [OFF_SQ_RING, SQ_NEED_WAKEUP] = [0n, 1];

/** Whether a thread of the kernel's, which is awake, is about to take what is in the submission queue. */
const isTaking = ({ fd, flags }: Ring, { sq }: RingOffsets): boolean => {
  if ((flags & SETUP.sqpoll) === 0 || flags & (SETUP.noMmap | SETUP.rDisabled)) return false;
  const rings = addon.uringRead(fd, OFF_SQ_RING, Math.max(sq.head, sq.tail, sq.flags) + 4);
  const sleeps = (rings.readUInt32LE(sq.flags) & SQ_NEED_WAKEUP) !== 0;
  return !sleeps && rings.readUInt32LE(sq.head) !== rings.readUInt32LE(sq.tail);
};

/** The thread that submits to a ring with SQPOLL: it is not stopped, and takes its completions itself. */
const isKernels = (tid: number): boolean => readFileSync(`/proc/${tid}/comm`, "latin1").startsWith("iou-");

/** Lets stopped tasks do what they would do next anyway: take the completions that wait for them. */
const nudge = async (reads: readonly Read[], { engine }: CarrierContext): Promise<void> => {
  const pending = ({ requests }: Read): boolean => requests.some(({ where }) => where & WHERE.taskWork);
  for (const { ring } of reads.filter((read) => pending(read) && read.ring.flags & SETUP.deferTaskrun)) {
    const [fd, registered] =
      ring.fdInTask === undefined ? [ring.registered!, ENTER_REGISTERED_RING] : [ring.fdInTask, 0n];
    const args = [BigInt(fd), 0n, 0n, ENTER_GETEVENTS | registered, 0n, 0n];
    await engine.syscall(ring.tid, SYS_IO_URING_ENTER, ...args);
  }
  // Any call will do. What is on no list may be of a ring that has been closed, and waits for its task as well; what waits for a
  // worker may wait for one that the task has to start.
  const tids = new Set(unlisted(reads).keys());
  for (const { requests } of reads)
    for (const { where, tid } of requests) if (where & (WHERE.taskWork | WHERE.queued)) tids.add(tid);
  for (const tid of tids) if (!isKernels(tid)) await engine.syscall(tid, SYS_GETPID);
};

/** The carrier of requests in flight, for one session. */
export const inFlightCarrier = ({ policy, wait }: UringSettings): InFlightCarrier => {
  let reader: InFlightReader | undefined;
  /** What was read last, by the ring's descriptor: it stays so while the tasks stand still. */
  const known = new Map<number, Read>();
  const read = (rings: readonly Ring[]): Read[] => {
    reader ??= new InFlightReader();
    return rings.map((ring) => ({ ring, ...reader!.read(ring.fd, ring.file) }));
  };
  /** Waits until nothing passes, no longer than the policy says. */
  const settled = async (rings: readonly Ring[], context: CarrierContext): Promise<Read[]> => {
    const offsets = offsetsHere();
    for (const until = Date.now() + (policy === "refuse" ? 0 : wait); ; await sleep(1)) {
      const reads = read(rings);
      const passes = ({ ring, requests }: Read): boolean =>
        isTaking(ring, offsets) || requests.some(({ where }) => where & PASSING);
      if (!reads.some(passes) && unlisted(reads).size === 0) return reads;
      if (Date.now() >= until) return reads;
      await nudge(reads, context);
    }
  };
  const give = ({ ring, requests }: Read): InFlight => {
    const byAddress = new Map(requests.map((request) => [request.address, request]));
    const saved: SavedRequest[] = [];
    for (const request of inOrder(requests)) {
      const why = whyNot(request, byAddress, ring);
      if (why === undefined) {
        saved.push(savedRequest(request, requests, innerNumber(request.pid, request.tid)));
        continue;
      }
      if (policy === "cancel") {
        saved.push({ user_data: request.userData, thread: innerNumber(ring.pid, ring.tid) });
        continue;
      }
      throw refuse(
        `cannot carry a request of process ${ring.pid}'s io_uring that is in flight: ${describe(request)}`,
        why,
        "checkpoint again, wait longer ([io-uring] wait), or let it be cancelled ([io-uring] policy)",
      );
    }
    return { submissions: saved.length, requests: saved as unknown as InFlight["requests"] };
  };
  return {
    prepare() {
      reader ??= new InFlightReader();
    },
    async settle(rings, context) {
      const reads = await settled(rings, context);
      for (const [tid, count] of unlisted(reads)) {
        const { ring } = reads.find(({ tasks }) => tasks.some((task) => task.tid === tid))!;
        throw refuse(
          `cannot carry ${count} request(s) of process ${ring.pid}'s io_uring that are in flight`,
          `thread ${tid} has submitted them, and a device or a socket is at them`,
          "checkpoint again, or wait longer ([io-uring] wait)",
        );
      }
      known.clear();
      // A thread of the kernel's goes on.
      for (const each of reads) if ((each.ring.flags & SETUP.sqpoll) === 0) known.set(each.ring.fd, each);
    },
    async save(ring) {
      return give(known.get(ring.fd) ?? read([ring])[0]!);
    },
    async resubmit(ring, memory, requests, context) {
      await resubmit({ ring, memory }, requests as unknown as SavedRequest[], context);
    },
    close() {
      reader?.close();
      reader = undefined;
    },
  };
};

/** Each chain together, and those that wait for all others (drain) last. */
export const inOrder = (requests: readonly Request[]): Request[] => {
  const next = new Map(
    requests.flatMap((request) => (request.behind === undefined ? [] : [[request.behind, request]])),
  );
  const known = new Set(requests.map(({ address }) => address));
  const chain = (head: Request): Request[] => {
    const links = [head];
    for (
      let link = next.get(head.address);
      link !== undefined && links.length <= requests.length;
      link = next.get(link.address)
    )
      links.push(link);
    return links;
  };
  const heads = requests.filter(({ behind }) => behind === undefined || !known.has(behind));
  const deferred = (request: Request): boolean => (request.where & WHERE.defer) !== 0;
  return [...heads.filter((head) => !deferred(head)), ...heads.filter(deferred)].flatMap(chain);
};
