// SPDX-License-Identifier: Apache-2.0
// Archives within a checkpoint (tmpfs, what a container changed in its root): the tree and its sizes, no names, no contents.
import { createReadStream } from "node:fs";
import { Readable, type Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createGzip } from "node:zlib";
import { extract, type Header, pack } from "tar-stream";
import { CryoshimError, reason } from "../../shim/error.js";
import { MAX_MEMBERS } from "../members.js";
import type { Work } from "./message.js";

const ZEROS = Buffer.alloc(64 << 10);
function* zeros(size: number): Generator<Buffer, void, void> {
  for (let left = size; left > 0; left -= ZEROS.length) yield left < ZEROS.length ? ZEROS.subarray(0, left) : ZEROS;
}

/** Overlay's whiteouts in archives of OCI. */
const WHITEOUT = /^\.wh\.(?!\.wh\.)/;

const renamed = (text: string, { alias, keep, counts }: Work): string => {
  const rule = keep.has("path") ? "keep" : "path";
  const known = counts.get("member.name");
  if (known === undefined) counts.set("member.name", { rule, count: 1 });
  else known.count++;
  if (rule === "keep") return text;
  const latin = Buffer.from(text).toString("latin1");
  return latin
    .split("/")
    .map((part) => (WHITEOUT.test(part) ? `.wh.${alias.name(part.slice(4))}` : alias.path(part)))
    .join("/");
};

const headerOf = (header: Header, work: Work): Header & { size: number } => {
  const { name, type, linkname, size = 0, mode, uid, gid, devmajor, devminor } = header;
  const id = (number: number): number => (work.ids ? work.alias.id(number) : number);
  return {
    name: renamed(name, work),
    type,
    linkname: linkname ? renamed(linkname, work) : "",
    size: type === "file" || type === "contiguous-file" ? size : 0,
    mode,
    uid: id(uid),
    gid: id(gid),
    devmajor,
    devminor,
    mtime: new Date(0),
    uname: "",
    gname: "",
  };
};

/** Copies the archive in `fd`, packed by gzip or not, as it is. Throws ERR_CHECKPOINT naming it. */
export const anonymiseArchive = async (fd: number, name: string, to: Writable, work: Work): Promise<void> => {
  const gzipped = name.endsWith(".gz.img");
  const members = extract();
  const copy = pack();
  // Opened anew: a stream that is destroyed closes its descriptor, and this one is not ours.
  const source = createReadStream(`/proc/self/fd/${fd}`);
  const reads = gzipped ? pipeline(source, createGunzip(), members) : pipeline(source, members);
  const writes = gzipped ? pipeline(copy, createGzip({ level: 1 }), to) : pipeline(copy, to);
  const rewrite = async (): Promise<void> => {
    let count = 0;
    for await (const member of members) {
      if (++count > MAX_MEMBERS) throw new RangeError(`it has more than ${MAX_MEMBERS} members`);
      const header = headerOf(member.header, work);
      member.resume();
      await pipeline(Readable.from(zeros(header.size)), copy.entry(header));
    }
    copy.finalize();
  };
  try {
    await Promise.all([
      reads,
      writes,
      rewrite().catch((error: Error) => {
        copy.destroy(error);
        members.destroy(error);
        throw error;
      }),
    ]);
  } catch (cause) {
    // What is in it is not quoted.
    throw new CryoshimError("ERR_CHECKPOINT", { what: `cannot read \`${name}\``, why: reason(cause), cause });
  }
};
