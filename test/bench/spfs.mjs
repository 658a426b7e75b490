// SPDX-License-Identifier: Apache-2.0
//
// The stub-proxy file system over a directory of the local disk, in its page cache: direct, through the proxy without and with
// passthrough, and retired, by turns; and "kernel": through the least server that passes through (test/workloads/passed.c), which is what
// the kernel's way costs by itself. Needs root and /dev/fuse, no lab.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { build } from "esbuild";

const option = (name, otherwise) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? otherwise : process.argv[at + 1];
};
const turns = Number(option("--pairs", "5"));
const only = option("--case", "");
const json = process.argv.includes("--json");
const size = Number(option("--mib", "256"));

// The sources are TypeScript; the addon is found from one below the top.
const bundle = async (source) => {
  const outfile = `build/bench-${source.replaceAll("/", "-")}.cjs`;
  await build({
    entryPoints: [source],
    outfile,
    bundle: true,
    platform: "node",
    format: "cjs",
    define: { "import.meta.url": '""' },
    logLevel: "error",
  });
  return createRequire(import.meta.url)(join(process.cwd(), outfile));
};
process.chdir(new URL("../..", import.meta.url).pathname);
const { startSpfs } = await bundle("spfs/control.ts");
const { retire } = await bundle("spfs/retire.ts");

const CASES = [
  ["4 KiB random read", "random", "file"],
  ["1 MiB sequential read", "read", "file"],
  ["1 MiB sequential write", "write", "file"],
  ["4 KiB random write", "overwrite", "file"],
  ["stat", "stat", "d/e/small"],
  ["open and close", "open", "d/e/small"],
];
const COUNTS = [1, 100, 10_000];

const base = mkdtempSync(join(tmpdir(), "cryoshim-bench-"));
const backend = join(base, "backend");
mkdirSync(join(backend, "d/e"), { recursive: true });
mkdirSync(join(backend, "many"));
const piece = Buffer.alloc(1 << 20, "data");
const made = openSync(join(backend, "file"), "w");
for (let i = 0; i < size; i++) writeFileSync(made, piece);
closeSync(made);
writeFileSync(join(backend, "d/e/small"), "small");
for (let i = 0; i < 10_000; i++) writeFileSync(join(backend, `many/f${i}`), "");

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
};
const round = (value, digits = 3) => (value === undefined ? null : Number(value.toPrecision(digits + 1)));

const turned = (all, turn) => {
  const at = turn % all.length;
  const order = [...all.slice(at), ...all.slice(0, at)];
  return turn % 2 === 0 ? order : order.reverse();
};

const mounted = [];
const mount = async (name, passthrough) => {
  const mountpoint = join(base, name);
  mkdirSync(mountpoint);
  const spfs = await startSpfs(
    { id: `bench-${process.pid}-${name}`, mountpoint, timeoutMs: 0, passthrough, onLoss: "error" },
    [],
  );
  mounted.push(spfs);
  return spfs;
};
const lend = async (use) => {
  const fd = openSync(backend, constants.O_DIRECTORY | 0o10000000 /* O_PATH */);
  try {
    return await use(fd);
  } finally {
    closeSync(fd);
  }
};
const proxy = (spfs) => lend((fd) => spfs.proxy(fd, { gone: "error" }));
/** The real directory instead, for a task and its mount namespace. */
const retireFor = (task, { mountpoint }) => lend((real) => retire({ root: task.pid, mountpoint, real }));

