// SPDX-License-Identifier: Apache-2.0
// A restore by command line sends no notifications. CRIU then runs action scripts: the launcher is one
// (native/launcher/launcher.c:notify_shim), which connects to the socket that is made here.
import { rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { helper } from "./helpers.js";
import { stateDir } from "./plugin-dir.js";

export interface Notifications {
  /** CRIU's --action-script. */
  script: string;
  /** For CRIU's environment. */
  env: Record<string, string>;
  close(): void;
}

/** Listens; `told` is done when it returns, and only then does CRIU go on, or ends the restore where it throws. */
export const listen = (session: string, told: (action: string, pid: number) => void): Promise<Notifications> => {
  // Loaded for those few sessions alone.
  const { createServer } = createRequire(__filename)("node:net") as typeof import("node:net");
  const path = join(stateDir(), `notify.${session}`);
  const server = createServer((socket) => {
    socket.setEncoding("utf8");
    socket.once("data", (text: string) => {
      const [action = "", pid = "0"] = text.trim().split(" ");
      try {
        told(action, Number(pid));
        socket.end();
      } catch {
        socket.end("no\n");
      }
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
    server.listen(path, () => resolve({ script: helper("cryoshim-notify"), env: { CRYOSHIM_NOTIFY: path }, close }));
  });
};
