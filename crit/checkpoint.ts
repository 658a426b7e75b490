// SPDX-License-Identifier: Apache-2.0
// Where the images of a checkpoint are: a directory, or an archive of podman, CRI-O or containerd, read as a stream of
// which only the small descriptive members are kept.
import { spawn } from "node:child_process";
import {
  closeSync,
  constants,
  createReadStream,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { extract } from "tar-stream";
import { CryoshimError, reason } from "../shim/error.js";

/** The files of a checkpoint by name, without their directory: sizes of all, contents of those that describe it. */
export interface Checkpoint {
  sizes: Map<string, number>;
  files: Map<string, Buffer>;
}

/** What describes: all images but contents (pages, tmpfs, deleted files), and what runtimes and cryoshim add. */
const WANTED =
  /^((?!pages-|tmpfs-|ghost-file|amdgpu-)[\w-]+\.img|stats-(dump|restore)|(config|spec|network)\.(dump|status)|cryoshim\.json)$/;
/** A member that describes is small; all together they must fit memory whatever an archive claims. */
const MAX_FILE = 64 << 20;
const MAX_TOTAL = 128 << 20;
const MAX_MEMBERS = 1_000_000;

const refuse = (path: string, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_CHECKPOINT", {
    what: `cannot read the checkpoint \`${path}\``,
    why,
    fix: "give the images' directory, or an archive made by podman, CRI-O or containerd",
    cause,
  });

/** Adds a member; the bound is over all. */
const keep = (checkpoint: Checkpoint, path: string, name: string, data: Buffer): void => {
  let total = data.length;
  for (const file of checkpoint.files.values()) total += file.length;
  if (total > MAX_TOTAL) throw refuse(path, `its descriptions are over ${MAX_TOTAL >> 20} MiB`);
  checkpoint.files.set(name, data);
};

const readDirectory = (path: string): Checkpoint => {
  const checkpoint: Checkpoint = { sizes: new Map(), files: new Map() };
  for (const name of readdirSync(path)) {
    // A link in a directory from elsewhere could lead anywhere: CRIU writes none.
    let fd: number;
    try {
      fd = openSync(join(path, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch {
      continue;
    }
    try {
      const st = fstatSync(fd);
      if (!st.isFile()) continue;
      checkpoint.sizes.set(name, st.size);
      if (!WANTED.test(name)) continue;
      if (st.size > MAX_FILE) throw refuse(path, `${name} has ${st.size} bytes`);
      keep(checkpoint, path, name, readFileSync(fd));
    } finally {
      closeSync(fd);
    }
  }
  return checkpoint;
};

/** The archive's bytes, unpacked. */
const unpacked = (path: string): Readable => {
  const head = Buffer.alloc(4);
  const fd = openSync(path, "r");
  readSync(fd, head, 0, 4, 0);
  closeSync(fd);
  if (head.readUInt16BE(0) === 0x1f8b) {
    const gunzip = createGunzip();
    createReadStream(path)
      .on("error", (error) => gunzip.destroy(error))
      .pipe(gunzip);
    return gunzip;
  }
  if (head.readUInt32LE(0) === 0xfd2fb528) {
    // Node 20 has no zstd.
    const zstd = spawn("zstd", ["-dcq", "--", path], { stdio: ["ignore", "pipe", "ignore"] });
    zstd.on("error", () => zstd.stdout.destroy(new Error("the archive is packed with zstd, which is not installed")));
    zstd.on("close", (code) => {
      if (code) zstd.stdout.destroy(new Error(`zstd ended with ${code}`));
    });
    return zstd.stdout;
  }
  return createReadStream(path);
};

const readArchive = async (path: string): Promise<Checkpoint> => {
  const checkpoint: Checkpoint = { sizes: new Map(), files: new Map() };
  const source = unpacked(path);
  const members = extract();
  source.on("error", (error) => members.destroy(error)).pipe(members);
  try {
    for await (const member of members) {
      const { name, type, size = 0 } = member.header;
      // podman and Kubernetes put CRIU's images under checkpoint/; nothing is ever written to a path from here.
      const short = name.replace(/^(\.\/)?(checkpoint\/)?/, "");
      if (type === "file") checkpoint.sizes.set(short, size);
      if (checkpoint.sizes.size > MAX_MEMBERS) throw refuse(path, `more than ${MAX_MEMBERS} members`);
      if (type !== "file" || !WANTED.test(short)) {
        member.resume();
        continue;
      }
      if (size > MAX_FILE) throw refuse(path, `${name} has ${size} bytes`);
      const chunks: Buffer[] = [];
      for await (const chunk of member) chunks.push(chunk as Buffer);
      keep(checkpoint, path, short, Buffer.concat(chunks));
    }
  } finally {
    source.destroy();
  }
  return checkpoint;
};

/** Opens a checkpoint for reading. Throws CryoshimError ERR_CHECKPOINT. */
export const openCheckpoint = async (path: string): Promise<Checkpoint> => {
  let checkpoint: Checkpoint;
  try {
    checkpoint = statSync(path).isDirectory() ? readDirectory(path) : await readArchive(path);
  } catch (error) {
    throw error instanceof CryoshimError ? error : refuse(path, reason(error), error);
  }
  if (!checkpoint.files.has("inventory.img")) throw refuse(path, "it has no inventory.img");
  return checkpoint;
};
