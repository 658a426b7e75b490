// SPDX-License-Identifier: Apache-2.0
// Everything that people ask of a checkpoint, as one tree: what `crit export` prints, and `show --all` and `--html` draw.
import type { Checkpoint } from "./checkpoint.js";
import { annotationsOf, specMountsOf } from "./container.js";
import { mappingName, mappingsOf, segmentNumbers } from "./mappings.js";
import { memoryOf, wordsOf } from "./memory.js";
import type { Message } from "./message.js";
import { type Overview, overview } from "./overview.js";
import { FSTYPE_NAMES } from "./schema/names.js";
import { type Socket, socketsOf } from "./sockets.js";
import {
  descriptorsOf,
  filesOf,
  fileText,
  list,
  messagesOf,
  mmOf,
  num,
  placesOf,
  str,
  type TaskImages,
  taskOf,
  tasksOf,
} from "./tasks.js";

export interface MappingDetail {
  start: string;
  end: string;
  prot: string;
  what: string;
  /** Bytes that are in the images. */
  saved: number;
}
export interface TaskDetail {
  pid: number;
  ppid: number;
  pgid: number;
  sid: number;
  comm: string;
  state: string;
  threads: number;
  uid?: number;
  gid?: number;
  exe?: string;
  cwd?: string;
  root?: string;
  command?: string[];
  environment?: string[];
  descriptors: { fd: number; type: string; what: string }[];
  mappings: MappingDetail[];
}
export interface Mount {
  destination: string;
  type: string;
  source: string;
}
export interface Details extends Omit<Overview, "tasks"> {
  tasks: TaskDetail[];
  sockets: Socket[];
  mounts: Mount[];
  annotations: Record<string, string>;
  images: { name: string; size: number }[];
}

/** Bytes in the images for each mapping: by sums up to an address, so that no images can make it slow. */
const saved = (
  mappings: readonly { start: bigint; end: bigint }[],
  runs: readonly { start: bigint; end: bigint }[],
): number[] => {
  const sums = [0];
  for (const { start, end } of runs) sums.push(sums.at(-1)! + Number(end - start));
  const below = (address: bigint): number => {
    let [low, high] = [0, runs.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (runs[middle]!.end <= address) low = middle + 1;
      else high = middle;
    }
    const run = runs[low];
    return sums[low]! + (run !== undefined && run.start < address ? Number(address - run.start) : 0);
  };
  return mappings.map(({ start, end }) => Math.max(0, below(end) - below(start)));
};

const mountsOf = (checkpoint: Checkpoint): Mount[] => {
  const images = [...checkpoint.files.keys()].filter((name) => /^mountpoints-\d+\.img$/.test(name));
  const found = images.flatMap((name) =>
    Array.from(messagesOf(checkpoint, name, "MNTS"), (mount: Message) => ({
      destination: str(mount, "mountpoint").replace(/^\.(?=\/)/, ""),
      type: str(mount, "fsname") || (FSTYPE_NAMES[num(mount, "fstype")]?.toLowerCase() ?? "?"),
      source: str(mount, "source"),
    })),
  );
  return found.length > 0 ? found : specMountsOf(checkpoint);
};

export interface DetailOptions {
  /** Read command lines from the memory: another pass over a packed archive. */
  commands?: boolean;
  /** Environments, too, which often hold secrets. */
  environment?: boolean;
  pid?: number | undefined;
}

/** Throws ERR_IMAGE, naming image and byte, where one is damaged. */
export const details = async (checkpoint: Checkpoint, options: DetailOptions = {}): Promise<Details> => {
  const { tasks: _, ...rest } = overview(checkpoint);
  const files = filesOf(checkpoint);
  const segment = segmentNumbers();
  const tasks = options.pid === undefined ? tasksOf(checkpoint) : [taskOf(checkpoint, options.pid)];
  const words =
    options.commands === true || options.environment === true
      ? await wordsOf(
          checkpoint,
          tasks.map(({ pid }) => pid),
        )
      : undefined;
  const detail = (task: TaskImages): TaskDetail => {
    const { pid, ppid, pgid, sid, comm, threads } = task;
    const mm = mmOf(checkpoint, pid);
    const mappings = mappingsOf(mm, files, segment);
    const kept = saved(mappings, memoryOf(checkpoint, pid).runs);
    const said = words?.get(pid);
    return {
      pid,
      ppid,
      pgid,
      sid,
      comm,
      state: task.state,
      threads,
      ...task.user,
      ...(mm && { exe: fileText(files, "REG", num(mm, "exe_file_id")) }),
      ...placesOf(checkpoint, task, files),
      ...(said && options.commands === true && { command: said.command }),
      ...(said && options.environment === true && { environment: said.environment }),
      descriptors: descriptorsOf(checkpoint, task).map(({ fd, type, id }) => ({
        fd,
        type,
        what: fileText(files, type, id),
      })),
      mappings: mappings.map(({ start, end, prot, what }, index) => ({
        start: `0x${start.toString(16)}`,
        end: `0x${end.toString(16)}`,
        prot,
        what: mappingName(list(mm, "vmas")[index]!, what),
        saved: kept[index]!,
      })),
    };
  };
  return {
    ...rest,
    tasks: tasks.map(detail),
    sockets: socketsOf(checkpoint).filter((socket) => options.pid === undefined || socket.tasks.includes(options.pid)),
    mounts: mountsOf(checkpoint),
    annotations: annotationsOf(checkpoint),
    images: [...checkpoint.sizes].map(([name, size]) => ({ name, size })).sort((a, b) => (a.name < b.name ? -1 : 1)),
  };
};
