// SPDX-License-Identifier: Apache-2.0
// The session of `criu dump|pre-dump|restore ...`: CRIU keeps its command line, its output and its exit code.
import { resolve } from "node:path";
import { closeFd, peerPid, pidfdOpen } from "../../native/index.js";
import { carrierSource, prepareCarriers } from "../carriers/registry.js";
import { needsLinkRemap } from "../carriers/remote-mounts.js";
import { type Control, serveControl } from "../control/server.js";
import { resolveLaunch } from "../engine/launch-file.js";
import { reason } from "../error.js";
import { annotationsOf, applyAnnotations } from "./annotations.js";
import { type Bracket, openBracket, type Work } from "./bracket.js";
import { type CommandLine, last, parseCommandLine, rewrite } from "./command-line.js";
import { containerOfCommand } from "./container.js";
import { ended, launched, libdirOf, linkEngine } from "./engine-link.js";
import { type Freezer, watchFreezer } from "./freezer.js";
import { SESSION } from "./guard.js";
import { pathForDump } from "./helpers.js";
import { sessionLog } from "./log.js";
import type { Start } from "./main.js";
import { listen } from "./notifications.js";
import { givenMounts } from "./request.js";

const SESSION_VERBS = ["dump", "pre-dump", "restore"];

/** A descriptor, or a file, of the network namespace that a restore is told to use. */
const netnsOf = (line: CommandLine, enginePid: number): string | undefined => {
  for (const value of line.options.get("inherit-fd") ?? []) {
    const fd = /^fd\[(\d+)\]:extRootNetNS$/.exec(value)?.[1];
    if (fd !== undefined) return `/proc/${enginePid}/fd/${fd}`;
  }
  return line.options
    .get("join-ns")
    ?.find((value) => value.startsWith("net:"))
    ?.slice(4);
};

/** What the bracket must know of a command line. */
const workOf = (line: CommandLine, enginePid: number, imagesDir: string, freezer: Freezer | undefined): Work => {
  const pid = Number(last(line, "tree"));
  const kind = line.verb as Work["kind"];
  const work: Work = {
    kind,
    imagesDir,
    lives: line.options.has("leave-running") || line.options.has("leave-stopped"),
    freezer,
    asked: last(line, "network-lock") as Work["asked"],
  };
  if (kind === "restore") work.netns = netnsOf(line, enginePid);
  else if (Number.isSafeInteger(pid) && pid > 0) work.pid = pid;
  return work;
};

/** The mounts that CRIU is told of; "auto" names none. */
const mountsGiven = ({ options }: CommandLine): Map<string, string> =>
  givenMounts(
    options.get("external") ?? [],
    (options.get("ext-mount-map") ?? []).flatMap((text) => {
      const at = text.indexOf(":");
      return at < 0 ? [] : [{ key: text.slice(0, at), val: text.slice(at + 1) }];
    }),
  );

