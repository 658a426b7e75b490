// SPDX-License-Identifier: Apache-2.0
// The configuration as launcher and shim need it, compiled: reading TOML and checking it at every checkpoint would
// cost more than the rest of the shim's start. /run/cryoshim/launch counts while the configuration is the one that it
// was made from, and it vanishes with the boot.
import { lstatSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { isAbsolute, join } from "node:path";
import { packageRoot } from "../../native/index.js";
import { CryoshimError } from "../error.js";
import { stateDir } from "../session/plugin-dir.js";
import { findEngine, isLauncher } from "./choose.js";

/** How cgroups are restored; the last seven are CRIU's own modes. */
export type CgroupManage = "caller" | "auto" | "ignore" | "none" | "props" | "soft" | "full" | "strict" | "default";

/** Who locks the network: cryoshim by BPF, CRIU by a method of its own, CRIU as its caller asked, or nobody. */
export type NetworkLock = "auto" | "bpf" | "iptables" | "nftables" | "caller" | "none";

/** What a session needs of the configuration. */
export interface Settings {
  cgroup: { manage: CgroupManage };
  network: { lock: NetworkLock };
  carriers: { extra: string[] };
  detached: DetachedSettings;
  remote: RemoteSettings;
  uring: UringSettings;
}

/** What a session does with files on unmounted mounts. */
export interface DetachedSettings {
  /** MiB that are saved, at most, of file systems that are mounted nowhere else. */
  largest: number;
}

/** What is done with mounts whose files are on a server. The keys are the configuration's. */
export interface RemoteSettings {
  /** Whether SPFS stands for them at a restore: where it must, always, or never. */
  policy: "auto" | "always" | "never";
  /** Seconds that a server may take to answer before a checkpoint. */
  answer_within: number;
  /** Seconds after which a call that waits for an absent server fails with EIO; 0: never. */
  timeout: number;
  passthrough: "auto" | "off";
  /** What becomes of calls when the server is lost later. */
  on_loss: "block" | "eio";
  /** Whether the real mount takes SPFS's place once it is back. */
  retire: "auto" | "always" | "never";
  /** What becomes of a file that is gone. */
  gone: "fail" | "stub";
  /** How mounts are made again on this host. */
  mount: RemoteMapping[];
}

/** One [[remote.mount]]. */
export interface RemoteMapping {
  /** Of mountinfo; `*` stands for anything. */
  source: string;
  /** A directory of this host that shows the same. */
  path?: string | undefined;
  /** Otherwise it is mounted: type and source, where they are others here, and options. */
  type?: string | undefined;
  from?: string | undefined;
  options?: string | undefined;
  /** A file with further options, such as a password; of root's alone. */
  credentials?: string | undefined;
}

/** What a session does with requests of io_uring that are in flight and cannot be submitted again. */
export interface UringSettings {
  /** They are waited for, not waited for, or they are waited for and those that are left complete with ECANCELED. */
  policy: "wait" | "refuse" | "cancel";
  /** Milliseconds, with all tasks stopped. */
  wait: number;
}

/** What shim/config.ts makes of a configuration file. */
export interface Config extends Settings {
  engine: { path?: string | undefined; node?: string | undefined };
}

export interface Launch {
  engine: string;
  node: string;
  settings: Settings;
}

export const CONFIG_FILE = "/etc/cryoshim/config.toml";
export const LAUNCH_FILE = "/run/cryoshim/launch";

export const DEFAULTS: Config = {
  engine: {},
  cgroup: { manage: "auto" },
  network: { lock: "auto" },
  carriers: { extra: [] },
  detached: { largest: 1024 },
  remote: {
    policy: "auto",
    answer_within: 2,
    timeout: 0,
    passthrough: "auto",
    on_loss: "block",
    retire: "auto",
    gone: "fail",
    mount: [],
  },
  uring: { policy: "wait", wait: 500 },
};

/** Tells one state of a configuration file from another, as the launcher computes it. */
const stampOf = (file: string): string => {
  const st = statSync(file, { bigint: true, throwIfNoEntry: false });
  return st === undefined ? "none" : `${st.ino}:${st.size}:${st.mtimeNs}`;
};

const readLaunchFile = (): Launch | undefined => {
  try {
    const st = lstatSync(LAUNCH_FILE);
    if (!st.isFile() || st.uid !== 0 || (st.mode & 0o022) !== 0) return undefined;
    const values = new Map(
      readFileSync(LAUNCH_FILE, "utf8")
        .split("\n")
        .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
    const engine = values.get("engine");
    const settings = values.get("settings");
    if (values.get("stamp") !== stampOf(CONFIG_FILE) || !engine || !settings) return undefined;
    // The engine may have been taken away since.
    statSync(engine);
    const { engine: _, ...defaults } = DEFAULTS;
    // An older version may have written it, which knew less.
    const kept = { ...defaults, ...(JSON.parse(settings) as Partial<Settings>) };
    kept.remote = { ...defaults.remote, ...kept.remote };
    return { engine, node: values.get("node") ?? process.execPath, settings: kept };
  } catch {
    return undefined;
  }
};

/** Replaces the launch file in one step. */
export const writeLaunchFile = (launch: Launch, config = CONFIG_FILE): void => {
  const making = join(stateDir(), `launch.${process.pid}`);
  const { engine, node, settings } = launch;
  const text = `stamp=${stampOf(config)}\nengine=${engine}\nnode=${node}\nsettings=${JSON.stringify(settings)}\n`;
  try {
    writeFileSync(making, text, { mode: 0o600, flag: "wx" });
    renameSync(making, LAUNCH_FILE);
  } catch (error) {
    rmSync(making, { force: true });
    throw error;
  }
};

/** The reader of configurations, loaded only when one has to be read: TOML and zod are not in the session's bundle. */
const loadConfig = async (file: string): Promise<Config> => {
  if (statSync(file, { throwIfNoEntry: false }) === undefined) return DEFAULTS;
  const bundled = join(packageRoot, "dist", "config.cjs");
  const { loadConfig: load } = createRequire(bundled)(bundled) as { loadConfig(path: string): Config };
  return load(file);
};

/** Decides anew, from configuration and environment. Throws CryoshimError ERR_ENGINE where there is no CRIU. */
export const decideLaunch = (config: Config, env: NodeJS.ProcessEnv): Launch => {
  const chosen = env.CRYOSHIM_ENGINE ?? config.engine.path;
  if (chosen !== undefined && (!isAbsolute(chosen) || isLauncher(chosen)))
    throw new CryoshimError("ERR_ENGINE", {
      what: `cannot use \`${chosen}\` as engine`,
      why: isAbsolute(chosen) ? "it is cryoshim's own launcher" : "it is not an absolute path",
      fix: "name CRIU's binary in [engine] path or CRYOSHIM_ENGINE",
    });
  const engine = chosen ?? findEngine(env.PATH);
  if (engine === undefined)
    throw new CryoshimError("ERR_ENGINE", {
      what: "cannot find CRIU",
      why: "no `criu` in PATH but cryoshim's launcher",
      fix: "install CRIU, or set [engine] path in the configuration",
    });
  const { engine: _, ...settings } = config;
  return { engine, node: config.engine.node ?? process.execPath, settings };
};

/**
 * Engine, Node and settings for a session. CRYOSHIM_CONFIG names another configuration and CRYOSHIM_ENGINE another
 * engine, for this call alone: what they lead to is not kept for others.
 */
export const resolveLaunch = async (env: NodeJS.ProcessEnv): Promise<Launch> => {
  const special = env.CRYOSHIM_CONFIG !== undefined || env.CRYOSHIM_ENGINE !== undefined;
  const kept = special ? undefined : readLaunchFile();
  if (kept !== undefined) return kept;
  const launch = decideLaunch(await loadConfig(env.CRYOSHIM_CONFIG ?? CONFIG_FILE), env);
  if (!special) writeLaunchFile(launch);
  return launch;
};
