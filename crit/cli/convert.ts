// SPDX-License-Identifier: Apache-2.0
// crit decode, encode, show, info: one image as JSON and back.
import { mkdirSync, readdirSync, statSync, unlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { CryoshimError } from "../../shim/error.js";
import { type DecodeOptions, writeImage, writeJson } from "../json/image.js";
import { RAW, writeRaw } from "../json/raw.js";
import { parseJson } from "../json/read.js";
import { rawContents } from "../raw.js";
import { type ImageStream, streamImage } from "../stream.js";
import { readText, withSink, withSource } from "./files.js";

export interface InOut {
  in?: string;
  out?: string;
}

const decodeOne = (options: InOut & DecodeOptions, links: boolean): void =>
  withSource(
    options.in,
    (source, name) => {
      const image = streamImage(source, name);
      withSink(options.out, (sink) => {
        writeJson(sink, image, options);
        if (options.out === undefined) sink.write("\n");
        sink.flush();
      });
    },
    links,
  );

/** Every image of a directory, each as JSON in a file of its name. */
const decodeAll = (from: string, options: InOut & DecodeOptions): void => {
  const { out } = options;
  if (out === undefined)
    throw new CryoshimError("ERR_USAGE", {
      what: `cannot decode \`${from}\``,
      why: "it is a directory",
      fix: "give a directory for the JSON with -o",
    });
  // To write a file anew is quicker than to empty it first.
  const fresh = mkdirSync(out, { recursive: true }) !== undefined;
  const there = new Set(fresh ? [] : readdirSync(out));
  // A link in a directory from elsewhere could lead anywhere: CRIU writes none.
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const { name } = entry;
    if (!entry.isFile() || !/\.img$|^stats-|^irmap-cache$/.test(name) || rawContents(name) !== undefined) continue;
    const json = `${name}.json`;
    if (there.has(json)) unlinkSync(join(out, json));
    decodeOne({ ...options, in: join(from, name), out: join(out, json) }, false);
  }
};

/** The files in an archive that is an image; none where it cannot be read as one. */
const membersOf = async (path: string): Promise<{ name: string; size: number }[]> => {
  const found: { name: string; size: number }[] = [];
  const { eachMember } = await import("../members.js");
  try {
    await eachMember(path, (name, size) => {
      found.push({ name, size });
      return undefined;
    });
  } catch {
    // It is damaged: its bytes can be told all the same.
  }
  return found;
};

/** A file without CRIU's framing. */
const decodeRaw = async (path: string, contents: string, options: InOut & DecodeOptions): Promise<void> => {
  const members = contents.includes("(tar") ? await membersOf(path) : undefined;
  withSource(path, (source) =>
    withSink(options.out, (sink) => {
      writeRaw(sink, source, contents, members, options);
      if (options.out === undefined) sink.write("\n");
      sink.flush();
    }),
  );
};

export const decode = async (options: InOut & DecodeOptions): Promise<void> => {
  const { in: from } = options;
  const contents = from === undefined ? undefined : rawContents(basename(from));
  if (from !== undefined && contents !== undefined) await decodeRaw(from, contents, options);
  else if (from !== undefined && statSync(from, { throwIfNoEntry: false })?.isDirectory() === true)
    decodeAll(from, options);
  else decodeOne(options, true);
};

export const encode = (options: InOut): void =>
  withSource(options.in, (source, name) => {
    const text = readText(source, name);
    const json = parseJson(text, name);
    withSink(options.out, (sink) => writeImage(sink, json));
  });

/** What an image is and how many entries it has, and bytes behind them. */
export const count = (image: ImageStream): { magic: string; count: number } => {
  let entries = 0;
  // Each is decoded, so that a damaged one is told.
  for (const { message } of image.entries) if (message !== undefined) entries++;
  // As CRIU's crit counts: the head of a page map is no entry.
  return { magic: image.kind, count: image.kind === "PAGEMAP" ? Math.max(0, entries - 1) : entries };
};

export const info = (path: string): string =>
  withSource(path, (source, name) => {
    const contents = rawContents(basename(name));
    if (contents === undefined) return JSON.stringify(count(streamImage(source, name)), null, 4);
    while (source.take(64 << 10).length > 0);
    return JSON.stringify({ magic: RAW, contents, size: source.at }, null, 4);
  });
