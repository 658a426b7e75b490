// SPDX-License-Identifier: Apache-2.0
//
// npm run bench -- NAME [--json] [--pairs N] [--case WORDS]: runs a bench in the lab. See docs/testing.md.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const benches = ["carriers", "crit", "io-uring", "netlock", "overhead", "retire", "spfs"];
const [name = "", ...options] = process.argv.slice(2);
if (!benches.includes(name)) {
  console.error(`bench: which one? (${benches.join(", ")}), then [--json] [--pairs N] [--case WORDS]`);
  process.exit(2);
}
process.chdir(new URL("../..", import.meta.url).pathname);
const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env; // it slows each start of Node
// crit is compared with another project's program, on a disk, because its archives are large.
const scratch = name === "crit" ? mkdtempSync(join(tmpdir(), "cryoshim-bench-")) : undefined;
if (scratch !== undefined) Object.assign(env, { LAB_PACKAGES: "checkpointctl", LAB_SCRATCH: scratch });
const lab = name === "crit" ? ["--bare", "node"] : ["node"];
// spfs needs neither CRIU nor a runtime.
const [program, words] = name === "spfs" ? ["node", []] : ["test/lab/lab", lab];
const { status } = spawnSync(program, [...words, `test/bench/${name}.mjs`, ...options], { stdio: "inherit", env });
if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true });
process.exitCode = status ?? 1;
