// SPDX-License-Identifier: Apache-2.0
// A checkpoint: what describes it in memory, the rest by size; and parts of the rest, read when they are wanted.
import { CryoshimError, reason } from "../shim/error.js";
import { eachMember, type Visit } from "./members.js";

/** The files of a checkpoint by name, without their directory: sizes of all, contents of those that describe it. */
export interface Checkpoint {
  sizes: Map<string, number>;
  files: Map<string, Buffer>;
  /** Where it was read from; none if it was put together in memory. */
  path?: string;
}

/** What describes: all images but contents (pages, tmpfs, deleted files), and what runtimes and cryoshim add. */
const WANTED =
  /^((?!pages-|tmpfs-|ghost-file|amdgpu-)[\w-]+\.img|stats-(dump|restore)|(config|spec)\.dump|network\.status|cryoshim\.json)$/;
/** A member that describes is small; all together they must fit memory whatever an archive claims. */
const MAX_FILE = 32 << 20;
const MAX_TOTAL = 64 << 20;
const MAX_NAME = 4096;

const refuse = (path: string, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_CHECKPOINT", {
    what: `cannot read the checkpoint \`${path}\``,
    why,
    fix: "give the images' directory, or an archive made by podman, CRI-O or containerd",
    cause,
  });

/** Offers each file of a checkpoint. Throws ERR_CHECKPOINT naming it. */
export const visitCheckpoint = async (path: string, visit: Visit): Promise<void> => {
  try {
    await eachMember(path, visit);
  } catch (error) {
    // Who reads what comes of it has enough: nothing is wrong with the checkpoint.
    if ((error as NodeJS.ErrnoException).code === "EPIPE") throw error;
    throw error instanceof CryoshimError ? error : refuse(path, reason(error) || "it ends too early", error);
  }
};

/** Reads the files that are wanted of a checkpoint, and the sizes of all. Throws CryoshimError ERR_CHECKPOINT. */
export const readFiles = async (path: string, wanted: (name: string) => boolean): Promise<Checkpoint> => {
  const checkpoint: Checkpoint = { sizes: new Map(), files: new Map(), path };
  let total = 0;
  await visitCheckpoint(path, (name, size) => {
    if (name.length > MAX_NAME) throw refuse(path, `a name has ${name.length} characters`);
    const keep = wanted(name);
    if (keep && size > MAX_FILE) throw refuse(path, `${name} has ${size} bytes`);
    // Names, too, are kept, and there may be many long ones.
    total += 2 * name.length + (keep ? size : 0);
    if (total > MAX_TOTAL) throw refuse(path, `its descriptions are over ${MAX_TOTAL >> 20} MiB`);
    checkpoint.sizes.set(name, size);
    if (!keep) return undefined;
    const data = Buffer.alloc(size);
    let filled = 0;
    return {
      piece: (bytes, at) => {
        data.set(bytes, at);
        filled = at + bytes.length;
      },
      // A file may have become shorter meanwhile.
      end: () => checkpoint.files.set(name, data.subarray(0, filled)),
    };
  });
  return checkpoint;
};

/** Opens a checkpoint for reading. Throws CryoshimError ERR_CHECKPOINT. */
export const openCheckpoint = async (path: string): Promise<Checkpoint> => {
  const checkpoint = await readFiles(path, (name) => WANTED.test(name));
  if (!checkpoint.files.has("inventory.img")) throw refuse(path, "it has no inventory.img");
  return checkpoint;
};

/** Part of a file. */
export interface Part {
  name: string;
  from: number;
  size: number;
}

/** Reads parts of files, in one pass however many they are; a part that is not there stays zeros. */
export const readParts = async (checkpoint: Checkpoint, parts: readonly Part[]): Promise<Buffer[]> => {
  const buffers = parts.map(({ size }) => Buffer.alloc(size));
  if (checkpoint.path === undefined) return buffers;
  const byName = new Map<string, number[]>();
  for (const [index, { name }] of parts.entries()) {
    const known = byName.get(name);
    if (known === undefined) byName.set(name, [index]);
    else known.push(index);
  }
  await visitCheckpoint(checkpoint.path, (name) => {
    const wanted = byName.get(name);
    if (wanted === undefined) return undefined;
    wanted.sort((a, b) => parts[a]!.from - parts[b]!.from);
    return {
      ranges: wanted.map((index) => parts[index]!),
      piece: (bytes, at) => {
        for (const index of wanted) {
          const { from, size } = parts[index]!;
          if (at + bytes.length <= from || at >= from + size) continue;
          const start = Math.max(at, from);
          buffers[index]!.set(bytes.subarray(start - at, Math.min(bytes.length, from + size - at)), start - from);
        }
      },
    };
  });
  return buffers;
};
