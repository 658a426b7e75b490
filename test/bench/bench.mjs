// SPDX-License-Identifier: Apache-2.0
//
// npm run bench -- NAME [--json] [--pairs N] [--case WORDS]: runs a bench in the lab. See docs/testing.md.
import { spawnSync } from "node:child_process";

const benches = ["netlock", "overhead"];
const [name = "", ...options] = process.argv.slice(2);
if (!benches.includes(name)) {
  console.error(`bench: which one? (${benches.join(", ")}), then [--json] [--pairs N] [--case WORDS]`);
  process.exit(2);
}
process.chdir(new URL("../..", import.meta.url).pathname);
const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env; // it slows each start of Node
const { status } = spawnSync("test/lab/lab", ["node", `test/bench/${name}.mjs`, ...options], { stdio: "inherit", env });
process.exitCode = status ?? 1;
