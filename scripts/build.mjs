// SPDX-License-Identifier: Apache-2.0
// Bundles: what is started for every checkpoint (shim.cjs, session.cjs) must start fast, so it has nothing in it that
// a session does not need; the command (cli.js) may be larger.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, readFileSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

process.chdir(dirname(dirname(fileURLToPath(import.meta.url))));
rmSync("dist", { recursive: true, force: true });

const common = { bundle: true, platform: "node", target: "node20.19", legalComments: "none", logLevel: "warning" };
// CommonJS packages in an ESM bundle look for it.
const REQUIRE = 'import { createRequire as __cr } from "node:module"; const require = __cr(import.meta.url);';
await build({
  ...common,
  entryPoints: ["shim/session/main.ts"],
  outfile: "dist/session.cjs",
  format: "cjs",
  minify: true,
  define: { "import.meta.url": '""' },
});
const session = createHash("sha256").update(readFileSync("dist/session.cjs")).digest("hex").slice(0, 16);
await Promise.all([
  build({
    ...common,
    entryPoints: ["shim/session/boot.ts"],
    outfile: "dist/shim.cjs",
    format: "cjs",
    minify: true,
    define: { SESSION_BUILD: JSON.stringify(session) },
  }),
  // Loaded only when the configuration has changed.
  build({
    ...common,
    entryPoints: ["shim/config.ts"],
    outfile: "dist/config.cjs",
    format: "cjs",
    minify: true,
    define: { "import.meta.url": '""' },
  }),
  // What hooks of runtimes start.
  build({
    ...common,
    entryPoints: ["hooks/main.ts"],
    outfile: "dist/hook.cjs",
    format: "cjs",
    minify: true,
    define: { "import.meta.url": '""' },
  }),
  build({
    ...common,
    entryPoints: { cli: "shim/main.ts" },
    outdir: "dist",
    // What a command needs is loaded when it is called.
    splitting: true,
    chunkNames: "cli-[name]-[hash]",
    format: "esm",
    banner: { js: `#!/usr/bin/env node\n${REQUIRE}` },
  }),
  build({ ...common, entryPoints: ["crit/index.ts"], outfile: "dist/crit.js", format: "esm", banner: { js: REQUIRE } }),
]);
chmodSync("dist/cli.js", 0o755);
if (process.argv.includes("--types"))
  execFileSync("node_modules/.bin/tsc", ["-p", "tsconfig.types.json"], { stdio: "inherit" });
