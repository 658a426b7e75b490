// SPDX-License-Identifier: Apache-2.0
// Starts stub-proxy file systems and tells them what to be: to CRIU the record, to tasks a mount that waits, then the backend.
import { execFile } from "node:child_process";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { getSystemErrorName } from "node:util";
import {
  artefact,
  closeFd,
  isAgain,
  receiveMessage,
  sendMessage,
  seqpacketConnect,
  watchReadable,
} from "../native/index.js";
import { CryoshimError, reason } from "../shim/error.js";
import { stateDir } from "../shim/session/plugin-dir.js";
import {
  DIFFERS,
  decodeAnswer,
  encodeCommand,
  encodeRecord,
  type Message,
  OWN,
  PHASE,
  PROXY,
  type RecordedNode,
  TYPE,
} from "./wire.js";

export type { RecordedNode } from "./wire.js";

export interface SpfsOptions {
  /** Names the state directory /run/cryoshim/spfs/ID: letters, digits, "_", "-", ".", at most 64, no "." or "-" first. */
  id: string;
  /** On the host, a directory of ours; the server mounts itself there. */
  mountpoint: string;
  readOnly?: boolean;
  /** Milliseconds after which what waits in STUB gets EIO; 0: waits for ever. */
  timeoutMs: number;
  /** FUSE_PASSTHROUGH for opens in PROXY where the kernel has it (6.9), and proxy() does not say otherwise. */
  passthrough: "auto" | "off";
  /** When the backend is lost in PROXY: back to STUB (tasks wait), or errors are handed on. */
  onLoss: "stub" | "error";
  /** For how long a request may be at the backend before that is asked whether it lives, in milliseconds; 10,000 unless told. */
  lossAfterMs?: number;
  /**
   * Program (an absolute path) and arguments that bring the backend back; SPFS_ID is in its environment, and what it says on stderr
   * goes to the log. Started by keep(), and when the backend is lost; and again whenever it ends before kept().
   */
  keeper?: readonly string[];
  /** This process restores: see own(). From the first moment on. */
  own?: Owning;
}

export interface SpfsStatus {
  phase: (typeof PHASE)[number];
  /** Requests that wait. */
  blocked: number;
  /** Open files and directories of tasks. */
  open: number;
  nodes: number;
  /** Whether new opens in PROXY are passed through. */
  passthrough: boolean;
  /** The worker. */
  pid: number;
  /** How often a worker had to be started again. */
  restarts: number;
  /** The process that does so. */
  holder: number;
}

export interface ProxyReport {
  reopened: number;
  /**
   * Recorded or open files that are gone or differ; "made": what the restore made cannot be made at the
   * backend; "replaced": another file has its name.
   */
  differs: { path: Uint8Array; what: (typeof DIFFERS)[number] }[];
}

/** What is to become of it when the process that restores dies, or is done, after RESTORE. */
export interface Owning {
  /** Nobody is to see it where it was mounted, nor the directory, which is made if it is not there. */
  unsee: "nothing" | "mount" | "mount and directory";
  /** It was there before the restore, and stays if that dies in RESTORE. */
  prepared?: boolean;
}

/** A running file system. Every command may be given again: when the worker dies over one, that is what happens. */
export interface Spfs {
  readonly id: string;
  readonly mountpoint: string;
  /** RESTORE or PROXY to STUB; when it has returned no zero page of RESTORE is in any mapping. */
  stub(): Promise<void>;
  /**
   * To PROXY. `backend`: O_PATH|O_DIRECTORY of its root; it stays the caller's. `sameInodes`: the backend's numbers of inodes are
   * those of the record, if its root's is. Rejects with ERR_SPFS: then it is STUB.
   */
  proxy(
    backend: number,
    policy: { gone: "error" | "stub"; sameInodes?: boolean; passthrough?: boolean },
  ): Promise<ProxyReport>;
  /**
   * This process restores, until keep(). If it dies in RESTORE the file system ends; if it dies later, when tasks may run, it goes
   * on as if keep() had been said.
   */
  own(owning: Owning): Promise<void>;
  /** The restore is done: the keeper is started, and watched. */
  keep(): Promise<void>;
  /** By the keeper: all is done, it is needed no more. Does nothing when the backend has been lost meanwhile. */
  kept(): Promise<void>;
  status(): Promise<SpfsStatus>;
  /** Ends holder and worker, unmounts (MNT_DETACH) and removes the state directory. */
  stop(): Promise<void>;
}

