// SPDX-License-Identifier: Apache-2.0
// node test/support/retire.mjs PID MOUNTPOINT REAL [--wait]: spfs/retire.ts by itself, for the lab. Prints the report as JSON;
// --wait: and a line just before it begins. --build alone makes the bundle, which is made anew when it is not there.
import { existsSync, openSync } from "node:fs";

const root = new URL("../..", import.meta.url).pathname;
// Below build/, so that the addon is found as it is from dist/.
const outfile = `${root}build/retire.mjs`;
const [pid, mountpoint, real, wait] = process.argv.slice(2);
if (pid === "--build" || !existsSync(outfile)) {
  const { build } = await import("esbuild");
  const banner = 'import { createRequire as __cr } from "node:module"; const require = __cr(import.meta.url);';
  const common = { bundle: true, platform: "node", format: "esm", banner: { js: banner }, logLevel: "error" };
  await build({ ...common, entryPoints: [`${root}spfs/retire.ts`], outfile });
}
if (pid !== "--build") {
  const { retire } = await import(outfile);
  if (wait === "--wait") console.log("now");
  try {
    console.log(JSON.stringify(await retire({ root: Number(pid), mountpoint, real: openSync(real, 0o200000) })));
  } catch (error) {
    console.error(`${error.code}: ${error.message}`);
    process.exitCode = 1;
  }
}
