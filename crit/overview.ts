// SPDX-License-Identifier: Apache-2.0
import type { Checkpoint } from "./checkpoint.js";
import { decodeImage, MAGIC } from "./image.js";
import type { Message, Schema } from "./message.js";
import { coreEntry, fileEntry, inventoryEntry, pagemapEntry, pstreeEntry, statsEntry } from "./schema/overview.js";

const PAGE = 4096;
/** enum fd_types of fdinfo.proto. */
const FILE_TYPES = (
  "unknown,regular file,pipe,fifo,inet socket,unix socket,eventfd,epoll,inotify,signalfd,packet socket,tty,fanotify," +
  "netlink socket,namespace,tun,external,timerfd,memfd,bpf map,pidfd"
).split(",");

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
  /** Bytes of all images together, and of the pages among them. */
  bytes: { total: number; pages: number };
}

const read = (checkpoint: Checkpoint, file: string, magic: number, schema: Schema): Message[] => {
  const data = checkpoint.files.get(file);
  return data === undefined ? [] : decodeImage(data, magic, schema, file);
};

const memoryOf = (checkpoint: Checkpoint, pid: number): number => {
  // The first entry is a pagemap_head, whose only field is not one of pagemap_entry's 64-bit kind.
  const [, ...maps] = read(checkpoint, `pagemap-${pid}.img`, MAGIC.pagemap, pagemapEntry);
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

/** Reads the overview. Throws CryoshimError ERR_IMAGE, naming image and byte, where one is damaged. */
export const overview = (checkpoint: Checkpoint): Overview => {
  const [inventory] = read(checkpoint, "inventory.img", MAGIC.inventory, inventoryEntry);
  const tasks = read(checkpoint, "pstree.img", MAGIC.pstree, pstreeEntry).map((entry): Task => {
    const pid = entry.pid as number;
    const [core] = read(checkpoint, `core-${pid}.img`, MAGIC.core, coreEntry);
    return {
      pid,
      ppid: entry.ppid as number,
      comm: String((core?.tc as Message | undefined)?.comm ?? "?"),
      threads: (entry.threads as number[] | undefined)?.length ?? 1,
      memory: memoryOf(checkpoint, pid),
    };
  });
  const files: Record<string, number> = {};
  for (const { type } of read(checkpoint, "files.img", MAGIC.files, fileEntry)) {
    const name = FILE_TYPES[type as number] ?? `type ${type as number}`;
    files[name] = (files[name] ?? 0) + 1;
  }
  const [stats] = read(checkpoint, "stats-dump", MAGIC.stats, statsEntry);
  const dump = stats?.dump as Record<string, number> | undefined;
  const bytes = { total: 0, pages: 0 };
  for (const [name, size] of checkpoint.sizes) {
    bytes.total += size;
    if (/^pages-\d+\.img$/.test(name)) bytes.pages += size;
  }
  const container = containerOf(checkpoint);
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
    bytes,
  };
};
