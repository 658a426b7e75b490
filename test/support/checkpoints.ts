// SPDX-License-Identifier: Apache-2.0
// A small checkpoint, as a directory and in every kind of archive.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { type Header, pack } from "tar-stream";
import { encodeImage, type KindName } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";

export const PAGE = 4096;
export const image = (kind: KindName, ...messages: Message[]): Buffer =>
  Buffer.from(encodeImage({ kind, entries: messages.map((message) => ({ message })) }));
export const START = 0x10000n;

/** One task with its memory: three pages, a gap of one, two pages. */
export const memory = (): Buffer => Buffer.from(Array.from({ length: 5 * PAGE }, (_, i) => (i * 7) % 13));
export const files = (pages = memory()): Record<string, Buffer> => ({
  "inventory.img": image("INVENTORY", { img_version: 2 }),
  "pstree.img": image("PSTREE", { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: [1] }),
  "core-1.img": image("CORE", {
    mtype: 1,
    tc: { task_state: 1, exit_code: 0, personality: 0, flags: 0, blk_sigset: 0n, comm: "<b>&init" },
  }),
  "pagemap-1.img": image(
    "PAGEMAP",
    { pages_id: 1 },
    { vaddr: START, compat_nr_pages: 3, flags: 4 },
    { vaddr: START + 4n * 4096n, compat_nr_pages: 2, flags: 4 },
  ),
  "pages-1.img": pages,
});
export const tar = async (members: Iterable<[Partial<Header> & { name: string }, Buffer]>): Promise<Buffer> => {
  const archive = pack();
  for (const [header, data] of members) header.type === "symlink" ? archive.entry(header) : archive.entry(header, data);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
};
export const members = (all: Record<string, Buffer>): [{ name: string }, Buffer][] =>
  Object.entries(all).map(([name, data]) => [{ name: `checkpoint/${name}` }, data]);
/** The same checkpoint as a directory and in each kind of archive. */
export const everyWay = async (dir: string, all: Record<string, Buffer>): Promise<string[]> => {
  mkdirSync(join(dir, "images"));
  for (const [name, data] of Object.entries(all)) writeFileSync(join(dir, "images", name), data);
  const plain = await tar([...members(all), [{ name: `${"long/".repeat(40)}rootfs` }, Buffer.from("x")]]);
  writeFileSync(join(dir, "c.tar"), plain);
  writeFileSync(join(dir, "c.tar.gz"), gzipSync(plain));
  execFileSync("zstd", ["-q", join(dir, "c.tar")]);
  return ["images", "c.tar", "c.tar.gz", "c.tar.zst"].map((name) => join(dir, name));
};