const ID = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/;
const RETRIES = 50;

/** The server; CRYOSHIM_SPFS names another build of it (native/Makefile: check). */
const program = (): string => process.env.CRYOSHIM_SPFS ?? artefact("spfs");

const root = (): string => join(stateDir(), "spfs");
const directoryOf = (id: string): string => join(root(), id);

const failure = (id: string, what: string, why: string): CryoshimError =>
  new CryoshimError("ERR_SPFS", {
    what: `${what} stub-proxy file system \`${id}\``,
    why,
    fix: `its log is ${directoryOf(id)}/log`,
  });

const ownFlags = ({ unsee, prepared = false }: Owning): number =>
  (unsee === "nothing" ? 0 : unsee === "mount" ? OWN.MOUNT : OWN.MOUNT | OWN.DIRECTORY) | (prepared ? OWN.PREPARED : 0);

/** One command on a connection of its own; undefined: the worker died over it. */
const ask = (
  socket: string,
  command: Buffer,
  fds: number[],
  onAnswer: (m: Message) => void,
): Promise<Message | undefined> =>
  new Promise((resolve, reject) => {
    const fd = seqpacketConnect(socket);
    let stop = (): void => {};
    const end = (settle: () => void): void => {
      stop();
      closeFd(fd);
      settle();
    };
    const read = (): void => {
      try {
        for (let message = receiveMessage(fd); message !== undefined; message = receiveMessage(fd)) {
          const answer = decodeAnswer(message.data);
          if (answer.type === TYPE.RESULT) {
            end(() => resolve(answer));
            return;
          }
          onAnswer(answer);
        }
        end(() => resolve(undefined));
      } catch (error) {
        if (isAgain(error)) return;
        if ((error as { code?: string }).code === "ECONNRESET") end(() => resolve(undefined));
        else end(() => reject(error));
      }
    };
    try {
      sendMessage(fd, command, fds);
      stop = watchReadable(fd, read);
    } catch (error) {
      closeFd(fd);
      const { code } = error as { code?: string };
      if (code === "EPIPE" || code === "ECONNRESET") resolve(undefined);
      else reject(error);
    }
  });

/** Unmounts and removes what is left of one whose processes were both killed. */
const clear = (id: string, mountpoint: string): Promise<void> =>
  new Promise((resolve) => {
    const words = ["clear", `dir=${directoryOf(id)}`, `id=${id}`, `mountpoint=${mountpoint}`];
    execFile(program(), words, { cwd: "/", env: {}, timeout: 30_000 }, () => resolve());
  });

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

const connect = (id: string, mountpoint: string): Spfs => {
  const directory = directoryOf(id);
  const socket = join(directory, "control");
  let seq = 0;

  const tell = async (
    what: string,
    type: number,
    { flags = 0, fds = [] as number[], onStart = (): void => {}, onAnswer = (_: Message): void => {} } = {},
  ): Promise<Message | undefined> => {
    for (let tries = 0; tries < RETRIES; tries++) {
      onStart();
      let answer: Message | undefined;
      try {
        answer = await ask(socket, encodeCommand(type, ++seq, flags), fds, onAnswer);
      } catch (error) {
        if (type === TYPE.STOP) {
          await clear(id, mountpoint);
          if (!existsSync(directory)) return undefined;
        }
        throw failure(id, `cannot ${what}`, reason(error));
      }
      if (answer !== undefined) {
        if (answer.err !== 0) throw failure(id, `cannot ${what}`, getSystemErrorName(-answer.err));
        return answer;
      }
      if (type === TYPE.STOP && !existsSync(directory)) return undefined;
      await pause(20);
    }
    throw failure(id, `cannot ${what}`, "its worker dies each time");
  };

  return {
    id,
    mountpoint,
    async stub() {
      await tell("stub", TYPE.STUB);
    },
    async own(owning) {
      await tell("own", TYPE.OWN, { flags: ownFlags(owning) });
    },
    async keep() {
      await tell("keep", TYPE.KEEP);
    },
    async kept() {
      await tell("tell", TYPE.KEPT);
    },
    async proxy(backend, { gone, sameInodes = false, passthrough = true }) {
      let differs: ProxyReport["differs"] = [];
      const result = await tell("proxy", TYPE.PROXY, {
        flags:
          (gone === "stub" ? PROXY.GONE_WAITS : 0) |
          (sameInodes ? PROXY.SAME_INODES : 0) |
          (passthrough ? 0 : PROXY.NO_PASSTHROUGH),
        fds: [backend],
        onStart: () => {
          differs = [];
        },
        onAnswer: (m) => {
          const what = DIFFERS[m.args[0]!];
          if (m.type === TYPE.DIFFERS && what !== undefined) differs.push({ path: m.data, what });
        },
      });
      return { reopened: result!.args[0]!, differs };
    },
    async status() {
      const [phase, blocked, open, nodes, passthrough, pid, restarts, holder] = (await tell("ask", TYPE.STATUS))!.args;
      return {
        phase: PHASE[phase!]!,
        blocked: blocked!,
        open: open!,
        nodes: nodes!,
        passthrough: passthrough === 1,
        pid: pid!,
        restarts: restarts!,
        holder: holder!,
      };
    },
    async stop() {
      await tell("stop", TYPE.STOP);
    },
  };
};

