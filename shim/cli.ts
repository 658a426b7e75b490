// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { Command, Option } from "commander";
import { critCommand, number } from "../crit/cli/command.js";
import { packageRoot } from "../native/index.js";
import { completion } from "./commands/completion.js";
import type { Step } from "./commands/install.js";
import type { ShowOptions } from "./commands/show.js";
import { CryoshimError } from "./error.js";

// What a command needs is loaded when it is called: each of them starts in a part of the time of all.

const print = (text: string): void => {
  // `cryoshim ... | head`: who reads has enough.
  process.stdout.once("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
  });
  process.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
};

const report = (steps: Step[], dryRun: boolean): void => {
  const lines = steps.map(({ action, path, target }) => {
    const from = ["link", "copy", "replace"].includes(action) ? ` -> ${target}` : "";
    return `${dryRun ? "would " : ""}${action.padEnd(7)} ${path}${from}`;
  });
  print(lines.join("\n"));
};

/** The `cryoshim` command; the man page is held against this by a test. */
export const program = (): Command => {
  const version = (JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string }).version;
  const cryoshim = new Command("cryoshim")
    .description("Checkpoint and restore containers with the real CRIU, and what it lacks.")
    .version(version)
    .showHelpAfterError()
    .enablePositionalOptions();
  cryoshim
    .command("doctor")
    .description("say what works here, what does not, and why; exit code 1 when a checkpoint would fail")
    .option("--json", "print the findings as JSON")
    .addOption(new Option("--pid <pid>", "of this process and its children, instead").argParser(number))
    .addOption(new Option("--container <name>", "of this running container, whatever its runtime").conflicts("pid"))
    .action(async ({ json, pid, container }: { json?: boolean; pid?: number; container?: string }) => {
      const { examine, table } = await import("./commands/doctor.js");
      const findings = await (async () => {
        if (pid === undefined && container === undefined) return examine();
        const { examineTree, pidOfContainer } = await import("./commands/doctor-tree.js");
        return examineTree(pid ?? (await pidOfContainer(container!)));
      })();
      print(json === true ? JSON.stringify(findings, null, 2) : table(findings));
      if (findings.some(({ verdict }) => verdict === "fail")) process.exitCode = 1;
    });
  for (const [name, text] of [
    ["install", "put the launcher before the distribution's criu in PATH"],
    ["uninstall", "remove what install put there"],
  ] as const)
    cryoshim
      .command(name)
      .description(text)
      .option("--prefix <dir>", "where to install", "/usr/local")
      .option("--no-hooks", "leave out the hooks of podman, CRI-O and LXC")
      .option("--dry-run", "only say what would be done")
      .action(async ({ prefix, hooks, dryRun = false }: { prefix: string; hooks: boolean; dryRun?: boolean }) => {
        const work = (await import("./commands/install.js"))[name];
        report(work(prefix, { hooks, dryRun }), dryRun);
      });
  cryoshim
    .command("run")
    .description("run a command with cryoshim as its criu, with nothing installed")
    .argument("<command...>", "the command and its arguments, after --")
    .passThroughOptions()
    .action(async (command: string[]) => {
      const { run } = await import("./commands/run.js");
      process.exitCode = await run(command);
    });
  cryoshim
    .command("show")
    .description("say what is in a checkpoint: a directory of images, or an archive (tar, gzip, zstd)")
    .argument("<path...>", "directories or archives; of several one line each")
    .option("--json", "print it as JSON")
    .option("--html", "print it as one self-contained page")
    .option("--all", "descriptors, sockets, mounts and command lines, too")
    .option("--env", "environments, too; they often hold secrets")
    .option("--pid <pid>", "this task alone", number)
    .action(async (paths: string[], options: ShowOptions) => {
      const { show, showMany } = await import("./commands/show.js");
      print(paths.length === 1 ? await show(paths[0]!, options) : await showMany(paths, options.json === true));
    });
  const lock = cryoshim.command("lock").description("network locks that wait for a restore: list, clear");
  lock
    .command("list")
    .description("say which there are, since when, and whom they serve")
    .option("--json", "print them as JSON")
    .action(async ({ json }: { json?: boolean }) => {
      const { locks, lockTable } = await import("./commands/lock.js");
      print(json === true ? JSON.stringify(locks(), null, 2) : lockTable(locks()));
    });
  lock
    .command("clear")
    .description("unlock: by id, those that serve nobody, or all")
    .argument("[id...]", "ids of the list")
    .option("--orphans", "those that serve nobody any more")
    .option("--all", "all")
    .option("--dry-run", "only say what would be cleared")
    .action(async (ids: string[], options: { orphans?: boolean; all?: boolean; dryRun?: boolean }) => {
      const { clearLocks } = await import("./commands/lock.js");
      for (const { id } of clearLocks(ids, options))
        print(`${options.dryRun === true ? "would clear" : "cleared"} ${id}`);
    });
  spfsCommand(cryoshim.command("spfs").description("stand-ins for remote mounts: list, and each step by hand"));
  cryoshim.addCommand(critCommand(version));
  cryoshim
    .command("completion")
    .description("print the completion script for a shell")
    .argument("<shell>", "bash, zsh or fish")
    .action((shell: string) => print(completion(shell)));
  return cryoshim;
};

