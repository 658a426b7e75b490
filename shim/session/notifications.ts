// SPDX-License-Identifier: Apache-2.0
// A restore by command line sends no notifications. CRIU then runs action scripts: the launcher is one
// (native/launcher/launcher.c:notify_shim), which connects to the socket that is made here.
import { mkdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { artefact } from "../../native/index.js";
import { stateDir } from "./plugin-dir.js";

export interface Notifications {
  /** CRIU's --action-script. */
  script: string;
  /** For CRIU's environment. */
  env: Record<string, string>;
  close(): void;
}

/** The launcher under the name by which it is the action script. */
const notifier = (): string => {
  const dir = join(stateDir(), "bin");
  const path = join(dir, "cryoshim-notify");
  const target = artefact("criu");
  try {
    if (readlinkSync(path) === target) return path;
  } catch {
    // Not there yet.
  }
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const making = `${path}.${process.pid}`;
  symlinkSync(target, making);
  renameSync(making, path);
  return path;
};

/** Listens; `told` is done when it returns, and only then does CRIU go on. */
export const listen = (session: string, told: (action: string, pid: number) => void): Promise<Notifications> => {
  // Loaded for those few sessions alone.
  const { createServer } = createRequire(__filename)("node:net") as typeof import("node:net");
  const path = join(stateDir(), `notify.${session}`);
  const server = createServer((socket) => {
    socket.setEncoding("utf8");
    socket.once("data", (text: string) => {
      const [action = "", pid = "0"] = text.trim().split(" ");
      told(action, Number(pid));
      socket.end();
    });
    socket.on("error", () => socket.destroy());
  });
  server.unref();
  const close = (): void => {
    server.close();
    rmSync(path, { force: true });
  };
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, () => resolve({ script: notifier(), env: { CRYOSHIM_NOTIFY: path }, close }));
  });
};
