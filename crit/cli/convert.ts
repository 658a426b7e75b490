// SPDX-License-Identifier: Apache-2.0
// crit decode, encode, show, info: one image as JSON and back.
import { type DecodeOptions, writeImage, writeJson } from "../json/image.js";
import { parseJson } from "../json/read.js";
import { type ImageStream, streamImage } from "../stream.js";
import { readText, withSink, withSource } from "./files.js";

export interface InOut {
  in?: string;
  out?: string;
}

export const decode = (options: InOut & DecodeOptions): void =>
  withSource(options.in, (source, name) => {
    const image = streamImage(source, name);
    withSink(options.out, (sink) => {
      writeJson(sink, image, options);
      if (options.out === undefined) sink.write("\n");
      sink.flush();
    });
  });

export const encode = (options: InOut): void =>
  withSource(options.in, (source, name) => {
    const text = readText(source, name);
    const json = parseJson(text, name);
    withSink(options.out, (sink) => writeImage(sink, json));
  });

/** What an image is and how many entries it has, and bytes behind them. */
export const count = (image: ImageStream): { magic: string; count: number } => {
  let entries = 0;
  for (const _ of image.entries) entries++;
  // As CRIU's crit counts: the head of a page map is no entry.
  return { magic: image.kind, count: image.kind === "PAGEMAP" ? Math.max(0, entries - 1) : entries };
};

export const info = (path: string): string =>
  withSource(path, (source, name) => JSON.stringify(count(streamImage(source, name)), null, 4));
