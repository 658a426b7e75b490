// SPDX-License-Identifier: Apache-2.0
// What runtimes say of the container in their archives: podman's, CRI-O's and containerd's config.dump, spec.dump and
// network.status. Names for people: nothing depends on them, and what cannot be read is passed over.
import type { Checkpoint } from "./checkpoint.js";

export interface Container {
  name?: string;
  id?: string;
  image?: string;
  runtime?: string;
  engine?: string;
  createdAt?: string;
  checkpointedAt?: string;
  ip?: string;
  mac?: string;
  pod?: string;
  namespace?: string;
}
export interface SpecMount {
  destination: string;
  type: string;
  source: string;
}

type Tree = Record<string, unknown>;
const isTree = (value: unknown): value is Tree => typeof value === "object" && value !== null;

const json = (checkpoint: Checkpoint, file: string): Tree => {
  try {
    const value: unknown = JSON.parse(checkpoint.files.get(file)?.toString() ?? "");
    return isTree(value) ? value : {};
  } catch {
    return {};
  }
};
const text = (tree: unknown, ...path: string[]): string | undefined => {
  let value: unknown = tree;
  for (const key of path) value = isTree(value) && Object.hasOwn(value, key) ? value[key] : undefined;
  return typeof value === "string" && value !== "" ? value : undefined;
};

/** Addresses of podman's networks. */
const addresses = (status: Tree): { ip: string | undefined; mac: string | undefined } => {
  const [ips, macs]: [string[], string[]] = [[], []];
  for (const network of Object.values(status))
    for (const each of Object.values(isTree(network) && isTree(network.interfaces) ? network.interfaces : {})) {
      const mac = text(each, "mac_address");
      if (mac !== undefined) macs.push(mac);
      const subnets: unknown = isTree(each) ? each.subnets : undefined;
      for (const subnet of Array.isArray(subnets) ? subnets : []) {
        const ip = text(subnet, "ipnet")?.split("/")[0];
        if (ip !== undefined) ips.push(ip);
      }
    }
  return { ip: ips.join(", ") || undefined, mac: macs.join(", ") || undefined };
};

const crioName = (metadata: string | undefined): string | undefined => {
  try {
    return text(JSON.parse(metadata ?? ""), "name");
  } catch {
    return undefined;
  }
};

export const containerOf = (checkpoint: Checkpoint): Container | undefined => {
  const config = json(checkpoint, "config.dump");
  const annotations = json(checkpoint, "spec.dump").annotations;
  const note = (key: string): string | undefined => text(annotations, key);
  const manager = note("io.container.manager");
  const known: { [key in keyof Container]: string | undefined } = {
    name: text(config, "name"),
    id: text(config, "id"),
    image: text(config, "rootfsImageName"),
    runtime: text(config, "ociRuntime") ?? text(config, "runtime"),
    createdAt: text(config, "createdTime"),
    checkpointedAt: text(config, "checkpointedTime") ?? text(config, "checkpointedAt"),
  };
  if (manager === "libpod")
    Object.assign(known, { engine: "Podman", ...addresses(json(checkpoint, "network.status")) });
  else if (manager === "cri-o")
    Object.assign(known, {
      engine: "CRI-O",
      name: crioName(note("io.kubernetes.cri-o.Metadata")) ?? known.name,
      createdAt: note("io.kubernetes.cri-o.Created") ?? known.createdAt,
      ip: note("io.kubernetes.cri-o.IP.0"),
      pod: note("io.kubernetes.pod.name"),
      namespace: note("io.kubernetes.pod.namespace"),
    });
  else if (note("io.kubernetes.cri.container-name") !== undefined)
    Object.assign(known, {
      engine: "containerd",
      name: note("io.kubernetes.cri.container-name"),
      pod: note("io.kubernetes.cri.sandbox-name"),
      namespace: note("io.kubernetes.cri.sandbox-namespace"),
    });
  const told = Object.entries(known).filter(([, value]) => value !== undefined);
  return told.length === 0 ? undefined : (Object.fromEntries(told) as Container);
};

/** What runtime and Kubernetes noted of the container; some values are JSON. */
export const annotationsOf = (checkpoint: Checkpoint): Record<string, string> => {
  const { annotations } = json(checkpoint, "spec.dump");
  const told = Object.entries(isTree(annotations) ? annotations : {}).filter(([, value]) => typeof value === "string");
  return Object.fromEntries(told.sort(([a], [b]) => (a < b ? -1 : 1))) as Record<string, string>;
};

/** The mounts that the runtime was asked for. */
export const specMountsOf = (checkpoint: Checkpoint): SpecMount[] => {
  const { mounts } = json(checkpoint, "spec.dump");
  return (Array.isArray(mounts) ? mounts : []).map((mount) => ({
    destination: text(mount, "destination") ?? "",
    type: text(mount, "type") ?? "",
    source: text(mount, "source") ?? "",
  }));
};
