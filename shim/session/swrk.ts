// SPDX-License-Identifier: Apache-2.0
// The session of `criu swrk FD`: requests of runc, crun, podman and every other user of libcriu or go-criu pass
// through here on their way to the engine, answers and notifications on their way back.
import { readlinkSync } from "node:fs";
import { decode, encode } from "../../crit/message.js";
import { criuReq, criuResp } from "../../crit/schema/rpc.js";
import {
  closeFd,
  isAgain,
  peekMessage,
  peerPid,
  pidfdOpen,
  type SocketMessage,
  sendMessage,
  seqpacketPair,
} from "../../native/index.js";
import { type CarrierSource, carrierSource, prepareCarriers, type WorkKind } from "../carriers/registry.js";
import { needsLinkRemap } from "../carriers/remote-mounts.js";
import { type Asked, type Control, serveControl } from "../control/server.js";
import { resolveLaunch, type Settings } from "../engine/launch-file.js";
import { reason } from "../error.js";
import { type Annotations, annotationsOf, applyAnnotations } from "./annotations.js";
import { type Bracket, LOCK_METHOD, type LockMethod, openBracket, type Work } from "./bracket.js";
import { applyCgroupPolicy } from "./cgroup-policy.js";
import { type Container, containerOfRuntime } from "./container.js";
import { ended, launched, libdirOf, linkEngine } from "./engine-link.js";
import { type Freezer, watchFreezer } from "./freezer.js";
import { type Guard, SESSION } from "./guard.js";
import { pathForDump } from "./helpers.js";
import { type Log, sessionLog } from "./log.js";
import { leavesNetworkOut, setUpLoopback } from "./loopback.js";
import type { Start } from "./main.js";
import { relay } from "./relay.js";
import { type Borrowed, borrow, givenMounts, REQ, type RequestOptions } from "./request.js";

/** A number at which this process never has a descriptor. */
const NO_FD = 0x7ffffff0;

/** A request as decoded; fields that this version does not know stay inside. */
interface Request {
  type: number;
  opts?: RequestOptions;
  notify_success?: boolean;
}

/** A response as decoded. */
interface Response {
  type: number;
  success: boolean;
  notify?: { script?: string; pid?: number };
}

const decodeRequest = (data: Buffer): Request => decode(criuReq, data) as unknown as Request;
const encodeRequest = (request: Request): Buffer =>
  Buffer.from(encode(criuReq, request as unknown as Parameters<typeof encode>[1]));

const encodeResponse = (response: Response): Buffer =>
  Buffer.from(encode(criuResp, response as unknown as Parameters<typeof encode>[1]));

/** The first request, left in the socket; undefined when the engine's own answer to it is the right one. */
const firstRequest = (client: number): Request | undefined => {
  try {
    const message = peekMessage(client);
    if (message === undefined) return undefined;
    const request = decodeRequest(message.data);
    // Without a pid CRIU dumps whoever is at the other end of its socket, which must then be the client itself.
    const needsPid = request.type === REQ.dump || request.type === REQ.preDump || request.type === REQ.singlePreDump;
    return request.opts === undefined || (needsPid && !request.opts.pid) ? undefined : request;
  } catch (error) {
    if (isAgain(error)) throw error;
    return undefined;
  }
};

/** A path for a directory that is open here under a number. */
const pathOf = (fd: number | undefined): string =>
  fd === undefined ? "/nonexistent" : readlinkSync(`/proc/self/fd/${fd}`);

/** What a session has found out about the request it serves. */
interface Session {
  clientPid: number;
  engine: string;
  /** The host's configuration, with what the container wishes. */
  settings: Settings;
  container: Container | undefined;
  annotations: Annotations;
  log: Log;
  borrowed: Borrowed[];
  carriers: CarrierSource;
  /** The newest request, for the engine plugin. */
  asked: Asked;
  guard: Guard;
  /** What the engine works on: its end now is a death. */
  working: "dump" | "restore" | undefined;
  enginePid: number;
  bracket: Bracket | undefined;
  control: Control | undefined;
  /** The root task of a restore. */
  root: number | undefined;
  /** What the launcher has locked for a restore. */
  links: number[];
  /** The network of what is restored is left to the client. */
  bareNetwork: boolean;
  /** The client has not asked for notifications: those that we need ourselves end here. */
  ownNotifications: boolean;
  /** The notification that waits for its answer. */
  notified: string | undefined;
}

