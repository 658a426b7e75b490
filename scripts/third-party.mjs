#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
//
// Prints the licences of the npm packages whose code is bundled into dist/, found by the comments that esbuild leaves
// before each file it takes in (dist/cli.js and dist/crit.js are not minified; the shim's packages are among theirs).
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const top = new URL("..", import.meta.url).pathname;
const bundled = new Set();
for (const file of readdirSync(join(top, "dist")).filter((name) => /\.(js|cjs)$/.test(name))) {
  const text = readFileSync(join(top, "dist", file), "utf8");
  for (const [, name] of text.matchAll(/^\s*\/\/ node_modules\/((?:@[^/\n]+\/)?[^/\n]+)\//gm)) bundled.add(name);
}

console.log("# Packages bundled into these files\n");
for (const name of [...bundled].sort()) {
  const directory = join(top, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));
  console.log(`## ${name} ${version} (${license})\n`);
  const texts = readdirSync(directory).filter((file) => /^(licen[cs]e|notice|copying)/i.test(file));
  for (const file of texts) console.log(`\`\`\`\n${readFileSync(join(directory, file), "utf8").trim()}\n\`\`\`\n`);
}
