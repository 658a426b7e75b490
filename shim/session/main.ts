// SPDX-License-Identifier: Apache-2.0
// What the launcher starts for a dump, pre-dump or restore:
//   node shim.cjs LAUNCH_FD GUARD_FD SWRK_FD|-1 LINKS -- criu ARGS...
// One session: give the launcher a plan, then stand between client and engine until the engine is done.
import { closeFd, sendMessage } from "../../native/index.js";
import { reason } from "../error.js";
import { serveCommandLine } from "./cli-front.js";
import { type Guard, openGuard } from "./guard.js";
import { encodePlan, type Plan } from "./plan.js";
import { serveRequests } from "./swrk.js";

/** What every session starts from. */
export interface Start {
  launchFd: number;
  guard: Guard;
  /** The caller's command line, argv[0] included. */
  argv: string[];
  /** The links of a network lock that the launcher has attached for a restore. */
  links: number[];
  /** Sends the plan; the launcher then becomes the engine. */
  give(plan: Plan): void;
}

const [launchFd = Number.NaN, guardFd = Number.NaN, swrkFd = Number.NaN, links = 0] = process.argv
  .slice(2, 6)
  .map(Number);
const argv = process.argv.slice(7);
/** become_shim() of the launcher puts them there. */
const FIRST_LINK = 6;

let given = false;
const give = (plan: Plan): void => {
  if (given) return;
  const { data, fds } = encodePlan(plan);
  sendMessage(launchFd, data, fds);
  given = true;
};

/** Before the plan is given every failure ends in the engine alone: a container must not be worse off for our sake. */
const giveUp = (error: unknown): void => {
  try {
    give({ kind: "alone", why: reason(error) });
  } catch {
    // The launcher is gone; nobody is waiting.
  }
};

const session = async (): Promise<void> => {
  if (!Number.isInteger(launchFd) || !Number.isInteger(guardFd) || !Number.isInteger(swrkFd))
    throw new Error("the shim is started by the launcher");
  const start: Start = {
    launchFd,
    guard: openGuard(guardFd),
    argv,
    give,
    links: Array.from({ length: links }, (_, i) => FIRST_LINK + i),
  };
  if (swrkFd >= 0) await serveRequests(start, swrkFd);
  else await serveCommandLine(start);
};

process.on("uncaughtException", (error) => {
  if (process.env.CRYOSHIM_DEBUG !== undefined) process.stderr.write(`${error.stack}\n`);
  giveUp(error);
  process.exit(1);
});
// The caller's group may be interrupted; the engine decides what that means, and ends us by ending.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const) process.on(signal, () => {});

session().then(
  () => process.exit(0),
  (error) => {
    if (process.env.CRYOSHIM_DEBUG !== undefined) process.stderr.write(`${error?.stack ?? error}\n`);
    giveUp(error);
    closeFd(launchFd);
    process.exit(1);
  },
);
