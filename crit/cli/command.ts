// SPDX-License-Identifier: Apache-2.0
// The `crit` command: `cryoshim crit`, or by its own name through a link. Options and output are those of CRIU's Python
// crit where it has the same command.
import { Argument, Command, InvalidArgumentError, Option } from "commander";
import type { Difference, PageChange } from "../diff.js";
import { fdSink } from "../io.js";
import type { SearchOptions } from "../search.js";
import { plain, size, table } from "../text.js";
import { decode, encode, info } from "./convert.js";
import { withSink, withSinkAsync } from "./files.js";

// What a command about a whole checkpoint needs is loaded when it is called: most calls are about one image.
const open = async (path: string): Promise<import("../checkpoint.js").Checkpoint> =>
  (await import("../checkpoint.js")).openCheckpoint(path);
const WHAT = ["ps", "fds", "mems", "rss", "sk", "tree"] as const;

/** By writes of our own: process.stdout would make a pipe non-blocking, and lose what is left at exit. */
const print = (text: string): void => {
  const sink = fdSink(1);
  sink.write(text.endsWith("\n") ? text : `${text}\n`);
  sink.flush();
};

const printAll = (lines: Iterable<string>): void => {
  const sink = fdSink(1);
  for (const line of lines) sink.write(`${line}\n`);
  sink.flush();
};

export const number = (text: string): number => {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("a number is wanted");
  return Number(text);
};

/** Commands about a whole checkpoint. */
const whole = (crit: Command): void => {
  crit
    .command("search")
    .description("find a text in the memory of tasks; exit code 1 when it is nowhere")
    .argument("<dir>", "the images' directory, or an archive of them")
    .argument("<pattern>", "the text")
    .option("--regex", "the pattern is a regular expression, over bytes; matches up to 4096 bytes")
    .option("--hex", "the pattern is bytes in hexadecimal")
    .option("--pid <pid>", "in this task alone", number)
    .option("--context <n>", "how many bytes to show before and after a match", number)
    .option("--limit <n>", "stop after so many", number, 1000)
    .option("--json", "one JSON object per line")
    .action(async (path: string, pattern: string, options: SearchOptions & { json?: boolean }) => {
      const { search } = await import("../search.js");
      const found = await search(await open(path), pattern, options, (hit) =>
        print(
          options.json === true
            ? JSON.stringify(hit)
            : `${hit.pid} ${plain(hit.comm)} ${hit.address} ${plain(hit.mapping) || "-"}: ${hit.context}`,
        ),
      );
      if (found === 0) process.exitCode = 1;
    });
  crit
    .command("mem")
    .description("how much memory of each task there is; of one task a dump of it, or a region's bytes in a file")
    .argument("<dir>", "the images' directory, or an archive of them")
    .argument("[pid]", "the task", number)
    .argument("[range]", "START-END, or one address of a mapping, in hexadecimal; all of its pages by default")
    .option("-o, --out <file>", "write the bytes (of all pages: the dump) to this file")
    .action(async (path: string, pid: number | undefined, range: string | undefined, { out }: { out?: string }) => {
      const checkpoint = await open(path);
      if (pid === undefined) {
        const { memorySizes } = await import("../memory.js");
        const rows = memorySizes(checkpoint).map((of) => [
          String(of.pid),
          plain(of.comm),
          size(of.own),
          size(of.shared),
        ]);
        printAll(table(["PID", "NAME", "MEMORY", "SHARED"], rows));
        return;
      }
      const { dumpRegion, dumpTask, regionOf, writeRegion } = await import("../region.js");
      if (range === undefined) {
        await withSinkAsync(out, async (sink) => {
          await dumpTask(checkpoint, pid, (line) => sink.write(`${line}\n`));
          sink.flush();
        });
        return;
      }
      const region = regionOf(checkpoint, pid, range);
      if (out === undefined) print((await dumpRegion(checkpoint, region)).join("\n"));
      else await writeRegion(checkpoint, region, out);
    });
  crit
    .command("diff")
    .description("what has changed between two checkpoints; exit code 1 when something has")
    .argument("<before>", "directory or archive")
    .argument("<after>", "directory or archive")
    .option("--pages", "compare the contents of memory, too")
    .option("--commands", "compare command lines, too")
    .option("--json", "print it as JSON")
    .action(async (before: string, after: string, options: { pages?: boolean; commands?: boolean; json?: boolean }) => {
      const { diff } = await import("../diff.js");
      const found = await diff(await open(before), await open(after), options.pages === true, options.commands);
      if (options.json === true) print(JSON.stringify(found, null, 2));
      else for (const line of diffText(found)) print(line);
      if (found.changes.length > 0 || found.pages?.some(({ same, ...rest }) => changed(rest))) process.exitCode = 1;
    });
  crit
    .command("export")
    .description("the tree of tasks with files, mappings, sockets and mounts, as JSON")
    .argument("<dir>", "the images' directory, or an archive of them")
    .option("--env", "environments, too; they often hold secrets")
    .option("--pid <pid>", "this task alone", number)
    .action(async (path: string, { env = false, pid }: { env?: boolean; pid?: number }) => {
      const { details } = await import("../details.js");
      print(JSON.stringify(await details(await open(path), { commands: true, environment: env, pid }), null, 2));
    });
};

