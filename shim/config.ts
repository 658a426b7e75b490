// SPDX-License-Identifier: Apache-2.0
// /etc/cryoshim/config.toml. Every key is documented in configs/config.toml and docs/configuration.md.
import { readFileSync, statSync } from "node:fs";
import { isAbsolute } from "node:path";
import { parse, TomlError } from "smol-toml";
import * as z from "zod/mini";
import { type Config, DEFAULTS } from "./engine/launch-file.js";
import { CryoshimError, reason } from "./error.js";

const absolute = z.string().check(z.refine(isAbsolute, "must be an absolute path"));

const seconds = z.number().check(z.nonnegative(), z.maximum(1_000_000));

const text = z.string().check(
  z.minLength(1),
  z.maxLength(4000),
  z.refine((it) => !it.includes("\0"), "has a NUL"),
);
/** What mount(8) takes as one argument, and not as an option of its own. */
const word = text.check(z.refine((it) => !it.startsWith("-"), "must not begin with -"));

const mapping = z.strictObject({
  source: text,
  path: z.optional(absolute),
  type: z.optional(word),
  from: z.optional(word),
  options: z.optional(text),
  credentials: z.optional(absolute),
});

const mebibytes = z.number().check(z.nonnegative(), z.maximum(1 << 30));

const milliseconds = z.number().check(z.nonnegative(), z.maximum(3_600_000));

const schema = z.strictObject({
  engine: z.optional(z.strictObject({ path: z.optional(absolute), node: z.optional(absolute) })),
  cgroup: z.optional(
    z.strictObject({
      manage: z.optional(z.enum(["caller", "auto", "ignore", "none", "props", "soft", "full", "strict", "default"])),
    }),
  ),
  network: z.optional(
    z.strictObject({ lock: z.optional(z.enum(["auto", "bpf", "iptables", "nftables", "caller", "none"])) }),
  ),
  carriers: z.optional(z.strictObject({ extra: z.optional(z.array(absolute)) })),
  detached: z.optional(z.strictObject({ largest: z.optional(mebibytes) })),
  remote: z.optional(
    z.strictObject({
      policy: z.optional(z.enum(["auto", "always", "never"])),
      answer_within: z.optional(seconds.check(z.positive())),
      timeout: z.optional(seconds),
      passthrough: z.optional(z.enum(["auto", "off"])),
      on_loss: z.optional(z.enum(["block", "eio"])),
      retire: z.optional(z.enum(["auto", "always", "never"])),
      gone: z.optional(z.enum(["fail", "stub"])),
      mount: z.optional(z.array(mapping)),
    }),
  ),
  "io-uring": z.optional(
    z.strictObject({ policy: z.optional(z.enum(["wait", "refuse", "cancel"])), wait: z.optional(milliseconds) }),
  ),
});

const refuse = (file: string, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_CONFIG", {
    what: `cannot use the configuration \`${file}\``,
    why,
    fix: "see docs/configuration.md",
    cause,
  });

/** The keys that have a value. */
const said = <T extends object>(table: T | undefined): { [K in keyof T]?: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(table ?? {}).filter(([, value]) => value !== undefined)) as never;

/** Reads and checks the text of a configuration. Throws CryoshimError ERR_CONFIG that names the key or the line. */
export const parseConfig = (text: string, file: string): Config => {
  let table: unknown;
  try {
    table = parse(text);
  } catch (error) {
    const where = error instanceof TomlError ? `line ${error.line}, column ${error.column}: ` : "";
    throw refuse(file, `${where}${reason(error).split("\n")[0]}`, error);
  }
  const checked = schema.safeParse(table);
  if (!checked.success) {
    const issue = checked.error.issues[0]!;
    const key = [...issue.path, ...(issue.code === "unrecognized_keys" ? [issue.keys[0]] : [])].join(".");
    const why = issue.code === "unrecognized_keys" ? "no such key" : issue.message;
    throw refuse(file, `${key}: ${why}`);
  }
  const { engine, cgroup, network, carriers, detached, remote } = checked.data;
  return {
    engine: { ...DEFAULTS.engine, ...engine },
    cgroup: { manage: cgroup?.manage ?? DEFAULTS.cgroup.manage },
    network: { lock: network?.lock ?? DEFAULTS.network.lock },
    carriers: { extra: carriers?.extra ?? DEFAULTS.carriers.extra },
    detached: { largest: detached?.largest ?? DEFAULTS.detached.largest },
    remote: { ...DEFAULTS.remote, ...said(remote) },
    uring: { ...DEFAULTS.uring, ...said(checked.data["io-uring"]) },
  };
};

/** Reads a configuration file, which root alone may be able to write: what it names is run as root. */
export const loadConfig = (file: string): Config => {
  let text: string;
  try {
    const st = statSync(file);
    if (st.uid !== 0 || (st.mode & 0o022) !== 0) throw new Error("others than root can write it");
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw refuse(file, reason(error), error);
  }
  return parseConfig(text, file);
};
