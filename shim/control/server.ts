// SPDX-License-Identifier: Apache-2.0
// The shim's end of the control socket: the engine plugin asks, carriers answer.
import {
  closeFd,
  isAgain,
  receiveMessage,
  type SocketMessage,
  sendMessage,
  watchReadable,
} from "../../native/index.js";
import type { Carrier, CarrierContext, Rest } from "../carriers/carrier.js";
import { type Carriers, removeImages, writeNeeds } from "../carriers/registry.js";
import { reason } from "../error.js";
import type { Annotations } from "../session/annotations.js";
import type { Log } from "../session/log.js";
import { makeSearchable } from "../session/searchable.js";
import { type Found, findSpecial } from "../xray/find.js";
import { type Command, engineBy, type Undoer } from "./engine.js";
import {
  type ControlMessage,
  decodeControl,
  encodeControl,
  HOOK,
  KNOWN,
  type Known,
  LATER,
  NEEDED,
  STAGE,
  TYPE,
  VERSION,
} from "./wire.js";

const ENOTSUP = 95;

/** What the engine has been asked for. */
export interface Asked {
  carriers: Carriers;
  /** What the container asks for. */
  annotations: Annotations;
  imagesDir: string;
  /** The root of the tree that is dumped. */
  root?: number | undefined;
  /** After a dump the tasks live on. */
  lives: boolean;
  /** Connections of TCP are to be dumped, too. */
  established: boolean;
  /** The mounts that CRIU was told of: see CarrierContext. */
  given: ReadonlyMap<string, string>;
}

export interface ControlOptions {
  /** Asked each time that the engine begins: a connection may bring several requests. */
  asked: () => Asked;
  log: Log;
  undoer: Undoer & { mounting(path: string): void; record(fd: number): void };
  /** The engine begins: nothing is stopped yet. */
  onBegin?: (stage: Stage) => void;
  /** All tasks of a dump are stopped; `pid` is one of them. Throwing fails the dump. */
  onSeized?: (pid: number) => void;
  /** All tasks of a restore are there and stand before their first instruction; `pid` is their root. */
  onRestored?: (pid: number) => void;
  /** See CarrierContext. */
  cutOff?: CarrierContext["cutOff"];
  /** CRIU believes that a dump or restore is done, and it is not: the tasks must live, or must not. */
  onUnfit?: () => void;
  /** The engine tells how its work ended; the tasks are still stopped. */
  onFinished?: (stage: Stage, ok: boolean) => void;
  /** The engine is about to end after a dump of which something is left (`complete`): the tasks run. */
  onEnd?: () => void;
}

export interface Control {
  /** Whether the engine has begun its work, and has told how it ended: one that is gone while it works has died. */
  readonly state: "idle" | "working" | "finished";
  /** As Carrier's steps of these names; they throw what a carrier does. */
  namespaces(pid: number): void;
  opened(pid: number): void;
  /**
   * Does what is left of a dump when its tasks need not wait for it, before the caller is told of its success. Throws what carriers
   * do: then it has failed.
   */
  complete(): void;
  /** After the engine's end. */
  close(): Promise<void>;
}

type Question = Required<ControlMessage>;
type Answer = { ret: number; fd?: number };

type Stage = (typeof STAGE)[number];

/** Which hooks the carriers want: the engine stops for no other. */
const wantedHooks = (carriers: readonly Carrier[]): bigint => {
  const steps: [keyof Carrier, number][] = [
    ["checkpoint", HOOK.checkpointDevices],
    ["resume", HOOK.resumeDevicesLate],
    ["dumpFile", HOOK.dumpExtFile],
    ["restoreFile", HOOK.restoreExtFile],
    ["dumpMount", HOOK.dumpExtMount],
    ["restoreMount", HOOK.restoreExtMount],
  ];
  let bits = 0n;
  for (const [step, hook] of steps) if (carriers.some((carrier) => carrier[step])) bits |= 1n << BigInt(hook);
  return bits;
};

