// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync, realpathSync } from "node:fs";
import { release } from "node:os";
import { execa } from "execa";
import { artefact } from "../../native/index.js";
import { inPath, isLauncher } from "../engine/choose.js";
import { CONFIG_FILE, DEFAULTS, decideLaunch } from "../engine/launch-file.js";
import { type Feature, type Probe, probeEngine } from "../engine/probe.js";
import { reason } from "../error.js";
import { NetLock } from "../netlock/netlock.js";
import { locks } from "./lock.js";

export type Verdict = "ok" | "note" | "warn" | "fail";

/** One line of doctor's table. */
export interface Finding {
  subject: string;
  verdict: Verdict;
  finding: string;
  /** What to do, where there is something. */
  fix?: string;
}

/** The first line a program prints about itself; undefined when it cannot be run. */
const firstLine = async (file: string, ...args: string[]): Promise<string | undefined> => {
  const { stdout, failed } = await execa(file, args, { reject: false, timeout: 10_000, stdin: "ignore" });
  return failed ? undefined : stdout.split("\n")[0];
};

/** "4.2.1" as [4, 2]; [0, 0] for what is no version. */
const majorMinor = (text: string): [number, number] => {
  const [, major, minor] = /(\d+)\.(\d+)/.exec(text) ?? [];
  return [Number(major ?? 0), Number(minor ?? 0)];
};

const atLeast = (text: string, major: number, minor: number): boolean => {
  const [a, b] = majorMinor(text);
  return a > major || (a === major && b >= minor);
};

const FEATURES_SHOWN: readonly [Feature, subject: string, without: string][] = [
  ["mem_dirty_track", "pre-dump", "not on this kernel: no soft-dirty memory tracking"],
  ["uffd-noncoop", "lazy pages", "not on this kernel: no userfaultfd for other processes"],
  ["tcp_half_closed", "TCP connections", "closing ones cannot be restored on this kernel"],
  ["network_lock_nftables", "lock by nftables", "CRIU cannot lock networks with nftables here"],
  ["pidfd_store", "pre-dump of swrk", "several rounds on one connection are not safe from reused pids"],
];

const engineFindings = async (): Promise<Finding[]> => {
  let engine: string;
  try {
    const { loadConfig } = await import("../config.js");
    const config = existsSync(CONFIG_FILE) ? loadConfig(CONFIG_FILE) : DEFAULTS;
    engine = decideLaunch(config, process.env).engine;
  } catch (error) {
    return [{ subject: "engine", verdict: "fail", finding: reason(error) }];
  }
  let probe: Probe;
  try {
    probe = await probeEngine(engine);
  } catch (error) {
    return [
      { subject: "engine", verdict: "fail", finding: reason(error), fix: "install CRIU, or name it in [engine] path" },
    ];
  }
  const { version } = probe;
  if (version === undefined)
    return [{ subject: "engine", verdict: "fail", finding: `${engine} does not run`, fix: "reinstall CRIU" }];
  const found: Finding[] = [{ subject: "engine", verdict: "ok", finding: `${engine}, CRIU ${version}` }];
  if (!atLeast(version, 4, 0))
    found.push({
      subject: "engine",
      verdict: "fail",
      finding: `CRIU ${version} is too old`,
      fix: "install CRIU 4.2 or later",
    });
  else if (!atLeast(version, 4, 2) && atLeast(release(), 6, 16))
    found.push({
      subject: "engine",
      verdict: "fail",
      finding: `CRIU ${version} cannot dump any inet socket on Linux ${release()} (SO_PASSCRED)`,
      fix: "install CRIU 4.2 or later",
    });
  found.push({
    subject: "kernel for CRIU",
    verdict: probe.check.ok ? "ok" : "fail",
    finding: `criu check: ${probe.check.said}`,
  });
  for (const [feature, subject, without] of FEATURES_SHOWN) {
    const ok = probe.features[feature];
    found.push({ subject, verdict: ok ? "ok" : "note", finding: ok ? "works" : `${without} (criu check: ${feature})` });
  }
  return found;
};

const launcherFindings = (): Finding[] => {
  const ours = artefact("criu");
  if (!existsSync(ours))
    return [{ subject: "launcher", verdict: "fail", finding: `${ours} is missing`, fix: "reinstall cryoshim" }];
  const first = inPath("criu", process.env.PATH)[0];
  if (first === undefined)
    return [{ subject: "launcher", verdict: "warn", finding: "no criu in PATH", fix: "run `cryoshim install`" }];
  if (!isLauncher(first))
    return [
      {
        subject: "launcher",
        verdict: "warn",
        finding: `${first} comes first in PATH: cryoshim is not in the way`,
        fix: "run `cryoshim install`, or use `cryoshim run -- COMMAND`",
      },
    ];
  return [{ subject: "launcher", verdict: "ok", finding: `${first} -> ${realpathSync(first)}` }];
};

