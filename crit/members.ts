// SPDX-License-Identifier: Apache-2.0
// The files of a checkpoint, wherever they are: a directory, a tar file, or one that is packed. Each is offered once;
// who wants it gets its bytes in pieces. Nothing is ever written, no link followed, and no more kept than a piece.
import { spawn } from "node:child_process";
import { closeSync, constants, createReadStream, fstatSync, openSync, readdirSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import { PassThrough, type Readable } from "node:stream";
import * as zlib from "node:zlib";
import { extract } from "tar-stream";
import { tarMembers } from "./tar-index.js";

export interface Take {
  /** The parts that are wanted, in order; all of it by default. */
  ranges?: readonly { from: number; size: number }[];
  piece(bytes: Uint8Array, at: number): void;
  end?(): void;
}
/** Called for each regular file with its name in the checkpoint and its size; says who takes its bytes. */
export type Visit = (name: string, size: number) => Take | undefined;

export const MAX_MEMBERS = 200_000;
const PIECE = 1 << 20;

/** podman and Kubernetes put CRIU's images under checkpoint/. */
const short = (name: string): string => name.replace(/^(\.\/)*(checkpoint\/)?/, "");

const takeFrom = (fd: number, from: number, size: number, take: Take, buffer: Buffer): void => {
  for (const range of take.ranges ?? [{ from: 0, size }])
    for (let at = range.from; at < Math.min(size, range.from + range.size); ) {
      const want = Math.min(buffer.length, range.from + range.size - at, size - at);
      const got = readSync(fd, buffer, 0, want, from + at);
      if (got === 0) return;
      take.piece(buffer.subarray(0, got), at);
      at += got;
    }
};

const visitDirectory = (path: string, visit: Visit): void => {
  const buffer = Buffer.allocUnsafe(PIECE);
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
      const take = st.isFile() ? visit(name, st.size) : undefined;
      if (take === undefined) continue;
      takeFrom(fd, 0, st.size, take, buffer);
      take.end?.();
    } finally {
      closeSync(fd);
    }
  }
};

const visitTar = (path: string, visit: Visit): void => {
  const buffer = Buffer.allocUnsafe(PIECE);
  const fd = openSync(path, "r");
  let count = 0;
  try {
    for (const { name, from, size, isFile } of tarMembers(fd)) {
      if (++count > MAX_MEMBERS) throw new RangeError(`more than ${MAX_MEMBERS} members`);
      const take = isFile ? visit(short(name), size) : undefined;
      if (take === undefined) continue;
      takeFrom(fd, from, size, take, buffer);
      take.end?.();
    }
  } finally {
    closeSync(fd);
  }
};

/** zstd: by Node since 22.15, before that by the program. */
const zstdStream = (path: string): Readable => {
  const create = (zlib as { createZstdDecompress?: () => zlib.Gunzip }).createZstdDecompress;
  if (create !== undefined) {
    const unzstd = create();
    createReadStream(path, { highWaterMark: PIECE })
      .on("error", (error) => unzstd.destroy(error))
      .pipe(unzstd);
    return unzstd;
  }
  const zstd = spawn("zstd", ["-dcq", "--", path], { stdio: ["ignore", "pipe", "pipe"] });
  // Its output ends only when the program has ended well: an archive that is cut off is none.
  const out = new PassThrough({ highWaterMark: PIECE });
  zstd.stdout.pipe(out, { end: false });
  let said = "";
  zstd.stderr.on("data", (data) => {
    if (said.length < 1000) said += data;
  });
  zstd.on("error", () =>
    out.destroy(
      new Error(`it is packed with zstd, which Node ${process.versions.node} cannot: install zstd, or Node 22.15`),
    ),
  );
  zstd.on("close", (code) =>
    code === 0 ? out.end() : out.destroy(new Error(said.trim() || `zstd ended with ${code}`)),
  );
  out.on("close", () => zstd.kill());
  return out;
};

const gzipStream = (path: string): Readable => {
  const gunzip = zlib.createGunzip({ chunkSize: 256 << 10 });
  createReadStream(path, { highWaterMark: 256 << 10 })
    .on("error", (error) => gunzip.destroy(error))
    .pipe(gunzip);
  return gunzip;
};

const visitStream = async (source: Readable, visit: Visit): Promise<void> => {
  const members = extract();
  source.on("error", (error) => members.destroy(error)).pipe(members);
  let count = 0;
  try {
    for await (const member of members) {
      const { name, type, size = 0 } = member.header;
      if (++count > MAX_MEMBERS) throw new RangeError(`more than ${MAX_MEMBERS} members`);
      const take = type === "file" ? visit(short(name), size) : undefined;
      if (take === undefined) {
        member.resume();
        continue;
      }
      let at = 0;
      for await (const chunk of member as AsyncIterable<Buffer>) {
        for (const { from, size: wanted } of take.ranges ?? [{ from: 0, size }]) {
          const start = Math.max(from, at);
          const end = Math.min(from + wanted, at + chunk.length);
          if (start < end) take.piece(chunk.subarray(start - at, end - at), start);
        }
        at += chunk.length;
      }
      take.end?.();
    }
  } finally {
    source.destroy();
  }
};

/** How the files of a checkpoint are kept. */
export type Packing = "directory" | "tar" | "gzip" | "zstd";

export const packingOf = (path: string): Packing => {
  if (statSync(path).isDirectory()) return "directory";
  const head = Buffer.alloc(4);
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    if (!fstatSync(fd).isFile()) throw new Error("it is neither a directory nor a file");
    readSync(fd, head, 0, 4, 0);
  } finally {
    closeSync(fd);
  }
  if (head.readUInt16BE(0) === 0x1f8b) return "gzip";
  return head.readUInt32LE(0) === 0xfd2fb528 ? "zstd" : "tar";
};

/** Offers each file of the checkpoint at a path. */
export const eachMember = async (path: string, visit: Visit): Promise<void> => {
  switch (packingOf(path)) {
    case "directory":
      return visitDirectory(path, visit);
    case "tar":
      return visitTar(path, visit);
    case "gzip":
      return visitStream(gzipStream(path), visit);
    case "zstd":
      return visitStream(zstdStream(path), visit);
  }
};