/** A path of the network namespace that a restore is told to use. */
const netnsOf = ({ inherit_fd, join_ns }: RequestOptions, enginePid: number): string | undefined => {
  // The key is runc's and crun's; CRIU knows it from `external net[INODE]:KEY` of the dump.
  const inherited = inherit_fd?.find(({ key }) => key === "extRootNetNS");
  if (inherited !== undefined) return `/proc/${enginePid}/fd/${inherited.fd}`;
  return join_ns?.find(({ ns }) => ns === "net")?.ns_file;
};

const kindOf = ({ type }: Request): WorkKind =>
  type === REQ.restore ? "restore" : type === REQ.dump ? "dump" : "pre-dump";

/** What the engine plugin will be told of a request. */
const askedBy = (
  carriers: CarrierSource,
  annotations: Annotations,
  request: Request,
  images: number | undefined,
): Asked => {
  const [kind, imagesDir] = [kindOf(request), pathOf(images)];
  const { pid, external = [], ext_mnt = [], leave_running, leave_stopped, tcp_established } = request.opts ?? {};
  const root = kind === "restore" ? undefined : pid;
  const given = givenMounts(external, ext_mnt);
  const lives = leave_running === true || leave_stopped === true;
  const established = tcp_established === true;
  return { carriers: carriers(kind, imagesDir), annotations, imagesDir, root, lives, established, given };
};

/** Opens the bracket for a request, and tells the engine what is left to it. */
const openWork = (session: Session, request: Request, { images }: Borrowed, freezer: Freezer | undefined): void => {
  const opts = request.opts!;
  session.bracket?.close();
  session.bracket = undefined;
  const kind = kindOf(request);
  const restore = kind === "restore";
  const work: Work = {
    kind,
    imagesDir: pathOf(images),
    lives: opts.leave_running === true || opts.leave_stopped === true,
    freezer,
    asked: LOCK_METHODS.find((method) => LOCK_METHOD[method] === opts.network_lock),
  };
  if (!restore && opts.pid !== undefined) work.pid = opts.pid;
  if (restore) {
    work.netns = netnsOf(opts, session.enginePid);
    work.early = session.links;
    session.bareNetwork = leavesNetworkOut(opts.empty_ns, work.netns);
  }
  const bracket = openBracket(work, session.settings.network.lock, session.engine, session.log, session.guard);
  session.bracket = bracket;
  setImmediate(() => bracket.requested());
  const asked = askedBy(session.carriers, session.annotations, request, images);
  session.asked = asked;
  const { root } = asked;
  // While the engine reads its request.
  if (kind === "dump" && root !== undefined)
    setImmediate(() => void prepareCarriers(asked.carriers, root, session.log));
  // NFS keeps an open file whose name is gone under another one: CRIU takes it with a link (criu/files-reg.c).
  if (kind === "dump" && root !== undefined && needsLinkRemap(root)) opts.link_remap = true;
  if (bracket.method !== undefined) opts.network_lock = LOCK_METHOD[bracket.method];
  session.ownNotifications = restore && !opts.notify_scripts && !opts.orphan_pts_master;
  if (session.ownNotifications) opts.notify_scripts = true;
};

const LOCK_METHODS = Object.keys(LOCK_METHOD) as LockMethod[];

