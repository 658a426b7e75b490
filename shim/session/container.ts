// SPDX-License-Identifier: Apache-2.0
// Which container a session is about, and what it says of itself: an engine is only told a process. OCI runtimes keep
// a bundle, and their state says where; LXC has a configuration. Whatever is not found is simply not said.
import { closeSync, constants, fstatSync, openSync, readFileSync, readlinkSync } from "node:fs";
import { basename, join, resolve } from "node:path";

/** A container as far as its runtime lets us know it. */
export interface Container {
  /** As its runtime calls it; undefined where it was not told. */
  id?: string | undefined;
  runtime: "oci" | "lxc";
  /** The bundle of an OCI runtime, or LXC's configuration file. */
  place: string;
  /** What it is annotated with under our prefix. */
  annotations: Record<string, string>;
}

/** All annotations of ours begin with it. */
export const PREFIX = "io.cryoshim.";

/** Nothing that we read is larger; a configuration of Kubernetes has some 100 KiB. */
const MAX_BYTES = 16 << 20;
/** As runc (libcontainer/factory_linux.go:validateID) and crun have them; it is used as a name of a directory. */
const ID = /^(?!\.{1,2}$)[A-Za-z0-9_+.-]{1,1024}$/;

/** Whether a text can be a container's id, and so a name of a directory. */
export const isContainerId = (text: string | undefined): text is string => text !== undefined && ID.test(text);

/** A file's text; undefined where there is none that is plain and of a sane size. A fifo does not block. */
const textOf = (path: string, owner?: number): string | undefined => {
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    try {
      const st = fstatSync(fd);
      if (!st.isFile() || st.size > MAX_BYTES || (owner !== undefined && st.uid !== owner)) return undefined;
      return readFileSync(fd, "utf8");
    } finally {
      closeSync(fd);
    }
  } catch {
    return undefined;
  }
};

const objectOf = (text: string | undefined): Record<string, unknown> | undefined => {
  try {
    const value: unknown = text === undefined ? undefined : JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
};

/** The annotations of ours in an OCI configuration; a value that is no text is kept as JSON, to be complained of. */
const annotationsIn = (text: string): Record<string, string> => {
  // Most containers have none of ours, and large configurations.
  const all = text.includes(PREFIX) ? objectOf(text)?.annotations : undefined;
  const ours = Object.entries(typeof all === "object" && all !== null ? all : {}).filter(([key]) =>
    key.startsWith(PREFIX),
  );
  return Object.fromEntries(
    ours.map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]),
  );
};

const oci = (id: string | undefined, places: readonly string[]): Container | undefined => {
  for (const place of places) {
    const text = textOf(join(place, "config.json"));
    if (text !== undefined) return { id, runtime: "oci", place, annotations: annotationsIn(text) };
  }
  return undefined;
};

const words = (pid: number | string): string[] => readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").slice(0, -1);

/** The value of an option, as `--name VALUE` or `--name=VALUE`. */
const option = (args: readonly string[], ...names: string[]): string | undefined => {
  const at = args.findIndex((arg) => names.includes(arg.split("=", 1)[0]!));
  if (at < 0) return undefined;
  const arg = args[at]!;
  return arg.includes("=") ? arg.slice(arg.indexOf("=") + 1) : args[at + 1];
};

/** What runtimes keep of a container: runc's state.json has the bundle among labels, crun's status as it is. */
const bundleIn = (dir: string, root: number | undefined): string | undefined => {
  const state = objectOf(textOf(join(dir, "state.json"))) ?? objectOf(textOf(join(dir, "status")));
  const pid = state?.init_process_pid ?? state?.pid;
  // Of another container of that id, under another root of runtimes.
  if (state === undefined || (root !== undefined && pid !== root)) return undefined;
  const labels = (state.config as { labels?: unknown } | undefined)?.labels;
  const label = Array.isArray(labels) ? labels.find((each) => String(each).startsWith("bundle=")) : undefined;
  const bundle = label === undefined ? state.bundle : String(label).slice("bundle=".length);
  return typeof bundle === "string" ? bundle : undefined;
};

