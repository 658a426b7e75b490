// SPDX-License-Identifier: Apache-2.0
// The session of `criu dump|pre-dump|restore ...`: CRIU keeps its command line, its output and its exit code.
import { resolve } from "node:path";
import { closeFd, pidfdOpen } from "../../native/index.js";
import { carriersFor } from "../carriers/registry.js";
import { serveControl } from "../control/server.js";
import { resolveLaunch } from "../engine/launch-file.js";
import { type CommandLine, last, parseCommandLine } from "./command-line.js";
import { ended, launched, libdirOf, linkEngine } from "./engine-link.js";
import { watchFreezer } from "./freezer.js";
import { SESSION } from "./guard.js";
import { sessionLog } from "./log.js";
import type { Start } from "./main.js";

const SESSION_VERBS = ["dump", "pre-dump", "restore"];

/** argv without --libdir: CRIU would prefer it to CRIU_LIBS_DIR, and the merged directory already has its plugins. */
const withoutLibdir = (argv: readonly string[], line: CommandLine): string[] =>
  argv.filter((_, i) => !line.libdirAt.includes(i));

/** Serves one command line from plan to the engine's end. */
export const serveCommandLine = async ({ launchFd, guard, argv, give }: Start): Promise<void> => {
  const line = parseCommandLine(argv);
  if (line?.verb === undefined || !SESSION_VERBS.includes(line.verb)) return give({ kind: "alone" });
  const { engine, settings } = await resolveLaunch(process.env);
  const workDir = resolve(last(line, "work-dir") ?? last(line, "images-dir") ?? ".");
  const log = sessionLog(workDir);
  const libdir = libdirOf(last(line, "libdir"), workDir);
  if (libdir === undefined) return give({ kind: "alone" });
  const carriers = await carriersFor(settings);
  const link = linkEngine(launchFd, libdir);
  const cgroup = last(line, "freeze-cgroup");
  const freezer = cgroup === undefined ? undefined : watchFreezer(cgroup);
  const engineEnd = ended(pidfdOpen(link.pid));
  const control = serveControl(link.control, {
    carriers,
    imagesDir: last(line, "images-dir") ?? ".",
    log,
    onFinished: () => guard.answer(Buffer.alloc(0)),
  });
  give({
    kind: "exec",
    engine,
    env: { ...link.env, [SESSION]: guard.session },
    argv: withoutLibdir(argv, line),
    fds: [link.fd],
  });
  closeFd(link.fd.fd);
  await launched(launchFd);
  guard.arm(line.verb === "restore" ? "watch" : "dump", workDir, freezer === undefined ? [] : [freezer]);
  await engineEnd;
  await control.close();
  if (control.state === "working") await guard.fail();
  else guard.answer(Buffer.alloc(0));
  guard.close();
};