/** Makes a client's request one that the engine understands as if the client itself had sent it. */
const prepare = (session: Session, request: Request): void => {
  const { opts } = request;
  if (opts === undefined || request.type === REQ.notify) return;
  const borrowed = borrow(session.clientPid, opts);
  session.borrowed.push(borrowed);
  const freezer = opts.freeze_cgroup ? watchFreezer(opts.freeze_cgroup) : undefined;
  session.working = request.type === REQ.restore ? "restore" : "dump";
  session.guard.arm(session.working, pathOf(borrowed.work), freezer === undefined ? [] : [freezer]);
  openWork(session, request, borrowed, freezer);
  if (request.type === REQ.restore)
    applyCgroupPolicy(session.settings, session.clientPid, request.opts as never, borrowed.images, session.log);
};

const fromClient =
  (session: Session) =>
  ({ data }: SocketMessage): Buffer => {
    let request: Request;
    try {
      request = decodeRequest(data);
    } catch {
      // CRIU answers what cannot be read, in its own words.
      return data;
    }
    if (request.type === REQ.notify) acknowledge(session, request);
    if (request.type === REQ.notify || request.opts === undefined) return data;
    try {
      prepare(session, request);
    } catch (error) {
      // Never let the engine take our descriptor of that number for the client's: it shall find none, and say so.
      session.log("Error", `cannot prepare the request: ${(error as Error).message}`);
      request.opts.images_dir_fd = NO_FD;
    }
    return encodeRequest(request);
  };

/** What is to be done once a notification has been answered. */
const acknowledge = (session: Session, { notify_success }: Request): void => {
  if (session.notified === "post-restore" && notify_success) session.bracket?.socketsAreBack();
  session.notified = undefined;
};

/** Does what is left of a dump that has succeeded. Returns false where it has not, after all. */
const completed = ({ control, log }: Session, { success }: Response): boolean => {
  try {
    if (success) control?.complete();
    return true;
  } catch (error) {
    log("Error", `the dump is not complete: ${reason(error)}`);
    return false;
  }
};

/** Returns false where the restore is to fail. */
const tellCarriers = ({ control, log, root }: Session, script: string | undefined): boolean => {
  if (root === undefined) return true;
  try {
    if (script === "post-setup-namespaces") control?.namespaces(root);
    if (script === "post-restore") control?.opened(root);
    return true;
  } catch (error) {
    log("Error", `${script}: ${reason(error)}`);
    return false;
  }
};

const fromEngine =
  (session: Session, engine: number) =>
  ({ data, fds }: SocketMessage): Buffer | undefined => {
    let response: Response;
    try {
      response = decode(criuResp, data) as unknown as Response;
    } catch {
      // Not ours to judge.
      return data;
    }
    const { type, notify } = response;
    if (type !== REQ.notify) {
      session.working = undefined;
      session.bracket?.answered();
      const answer = completed(session, response) ? data : encodeResponse({ ...response, success: false });
      return fds.length === 0 && session.guard.answer(answer) ? undefined : answer;
    }
    session.notified = notify?.script;
    if (notify?.script === "setup-namespaces" && notify.pid) {
      session.bracket?.namespaces(notify.pid);
      if (session.bareNetwork) setUpLoopback(notify.pid, session.log);
    }
    // CRIU does not say it again each time.
    if (notify?.pid) session.root = notify.pid;
    if (!tellCarriers(session, notify?.script)) {
      // The engine ends what it has begun, and tells the client.
      sendMessage(engine, encodeRequest({ type: REQ.notify, notify_success: false }));
      return undefined;
    }
    if (!session.ownNotifications) return data;
    const answer: Request = { type: REQ.notify, notify_success: true };
    acknowledge(session, answer);
    try {
      sendMessage(engine, encodeRequest(answer));
    } catch {
      // It has just died, which is told by its own end.
    }
    return undefined;
  };

