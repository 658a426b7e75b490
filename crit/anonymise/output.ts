// SPDX-License-Identifier: Apache-2.0
// Where the anonymised checkpoint goes: files in a private directory beside it, renamed when all is there.
import { spawn } from "node:child_process";
import {
  closeSync,
  createReadStream,
  createWriteStream,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { Duplex, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import { pack } from "tar-stream";
import { CryoshimError, reason } from "../../shim/error.js";
import type { Packing } from "../members.js";
import type { Out } from "./image.js";

const refuse = (path: string, why: string, cause?: unknown): CryoshimError =>
  new CryoshimError("ERR_FILE", { what: `cannot write \`${path}\``, why, cause });

/** A file, mode 0600, whose zeros are holes. */
const openFile = (path: string): OutFile => {
  const fd = openSync(path, "wx", 0o600);
  let at = 0;
  let open = true;
  return {
    write: (bytes) => {
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, at + done);
      at += bytes.length;
    },
    zeros: (size) => {
      at += size;
    },
    end: () => {
      if (!open) return;
      open = false;
      try {
        ftruncateSync(fd, at);
      } finally {
        closeSync(fd);
      }
    },
  };
};

const openSecret = (path: string): Secret => {
  const fd = openSync(path, "wx+", 0o600);
  unlinkSync(path);
  let open = true;
  return {
    fd,
    close() {
      if (open) closeSync(fd);
      open = false;
    },
  };
};

/** By the program, as reading does before Node 22.15. `ended`: it has packed all. */
const zstd = (): { through: Duplex; ended: Promise<void> } => {
  const child = spawn("zstd", ["-qc"], { stdio: ["pipe", "pipe", "ignore"] });
  const through = Duplex.from({ writable: child.stdin, readable: child.stdout });
  const ended = new Promise<void>((resolve, reject) => {
    child.on("error", () => {
      const error = new Error("the program zstd cannot be started; install it, or give a tar file that is not packed");
      through.destroy(error);
      reject(error);
    });
    child.on("close", (code) => (code === 0 ? resolve() : reject(new Error(`zstd ended with ${code}`))));
  });
  return { through, ended };
};

/** As podman and Kubernetes have it: images in a directory of their own, what runtimes add beside it. */
const inArchive = (name: string, names: readonly string[]): string =>
  /\.(img|json)$|^cryoshim\.log$/.test(name) && names.includes("spec.dump") ? `checkpoint/${name}` : name;

const BLOCK = 512;
/** A tar's header of a file. */
const tarHeader = async (name: string, size: number): Promise<Buffer> => {
  const tar = pack();
  tar.entry({ name, size, mode: 0o600, mtime: new Date(0) });
  for await (const block of tar) return block as Buffer;
  throw new Error("no header was made");
};

/** Into a file, where what is only zeros takes neither time nor room. */
const packPlain = async (from: string, names: readonly string[], to: string): Promise<void> => {
  const out = openFile(to);
  const buffer = Buffer.allocUnsafe(1 << 20);
  try {
    for (const name of names) {
      const fd = openSync(join(from, name), "r");
      try {
        const { size, blocks } = fstatSync(fd);
        out.write(await tarHeader(inArchive(name, names), size));
        if (blocks === 0) out.zeros(size);
        else
          for (let left = size; left > 0; ) {
            const got = readSync(fd, buffer, 0, Math.min(left, buffer.length), null);
            if (got === 0) throw new Error(`${name} became shorter`);
            out.write(buffer.subarray(0, got));
            left -= got;
          }
        out.zeros(-size & (BLOCK - 1));
      } finally {
        closeSync(fd);
      }
    }
    out.zeros(2 * BLOCK);
  } finally {
    out.end();
  }
};

const packAll = async (
  from: string,
  names: readonly string[],
  packing: "gzip" | "zstd",
  to: Writable,
): Promise<void> => {
  const tar = pack();
  const program = packing === "zstd" ? zstd() : undefined;
  const ends = pipeline(tar, program?.through ?? createGzip({ level: 1 }), to);
  const add = async (): Promise<void> => {
    for (const name of names) {
      const path = join(from, name);
      const header = { name: inArchive(name, names), size: lstatSync(path).size, mode: 0o600, mtime: new Date(0) };
      await pipeline(createReadStream(path), tar.entry(header));
    }
    tar.finalize();
  };
  await Promise.all([program?.ended, ends, add().catch((error: Error) => tar.destroy(error))]);
};

interface Secret {
  fd: number;
  close(): void;
}
interface OutFile extends Out {
  end(): void;
}
export interface Output {
  /** A file of the copy; its end() is called at last for those that nobody has ended. */
  file(name: string): OutFile;
  /** The same as a stream. */
  stream(name: string): Writable;
  /** For what must not be seen: a file without a name, gone when it is closed, or at the end. */
  secret(): Secret;
}

const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined;

/** Makes `path` of what `work` puts into it: whole, or not at all. Throws ERR_FILE. */
export const withOutput = async (
  path: string,
  packing: Packing,
  work: (output: Output) => Promise<void>,
): Promise<void> => {
  if (isThere(path)) throw refuse(path, "it is there already");
  let scratch: string;
  try {
    scratch = mkdtempSync(join(dirname(path), `.${basename(path)}.`));
  } catch (error) {
    throw refuse(path, reason(error), error);
  }
  const ends: (() => void)[] = [];
  try {
    await work({
      file(name) {
        const file = openFile(join(scratch, name));
        ends.push(file.end);
        return file;
      },
      stream: (name) => createWriteStream(join(scratch, name), { flags: "wx", mode: 0o600 }),
      secret() {
        const secret = openSecret(join(scratch, ".secret"));
        ends.push(secret.close);
        return secret;
      },
    });
    for (const end of ends.splice(0)) end();
    let made = scratch;
    if (packing !== "directory") {
      made = `${scratch}.archive`;
      const names = readdirSync(scratch).sort();
      if (packing === "tar") await packPlain(scratch, names, made);
      else await packAll(scratch, names, packing, createWriteStream(made, { flags: "wx", mode: 0o600 }));
    }
    if (isThere(path)) throw refuse(path, "somebody has made it meanwhile");
    renameSync(made, path);
  } catch (error) {
    throw error instanceof CryoshimError ? error : refuse(path, reason(error), error);
  } finally {
    for (const end of ends) end();
    rmSync(scratch, { recursive: true, force: true });
    rmSync(`${scratch}.archive`, { force: true });
  }
};
