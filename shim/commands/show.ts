// SPDX-License-Identifier: Apache-2.0
import { openCheckpoint } from "../../crit/checkpoint.js";
import { type Details, details } from "../../crit/details.js";
import { htmlPage } from "../../crit/html.js";
import { type Overview, overview, type Task } from "../../crit/overview.js";
import { treeOf } from "../../crit/tasks.js";
import { plain, size, table } from "../../crit/text.js";

export interface ShowOptions {
  json?: boolean;
  html?: boolean;
  /** Descriptors, sockets, mounts, command lines. */
  all?: boolean;
  env?: boolean;
  pid?: number;
}

/** What a task is, unless it simply runs. */
const notAlive = (state: string): string => (state === "Alive" ? "" : `, ${state.toLowerCase()}`);

const tree = (tasks: readonly Task[]): string[] =>
  treeOf(tasks).map(({ task, depth }) => {
    const threads = task.threads > 1 ? `, ${task.threads} threads` : "";
    return `${"  ".repeat(Math.min(depth, 40) + 1)}${task.pid} ${plain(task.comm)} (${size(task.memory)}${threads}${notAlive(task.state)})`;
  });

const ms = (value: number): string => `${value.toFixed(1)} ms`;

const facts = (o: Omit<Overview, "tasks"> & { tasks: readonly unknown[] }): string[] => {
  const c = o.container;
  const rows: [string, string][] = [];
  for (const [label, value] of [
    ["container", c?.name],
    ["pod", c?.pod && `${c.namespace ?? "?"}/${c.pod}`],
    ["id", c?.id],
    ["image", c?.image],
    ["runtime", [c?.runtime, c?.engine && `(${c.engine})`].filter(Boolean).join(" ") || undefined],
    ["address", [c?.ip, c?.mac].filter(Boolean).join(", ") || undefined],
    ["created", c?.createdAt],
    ["checkpointed", c?.checkpointedAt],
  ] as const)
    if (value !== undefined) rows.push([label, plain(value)]);
  const gpu = o.bytes.gpuPages === undefined ? "" : `, of a GPU ${size(o.bytes.gpuPages)}`;
  const diff = o.bytes.rootfsDiff === undefined ? "" : `; changed in its root ${size(o.bytes.rootfsDiff)}`;
  rows.push(["size", `${size(o.bytes.total)}, of it memory ${size(o.bytes.pages)}${gpu}${diff}`]);
  if (o.times !== undefined)
    rows.push([
      "frozen",
      `${ms(o.times.frozen)}, of it memory ${ms(o.times.memoryDump)}; freezing ${ms(o.times.freezing)}`,
    ]);
  if (o.pages !== undefined)
    rows.push(["pages", `${o.pages.scanned} scanned, ${o.pages.written} written, ${o.pages.inParent} in the parent`]);
  if (o.networkLock !== undefined) {
    const { extent, dropped } = o.networkLock;
    const what = extent === "netns" ? "network namespace locked" : "sockets locked";
    rows.push([
      "network",
      `${what}, ${dropped.in} packets dropped in, ${dropped.out} out, ${dropped.forwarded} forwarded`,
    ]);
  }
  const files = Object.entries(o.files).sort(([, a], [, b]) => b - a);
  rows.push(["files", files.map(([type, n]) => `${n} ${type}${n === 1 ? "" : "s"}`).join(", ") || "none"]);
  rows.push(["restore", o.needsCryoshim ? "needs cryoshim" : "CRIU alone can, too"]);
  rows.push(["tasks", String(o.tasks.length)]);
  return rows.map(([label, value]) => `${label.padEnd(13)}${value}`);
};

const screen = (o: Overview): string => [...facts(o), ...tree(o.tasks)].join("\n");