/** Serves one connection from its first request to the engine's end. */
export const serveRequests = async ({ launchFd, guard, argv, give, links }: Start, client: number): Promise<void> => {
  const first = firstRequest(client);
  const clientPid = peerPid(client);
  if (first === undefined || clientPid <= 0) return give({ kind: "alone" });
  const { engine, settings: configured } = await resolveLaunch(process.env);
  // The directories, once for the log and the carriers; each request opens its own when it is passed on.
  let dirs: Borrowed;
  try {
    dirs = borrow(clientPid, { ...first.opts });
  } catch {
    return give({ kind: "alone" });
  }
  const libdir = libdirOf(undefined, pathOf(dirs.work));
  if (libdir === undefined) {
    dirs.close();
    return give({ kind: "alone" });
  }
  const container = containerOfRuntime(clientPid, kindOf(first) === "restore" ? undefined : first.opts?.pid);
  let wishes: ReturnType<typeof annotationsOf>;
  try {
    wishes = annotationsOf(container);
  } catch (error) {
    // Not every runtime shows what its criu says.
    sessionLog(pathOf(dirs.work))("Error", reason(error));
    dirs.close();
    return give({ kind: "exit", code: 1, message: `cryoshim: ${reason(error)}` });
  }
  const { annotations, wrong } = wishes;
  const settings = applyAnnotations(configured, annotations);
  const log = sessionLog(pathOf(dirs.work), annotations.logLevel);
  for (const each of wrong) log("Warn ", `${each}: ignored`);
  const carriers = await carrierSource(settings);
  const asked = askedBy(carriers, annotations, first, dirs.images);
  // What cannot be restored is told before the engine starts.
  if (kindOf(first) === "restore") await asked.carriers();
  const link = linkEngine(launchFd, libdir);
  const session: Session = {
    clientPid,
    engine,
    settings,
    container,
    annotations,
    log,
    borrowed: [dirs],
    carriers,
    asked,
    guard,
    working: undefined,
    enginePid: link.pid,
    bracket: undefined,
    control: undefined,
    root: undefined,
    links,
    bareNetwork: false,
    ownNotifications: false,
    notified: undefined,
  };
  const [ours, engines] = seqpacketPair();
  const engineEnd = ended(pidfdOpen(link.pid));
  const control = serveControl(link.control, {
    asked: () => session.asked,
    log,
    undoer: guard,
    onBegin: () => session.bracket?.begin(),
    onSeized: (pid) => session.bracket?.seized(pid),
    onRestored: (pid) => guard.made(pid),
    onFinished: (_, ok) => session.bracket?.finished(ok),
    onUnfit: () => process.kill(link.pid, "SIGKILL"),
    cutOff: (flow) => session.bracket?.cutOff(flow),
  });
  session.control = control;
  give({
    kind: "exec",
    engine,
    env: {
      ...link.env,
      ...(first.type === REQ.dump && { PATH: pathForDump() }),
      [SESSION]: guard.session,
    },
    fds: [{ fd: engines, target: Number(argv[2]) }, link.fd],
  });
  closeFd(engines);
  closeFd(link.fd.fd);
  await launched(launchFd);

  const clientIsGone = await new Promise<boolean>((resolve) => {
    const end = (gone: boolean): void => {
      toEngine.stop();
      toClient.stop();
      // The engine learns of its client's end as it would have, by the end of its socket.
      closeFd(ours);
      resolve(gone);
    };
    // Each ends at the end of either: what the client says to an engine that has just died is no end of the client's.
    const toEngine = relay(client, ours, fromClient(session), (gone) => end(gone === "sender"));
    const toClient = relay(ours, client, fromEngine(session, ours), (gone) => end(gone === "receiver"));
    // A child that outlives the engine holds its end of the socket open: the engine's own end counts.
    void engineEnd.then(() => {
      toClient.drain();
      if (toClient.relaying) end(false);
    });
  });
  // What a dying engine left is settled before the client sees the end of its socket: it may tidy up at once.
  await engineEnd;
  await control.close();
  // A restore may still have succeeded after its client has gone; what then becomes of it is as with CRIU alone.
  if (session.working === "restore" && clientIsGone) guard.answer(Buffer.alloc(0));
  else if (session.working !== undefined) await guard.fail();
  session.bracket?.close();
  for (const held of session.borrowed) held.close();
  guard.close();
  closeFd(client);
};