/** Whether tasks have threads of the kernel's own, which CRIU must not see. */
const hidesThreads = (carriers: readonly Carrier[]): bigint =>
  carriers.some((carrier) => carrier.hasKernelThreads?.()) ? 1n : 0n;

/** Without it the engine may still manage. */
const searchable = (imagesDir: string, log: Log): void => {
  try {
    makeSearchable(imagesDir);
  } catch (error) {
    log("Warn ", `cannot make the images' directory searchable: ${reason(error)}`);
  }
};

/** Asks the carriers one after the other; the first that claims an object has it. */
const claim = async (
  ask: (carrier: Carrier) => Promise<boolean> | undefined,
  all: readonly Carrier[],
): Promise<Answer> => {
  for (const carrier of all) if (await ask(carrier)) return { ret: 0 };
  return { ret: -ENOTSUP };
};

const answerHook = async (
  q: Question,
  fds: number[],
  all: readonly Carrier[],
  ctx: CarrierContext,
): Promise<Answer> => {
  const text = q.data.toString();
  switch (q.hook) {
    case HOOK.checkpointDevices:
      for (const carrier of all) await carrier.checkpoint?.(q.pid, ctx);
      return { ret: 0 };
    case HOOK.resumeDevicesLate:
      for (const carrier of all) await carrier.resume?.(q.pid, ctx);
      return { ret: 0 };
    case HOOK.dumpExtFile:
      return claim((carrier) => carrier.dumpFile?.(fds[0] ?? -1, q.fd, ctx), all);
    case HOOK.knownFile: {
      const kind = (Object.keys(KNOWN) as Known[]).find((name) => BigInt(KNOWN[name]) === q.args[0])!;
      return claim((carrier) => carrier.dumpKnown?.(kind, fds[0] ?? -1, q.fd, ctx), all);
    }
    case HOOK.dumpExtMount:
      return claim((carrier) => carrier.dumpMount?.(text, q.fd, ctx), all);
    case HOOK.restoreExtMount:
      return claim((carrier) => carrier.restoreMount?.(text, q.fd, ctx), all);
    case HOOK.restoreExtFile:
      for (const carrier of all) {
        const fd = await carrier.restoreFile?.(q.fd, fds[0] ?? -1, ctx);
        if (fd !== undefined) return { ret: 0, fd };
      }
      return { ret: -ENOTSUP };
    case HOOK.bind:
      return claim((carrier) => carrier.bindSocket?.(text, q.fd, fds[0] ?? -1, ctx), all);
    case HOOK.connect:
      for (const carrier of all) {
        const fd = carrier.boundFile?.(text);
        if (fd !== undefined) return { ret: 0, fd };
      }
      return { ret: -ENOTSUP };
    default:
      return { ret: -ENOTSUP };
  }
};

