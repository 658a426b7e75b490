// SPDX-License-Identifier: Apache-2.0
import { readdirSync, statSync } from "node:fs";
import { resolve } from "node:path";
import {
  artefact,
  closeFd,
  isAgain,
  peerPid,
  receiveMessage,
  seqpacketPair,
  watchReadable,
} from "../../native/index.js";
import type { PlacedFd } from "./plan.js";
import { DEFAULT_LIBDIR, pluginDir } from "./plugin-dir.js";

/** The engine's end of the control socket, and the environment by which the engine plugin finds it. */
export interface EngineLink {
  /** Our end of the control socket. */
  control: number;
  env: Record<string, string>;
  /** To be given to the engine with the plan. */
  fd: PlacedFd;
  /** The process that becomes the engine. */
  pid: number;
}

/** From here on the launcher parks what it receives (LAUNCH_FD_FLOOR). */
const FD_FLOOR = 200;

/** The first number at or above 100 that a process has no descriptor at: below live the caller's, above CRIU's own. */
const freeNumber = (pid: number): number => {
  const used = new Set(readdirSync(`/proc/${pid}/fd`).map(Number));
  let number = 100;
  while (used.has(number)) number++;
  if (number >= FD_FLOOR)
    throw new Error(`the caller hands down ${used.size} descriptors, none free below ${FD_FLOOR}`);
  return number;
};

/**
 * Where the caller keeps CRIU's plugins: `named` by --libdir, else by CRIU_LIBS_DIR, else CRIU's own directory. CRIU
 * reads it from its working directory. Undefined when it is named and not there: CRIU then fails, and shall say so.
 */
export const libdirOf = (named: string | undefined, workDir: string): string | undefined => {
  const dir = named ?? process.env.CRIU_LIBS_DIR;
  if (dir === undefined) return DEFAULT_LIBDIR;
  const path = resolve(workDir, dir);
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ? path : undefined;
};

/** Prepares what connects the engine plugin with this session. `libdir` is where the caller keeps CRIU's plugins. */
export const linkEngine = (launchFd: number, libdir: string): EngineLink => {
  const pid = peerPid(launchFd);
  const dir = pluginDir(artefact("engine-plugin.so"), libdir);
  const target = freeNumber(pid);
  const [control, engineEnd] = seqpacketPair();
  return {
    control,
    env: { CRIU_LIBS_DIR: dir, CRYOSHIM_CONTROL_FD: String(target) },
    fd: { fd: engineEnd, target },
    pid,
  };
};

/**
 * Waits until the launcher has become the engine, or has died on the way: either closes its end of the launch socket.
 */
export const launched = (launchFd: number): Promise<void> =>
  new Promise((resolve) => {
    const stop = watchReadable(launchFd, () => {
      try {
        if (receiveMessage(launchFd) !== undefined) return;
      } catch (error) {
        if (isAgain(error)) return;
      }
      stop();
      closeFd(launchFd);
      resolve();
    });
  });

/** Resolves when a process has ended. */
export const ended = (pidfd: number): Promise<void> =>
  new Promise((resolve) => {
    const stop = watchReadable(pidfd, () => {
      stop();
      closeFd(pidfd);
      resolve();
    });
  });