/** Serves one command line from plan to the engine's end. */
export const serveCommandLine = async ({ launchFd, guard, argv, give }: Start): Promise<void> => {
  const line = parseCommandLine(argv);
  if (line?.verb === undefined || !SESSION_VERBS.includes(line.verb)) return give({ kind: "alone" });
  const { engine, settings: configured } = await resolveLaunch(process.env);
  const imagesDir = resolve(last(line, "images-dir") ?? ".");
  const workDir = resolve(last(line, "work-dir") ?? imagesDir);
  const kind = line.verb as Work["kind"];
  const tree = kind === "restore" ? undefined : Number(last(line, "tree"));
  let wishes: ReturnType<typeof annotationsOf>;
  try {
    wishes = annotationsOf(containerOfCommand(peerPid(launchFd), tree, process.env));
  } catch (error) {
    sessionLog(workDir)("Error", reason(error));
    return give({ kind: "exit", code: 1, message: `cryoshim: ${reason(error)}` });
  }
  const { annotations, wrong } = wishes;
  const settings = applyAnnotations(configured, annotations);
  const log = sessionLog(workDir, annotations.logLevel);
  const libdir = libdirOf(last(line, "libdir"), workDir);
  if (libdir === undefined) return give({ kind: "alone" });
  for (const each of wrong) log("Warn ", `${each}: ignored`);
  const carriers = (await carrierSource(settings))(kind, imagesDir);
  const asksOfNamespaces =
    kind === "restore" && (await carriers()).some(({ namespaces, opened }) => (namespaces ?? opened) !== undefined);
  const link = linkEngine(launchFd, libdir);
  const cgroup = last(line, "freeze-cgroup");
  const freezer = cgroup === undefined ? undefined : watchFreezer(cgroup);
  const engineEnd = ended(pidfdOpen(link.pid));
  const work = workOf(line, link.pid, imagesDir, freezer);
  let bracket: Bracket;
  try {
    bracket = openBracket(work, settings.network.lock, engine, log, guard);
  } catch (error) {
    return give({ kind: "exit", code: 1, message: `cryoshim: cannot ${line.verb}: ${reason(error)}` });
  }
  const notifications =
    line.verb === "restore" && (bracket.locks || asksOfNamespaces)
      ? await listen(guard.session, (action, pid) => {
          if (action === "setup-namespaces" && pid > 0) bracket.namespaces(pid);
          try {
            if (action === "post-setup-namespaces" && pid > 0) control.namespaces(pid);
            if (action === "post-restore" && pid > 0) control.opened(pid);
          } catch (error) {
            log("Error", `${action}: ${reason(error)}`);
            throw error;
          }
          if (action === "post-restore") bracket.socketsAreBack();
        })
      : undefined;
  const given = mountsGiven(line);
  // Before the engine begins its work, and when it is the engine.
  let armed = false;
  const arm = (): void => {
    if (armed) return;
    armed = true;
    guard.arm(line.verb === "restore" ? "restore" : "dump", workDir, freezer === undefined ? [] : [freezer]);
  };
  const control: Control = serveControl(link.control, {
    asked: () => ({
      carriers,
      annotations,
      imagesDir,
      root: work.pid,
      lives: work.lives === true,
      established: line.options.has("tcp-established"),
      given,
    }),
    log,
    undoer: guard,
    onBegin: () => {
      arm();
      bracket.begin();
    },
    onSeized: (pid) => bracket.seized(pid),
    onRestored: (pid) => guard.made(pid),
    onFinished: (_, ok) => {
      bracket.finished(ok);
      // Nothing tells the caller later than CRIU's own end.
      bracket.imagesAreWritten();
      guard.answer(Buffer.alloc(0));
    },
    onEnd: () => bracket.answered(),
    onUnfit: () => process.kill(link.pid, "SIGKILL"),
    cutOff: (flow) => bracket.cutOff(flow),
  });
  const more = notifications === undefined ? [] : ["--action-script", notifications.script];
  // A restore takes it from the images.
  if (bracket.method !== undefined && line.verb !== "restore") more.push("--network-lock", bracket.method);
  if (line.verb === "dump" && work.pid !== undefined && needsLinkRemap(work.pid)) more.push("--link-remap");
  give({
    kind: "exec",
    engine,
    env: {
      ...link.env,
      ...notifications?.env,
      ...(line.verb === "dump" && { PATH: pathForDump() }),
      [SESSION]: guard.session,
    },
    // CRIU would prefer --libdir to CRIU_LIBS_DIR, and the merged directory already has its plugins.
    argv: rewrite(argv, line, ["libdir", ...(bracket.method === undefined ? [] : ["network-lock"])], more),
    fds: [link.fd],
  });
  closeFd(link.fd.fd);
  await launched(launchFd);
  arm();
  bracket.requested();
  if (work.kind === "dump" && work.pid !== undefined) await prepareCarriers(carriers, work.pid, log);
  await engineEnd;
  await control.close();
  if (control.state === "working") await guard.fail();
  else guard.answer(Buffer.alloc(0));
  bracket.close();
  notifications?.close();
  guard.close();
};
