// SPDX-License-Identifier: Apache-2.0
//
// Retire, inside the lab: the stub-proxy file system in proxy mode is replaced by its backend under a process with N open files:
// how long it takes, and how long the process stands still. Reads afterwards are compared with reads of a file that was opened
// on the backend, by turns.
//	npm run bench -- retire [--json] [--runs N] [--case WORDS]
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { build } from "esbuild";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const runs = Number(option("--runs", "5"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const round = (value) => Math.round(value * 100) / 100;

const banner = 'import { createRequire as __cr } from "node:module"; const require = __cr(import.meta.url);';
const common = { bundle: true, platform: "node", format: "esm", banner: { js: banner }, logLevel: "error" };
const contents =
  'export { retire } from "./spfs/retire.js"; export { startSpfs } from "./spfs/control.js"; export { recordAll } from "./test/support/spfs.js";';
await build({ ...common, stdin: { contents, resolveDir: process.cwd() }, outfile: "build/bench-retire.mjs" });
const { retire, startSpfs, recordAll } = await import(`${process.cwd()}/build/bench-retire.mjs`);

const PROGRAM = `
import os, resource, sys, time
at, mode, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
files = [os.open(f"{at}/mnt/f{i}", os.O_RDWR if mode == "written" else os.O_RDONLY) for i in range(n)]
open(f"{at}/ready", "w").close()
while not os.path.exists(f"{at}/go"): time.sleep(0.001)
direct = os.open(f"{at}/data/f0", os.O_RDONLY)
def reads(fd):
    start = time.perf_counter()
    for i in range(20000): os.pread(fd, 4096, (i * 7919) % 15 * 4096)
    return 20000 / (time.perf_counter() - start)
pairs = sorted(reads(files[0]) / reads(direct) for _ in range(9))
open(f"{at}/ratio", "w").write(str(pairs[4]))
`;

/** One retire of a process with `count` files open: the report, the milliseconds, and the speed afterwards over direct's. */
async function once(count, mode) {
  const at = "/tmp/bench-retire";
  rmSync(at, { recursive: true, force: true });
  mkdirSync(`${at}/data`, { recursive: true });
  mkdirSync(`${at}/mnt`);
  for (let i = 0; i < count; i++) writeFileSync(`${at}/data/f${i}`, Buffer.alloc(i === 0 ? 65536 : 16, 97));
  writeFileSync(`${at}/program.py`, PROGRAM);
  const real = openSync(`${at}/data`, 0o200000);
  const spfs = await startSpfs(
    { id: `bench-${process.pid}`, mountpoint: `${at}/mnt`, timeoutMs: 0, passthrough: "off", onLoss: "stub" },
    recordAll(`${at}/data`),
  );
  try {
    await spfs.stub();
    await spfs.proxy(real, { gone: "error" });
    const task = spawn("unshare", ["-m", "python3", `${at}/program.py`, at, mode, `${count}`], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    while (!existsSync(`${at}/ready`)) {
      if (task.exitCode !== null) throw new Error("the program has ended");
      await sleep(20);
    }
    await sleep(200);
    const start = performance.now();
    const report = await retire({ root: task.pid, mountpoint: `${at}/mnt`, real });
    const ms = performance.now() - start;
    if (report.left.length > 0) throw new Error(JSON.stringify(report.left.slice(0, 3)));
    writeFileSync(`${at}/go`, "");
    while (!existsSync(`${at}/ratio`)) await sleep(20);
    await sleep(50);
    return { ...report, ms, ratio: Number(readFileSync(`${at}/ratio`, "utf8")) };
  } finally {
    await spfs.stop();
  }
}

for (const mode of ["read", "written"])
  for (const count of [1, 100, 9900]) {
    const name = `${count} files, ${mode}`;
    if (!name.includes(only)) continue;
    const seen = [];
    for (let run = 0; run < runs; run++) seen.push(await once(count, mode));
    const of = (key) => round(median(seen.map((each) => each[key])));
    const line = {
      bench: "retire",
      case: name,
      retire_ms: of("ms"),
      longest_freeze_ms: of("frozenMs"),
      freezes_ms: of("frozenTotalMs"),
      freezes: of("batches"),
      ratio_retired: of("ratio"),
    };
    if (json) console.log(JSON.stringify(line));
    else
      console.log(
        `${name.padEnd(22)} ${line.retire_ms} ms, frozen ${line.freezes_ms} ms in ${line.freezes}, longest ${line.longest_freeze_ms} ms; reads at ${line.ratio_retired} of direct`,
      );
  }
process.exit(0);
