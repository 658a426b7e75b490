// SPDX-License-Identifier: Apache-2.0

import * as z from "zod/mini";
import { CryoshimError } from "../shim/error.js";
import type { Checkpoint } from "./checkpoint.js";
import { decodeImage, type KindName } from "./image.js";
import type { Message } from "./message.js";
import { FILE_TYPES } from "./schema/files.js";

const PAGE = 4096;
/** For people; the others are called as CRIU calls them. */
const FILE_NAMES: Readonly<Record<string, string>> = {
  regular: "regular file",
  inet: "inet socket",
  unix: "unix socket",
  packet: "packet socket",
  netlink: "netlink socket",
};

export interface Task {
  pid: number;
  ppid: number;
  comm: string;
  threads: number;
  /** Bytes of its memory in the images. */
  memory: number;
}

/** What is in a checkpoint, at a glance. */
export interface Overview {
  container?: { id?: string; name?: string; image?: string; runtime?: string; checkpointedAt?: string };
  imageVersion: number;
  needsCryoshim: boolean;
  tasks: Task[];
  files: Record<string, number>;
  /** Times of the dump in milliseconds, as CRIU measured them. */
  times?: { freezing: number; frozen: number; memoryDump: number; memoryWrite: number };
  /** What was locked for the dump, and the packets dropped until it ended. */
  networkLock?: {
    extent: "netns" | "sockets";
    kept?: string | undefined;
    dropped: { in: number; out: number; forwarded: number };
  };
  /** Bytes of all images together, and of the pages among them. */
  bytes: { total: number; pages: number };
}

const read = (checkpoint: Checkpoint, file: string, kind: KindName): Message[] => {
  const data = checkpoint.files.get(file);
  if (data === undefined) return [];
  const image = decodeImage(data, file);
  if (image.kind !== kind)
    throw new CryoshimError("ERR_IMAGE", {
      what: `cannot read image \`${file}\` at byte 4`,
      why: `it is an image of kind ${image.kind}, not ${kind}`,
      fix: "the checkpoint is damaged; take it again or copy it again",
    });
  return image.entries.map(({ message }) => message);
};

const memoryOf = (checkpoint: Checkpoint, pid: number): number => {
  const [, ...maps] = read(checkpoint, `pagemap-${pid}.img`, "PAGEMAP");
  let pages = 0;
  for (const { nr_pages, compat_nr_pages } of maps) pages += Number(nr_pages ?? compat_nr_pages ?? 0);
  return pages * PAGE;
};

/** podman's config.dump, or containerd's and CRI-O's spec.dump: names for people, nothing depends on them. */
const containerOf = (checkpoint: Checkpoint): Overview["container"] => {
  const text = checkpoint.files.get("config.dump")?.toString();
  if (text === undefined) return undefined;
  try {
    const config = JSON.parse(text) as Record<string, unknown>;
    const pick = (key: string): string | undefined =>
      typeof config[key] === "string" ? (config[key] as string) : undefined;
    const known = {
      id: pick("id"),
      name: pick("name"),
      image: pick("rootfsImageName"),
      runtime: pick("runtime") ?? pick("ociRuntime"),
      checkpointedAt: pick("checkpointedAt"),
    };
    return Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined));
  } catch {
    return undefined;
  }
};

const count = z.number().check(z.nonnegative());
const record = z.object({
  version: z.literal(1),
  networkLock: z.optional(
    z.object({
      extent: z.enum(["netns", "sockets"]),
      kept: z.optional(z.string()),
      dropped: z.object({ in: count, out: count, forwarded: count }),
    }),
  ),
});

/** cryoshim's own record; one that cannot be read, or is of a later version, is passed over. */
const recordOf = (checkpoint: Checkpoint): z.infer<typeof record> | undefined => {
  try {
    return record.parse(JSON.parse(checkpoint.files.get("cryoshim.json")?.toString() ?? ""));
  } catch {
    return undefined;
  }
};

/** Reads the overview. Throws CryoshimError ERR_IMAGE, naming image and byte, where one is damaged. */
export const overview = (checkpoint: Checkpoint): Overview => {
  const [inventory] = read(checkpoint, "inventory.img", "INVENTORY");
  const tasks = read(checkpoint, "pstree.img", "PSTREE").map((entry): Task => {
    const pid = entry.pid as number;
    const [core] = read(checkpoint, `core-${pid}.img`, "CORE");
    return {
      pid,
      ppid: entry.ppid as number,
      comm: String((core?.tc as Message | undefined)?.comm ?? "?"),
      threads: (entry.threads as number[] | undefined)?.length ?? 1,
      memory: memoryOf(checkpoint, pid),
    };
  });
  const files: Record<string, number> = {};
  for (const { type } of read(checkpoint, "files.img", "FILES")) {
    const kind = FILE_TYPES[type as number] ?? `type ${type as number}`;
    const name = FILE_NAMES[kind] ?? kind;
    files[name] = (files[name] ?? 0) + 1;
  }
  const [stats] = read(checkpoint, "stats-dump", "STATS");
  const dump = stats?.dump as Record<string, number> | undefined;
  const bytes = { total: 0, pages: 0 };
  for (const [name, size] of checkpoint.sizes) {
    bytes.total += size;
    if (/^pages-\d+\.img$/.test(name)) bytes.pages += size;
  }
  const container = containerOf(checkpoint);
  const networkLock = recordOf(checkpoint)?.networkLock;
  return {
    ...(container && { container }),
    imageVersion: (inventory?.img_version as number | undefined) ?? 0,
    needsCryoshim: checkpoint.sizes.has("cryoshim.img"),
    tasks,
    files,
    ...(dump && {
      times: {
        freezing: dump.freezing_time! / 1000,
        frozen: dump.frozen_time! / 1000,
        memoryDump: dump.memdump_time! / 1000,
        memoryWrite: dump.memwrite_time! / 1000,
      },
    }),
    ...(networkLock && { networkLock }),
    bytes,
  };
};