/** `cryoshim spfs`: docs/remote-mounts.md. */
const spfsCommand = (spfs: Command): void => {
  const load = () => import("./commands/spfs.js");
  spfs
    .command("list")
    .description("say what SPFS stands for, and whether its servers are back")
    .option("--json", "print it as JSON")
    .action(async ({ json }: { json?: boolean }) => {
      const { listAll, spfsTable } = await load();
      const all = await listAll();
      print(json === true ? JSON.stringify(all, null, 2) : spfsTable(all));
    });
  spfs
    .command("prepare")
    .description("before a restore: let SPFS stand where a runtime will bind from and the server is not there")
    .argument("<images>", "a directory of images, or an archive")
    .option("--bundle <dir>", "the bundle whose config.json says what is bound from where")
    .option("--source <dest=path...>", "the same by hand: a mountpoint of the container and a path of this host")
    .action(async (images: string, options: { bundle?: string; source?: string[] }) => {
      for (const { id, path, why } of await (await load()).prepare(images, options)) print(`${id}  ${path}: ${why}`);
    });
  spfs
    .command("keep")
    .description("bring a file system back as soon as its server is there; a restore starts this by itself")
    .argument("<id>", "an id of the list")
    .action(async (id: string) => (await load()).keepOne(id));
  spfs
    .command("proxy")
    .description("let it pass everything on to the real file system, now")
    .argument("<id>", "an id of the list")
    .option("--backend <dir>", "the directory that is the real one; otherwise it is looked for")
    .action(async (id: string, { backend }: { backend?: string }) => {
      for (const differs of await (await load()).proxyOne(id, backend)) print(`not as it was: ${differs}`);
    });
  spfs
    .command("retire")
    .description("put the real mount in its place, under the open files")
    .argument("<id>", "an id of the list")
    .option("--backend <dir>", "the directory that is the real one; otherwise it is looked for")
    .action(async (id: string, { backend }: { backend?: string }) => {
      for (const line of await (await load()).retireOne(id, backend)) print(line);
    });
  spfs
    .command("stub")
    .description("let everything wait that needs the server")
    .argument("<id>", "an id of the list")
    .action(async (id: string) => (await load()).stubOne(id));
  spfs
    .command("stop")
    .description("end it; whoever still uses it gets errors")
    .argument("<id>", "an id of the list")
    .action(async (id: string) => (await load()).stopOne(id));
};

/** Runs the command line of this process. */
export const main = async (argv: string[]): Promise<void> => {
  try {
    const cryoshim = program();
    // A link of this name stands in for CRIU's crit.
    const named = basename(argv[1] ?? "") === "crit" && cryoshim.commands.find((each) => each.name() === "crit");
    await (named || cryoshim).parseAsync(argv);
  } catch (error) {
    // The same for what crit writes by itself.
    if ((error as NodeJS.ErrnoException).code === "EPIPE") return;
    if (!(error instanceof CryoshimError)) throw error;
    process.stderr.write(`cryoshim: ${error.message} [${error.code}]\n`);
    process.exitCode = 1;
  }
};
