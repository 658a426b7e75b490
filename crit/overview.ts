// SPDX-License-Identifier: Apache-2.0
// What is in a checkpoint, at a glance.
import * as z from "zod/mini";
import type { Checkpoint } from "./checkpoint.js";
import { type Container, containerOf } from "./container.js";
import type { Message } from "./message.js";
import { FILE_TYPES } from "./schema/files.js";
import { child, messageOf, messagesOf, num, PAGE, pagemapOf, pagesOf, tasksOf } from "./tasks.js";

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
  state: string;
  threads: number;
  /** Bytes of its memory in the images. */
  memory: number;
}

export interface Overview {
  container?: Container;
  imageVersion: number;
  needsCryoshim: boolean;
  tasks: Task[];
  files: Record<string, number>;
  /** Times of the dump in milliseconds, as CRIU measured them. */
  times?: { freezing: number; frozen: number; memoryDump: number; memoryWrite: number };
  /** Pages that the dump looked at, left out because the parent has them, and wrote. */
  pages?: { scanned: number; inParent: number; written: number };
  /** What was locked for the dump, and the packets dropped until it ended. */
  networkLock?: {
    extent: "netns" | "sockets";
    kept?: string | undefined;
    dropped: { in: number; out: number; forwarded: number };
  };
  /** Bytes of all images together, of the pages among them (and of a GPU's), and of what the container changed in its root. */
  bytes: { total: number; pages: number; gpuPages?: number; rootfsDiff?: number };
}

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

/** Bytes of a task's memory by its page map. */
export const memoryIn = (checkpoint: Checkpoint, pid: number): number => {
  let pages = 0;
  for (const { head, run } of pagemapOf(checkpoint, pid)) if (!head) pages += pagesOf(run);
  return pages * PAGE;
};

const milliseconds = (message: Message, field: string): number => num(message, field) / 1000;

/** Reads the overview. Throws CryoshimError ERR_IMAGE, naming image and byte, where one is damaged. */
export const overview = (checkpoint: Checkpoint): Overview => {
  const inventory = messageOf(checkpoint, "inventory.img", "INVENTORY");
  const tasks = tasksOf(checkpoint).map(({ pid, ppid, comm, state, threads }): Task => {
    return { pid, ppid, comm, state, threads, memory: memoryIn(checkpoint, pid) };
  });
  const files: Record<string, number> = {};
  for (const { type } of messagesOf(checkpoint, "files.img", "FILES")) {
    const kind = FILE_TYPES[type as number] ?? `type ${type as number}`;
    const name = FILE_NAMES[kind] ?? kind;
    files[name] = (files[name] ?? 0) + 1;
  }
  const dump = child(messageOf(checkpoint, "stats-dump", "STATS"), "dump");
  const bytes: Overview["bytes"] = { total: 0, pages: 0 };
  for (const [name, size] of checkpoint.sizes) {
    if (name === "rootfs-diff.tar") bytes.rootfsDiff = size;
    else bytes.total += size;
    if (/^pages-\d+\.img$/.test(name)) bytes.pages += size;
    if (/^amdgpu-pages-/.test(name)) bytes.gpuPages = (bytes.gpuPages ?? 0) + size;
  }
  const container = containerOf(checkpoint);
  const networkLock = recordOf(checkpoint)?.networkLock;
  return {
    ...(container && { container }),
    imageVersion: num(inventory, "img_version"),
    needsCryoshim: checkpoint.sizes.has("cryoshim.img"),
    tasks,
    files,
    ...(dump && {
      times: {
        freezing: milliseconds(dump, "freezing_time"),
        frozen: milliseconds(dump, "frozen_time"),
        memoryDump: milliseconds(dump, "memdump_time"),
        memoryWrite: milliseconds(dump, "memwrite_time"),
      },
      pages: {
        scanned: num(dump, "pages_scanned"),
        inParent: num(dump, "pages_skipped_parent"),
        written: num(dump, "pages_written"),
      },
    }),
    ...(networkLock && { networkLock }),
    bytes,
  };
};