/** Where runtimes keep their state unless they are told (--root). */
const STATE_ROOTS = ["/run/runc", "/run/crun"];

/**
 * The container that a runtime, whose process `client` is, checkpoints or restores. `root` is the root task of a dump.
 * A restore is told its bundle, or stands in it (runc --bundle); a dump is told the id, always the last word.
 */
export const containerOfRuntime = (client: number, root: number | undefined): Container | undefined => {
  try {
    const args = words(client);
    const cwd = readlinkSync(`/proc/${client}/cwd`);
    const last = args.at(-1);
    const id = isContainerId(last) ? last : undefined;
    const named = option(args, "--bundle", "-b");
    if (named !== undefined) return oci(id, [resolve(cwd, named)]);
    const states = [option(args, "--root"), ...STATE_ROOTS].flatMap((dir) =>
      dir === undefined || id === undefined ? [] : [join(resolve(cwd, dir), id)],
    );
    for (const dir of root === undefined ? [] : states) {
      const bundle = bundleIn(dir, root);
      // crun keeps a copy of the configuration itself.
      if (bundle !== undefined) return oci(id, [bundle, dir]);
    }
    return root === undefined ? oci(id, [cwd]) : undefined;
  } catch {
    return undefined;
  }
};

/**
 * The lines of ours in an LXC configuration: LXC passes over every line that does not begin with "lxc."
 * (src/lxc/confile.c:parse_line). The last one counts.
 */
const annotationsOfLxc = (text: string): Record<string, string> => {
  const found: Record<string, string> = {};
  for (const line of text.split("\n")) {
    const [, key, value] = /^\s*(io\.cryoshim\.[^\s=]+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (key !== undefined) found[key] = value!.replace(/^"(.*)"$/, "$1");
  }
  return found;
};

/** A container of LXC by its configuration file. `owner`: the file must be this user's. */
export const containerOfLxc = (
  id: string | undefined,
  place: string | undefined,
  owner?: number,
): Container | undefined => {
  const text = place === undefined ? undefined : textOf(place, owner);
  if (text === undefined) return undefined;
  return { id: isContainerId(id) ? id : undefined, runtime: "lxc", place: place!, annotations: annotationsOfLxc(text) };
};

/** The parent of a process and the user whom it belongs to. */
const parentOf = (pid: number): { parent: number; uid: number } => {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return { parent: Number(/^PPid:\t(\d+)/m.exec(status)?.[1]), uid: Number(/^Uid:\t(\d+)/m.exec(status)?.[1]) };
};

const LXC_PATH = "/var/lib/lxc";

/**
 * The container that `criu dump|restore`, whose process `caller` is, is about: LXC's. A restore is told in the environment.
 * In a dump the parent of the root task is "[lxc monitor] PATH NAME"; that of a restored one is the lxc-checkpoint that
 * restored it, as the caller is that dumps it.
 */
export const containerOfCommand = (
  caller: number,
  root: number | undefined,
  env: NodeJS.ProcessEnv,
): Container | undefined => {
  try {
    if (root === undefined) return containerOfLxc(env.LXC_NAME, env.LXC_CONFIG_FILE);
    const monitor = parentOf(root).parent;
    // Its title is one string.
    const [, path, name] = /^\[lxc monitor\] (\S+) (\S+)$/.exec(words(monitor).join(" ").trim()) ?? [];
    // Who can name itself so cannot make us read what is another's.
    if (name !== undefined) return containerOfLxc(name, join(path!, name, "config"), parentOf(monitor).uid);
    const client = words(parentOf(caller).parent);
    if (basename(client[0] ?? "") !== "lxc-checkpoint") return undefined;
    const id = option(client, "-n", "--name");
    return isContainerId(id)
      ? containerOfLxc(id, join(option(client, "-P", "--lxcpath") ?? LXC_PATH, id, "config"))
      : undefined;
  } catch {
    return undefined;
  }
};