/** The words that the program is started with. */
const optionWords = (options: SpfsOptions, directory: string): string[] => [
  "serve",
  `dir=${directory}`,
  `id=${options.id}`,
  `mountpoint=${options.mountpoint}`,
  `timeout=${options.timeoutMs}`,
  `read-only=${options.readOnly ? 1 : 0}`,
  `passthrough=${options.passthrough === "auto" ? 1 : 0}`,
  `stub-on-loss=${options.onLoss === "stub" ? 1 : 0}`,
  `loss-after=${options.lossAfterMs ?? 10_000}`,
  ...(options.own === undefined ? [] : [`owner=${process.pid}`, `own=${ownFlags(options.own)}`]),
  ...(options.keeper ?? []).map((word) => `command=${word}`),
];

const start = (words: string[], record: Buffer): Promise<string | undefined> =>
  new Promise((resolve) => {
    const child = execFile(program(), words, { cwd: "/", env: {}, timeout: 30_000 }, (error, _, stderr) => {
      if (error === null) return resolve(undefined);
      const [, number, what] = /^(\d+)\t(.*)/.exec(stderr) ?? [];
      resolve(number === undefined ? reason(error) : `${what}: ${getSystemErrorName(-Number(number))}`);
    });
    child.stdin!.on("error", () => {});
    child.stdin!.end(record);
  });

/** Mounts a file system in RESTORE, with what the checkpoint recorded. Throws ERR_SPFS; then nothing of it is left. */
export const startSpfs = async (options: SpfsOptions, nodes: Iterable<RecordedNode>): Promise<Spfs> => {
  const { id } = options;
  if (!ID.test(id)) throw failure(id, "cannot start", "that is no name for one");
  let why: string | undefined;
  try {
    mkdirSync(root(), { recursive: true, mode: 0o700 });
    // It makes its directory itself: whoever is killed, there is none without a process that takes it away.
    why = await start(optionWords(options, directoryOf(id)), encodeRecord(nodes));
  } catch (error) {
    why = reason(error);
  }
  if (why === undefined) return connect(id, options.mountpoint);
  throw failure(id, "cannot start", why);
};

/** A file system by its id. Throws ERR_SPFS when there is none. Of one whose processes were both killed only stop() works. */
export const openSpfs = async (id: string): Promise<Spfs> => {
  if (!ID.test(id)) throw failure(id, "cannot open", "that is no name for one");
  let mountpoint: string;
  try {
    mountpoint = readFileSync(join(directoryOf(id), "mountpoint"), "utf8");
  } catch (error) {
    throw failure(id, "cannot open", reason(error));
  }
  return connect(id, mountpoint);
};

/** The ids of the file systems that run, or whose both processes were killed at once. */
export const listSpfs = (): string[] => {
  try {
    return readdirSync(root()).filter((id) => ID.test(id) && lstatSync(directoryOf(id)).isDirectory());
  } catch {
    return [];
  }
};