const changed = ({ onlyBefore, onlyAfter, changed: others }: Omit<PageChange, "same">): boolean =>
  onlyBefore + onlyAfter + others > 0;

const diffText = ({ changes, pages = [] }: Difference): string[] => [
  ...changes.map(({ what, before, after }) => {
    if (before === undefined) return `+ ${what} ${plain(after ?? "")}`;
    if (after === undefined) return `- ${what} ${plain(before)}`;
    return `~ ${what}: ${plain(before)} -> ${plain(after)}`;
  }),
  ...pages
    .filter(changed)
    .map(
      ({ pid, onlyBefore, onlyAfter, changed: others, same }) =>
        `~ task ${pid} pages: ${others} changed, ${onlyAfter} new, ${onlyBefore} gone, ${same} the same`,
    ),
];

/** crit list. */
const listing = (crit: Command): void => {
  crit
    .command("list")
    .description("the checkpoints of containers in directories, as Kubernetes leaves them there")
    .argument("[dir...]", "directories", ["/var/lib/kubelet/checkpoints"])
    .option("--json", "print them as JSON")
    .action(async (dirs: string[], { json }: { json?: boolean }) => {
      const { listCheckpoints, listText } = await import("../list.js");
      const found = await listCheckpoints(dirs);
      printAll(json === true ? [JSON.stringify(found, null, 2)] : listText(found));
      if (found.some(({ error }) => error !== undefined)) process.exitCode = 1;
    });
};

/** crit anonymise. */
const anonymising = (crit: Command): void => {
  crit
    .command("anonymise")
    .description("a copy of a checkpoint without contents and names, to give away")
    .argument("<in>", "the images' directory, or an archive of them")
    .argument("<out>", "the copy, of the same form; must not be there yet")
    .option("--seed <text>", "the same replacements for the same seed; without it nobody can tell them again")
    .addOption(
      new Option("--keep <kinds...>", "keep names of these kinds as they are").choices([
        "path",
        "name",
        "comm",
        "host",
        "device",
        "ip",
        "mac",
      ]),
    )
    .option("--ids", "replace the numbers of users and groups, too")
    .option("--report <file>", "write what was done to each file and field, as JSON")
    .action(
      async (
        from: string,
        to: string,
        { report, ...options }: { seed?: string; keep?: string[]; ids?: boolean; report?: string },
      ) => {
        const { anonymise, reportText } = await import("../anonymise/index.js");
        const done = await anonymise(from, to, options);
        if (report !== undefined)
          withSink(report, (sink) => {
            sink.write(`${JSON.stringify(done, null, 2)}\n`);
            sink.flush();
          });
        print(reportText(done).join("\n"));
      },
    );
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
    .option("-i, --in <file>", "the image (stdin by default), or a directory of them")
    .option("-o, --out <file>", "where to put the JSON (stdout by default): a directory for a directory")
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
      new Argument("<what>", "tasks, descriptors, mappings, pages in memory, sockets, or the tree").choices(WHAT),
    )
    .action(async (path: string, what: (typeof WHAT)[number]) => {
      const { EXPLORERS } = await import("./explore.js");
      printAll(EXPLORERS[what](await open(path)));
    });
  whole(crit);
  listing(crit);
  anonymising(crit);
  return crit;
};