/** Serves the control socket until the engine is gone. The descriptor becomes the server's. */
export const serveControl = (
  fd: number,
  { asked, log, undoer, onBegin, onSeized, onRestored, onFinished, onEnd, onUnfit, cutOff }: ControlOptions,
): Control => {
  const results = new Map<number, { resolve(m: Question & { fds: number[] }): void; reject(error: Error): void }>();
  let state: Control["state"] = "idle";
  let ended = false;
  let carriers: Carrier[] = [];
  let root: number | undefined;
  let lives = false;
  /** What is left of a dump. */
  let rest: Rest[] = [];
  /** Why it could not be done. */
  let incomplete: unknown;
  let seized = false;
  let seq = 0;

  const command: Command = async (m, fds = []) => {
    if (ended) throw new Error("the engine is gone");
    const number = ++seq;
    const result = new Promise<Question & { fds: number[] }>((resolve, reject) => {
      results.set(number, { resolve, reject });
    });
    sendMessage(fd, encodeControl({ ...m, seq: number }), fds);
    const r = await result;
    if (r.err === 0) return r;
    for (const received of r.fds) closeFd(received);
    throw Object.assign(new Error(`${r.data.toString()}: errno ${r.err} (task ${m.pid ?? 0})`), { errno: r.err });
  };
  const { annotations } = asked();
  const context: CarrierContext = {
    engine: engineBy(command, undoer),
    imagesDir: "",
    annotations,
    given: new Map(),
    established: false,
    cutOff: (flow) => cutOff?.(flow),
    mounting: (path) => undoer.mounting(path),
    log,
  };

  /** A request begins; what an earlier one of this connection has left is over. */
  const begin = async (): Promise<void> => {
    for (const carrier of carriers.splice(0)) await carrier.close?.();
    const request = asked();
    carriers = [...(await request.carriers())];
    context.imagesDir = request.imagesDir;
    context.annotations = request.annotations;
    context.given = request.given;
    context.established = request.established;
    root = request.root;
    lives = request.lives;
    rest = [];
    incomplete = undefined;
    seized = false;
  };

  const isNeeded = (): boolean => context.engine.swapped || carriers.some((carrier) => carrier.needed?.());

  /** A dump that cannot end well is refused before anything is stopped, and CRIU's log says why. */
  const admit = async (pid: number): Promise<void> => {
    try {
      for (const carrier of carriers) await carrier.admit?.(pid, context);
    } catch (error) {
      await context.engine.log(reason(error), "error");
      throw error;
    }
  };

  const done = (q: Question, answer: Answer, args: bigint[] = []): void => {
    if (ended) return;
    const flags = (isNeeded() ? NEEDED : 0) | (rest.length > 0 ? LATER : 0);
    try {
      sendMessage(
        fd,
        encodeControl({ type: TYPE.DONE, seq: q.seq, ret: answer.ret, flags, args }),
        answer.fd === undefined ? [] : [answer.fd],
      );
    } catch (error) {
      log("Warn ", `cannot answer the engine: ${reason(error)}`);
    }
    if (answer.fd !== undefined) closeFd(answer.fd);
  };

  /** CRIU believes that the dump is done, and it is not: it must not go on to end the tasks. */
  const unfit = (error: unknown): false => {
    log("Error", `the dump is not complete, the engine is stopped: ${reason(error)}`);
    onUnfit?.();
    return false;
  };

  const rollBack = async (): Promise<void> => {
    if (!context.engine.swapped) return;
    const failed = await context.engine.rollBack();
    if (failed > 0) log("Error", `${failed} swaps could not be undone: see CRIU's log`);
  };

  /** An engine of several requests answers, and then ends: whoever is told first does it, and both are told of a failure. */
  const complete = (): void => {
    try {
      for (const each of rest.splice(0)) each();
    } catch (error) {
      incomplete = error;
    }
    if (incomplete !== undefined) throw incomplete;
  };

  /** The same, for an engine that has run to its end with this exit code. */
  const end = (status: number): Answer => {
    onEnd?.();
    try {
      if (status === 0) complete();
      return { ret: 0 };
    } catch (error) {
      log("Error", `the dump is not complete: ${reason(error)}`);
      return { ret: -1 };
    }
  };

  /** Returns false when the engine must not go on. */
  const exit = async (q: Question): Promise<boolean> => {
    const ok = q.ret === 0;
    const stage = STAGE[q.hook];
    try {
      if (stage === "restore") {
        for (const carrier of carriers) await carrier.restored?.(ok, context);
        if (ok && context.engine.swapped) await context.engine.keep();
        return true;
      }
      for (const carrier of carriers) {
        const left = await carrier.dumped?.(ok, context);
        if (left !== undefined) rest.push(left);
      }
      if (carriers.some((carrier) => carrier.needed?.())) rest.push(() => writeNeeds(context.imagesDir, carriers));
      if (!ok || stage !== "dump") rest = [];
      if (!lives) complete();
    } catch (error) {
      rest = [];
      // The engine's end lets the tasks run.
      await rollBack().catch((again) => log("Error", `after a ${stage}: ${reason(again)}`));
      if (ok && stage === "dump") return unfit(error);
      log("Error", `after a ${stage}: ${reason(error)}`);
      return true;
    }
    await rollBack();
    return true;
  };

  /** What CRIU will refuse is found while all tasks stand still, and told to those who carry it. */
  const xray = async (pid: number): Promise<void> => {
    const asking = carriers.filter((carrier) => carrier.seized);
    if (asking.length === 0) return;
    let found: Found[];
    try {
      found = findSpecial(pid);
    } catch (error) {
      // Without it CRIU does what it can, and refuses the rest.
      log("Warn ", `no X-ray here: ${reason(error)}`);
      return;
    }
    for (const carrier of asking) await carrier.seized?.({ root: pid, found }, context);
  };

  const serve = async (q: Question, fds: number[]): Promise<void> => {
    try {
      if (q.type === TYPE.HELLO) {
        state = "working";
        for (const record of fds) undoer.record(record);
        await begin();
        if (STAGE[q.hook] === "dump") removeImages(context.imagesDir);
        if (STAGE[q.hook] === "dump" && root !== undefined) await admit(root);
        onBegin?.(STAGE[q.hook]!);
        const fits = q.args[0] === BigInt(VERSION);
        if (!fits)
          log("Error", `the engine plugin speaks version ${q.args[0]}, this shim ${VERSION}: reinstall cryoshim`);
        const asks = onSeized !== undefined || carriers.some((carrier) => carrier.seized);
        const once = (asks ? 1n << BigInt(HOOK.checkpointDevices) : 0n) | (1n << BigInt(HOOK.resumeDevicesLate));
        if (STAGE[q.hook] === "restore") searchable(context.imagesDir, log);
        if (fits && STAGE[q.hook] === "restore") for (const carrier of carriers) await carrier.restoring?.(context);
        done(q, { ret: 0 }, fits ? [wantedHooks(carriers), once, hidesThreads(carriers)] : [0n, 0n]);
      } else if (q.type === TYPE.END) done(q, end(q.ret));
      else if (q.type === TYPE.EXIT) {
        if (!(await exit(q))) return;
        state = "finished";
        onFinished?.(STAGE[q.hook]!, q.ret === 0);
        done(q, { ret: 0 });
      } else {
        if (q.hook === HOOK.resumeDevicesLate && !seized) {
          seized = true;
          onRestored?.(q.pid);
        }
        if (q.hook === HOOK.checkpointDevices && !seized) {
          seized = true;
          onSeized?.(q.pid);
          await xray(root ?? q.pid);
        }
        done(q, await answerHook(q, fds, carriers, context));
      }
    } catch (error) {
      log("Error", `hook ${q.hook} for task ${q.pid}: ${reason(error)}`);
      // CRIU does not look at what this one returns (criu/cr-restore.c), and would let the tasks run.
      if (q.type === TYPE.HOOK && q.hook === HOOK.resumeDevicesLate) onUnfit?.();
      else done(q, { ret: -1 });
    } finally {
      for (const lent of fds) closeFd(lent);
    }
  };

  const stop = watchReadable(fd, () => {
    let message: SocketMessage | undefined;
    try {
      message = receiveMessage(fd);
      if (message !== undefined) {
        const m = decodeControl(message.data);
        if (m.type !== TYPE.RESULT) {
          void serve(m, message.fds);
          return;
        }
        results.get(m.seq)?.resolve({ ...m, fds: message.fds });
        results.delete(m.seq);
        return;
      }
    } catch (error) {
      if (isAgain(error)) return;
      if ((error as { code?: string }).code !== "ECONNRESET") log("Error", `control socket: ${reason(error)}`);
    }
    stop();
    ended = true;
    for (const { reject } of results.values()) reject(new Error("the engine died"));
    results.clear();
  });

  return {
    get state() {
      return state;
    },
    namespaces(pid) {
      for (const carrier of carriers) carrier.namespaces?.(pid);
    },
    opened(pid) {
      for (const carrier of carriers) carrier.opened?.(pid);
    },
    complete,
    async close() {
      stop();
      ended = true;
      closeFd(fd);
      for (const carrier of carriers) await carrier.close?.();
    },
  };
};
