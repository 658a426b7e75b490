// SPDX-License-Identifier: Apache-2.0
//
// npm run demo: a counting container is checkpointed and restored through cryoshim, and loses nothing.
// `--quick` leaves out the freeze times, crun and LXC; `--bare` does it with CRIU alone.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

const lab = fileURLToPath(new URL("../lab/lab", import.meta.url));
const passed = process.argv.slice(2);
const where = passed.includes("--bare") ? ["--bare"] : [];
const child = spawn(lab, [...where, "node", "/cryoshim/test/demo/inside.mjs", ...passed], { stdio: "inherit" });
child.on("error", (error) => {
  console.error(`demo: cannot start ${lab}: ${error.message}`);
  process.exitCode = 1;
});
child.on("exit", (code, signal) => {
  if (code !== 0) console.error(`demo: failed (${signal ?? `exit code ${code}`}); what did not go on is above`);
  process.exitCode = code ?? 1;
});
