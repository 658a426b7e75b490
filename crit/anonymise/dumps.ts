// SPDX-License-Identifier: Apache-2.0
// JSON that runtimes, and cryoshim, put beside the images: the members named here, no others.
import { CryoshimError, reason } from "../../shim/error.js";
import type { Alias } from "./alias.js";
import type { Work } from "./message.js";
import { aliasAddress, aliasMac } from "./text.js";

type Tree = { readonly [key: string]: Shape };
/** name, path...: text that is replaced. yes: a number or a boolean. RegExp: text that is kept if it is just that. Each: an
 * object of any members, whose names are replaced. */
type Shape =
  | "name"
  | "path"
  | "host"
  | "device"
  | "ip"
  | "mac"
  | "id"
  | "yes"
  | RegExp
  | readonly [Shape]
  | Each
  | Tree;
class Each {
  readonly names: "name" | "device";
  readonly of: Shape;
  constructor(names: "name" | "device", of: Shape) {
    this.names = names;
    this.of = of;
  }
}

const VERSION = /^\d+(\.\d+){1,3}$/;
const TYPE =
  /^(bind|tmpfs|proc|sysfs|devpts|mqueue|cgroup2?|overlay|pid|network|ipc|uts|mount|user|time|runc|crun|libpod|cri-o)$/;
const K8S = "io.kubernetes.";
const SPEC: Tree = {
  ociVersion: VERSION,
  hostname: "host",
  root: { path: "path", readonly: "yes" },
  process: { terminal: "yes", user: { uid: "id", gid: "id", additionalGids: ["id"] }, args: ["name"], cwd: "path" },
  mounts: [{ destination: "path", type: TYPE, source: "path" }],
  annotations: {
    "io.container.manager": TYPE,
    [`${K8S}cri-o.SandboxID`]: "name",
    [`${K8S}cri.container-name`]: "name",
    [`${K8S}cri.sandbox-name`]: "name",
    [`${K8S}cri.sandbox-namespace`]: "name",
    [`${K8S}pod.name`]: "name",
    [`${K8S}pod.namespace`]: "name",
    [`${K8S}container.name`]: "name",
  },
  linux: { cgroupsPath: "path", namespaces: [{ type: TYPE, path: "path" }] },
};
const CONFIG: Tree = {
  id: "name",
  name: "name",
  rootfsImage: "name",
  rootfsImageRef: "name",
  rootfsImageName: "name",
  ociRuntime: TYPE,
  runtime: TYPE,
};

/** podman's networks (containers/common, libnetwork/types) */
const STATUS = new Each("name", {
  interfaces: new Each("device", { subnets: [{ ipnet: "ip", gateway: "ip" }], mac_address: "mac" }),
  dns_server_ips: ["ip"],
  dns_search_domains: ["host"],
});
/** cryoshim's own (shim/session/bracket.ts) */
const RECORD: Tree = {
  version: "yes",
  networkLock: {
    extent: /^(netns|sockets)$/,
    dropped: { in: "yes", out: "yes", forwarded: "yes" },
    lockMs: "yes",
    unlockMs: "yes",
  },
};
const DUMPS: Readonly<Record<string, Shape>> = {
  "spec.dump": SPEC,
  "config.dump": CONFIG,
  "network.status": STATUS,
  "bind.mounts": [
    { destination: "path", source: "path", type: TYPE, options: [/^(rw|ro|r?bind|r?(private|shared|slave))$/] },
  ],
  "deleted.files": ["path"],
  "descriptors.json": ["path"],
  "cryoshim.json": RECORD,
};

export const isDump = (name: string): boolean => Object.hasOwn(DUMPS, name);

/** Text of one kind; undefined for what is not of it. */
const renamed = (text: string, kind: string, alias: Alias): string | undefined => {
  if (kind === "ip") return aliasAddress(text, alias);
  if (kind === "mac") return aliasMac(text, alias);
  // As names in images are hashed: byte by byte.
  const bytes = Buffer.from(text).toString("latin1");
  if (kind === "path") return alias.path(bytes);
  return kind === "device" ? alias.device(bytes) : alias.name(bytes);
};

const shaped = (value: unknown, shape: Shape, work: Work): unknown => {
  const { alias, keep } = work;
  if (shape === "id" && work.ids) return typeof value === "number" ? alias.id(value) : undefined;
  if (shape === "yes" || shape === "id")
    return typeof value === "number" || typeof value === "boolean" ? value : undefined;
  if (shape instanceof RegExp) return typeof value === "string" && shape.test(value) ? value : undefined;
  if (typeof shape === "string") {
    if (typeof value !== "string") return undefined;
    return keep.has(shape) ? value : renamed(value, shape, alias);
  }
  if (Array.isArray(shape)) {
    const [one] = shape as readonly [Shape];
    return Array.isArray(value)
      ? value.map((each) => shaped(each, one, work)).filter((each) => each !== undefined)
      : undefined;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  const from = value as Record<string, unknown>;
  if (shape instanceof Each)
    return Object.fromEntries(
      Object.entries(from)
        .map(([key, each]) => [
          keep.has(shape.names) ? key : renamed(key, shape.names, alias),
          shaped(each, shape.of, work),
        ])
        .filter(([, each]) => each !== undefined),
    );
  const pairs = Object.entries(shape as Tree).map(
    ([key, inner]) => [key, Object.hasOwn(from, key) ? shaped(from[key], inner, work) : undefined] as const,
  );
  return Object.fromEntries(pairs.filter(([, each]) => each !== undefined));
};

export const anonymiseDump = (name: string, bytes: Buffer, work: Work): Buffer => {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch (error) {
    // The parser's message quotes the text.
    throw new CryoshimError("ERR_CHECKPOINT", {
      what: `cannot read \`${name}\``,
      why: `it is no JSON${/ at position \d+/.exec(reason(error))?.[0] ?? ""}`,
    });
  }
  return Buffer.from(JSON.stringify(shaped(value, DUMPS[name]!, work) ?? {}, null, 2));
};
