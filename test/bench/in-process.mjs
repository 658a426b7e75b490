// SPDX-License-Identifier: Apache-2.0
//
// in-process.mjs DIR: decodes all images of a directory to JSON in memory, seven times; prints {"first", "again"} in ms.
import { readdirSync, readFileSync } from "node:fs";
import { bytesSource, rawContents, streamImage, writeJson } from "../../dist/crit.js";

const [dir] = process.argv.slice(2);
const names = readdirSync(dir).filter((name) => rawContents(name) === undefined);
const images = names.map((name) => [name, readFileSync(`${dir}/${name}`)]);
const times = Array.from({ length: 7 }, () => {
  const start = performance.now();
  for (const [name, bytes] of images) {
    const parts = [];
    writeJson({ write: (text) => parts.push(text), flush: () => {} }, streamImage(bytesSource(bytes), name));
    parts.join("");
  }
  return performance.now() - start;
});
const [first, ...rest] = times;
console.log(JSON.stringify({ first, again: rest.sort((a, b) => a - b)[3] }));
