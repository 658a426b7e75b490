// SPDX-License-Identifier: Apache-2.0
// What a container asks of us by annotations, io.cryoshim.*. They come from outside: each is checked, and one that is
// wrong costs nothing but itself, unless the container asks for more (io.cryoshim.strict).
import type { CgroupManage, NetworkLock, Settings } from "../engine/launch-file.js";
import { CryoshimError } from "../error.js";
import { type Container, PREFIX } from "./container.js";
import { LEVELS, type LogLevel } from "./log.js";

/** How a mount of a remote file system is treated that a container has. */
export interface RemoteAnnotations {
  /** Through SPFS where it must be, always, or never: then CRIU is left alone with it. */
  policy?: "auto" | "always" | "never";
  /** Milliseconds after which what waits for an absent server fails with EIO; 0: it waits for ever. */
  timeoutMs?: number;
  /** Whether the real mount takes SPFS's place once it is back. */
  retire?: "auto" | "always" | "never";
  /** What becomes of calls when the server is lost later. */
  onLoss?: "block" | "eio";
  /** A file that is gone at the restore makes it fail, or stays a stub. */
  gone?: "fail" | "stub";
  /** Other paths to the same exports on this host: what was mounted at the dump, and what to mount here. */
  map: { source: string; here: string }[];
}

/** What becomes of requests of io_uring that are under way in a dump: waited for, at most `ms` milliseconds; or not. */
export type UringPolicy = { policy: "wait"; ms: number } | { policy: "refuse" | "cancel" };

/** All of a container's wishes; what it does not say is not there. */
export interface Annotations {
  /** A wrong annotation fails the operation, and a hook that fails keeps the container from starting. */
  strict: boolean;
  cgroupManage?: CgroupManage;
  networkLock?: NetworkLock;
  logLevel?: LogLevel;
  ioUring?: UringPolicy;
  remote: RemoteAnnotations;
}

/** Makes a value of a text; a text of its own says what would have been right. */
type Reader<T> = (text: string) => { value: T } | { wants: string };

const oneOf =
  <T extends string>(...values: readonly T[]): Reader<T> =>
  (text) =>
    (values as readonly string[]).includes(text) ? { value: text as T } : { wants: `one of ${values.join(", ")}` };

const DURATION = /^(\d{1,9})(ms|s|m|h)?$/;
const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** "250ms", "30s", "5m", "2h"; seconds where there is no unit. In milliseconds. */
export const duration: Reader<number> = (text) => {
  const [, digits, unit = "s"] = DURATION.exec(text) ?? [];
  return digits === undefined ? { wants: "a time such as 500ms, 30s or 5m" } : { value: Number(digits) * UNITS[unit]! };
};

const uring: Reader<UringPolicy> = (text) => {
  if (text === "refuse" || text === "cancel") return { value: { policy: text } };
  const ms = /^wait:(\d{1,9})$/.exec(text)?.[1];
  return ms === undefined
    ? { wants: "wait:MILLISECONDS, refuse or cancel" }
    : { value: { policy: "wait", ms: Number(ms) } };
};

/** "SOURCE=HERE", several separated by commas: sources as in mountinfo, "server:/export" or "/path". */
const mapping: Reader<RemoteAnnotations["map"]> = (text) => {
  const pairs = text.split(",").map((pair) => pair.trim().split("="));
  const fits = pairs.every((pair) => pair.length === 2 && pair.every((part) => part !== "" && !part.includes("\0")));
  return fits
    ? { value: pairs.map(([source, here]) => ({ source: source!, here: here! })) }
    : { wants: "SOURCE=HERE, several separated by commas" };
};

/** One annotation: how it is read, and where it goes. */
const entry =
  <T>(read: Reader<T>, put: (into: Annotations, value: T) => void) =>
  (into: Annotations, text: string): string | undefined => {
    const result = read(text);
    if ("wants" in result) return result.wants;
    put(into, result.value);
    return undefined;
  };

