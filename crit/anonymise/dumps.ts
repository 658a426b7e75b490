// SPDX-License-Identifier: Apache-2.0
// spec.dump and config.dump, which runtimes put beside the images: the members named here, no others.
import { CryoshimError, reason } from "../../shim/error.js";
import type { Alias } from "./alias.js";

type Tree = { readonly [key: string]: Shape };
/** name, path, host: text that is replaced. yes: a number or a boolean. RegExp: text that is kept if it is just that. */
type Shape = "name" | "path" | "host" | "yes" | RegExp | readonly [Shape] | Tree;

const VERSION = /^\d+(\.\d+){1,3}$/;
const TYPE =
  /^(bind|tmpfs|proc|sysfs|devpts|mqueue|cgroup2?|overlay|pid|network|ipc|uts|mount|user|time|runc|crun|libpod|cri-o)$/;
const K8S = "io.kubernetes.";
const SPEC: Tree = {
  ociVersion: VERSION,
  hostname: "host",
  root: { path: "path", readonly: "yes" },
  process: { terminal: "yes", user: { uid: "yes", gid: "yes" }, args: ["name"], cwd: "path" },
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

const shaped = (value: unknown, shape: Shape, alias: Alias, keep: ReadonlySet<string>): unknown => {
  if (shape === "yes") return typeof value === "number" || typeof value === "boolean" ? value : undefined;
  if (shape instanceof RegExp) return typeof value === "string" && shape.test(value) ? value : undefined;
  if (typeof shape === "string") {
    if (typeof value !== "string") return undefined;
    if (keep.has(shape)) return value;
    // As names in images are hashed: byte by byte.
    const text = Buffer.from(value).toString("latin1");
    return shape === "path" ? alias.path(text) : alias.name(text);
  }
  if (Array.isArray(shape)) {
    const [one] = shape as readonly [Shape];
    return Array.isArray(value)
      ? value.map((each) => shaped(each, one, alias, keep)).filter((each) => each !== undefined)
      : undefined;
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
  const from = value as Record<string, unknown>;
  const pairs = Object.entries(shape as Tree).map(
    ([key, inner]) => [key, Object.hasOwn(from, key) ? shaped(from[key], inner, alias, keep) : undefined] as const,
  );
  return Object.fromEntries(pairs.filter(([, each]) => each !== undefined));
};

export const anonymiseDump = (name: string, bytes: Buffer, alias: Alias, keep: ReadonlySet<string>): Buffer => {
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
  return Buffer.from(JSON.stringify(shaped(value, name === "spec.dump" ? SPEC : CONFIG, alias, keep) ?? {}, null, 2));
};
