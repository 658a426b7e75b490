// SPDX-License-Identifier: Apache-2.0
// In a virtual machine: all phases of the stub-proxy file system on this kernel, with and without passthrough, crashes in between.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { release } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { startSpfs } from "../../spfs/control.js";
import { retire } from "../../spfs/retire.js";
import { recordAll } from "../support/spfs.js";

const must = (what: string, holds: boolean): void => {
  if (!holds) throw new Error(`not so: ${what}`);
};
const backend = "/tmp/backend";
const mountpoint = "/tmp/mnt";
const [major = 0, minor = 0] = release().split(".").map(Number);
const hasDirectIo = major > 6 || (major === 6 && minor >= 6);
mkdirSync(`${backend}/d`, { recursive: true });
mkdirSync(mountpoint);
writeFileSync(`${backend}/d/file`, "contents");

for (const passthrough of ["auto", "off"] as const) {
  const spfs = await startSpfs(
    { id: `vm-${passthrough}`, mountpoint, timeoutMs: 0, passthrough, onLoss: "stub" },
    recordAll(backend),
  );
  const proxy = async () => {
    const fd = openSync(backend, constants.O_DIRECTORY | 0o10000000);
    try {
      return await spfs.proxy(fd, { gone: "error" });
    } finally {
      closeSync(fd);
    }
  };
  must("restore tells sizes", statSync(`${mountpoint}/d/file`).size === 8);
  must("restore reads zeros", readFileSync(`${mountpoint}/d/file`).equals(Buffer.alloc(8)));
  const reader = spawn("sh", ["-c", `exec 3<${mountpoint}/d/file; echo; read go; cat <&3`], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  let read = "";
  reader.stdout.on("data", (data) => (read += data));
  while (read === "") await sleep(10);
  await spfs.stub();
  reader.stdin.write("\n");
  while ((await spfs.status()).blocked === 0) await sleep(10);
  for (let i = 0; i < 3; i++) process.kill((await spfs.status()).pid, "SIGKILL");
  const { reopened, differs } = await proxy();
  must("the open file goes on", reopened === 1 && differs.length === 0);
  await once(reader, "close");
  must("the contents are the backend's", read === "\ncontents");
  const status = await spfs.status();
  console.log(`passthrough ${passthrough}: ${status.passthrough ? "used" : "not used"}`);

  const program = spawn("/cryoshim/build/workloads/exercise", [`${mountpoint}/file`, "1", "2000"], {
    stdio: "inherit",
  });
  const end = once(program, "close");
  for (let i = 0; i < 8 && program.exitCode === null; i++) {
    await sleep(150);
    if (i === 4) {
      await spfs.stub();
      await proxy();
    } else process.kill((await spfs.status()).pid, "SIGKILL");
  }
  must("random operations find what they must", (await end)[0] === 0);
  must("a worker was started again", (await spfs.status()).restarts > 3);
  execFileSync("sh", ["-c", `cd ${mountpoint} && mkdir x && echo a >x/a && ln x/a x/b && mv x/b x/c && rm -r x`]);

  // The real mount takes its place: before Linux 6.5 there is no mounting beneath.
  mkdirSync(`${backend}/r`);
  for (const name of ["out", "go"]) rmSync(`/tmp/${name}`, { force: true });
  const retired = spawn(
    "unshare",
    ["-m", "/cryoshim/build/workloads/retired", `${mountpoint}/r`, "/tmp/out", "/tmp/go"],
    {
      stdio: "inherit",
    },
  );
  const out = (): string => (existsSync("/tmp/out") ? readFileSync("/tmp/out", "utf8") : "");
  const said = async (what: RegExp): Promise<void> => {
    while (!what.test(out())) {
      must(`it runs: ${out()}`, retired.exitCode === null);
      await sleep(50);
    }
  };
  await said(/ready/);
  const real = openSync(backend, constants.O_DIRECTORY | 0o10000000);
  const { left, mounts } = await retire({ root: retired.pid!, mountpoint, real });
  closeSync(real);
  // Before Linux 6.6 tmpfs does not let a file be opened with O_DIRECT; with one of its descriptors all of a file stay.
  const staying = left.filter(({ what }) => hasDirectIo || !what.endsWith("/pattern"));
  must(`all of it is on the real mount: ${JSON.stringify(left)}`, staying.length === 0 && mounts === 1);
  const before = out().length;
  await said(new RegExp(`^[^]{${before}}[^]*ok \\d+\n[^]*ok \\d+\n`));
  writeFileSync("/tmp/go", "");
  await said(/done/);
  must(`nothing was seen of it: ${out()}`, !/BAD/.test(out()));
  rmSync(`${backend}/r`, { recursive: true });
  console.log(`retired: ${passthrough}`);

  must("nothing is left over", readdirSync(backend).sort().join() === "d,file");
  await spfs.stop();
  must("it is unmounted", readdirSync(mountpoint).length === 0);
  console.log(`works: ${passthrough}`);
}
