// SPDX-License-Identifier: Apache-2.0
// Direct descriptors that are sockets, pipes or eventfds: the kernel gives a ring's file away only by a submission to that ring, which the program
// would miss in its count, and these cannot be opened again. So they are read by X-ray, sockets while the network is locked, and go into CRIU's own
// images, which say that their process has descriptors of them; in a restore those are registered and closed.
import { closeSync, constants, existsSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, type Entry, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { addon } from "../../native/index.js";
import { reason } from "../error.js";
import { flowAddress } from "../netlock/images.js";
import type { Flow } from "../netlock/netlock.js";
import type { Log } from "../session/log.js";
import { replaceFile } from "../session/replace-file.js";
import { DirectReader, type DirectSocket, type HeldFile, type PlainFile } from "../xray/direct-files.js";
import type { CarrierContext } from "./carrier.js";
import { NOBODY } from "./claim.js";
import type { RegisteredFile } from "./uring-image.js";

const [AF_INET, AF_INET6, TCP, UDP, UDPLITE] = [2, 10, 6, 17, 136];
const STATE = { established: 1, close: 7, listen: 10 } as const;
/** fd_types of fdinfo.proto */
const TYPE = { pipe: 2, inet: 4, eventfd: 6 } as const;
const [ACCESS, PACKETS, EFD_SEMAPHORE, PAGE] = [constants.O_WRONLY | constants.O_RDWR, constants.O_DIRECT, 1, 4096];
/** enum sock_flags (include/net/sock.h) */
const FLAG = { urginline: 2, keepopen: 3, linger: 4, broadcast: 6, localroute: 13 } as const;
/** INET_FLAGS_* (include/net/inet_sock.h) */
const [PKTINFO, FREEBIND] = [0n, 11n];
/** SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK */
const BUF_LOCK = 3;
/** TCP_NAGLE_OFF and TCP_NAGLE_CORK */
const [NAGLE_OFF, NAGLE_CORK] = [1, 2];
/** TCPI_OPT_* */
const OPT = { timestamps: 1, sack: 2, wscale: 4 } as const;
const FOREVER = (1n << 63n) - 1n;

/** A descriptor that only the images have: its number is known when CRIU has written them. */
export class Lent {
  readonly task: string;
  fd: number | undefined;

  constructor(task: string) {
    this.task = task;
  }

  /** As a ring's image has it in a slot. */
  registered(index: number, tag: bigint): RegisteredFile {
    const lent = this;
    return {
      index,
      tag,
      task: this.task,
      lent: true,
      get fd() {
        return lent.fd;
      },
    };
  }
}

const sizeOf = (family: number): number => (family === AF_INET ? 4 : 16);

const isLoopback = ({ family, local, remote }: DirectSocket): boolean => {
  const size = sizeOf(family);
  return local.subarray(0, size).equals(remote.subarray(0, size)) || (family === AF_INET && remote[0] === 127);
};

const isConnection = ({ protocol, state }: DirectSocket): boolean => protocol === TCP && state === STATE.established;

/** As a network lock knows it. */
const flowOf = ({ family, protocol, local, remote, localPort, remotePort }: DirectSocket): Flow => {
  const [here, there] = [local, remote].map((address) => flowAddress(words(address, family), family));
  return { local: here!, remote: there!, localPort, remotePort, protocol };
};

/** Why a socket is not carried. */
const objection = (
  socket: DirectSocket,
  netns: number,
  { cutOff, established }: Pick<CarrierContext, "cutOff" | "established">,
): string | undefined => {
  const { family, protocol, state, has } = socket;
  if ((family !== AF_INET && family !== AF_INET6) || ![TCP, UDP, UDPLITE].includes(protocol))
    return "it is a socket, and not of TCP or UDP";
  if (socket.netns !== netns) return "it is of another network namespace than its process";
  if (has.cork) return "it is a corked socket";
  if (has.filter) return "it is a socket with a filter";
  if (has.protocol) return "it is a socket of TLS, or another protocol above TCP";
  if (has.repair) return "it is a socket that is being repaired";
  if (has.fineTimestamps) return "it is a connection with timestamps of microseconds";
  if (socket.device !== 0) return "it is a socket that is bound to a device";
  if (family === AF_INET6 && socket.local[0] === 0xfe) return "it is a socket of a link's own address";
  if (socket.localPort === 0 && socket.remotePort === 0) return undefined;
  const cut = cutOff(flowOf(socket));
  if (cut === undefined) return "it is a socket in a network that cryoshim does not lock";
  if (protocol !== TCP || (state === STATE.close && socket.remotePort === 0)) return undefined;
  if (state === STATE.listen)
    return socket.waiting > 0 ? `${socket.waiting} connections to it wait to be accepted` : undefined;
  if (state !== STATE.established) return "it is a connection that is being made, or ended";
  if (!established) return "it is a connection, and the caller has not asked for those (--tcp-established)";
  if (!cut.silent && !isLoopback(socket)) return "it is a connection whose peer would hear of the checkpoint's end";
  return undefined;
};

const words = (address: Buffer, family: number): number[] =>
  Array.from({ length: sizeOf(family) / 4 }, (_, i) => address.readUInt32LE(4 * i));

/** `hz`: jiffies in a second. */
const timeOf = (jiffies: bigint, hz: number): { sec: bigint; usec: bigint } => {
  if (jiffies === FOREVER) return { sec: 0n, usec: 0n };
  const [sec, rest] = [jiffies / BigInt(hz), jiffies % BigInt(hz)];
  return { sec, usec: (rest * 1_000_000n) / BigInt(hz) };
};

/** A descriptor's file as CRIU would have written it (criu/sk-inet.c:do_dump_one_inet_fd). */
const entryOf = (socket: DirectSocket, id: number, netns: number, hz: number): Message => {
  const { family, state, tcp } = socket;
  const flag = (bit: number): boolean => ((socket.flags >> BigInt(bit)) & 1n) !== 0n;
  const inet = (bit: bigint): boolean => ((socket.inetFlags >> bit) & 1n) !== 0n;
  const [send, receive] = [timeOf(socket.sndtimeo, hz), timeOf(socket.rcvtimeo, hz)];
  const { time, interval, probes } = tcp.keepalive;
  return {
    id,
    ino: socket.inode,
    family,
    type: socket.type,
    proto: socket.protocol,
    state,
    src_port: socket.localPort,
    dst_port: socket.remotePort,
    flags: socket.fileFlags,
    backlog: state === STATE.listen ? socket.backlog : 0,
    src_addr: words(socket.local, family),
    dst_addr: words(socket.remote, family),
    fown: { ...NOBODY },
    opts: {
      so_sndbuf: socket.sndbuf,
      so_rcvbuf: socket.rcvbuf,
      so_snd_tmo_sec: send.sec,
      so_snd_tmo_usec: send.usec,
      so_rcv_tmo_sec: receive.sec,
      so_rcv_tmo_usec: receive.usec,
      reuseaddr: socket.reuse,
      so_priority: socket.priority,
      so_rcvlowat: socket.rcvlowat,
      ...(socket.mark !== 0 && { so_mark: socket.mark }),
      so_dontroute: flag(FLAG.localroute),
      so_no_check: socket.has.noChecksums,
      so_reuseport: socket.reuseport,
      so_broadcast: flag(FLAG.broadcast),
      so_keepalive: flag(FLAG.keepopen),
      so_oobinline: flag(FLAG.urginline) ? 1 : 0,
      ...(flag(FLAG.linger) && { so_linger: Number(socket.linger / BigInt(hz)) }),
      so_buf_lock: socket.locks & BUF_LOCK,
    },
    ...(family === AF_INET6 && { v6only: socket.v6only }),
    ip_opts: {
      ...(inet(FREEBIND) && { freebind: true }),
      ...(family === AF_INET && inet(PKTINFO) && { pktinfo: true }),
      ...(family === AF_INET && socket.tos !== 0 && { tos: socket.tos }),
      ...(family === AF_INET && socket.ttl >= 0 && { ttl: socket.ttl }),
    },
    ns_id: netns,
    ...(socket.shutdown !== 0 && state === STATE.established && { shutdown: socket.shutdown }),
    tcp_opts:
      socket.protocol !== TCP
        ? {}
        : {
            ...(tcp.nonagle & NAGLE_CORK && { cork: true }),
            ...(tcp.nonagle & NAGLE_OFF && { nodelay: true }),
            ...(probes !== 0 && { keepcnt: probes }),
            ...(time !== 0 && { keepidle: Math.round(time / hz) }),
            ...(interval !== 0 && { keepintvl: Math.round(interval / hz) }),
          },
  };
};

/** The state of a connection, with its queues (criu/sk-tcp.c:dump_tcp_conn_state). */
const streamOf = ({ tcp }: DirectSocket): { message: Message; extra: Uint8Array } => {
  const { scales } = tcp;
  return {
    message: {
      inq_len: tcp.received.length,
      inq_seq: tcp.rcvNxt,
      outq_len: tcp.written.length,
      outq_seq: tcp.writeSeq,
      opt_mask:
        (tcp.timestamps ? OPT.timestamps : 0) | (tcp.sack ? OPT.sack : 0) | (scales !== undefined ? OPT.wscale : 0),
      snd_wscale: scales?.send ?? 0,
      mss_clamp: tcp.mssClamp,
      ...(scales !== undefined && { rcv_wscale: scales.receive }),
      ...(tcp.timestamps && { timestamp: tcp.timestamp }),
      unsq_len: (tcp.writeSeq - tcp.sndNxt) >>> 0,
      snd_wl1: tcp.sndWl1,
      snd_wnd: tcp.sndWnd,
      max_window: tcp.maxWindow,
      rcv_wnd: tcp.rcvWnd,
      rcv_wup: tcp.rcvWup,
    },
    extra: Buffer.concat([tcp.received, tcp.written]),
  };
};

/** Why a pipe's end, or an eventfd, is not carried. */
const objectionToPlain = ({ kind, fileFlags, flags, used }: PlainFile): string | undefined => {
  if (kind === "eventfd") return flags & EFD_SEMAPHORE ? "it is an eventfd that is a semaphore" : undefined;
  if (fileFlags & PACKETS) return "it is a pipe in packet mode";
  // Of one whose reading end has a descriptor CRIU saves them.
  return (fileFlags & ACCESS) === 0 && used > 0 ? "it is a pipe with bytes in it" : undefined;
};

/** Any of them as an entry of files.img. */
const fileEntryOf = (file: HeldFile, id: number, netns: number, hz: number): Message & { type: number } => {
  if ("socket" in file) return { type: TYPE.inet, id, isk: entryOf(file.socket, id, netns, hz) };
  const common = { id, flags: file.fileFlags, fown: { ...NOBODY } };
  return file.kind === "eventfd"
    ? { type: TYPE.eventfd, id, efd: { ...common, counter: file.count } }
    : { type: TYPE.pipe, id, pipe: { ...common, pipe_id: file.inode } };
};

/** CRIU knows a pipe's size by what it says of its contents: empty ones that it says nothing of are added. */
const writePipes = (imagesDir: string, pipes: readonly PlainFile[]): void => {
  if (pipes.length === 0) return;
  const name = "pipes-data.img";
  const there = existsSync(join(imagesDir, name));
  const { image } = there ? read(imagesDir, name) : { image: { kind: "PIPES_DATA" as const, entries: [] as Entry[] } };
  for (const { inode, size } of pipes)
    if (!image.entries.some(({ message }) => message.pipe_id === inode))
      image.entries.push({ message: { pipe_id: inode, bytes: 0, size: size * PAGE } });
  if (there) replaceFile(join(imagesDir, name), encodeImage(image));
  else writeFileSync(join(imagesDir, name), encodeImage(image), { mode: 0o600, flag: "wx" });
};

/** A process's number in the images: in the root task's pid namespace. */
const numberOf = (task: string): string => task.split(":")[0]!;

const highest = (entries: readonly Entry[], field: string): number =>
  entries.reduce((most, { message }) => Math.max(most, message[field] as number), -1);

const read = (imagesDir: string, name: string) => ({
  name,
  image: decodeImage(readFileSync(join(imagesDir, name)), name),
});

/** Those of one dump. */
export class LentFiles {
  readonly #hz: () => number;
  #reader: DirectReader | undefined;
  readonly #found = new Map<bigint, { file: HeldFile; lent: Lent }>();
  /** The network is locked as a whole, before a socket is known; undefined: of none it has been asked. */
  #locked: boolean | undefined;
  /** That of the connections. */
  #netns: number | undefined;

  /** `hz`: how many jiffies a second has. */
  constructor(hz: () => number) {
    this.#hz = hz;
  }

  /** As `find`, while the tasks still run. */
  rehearse(file: bigint, fd: number, task: string): Lent | undefined {
    return this.#read(file, fd, false) && new Lent(task);
  }

  #read(file: bigint, fd: number, queues: boolean): HeldFile | undefined {
    this.#reader ??= new DirectReader();
    return this.#reader.read(file, fd, queues);
  }

  /**
   * Reads one by its address, with any descriptor `fd` of ours, for process `pid` to have it in a restore. Undefined: it is of another
   * kind. Otherwise what the images will have of it, or why they cannot.
   */
  find(file: bigint, fd: number, pid: number, task: string, context: CarrierContext): Lent | string | undefined {
    const known = this.#found.get(file);
    if (known !== undefined) return known.lent;
    const netns = `/proc/${pid}/ns/net`;
    const cutOff: CarrierContext["cutOff"] = (flow) => {
      const cut = context.cutOff(flow);
      this.#locked = cut?.before;
      return cut;
    };
    const { established } = context;
    const look = (queues: boolean): HeldFile | string | undefined => {
      const held = this.#read(file, fd, queues);
      if (held === undefined) return undefined;
      return "socket" in held
        ? (objection(held.socket, statSync(netns).ino, { cutOff, established }) ?? held)
        : (objectionToPlain(held) ?? held);
    };
    try {
      let held = look(this.#locked !== false);
      // Where others use the network a socket is locked only when it is known: what it is then counts.
      if (typeof held === "object" && "socket" in held && this.#locked === false) held = look(true);
      if (held === undefined || typeof held === "string") return held;
      this.#netns ??= openSync(netns, "r");
      const lent = new Lent(task);
      this.#found.set(file, { file: held, lent });
      return lent;
    } catch (error) {
      return reason(error);
    }
  }

  /** Adds them to CRIU's images, and says which numbers they have there. Throws ERR_IMAGE, or what the file system says. */
  write(imagesDir: string): void {
    if (this.#found.size === 0) return;
    const files = read(imagesDir, "files.img");
    let last = highest(files.image.entries, "id");
    const others = [...this.#found.values()].flatMap(({ file }) => ("socket" in file ? [] : [file]));
    writePipes(
      imagesDir,
      others.filter(({ kind }) => kind === "pipe"),
    );
    const tables = new Map<string, ReturnType<typeof read> & { next: number }>();
    for (const { file, lent } of this.#found.values()) {
      const ids = read(imagesDir, `ids-${numberOf(lent.task)}.img`).image.entries[0]!.message;
      const name = `fdinfo-${ids.files_id as number}.img`;
      let table = tables.get(name);
      if (table === undefined) {
        const found = read(imagesDir, name);
        table = { ...found, next: highest(found.image.entries, "fd") + 1 };
        tables.set(name, table);
      }
      const id = ++last;
      lent.fd = table.next++;
      const entry = fileEntryOf(file, id, ids.net_ns_id as number, this.#hz());
      table.image.entries.push({ message: { id, flags: 1, type: entry.type, fd: lent.fd } });
      files.image.entries.push({ message: entry });
      if (!("socket" in file) || !isConnection(file.socket)) continue;
      const { socket } = file;
      const stream = join(imagesDir, `tcp-stream-${socket.inode.toString(16)}.img`);
      // An earlier checkpoint's, of the same socket.
      rmSync(stream, { force: true });
      const entries = [streamOf(socket)];
      writeFileSync(stream, encodeImage({ kind: "TCP_STREAM", entries }), { mode: 0o600, flag: "wx" });
    }
    for (const { name, image } of [...tables.values(), files]) replaceFile(join(imagesDir, name), encodeImage(image));
  }

  /**
   * The dump has ended, and its tasks with it: what the kernel has not closed yet, or still wants to tell the peer of, ends here while the
   * network is locked. Nothing would be left of a socket of CRIU's, and a restore in this network namespace needs its addresses.
   */
  end(log: Log): void {
    for (const { file } of this.#found.values()) {
      if (!("socket" in file) || !isConnection(file.socket) || this.#netns === undefined) continue;
      const { socket } = file;
      const { family, localPort, remotePort } = socket;
      const [local, remote] = [socket.local, socket.remote].map((each) => each.subarray(0, sizeOf(family)));
      try {
        addon.destroyConnection(this.#netns, family, localPort, local!, remotePort, remote!);
      } catch (error) {
        const { code } = error as { code?: string };
        if (code !== "ENOENT") log("Warn ", `a connection of a ring's is not ended: ${reason(error)}`);
      }
    }
  }

  close(): void {
    this.#reader?.close();
    this.#reader = undefined;
    if (this.#netns !== undefined) closeSync(this.#netns);
    this.#netns = undefined;
    this.#found.clear();
  }
}
