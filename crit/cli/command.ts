// SPDX-License-Identifier: Apache-2.0
// The `crit` command: `cryoshim crit`, or by its own name through a link. Options and output are those of CRIU's Python
// crit where it has the same command.
import { Argument, Command } from "commander";
import { openCheckpoint } from "../checkpoint.js";
import { fdSink } from "../io.js";
import { decode, encode, info } from "./convert.js";
import { EXPLORERS } from "./explore.js";

/** By writes of our own: process.stdout would make a pipe non-blocking, and lose what is left at exit. */
const print = (text: string): void => {
  const sink = fdSink(1);
  sink.write(text.endsWith("\n") ? text : `${text}\n`);
  sink.flush();
};

export const critCommand = (version: string): Command => {
  const crit = new Command("crit")
    .description("read and write CRIU's images: one as JSON, or a whole checkpoint")
    .version(version)
    .showHelpAfterError();
  crit
    .command("decode")
    .description("an image as JSON")
    .option("--pretty", "with line breaks, and values as people read them")
    .option("--nopl", "without the data behind entries; says how much it is")
    .option("-i, --in <file>", "the image (stdin by default)")
    .option("-o, --out <file>", "where to put the JSON (stdout by default)")
    .action(decode);
  crit
    .command("encode")
    .description("JSON as an image, byte for byte what was decoded")
    .option("-i, --in <file>", "the JSON (stdin by default)")
    .option("-o, --out <file>", "where to put the image (stdout by default)")
    .action(encode);
  crit
    .command("show")
    .description("an image as pretty JSON")
    .argument("<in>", "the image")
    .option("--nopl", "without the data behind entries")
    .action((path: string, { nopl = false }: { nopl?: boolean }) => decode({ in: path, pretty: true, nopl }));
  crit
    .command("info")
    .description("what an image is, and how many entries it has")
    .argument("<in>", "the image")
    .action((path: string) => print(info(path)));
  crit
    .command("x")
    .description("what the images of a checkpoint say of all its tasks")
    .argument("<dir>", "the images' directory, or an archive of them")
    .addArgument(
      new Argument("<what>", "tasks, descriptors, mappings, pages in memory, sockets, or the tree").choices(
        Object.keys(EXPLORERS),
      ),
    )
    .action(async (path: string, what: string) => print(EXPLORERS[what]!(await openCheckpoint(path)).join("\n")));
  return crit;
};
