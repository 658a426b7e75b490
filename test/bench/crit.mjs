// SPDX-License-Identifier: Apache-2.0
//
// npm run bench -- crit [--json] [--runs N] [--case WORDS]: reading checkpoints against CRIU's crit (python3-pycriu) and checkpointctl.
// Runs in the lab, with bare CRIU. One JSON object per line, or a table.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const options = process.argv.slice(2);
const json = options.includes("--json");
const runs = options.includes("--runs") ? options[options.indexOf("--runs") + 1] : "5";
const CLI = "/cryoshim/dist/cli.js";
const dir = fs.mkdtempSync("/scratch/bench-crit-");
const sh = (script) => execFileSync("bash", ["-ec", script], { cwd: dir, stdio: ["ignore", "ignore", "inherit"] });

const measure = (command, times = runs) => {
  const { status, stdout, stderr } = spawnSync("python3", ["/cryoshim/test/bench/measure.py", times, ...command], {
    cwd: dir,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
  return JSON.parse(stdout);
};
const wanted = options.includes("--case") ? options[options.indexOf("--case") + 1] : "";
const isWanted = (name, peer) => `${name} ${peer}`.includes(wanted);
const compare = (name, ours, peer, theirs, peerRuns = runs) => {
  if (isWanted(name, peer)) tell(name, measure(ours), peer, measure(theirs, peerRuns));
};
const tell = (name, a, peer, b) => {
  const row = {
    bench: "crit",
    case: name,
    ours_ms: Math.round(a.ms),
    peer,
    peer_ms: Math.round(b.ms),
    speedup: Number((b.ms / a.ms).toFixed(1)),
    ...(a.mib !== undefined && { max_rss_mib: Math.round(a.mib) }),
  };
  console.log(
    json
      ? JSON.stringify(row)
      : `${name.padEnd(28)} ${row.ours_ms} ms, ${peer} ${row.peer_ms} ms: ${row.speedup} times as fast${a.mib === undefined ? "" : `, ${row.max_rss_mib} MiB`}`,
  );
};

/** What a program says of itself: its first pass over all images, and the median of six more. */
const inProcess = (command) => JSON.parse(execFileSync(command[0], command.slice(1), { cwd: dir, encoding: "utf8" }));

/** 500 processes, checkpointed by CRIU. */
const many = async () => {
  const tree = spawn(
    "setsid",
    [
      "python3",
      "-c",
      "import os,time\nfor _ in range(499):\n  if os.fork()==0: break\nelse: open('ready','w')\ntime.sleep(1000)",
    ],
    { cwd: dir, stdio: "ignore" },
  );
  while (!fs.existsSync(join(dir, "ready"))) await sleep(50);
  fs.mkdirSync(join(dir, "many"));
  sh(`criu dump -t ${tree.pid} -D many -o dump.log --shell-job && rm many/dump.log`);
};

/** A container's archive, made larger by 1 GiB of pages: half of them noise, half text. */
const large = () => {
  sh(`lab-podman-image >/dev/null; podman run -d --name bench localhost/busybox >/dev/null
    podman container checkpoint --export small.tar --compress none bench >/dev/null
    mkdir large; tar -C large -xf small.tar`);
  const fd = fs.openSync(join(dir, "large/checkpoint/pages-9999.img"), "w");
  const noise = fs.readFileSync("/proc/self/exe").subarray(0, 512 << 10);
  const random = execFileSync("head", ["-c", String(512 << 10), "/dev/urandom"], { maxBuffer: 1 << 20 });
  for (let i = 0; i < 1024; i++) {
    random.writeUInt32LE(i);
    fs.writeSync(fd, noise);
    fs.writeSync(fd, random);
  }
  fs.closeSync(fd);
  sh(
    "tar -C large -cf large.tar . && mv large/checkpoint pages; rm -r large; gzip -1 -k large.tar; zstd -q -1 large.tar",
  );
};

try {
  await many();
  const library = "pycriu, in process";
  if (isWanted("decode-500", library)) {
    const [a, b] = [
      inProcess(["node", "/cryoshim/test/bench/in-process.mjs", "many"]),
      inProcess(["python3", "/cryoshim/test/bench/in-process.py", "many"]),
    ];
    tell("decode-500 in memory", { ms: a.again }, library, { ms: b.again });
    tell("decode-500 in memory, first time", { ms: a.first }, library, { ms: b.first });
  }
  // Into a directory of its own each time: to empty a file and write it anew is slower than the decoding.
  const decode = ["sh", "-c", `mkdir json.$$ && exec node ${CLI} crit decode -i many -o json.$$`];
  compare(`decode-500 (${fs.readdirSync(join(dir, "many")).length} files)`, decode, "pycriu, one process", [
    "sh",
    "-c",
    "mkdir json.$$ && exec python3 /cryoshim/test/bench/pycriu-all.py many json.$$",
  ]);
  fs.mkdirSync(join(dir, "json"));
  compare(
    "decode-500",
    decode,
    "crit, once per image",
    ["bash", "-c", "for i in many/*; do case $i in *pages-[0-9]*) ;; *) crit decode -i $i -o json/x;; esac; done"],
    "1",
  );
  compare("decode one image", ["node", CLI, "crit", "decode", "-i", "many/inventory.img"], "crit", [
    "crit",
    "decode",
    "-i",
    "many/inventory.img",
  ]);
  compare("x mems, 500 processes", ["node", CLI, "crit", "x", "many", "mems"], "crit", ["crit", "x", "many", "mems"]);
  large();
  for (const file of ["large.tar", "large.tar.gz", "large.tar.zst"]) {
    compare(`show ${file}`, ["node", CLI, "show", file], "checkpointctl", ["checkpointctl", "show", file]);
    const inspect = ["checkpointctl", "inspect", "--stats", "--mounts", "--ps-tree", "--files", "--sockets", file];
    compare(`inspect ${file}`, ["node", CLI, "show", "--all", file], "checkpointctl", inspect);
  }
  // Without the disk: what both write goes away before the next round.
  for (const from of ["pages", "large.tar", "large.tar.gz", "large.tar.zst"]) {
    const ours = ["sh", "-c", `rm -rf copy && exec node ${CLI} crit anonymise ${from} copy`];
    compare(`anonymise ${from}`, ours, "cp", ["sh", "-c", `rm -rf copy && exec cp -r ${from} copy`]);
  }
} finally {
  fs.rmSync(dir, { recursive: true, force: true });
}