/** The workload, in a mount namespace of its own; `again` does it once more, and resolves to operations a second. */
const through = async (...words) => {
  const child = spawn("unshare", ["--mount", "build/workloads/through", ...words], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  if ((await lines.next()).value !== "ready") throw new Error(`${words.join(" ")}: it has ended`);
  return {
    pid: child.pid,
    async again(cold) {
      child.stdin.write(cold ? "cold\n" : "warm\n");
      return Number((await lines.next()).value);
    },
    end: () => child.kill("SIGKILL"),
  };
};

/** The least server, at a directory of its own. */
const least = async (file) => {
  const at = join(base, "least");
  mkdirSync(at, { recursive: true });
  const server = spawn("build/workloads/passed", [file, at], { stdio: ["ignore", "pipe", "inherit"] });
  await once(server.stdout, "data");
  return { at, end: () => execFileSync("umount", ["-l", at]) };
};

async function throughput(name, what, path) {
  const ways = { direct: await through(what, join(backend, path)) };
  for (const way of ["proxy", "passthrough"]) ways[way] = await through(what, join(mounts[way].mountpoint, path));
  const spfs = await mount(`retired-${what}`, "off");
  await proxy(spfs);
  ways.retired = await through(what, join(spfs.mountpoint, path));
  const { left } = await retireFor(ways.retired, spfs);
  if (left.length > 0) throw new Error(`not retired: ${JSON.stringify(left)}`);
  const server = path === "file" ? await least(join(backend, path)) : undefined;
  if (server !== undefined) ways.kernel = await through(what, join(server.at, path));
  const seen = Object.fromEntries(Object.keys(ways).map((way) => [way, []]));
  try {
    for (let turn = -1; turn < turns; turn++)
      // Another comes first each time, and each second time backwards: what was before leaves its mark on caches and on what is written back.
      for (const [way, task] of turned(Object.entries(ways), turn + 1)) {
        const result = await task.again(way === "proxy");
        if (turn >= 0) seen[way].push(result);
      }
  } finally {
    for (const task of Object.values(ways)) task.end();
    server?.end();
  }
  const rates = Object.fromEntries(Object.entries(seen).map(([way, all]) => [way, median(all)]));
  const share = (way) => (rates[way] === undefined ? null : round(rates[way] / rates.direct));
  return {
    bench: "spfs",
    case: `${name}, operations per second`,
    direct: round(rates.direct),
    proxy: round(rates.proxy),
    passthrough: round(rates.passthrough),
    retired: round(rates.retired),
    kernel: round(rates.kernel),
    ratio_proxy: share("proxy"),
    ratio_passthrough: share("passthrough"),
    ratio_retired: share("retired"),
    ratio_kernel: share("kernel"),
  };
}

/** How long tasks with open files wait once the backend is there, and how long they stand still when it takes over. */
async function switching(count) {
  const [switched, retired, frozen] = [[], [], []];
  for (let turn = 0; turn < Math.min(turns, 5); turn++) {
    const spfs = await mount(`switch-${count}-${turn}`, "auto");
    await proxy(spfs);
    const task = await through("hold", join(spfs.mountpoint, "many"), `${count}`);
    await spfs.stub();
    const begin = performance.now();
    const { reopened } = await proxy(spfs);
    switched.push(performance.now() - begin);
    if (reopened !== count) throw new Error(`${reopened} of ${count} files were opened again`);
    const begun = performance.now();
    const { frozenMs } = await retireFor(task, spfs);
    retired.push(performance.now() - begun);
    frozen.push(frozenMs);
    task.end();
    await spfs.stop();
    mounted.splice(mounted.indexOf(spfs), 1);
  }
  return {
    bench: "spfs",
    case: `stub to proxy, ${count} open files`,
    switch_ms: round(median(switched)),
    retire_ms: round(median(retired)),
    retire_freeze_ms: round(median(frozen)),
  };
}

const show = (result) => {
  if (json) console.log(JSON.stringify(result));
  else
    console.log(
      Object.entries(result)
        .slice(1)
        .map(([key, value]) => `${key}: ${value}`)
        .join("  "),
    );
};
let mounts;
try {
  mounts = { proxy: await mount("proxy", "off"), passthrough: await mount("passthrough", "auto") };
  for (const spfs of Object.values(mounts)) await proxy(spfs);
  for (const [name, what, path] of CASES) if (name.includes(only)) show(await throughput(name, what, path));
  for (const count of COUNTS) if (`stub to proxy, ${count} open files`.includes(only)) show(await switching(count));
} finally {
  for (const spfs of mounted) await spfs.stop();
  rmSync(base, { recursive: true, force: true });
}