/** Every annotation that there is; docs/configuration.md has the same table. */
export const ANNOTATIONS: Readonly<Record<string, (into: Annotations, text: string) => string | undefined>> = {
  [`${PREFIX}strict`]: entry(oneOf("true", "false"), (a, value) => {
    a.strict = value === "true";
  }),
  [`${PREFIX}cgroup.manage`]: entry(
    oneOf("caller", "auto", "ignore", "none", "props", "soft", "full", "strict", "default"),
    (a, value) => {
      a.cgroupManage = value;
    },
  ),
  [`${PREFIX}network.lock`]: entry(oneOf("auto", "bpf", "iptables", "nftables", "caller", "none"), (a, value) => {
    a.networkLock = value;
  }),
  [`${PREFIX}log.level`]: entry(oneOf(...LEVELS), (a, value) => {
    a.logLevel = value;
  }),
  [`${PREFIX}io-uring.policy`]: entry(uring, (a, value) => {
    a.ioUring = value;
  }),
  [`${PREFIX}remote.policy`]: entry(oneOf("auto", "always", "never"), (a, value) => {
    a.remote.policy = value;
  }),
  [`${PREFIX}remote.timeout`]: entry(duration, (a, value) => {
    a.remote.timeoutMs = value;
  }),
  [`${PREFIX}remote.retire`]: entry(oneOf("auto", "always", "never"), (a, value) => {
    a.remote.retire = value;
  }),
  [`${PREFIX}remote.on-loss`]: entry(oneOf("block", "eio"), (a, value) => {
    a.remote.onLoss = value;
  }),
  [`${PREFIX}remote.gone`]: entry(oneOf("fail", "stub"), (a, value) => {
    a.remote.gone = value;
  }),
  [`${PREFIX}remote.map`]: entry(mapping, (a, value) => {
    a.remote.map = value;
  }),
};

/** Reads annotations; `wrong` has a sentence for each that is unknown or does not fit. */
export const readAnnotations = (
  texts: Readonly<Record<string, string>>,
): { annotations: Annotations; wrong: string[] } => {
  const annotations: Annotations = { strict: false, remote: { map: [] } };
  const wrong: string[] = [];
  for (const [key, text] of Object.entries(texts)) {
    if (!key.startsWith(PREFIX)) continue;
    const wants = Object.hasOwn(ANNOTATIONS, key)
      ? ANNOTATIONS[key]!(annotations, text)
      : "there is no such annotation";
    if (wants === undefined) continue;
    const said = `annotation ${JSON.stringify(`${key}=${text}`).slice(1, -1).slice(0, 200)}`;
    wrong.push(Object.hasOwn(ANNOTATIONS, key) ? `${said}: it wants ${wants}` : `${said}: ${wants}`);
  }
  return { annotations, wrong };
};

/**
 * The wishes of a session's container. What is wrong is returned to be told, each `wrong`; a container that demands it
 * by io.cryoshim.strict gets ERR_ANNOTATION thrown instead.
 */
export const annotationsOf = (container: Container | undefined): { annotations: Annotations; wrong: string[] } => {
  const read = readAnnotations(container?.annotations ?? {});
  if (read.annotations.strict && read.wrong.length > 0)
    throw new CryoshimError("ERR_ANNOTATION", {
      what: `cannot go on with the container \`${container?.id ?? container?.place}\``,
      why: read.wrong.join("; "),
      fix: `correct it, or take ${PREFIX}strict away; see docs/configuration.md`,
    });
  return read;
};

/** The host's configuration, as far as the container has no wish of its own. */
export const applyAnnotations = (
  settings: Settings,
  { cgroupManage, networkLock, ioUring }: Annotations,
): Settings => ({
  ...settings,
  ...(cgroupManage !== undefined && { cgroup: { ...settings.cgroup, manage: cgroupManage } }),
  ...(networkLock !== undefined && { network: { ...settings.network, lock: networkLock } }),
  ...(ioUring !== undefined && {
    uring: { policy: ioUring.policy, wait: ioUring.policy === "wait" ? ioUring.ms : settings.uring.wait },
  }),
});