const kernelFindings = (): Finding[] => {
  const controllers = readFileSync("/proc/self/cgroup", "utf8");
  const v1 = /^[1-9]\d*:/m.test(controllers);
  const v2 = /^0::/m.test(controllers);
  const layout = v1 && v2 ? "hybrid (v1 beside v2)" : v1 ? "v1" : "v2";
  const note: Finding = { subject: "cgroups", verdict: "ok", finding: layout };
  if (v1 && v2) {
    note.verdict = "note";
    note.finding += ": [cgroup] manage = auto keeps crun's restores from failing on cpuset";
  }
  const btf = existsSync("/sys/kernel/btf/vmlinux");
  const lock: Finding = { subject: "network lock", verdict: "ok", finding: "BPF netfilter links" };
  try {
    for (const extent of ["netns", "sockets"] as const) new NetLock(extent).close();
  } catch (error) {
    lock.verdict = "note";
    lock.finding = `not by BPF (${reason(error)}): CRIU locks as it is asked to, by default with iptables`;
  }
  const kept = locks();
  const orphans = kept.filter(({ orphan }) => orphan !== undefined).length;
  if (kept.length > 0) lock.finding += `; ${kept.length} wait for a restore`;
  if (orphans > 0) {
    lock.verdict = "warn";
    lock.finding += `, ${orphans} of them serve nobody`;
    lock.fix = "run `cryoshim lock clear --orphans`";
  }
  return [
    { subject: "kernel", verdict: "ok", finding: `Linux ${release()}` },
    { subject: "kernel BTF", verdict: btf ? "ok" : "note", finding: btf ? "present" : "absent" },
    lock,
    note,
  ];
};

/** Whether SPFS works here: one is started, asked, and ended. */
const spfsFindings = async (): Promise<Finding[]> => {
  const subject = "SPFS";
  if (!existsSync(artefact("spfs")))
    return [{ subject, verdict: "warn", finding: `${artefact("spfs")} is missing`, fix: "reinstall cryoshim" }];
  const { tryStand } = await import("../remote/stand.js");
  const { listAll } = await import("./spfs.js");
  const found: Finding = {
    subject,
    verdict: "ok",
    finding: "stands for NFS and FUSE mounts whose server is not there",
  };
  try {
    const { passthrough } = await tryStand();
    found.finding += passthrough
      ? "; data of files opened later passes it by"
      : "; all data goes through it: FUSE passthrough is of Linux 6.9";
  } catch (error) {
    found.verdict = "note";
    found.finding = `does not work here (${reason(error)}): a restore needs the servers of its NFS and FUSE mounts`;
  }
  const all = await listAll();
  const waiting = all.filter(({ phase }) => phase === "stub").length;
  if (all.length > 0) found.finding += `; stands for ${all.length}, of which ${waiting} wait for their server`;
  if (all.some(({ wrong }) => wrong !== undefined)) {
    found.verdict = "warn";
    found.finding += "; one does not answer";
    found.fix = "see `cryoshim spfs list`";
  }
  return [found];
};

const nodeFindings = (): Finding[] => {
  const found: Finding[] = [{ subject: "node", verdict: "ok", finding: `${process.execPath}, ${process.version}` }];
  const first = inPath("node", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")[0];
  if (first === undefined)
    found.push({
      subject: "node",
      verdict: "warn",
      finding: "not in a directory that services have in PATH: runtimes started by systemd would not find it",
      fix: `set [engine] node = "${process.execPath}" in ${CONFIG_FILE}`,
    });
  return found;
};

const RUNTIMES: readonly [name: string, args: string[], how: string][] = [
  ["podman", ["--version"], "finds `criu` in its PATH, and hands that PATH to the OCI runtime"],
  ["runc", ["--version"], "finds `criu` in the PATH of whoever starts it (before 1.1 also by --criu)"],
  ["crun", ["--version"], "finds `criu` in the PATH of whoever starts it"],
  ["lxc-checkpoint", ["--version"], "finds `criu` in its PATH"],
  ["conmon", ["--version"], "starts restores: PATH from containers.conf, conmon_env_vars"],
  ["containerd", ["--version"], "finds `criu` in its unit's PATH"],
  ["dockerd", ["--version"], "finds `criu` in its unit's PATH (experimental)"],
  ["crio", ["--version"], "finds `criu` in its unit's PATH and conmon_env"],
];

const runtimeFindings = async (): Promise<Finding[]> => {
  const found = await Promise.all(
    RUNTIMES.map(async ([name, args, how]): Promise<Finding | undefined> => {
      const file = inPath(name, process.env.PATH)[0];
      if (file === undefined) return undefined;
      return { subject: name, verdict: "ok", finding: `${(await firstLine(file, ...args)) ?? file}; ${how}` };
    }),
  );
  return found.filter((finding) => finding !== undefined);
};

/** Everything doctor looks at, in the order of its table. */
export const examine = async (): Promise<Finding[]> => [
  ...(await engineFindings()),
  ...launcherFindings(),
  ...nodeFindings(),
  ...kernelFindings(),
  ...(await spfsFindings()),
  ...(await runtimeFindings()),
];

/** The table for people. */
export const table = (findings: readonly Finding[]): string => {
  const width = Math.max(...findings.map(({ subject }) => subject.length));
  return findings
    .map(({ subject, verdict, finding, fix }) => {
      const line = `${verdict.padEnd(4)}  ${subject.padEnd(width)}  ${finding}`;
      return fix === undefined ? line : `${line}\n${" ".repeat(width + 8)}-> ${fix}`;
    })
    .join("\n");
};