/** An annotation, or what is in it where it holds JSON. */
const noteLines = (key: string, value: unknown, pad: string): string[] => {
  let inner = value;
  if (typeof value === "string" && /^\s*[{[]/.test(value))
    try {
      inner = JSON.parse(value);
    } catch {
      // Text that only looks so.
    }
  if (typeof inner !== "object" || inner === null) return [`${pad}${plain(key)}: ${plain(String(inner))}`];
  // Deeper than any runtime nests them, and no deeper.
  if (pad.length > 20) return [`${pad}${plain(key)}: ${plain(JSON.stringify(inner))}`];
  return [`${pad}${plain(key)}:`, ...Object.entries(inner).flatMap(([k, v]) => noteLines(k, v, `${pad}  `))];
};

const long = (d: Details): string => {
  const lines = facts(d);
  for (const { task, depth } of treeOf(d.tasks)) {
    const pad = "  ".repeat(Math.min(depth, 40) + 1);
    const state = notAlive(task.state).slice(2);
    lines.push(
      `${pad}${task.pid} ${plain((task.command ?? [task.comm]).join(" ") || task.comm)}${state && ` (${state})`}`,
    );
    if (task.exe !== undefined)
      lines.push(`${pad}    exe: ${plain(task.exe)}, cwd: ${plain(task.cwd ?? "?")}, uid ${task.uid ?? "?"}`);
    for (const { fd, type, what } of task.descriptors)
      lines.push(`${pad}    ${String(fd).padStart(3)} ${type.toLowerCase().padEnd(9)} ${plain(what)}`);
    for (const word of task.environment ?? []) lines.push(`${pad}    ${plain(word)}`);
  }
  const sockets = d.sockets.map(({ tasks, kind, state, local, peer, queued, buffers }) => [
    tasks.join(","),
    kind,
    state,
    plain(local),
    plain(peer),
    queued ? size(queued) : "",
    `${size(buffers.send)} / ${size(buffers.receive)}`,
  ]);
  const mounts = d.mounts.map(({ destination, type, source }) => [plain(destination), plain(type), plain(source)]);
  if (sockets.length > 0)
    lines.push("", ...table(["SOCKETS OF", "KIND", "STATE", "LOCAL", "PEER", "QUEUED", "BUFFERS OUT / IN"], sockets));
  if (mounts.length > 0) lines.push("", ...table(["MOUNTED ON", "TYPE", "SOURCE"], mounts));
  const notes = Object.entries(d.annotations);
  if (notes.length > 0) lines.push("", "ANNOTATIONS", ...notes.flatMap(([key, value]) => noteLines(key, value, "")));
  return lines.join("\n");
};

/** What is in the checkpoint at a path: one screen, all of it, JSON, or a page. */
export const show = async (path: string, options: ShowOptions = {}): Promise<string> => {
  const checkpoint = await openCheckpoint(path);
  const { json = false, html = false, all = false, env = false, pid } = options;
  if (!all && !env && !html && pid === undefined) {
    const o = overview(checkpoint);
    return json ? JSON.stringify(o, null, 2) : screen(o);
  }
  const d = await details(checkpoint, { commands: true, environment: env, pid });
  if (html) return htmlPage(d, path);
  return json ? JSON.stringify(d, null, 2) : long(d);
};

/** One line for each of several checkpoints. */
export const showMany = async (paths: readonly string[], json: boolean): Promise<string> => {
  const found: { path: string; overview: Overview }[] = [];
  for (const path of paths) found.push({ path, overview: overview(await openCheckpoint(path)) });
  if (json) return JSON.stringify(found, null, 2);
  const rows = found.map(({ path, overview: o }) => {
    const c = o.container;
    const cells = [c?.name, c?.image, c?.id?.slice(0, 12), c?.runtime, c?.engine, c?.ip, c?.createdAt].map((cell) =>
      plain(cell ?? "-"),
    );
    const diff = o.bytes.rootfsDiff === undefined ? "-" : size(o.bytes.rootfsDiff);
    return [...cells, size(o.bytes.total), diff, o.times === undefined ? "-" : ms(o.times.frozen), plain(path)];
  });
  const head = [
    "CONTAINER",
    "IMAGE",
    "ID",
    "RUNTIME",
    "ENGINE",
    "ADDRESS",
    "CREATED",
    "SIZE",
    "ROOT DIFF",
    "FROZEN",
    "FILE",
  ];
  return table(head, rows).join("\n");
};
