// SPDX-License-Identifier: Apache-2.0
// A checkpoint as one page: no script, nothing loaded from anywhere; it opens from a disk or a mail.
import type { Details, TaskDetail } from "./details.js";
import { treeOf } from "./tasks.js";
import { plain, size } from "./text.js";

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};
const esc = (text: string): string => plain(text).replace(/[&<>"']/g, (character) => ESCAPES[character]!);

const STYLE = `
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--ink:#4a7dbd}
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.15rem .6rem .15rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}code,td.m{font-family:ui-monospace,monospace;font-size:.86em;word-break:break-all}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}dt{opacity:.7}dd{margin:0}
details{margin:.1rem 0;border-left:2px solid var(--line);padding-left:.6rem}summary{cursor:pointer}
.bar{display:flex;height:1.1rem;background:var(--soft);border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--ink);border-right:1px solid Canvas}.t td:nth-child(2){width:60%}
`;

const row = (cells: readonly string[], numeric: ReadonlySet<number> = new Set(), mono = false): string =>
  `<tr>${cells.map((cell, i) => `<td${numeric.has(i) ? ' class="n"' : mono ? ' class="m"' : ""}>${cell}</td>`).join("")}</tr>`;
const section = (title: string, body: string): string => (body === "" ? "" : `<h2>${esc(title)}</h2>\n${body}\n`);
const grid = (head: readonly string[], rows: readonly string[]): string =>
  rows.length === 0
    ? ""
    : `<table><tr>${head.map((each) => `<th>${esc(each)}</th>`).join("")}</tr>\n${rows.join("\n")}</table>`;
const list = (pairs: readonly (readonly [string, string | undefined])[]): string =>
  `<dl>${pairs.map(([label, value]) => (value === undefined ? "" : `<dt>${esc(label)}</dt><dd>${esc(value)}</dd>`)).join("")}</dl>`;

/** The dump's phases on one line of time: freezing, then what was done while all was frozen. */
const timeline = ({ times }: Details): string => {
  if (times === undefined) return "";
  const whole = Math.max(times.freezing + times.frozen, times.freezing + times.memoryDump + times.memoryWrite, 0.001);
  const phase = (name: string, from: number, length: number): string => {
    const bar = `<div class="bar" style="background:none"><i style="margin-left:${((100 * from) / whole).toFixed(2)}%;width:${Math.max(0.3, (100 * length) / whole).toFixed(2)}%"></i></div>`;
    return `<tr><td>${name}</td><td>${bar}</td><td class="n">${length.toFixed(1)} ms</td></tr>`;
  };
  return `<table class="t">${phase("freezing", 0, times.freezing)}${phase("frozen", times.freezing, times.frozen)}${phase(
    "pages taken",
    times.freezing,
    times.memoryDump,
  )}${phase("pages written", times.freezing + times.memoryDump, times.memoryWrite)}</table>`;
};

/** Where a task's saved memory is, as one bar of its mappings. */
const memoryBar = ({ mappings }: TaskDetail): string => {
  const whole = mappings.reduce((sum, { saved }) => sum + saved, 0);
  if (whole === 0) return "";
  const parts = mappings
    .filter(({ saved }) => saved / whole > 0.004)
    .map(
      ({ saved, what }) =>
        `<i style="width:${((100 * saved) / whole).toFixed(2)}%" title="${esc(what || "anonymous")}: ${size(saved)}"></i>`,
    );
  return `<div class="bar">${parts.join("")}</div>`;
};

const taskPart = (task: TaskDetail, depth: number): string => {
  const memory = task.mappings.reduce((sum, { saved }) => sum + saved, 0);
  const name = (task.command ?? []).join(" ") || task.comm;
  const files = task.descriptors.map(({ fd, type, what }) => row([String(fd), esc(type), esc(what)], new Set(), true));
  const maps = task.mappings.map(({ start, end, prot, what, saved }) =>
    row([`${start.slice(2)}-${end.slice(2)}`, prot, esc(what), saved === 0 ? "" : size(saved)], new Set([3]), true),
  );
  const threads = task.threads > 1 ? `, ${task.threads} threads` : "";
  return `<details style="margin-left:${Math.min(depth, 20) * 1.4}rem"><summary><code>${task.pid}</code> <b>${esc(task.comm)}</b> ${esc(task.state.toLowerCase())}, ${size(memory)}${threads}</summary>
${list([
  ["command", name],
  ["executable", task.exe],
  ["directory", task.cwd],
  ["root", task.root],
  ["user", task.uid === undefined ? undefined : `${task.uid}:${task.gid}`],
  ["environment", task.environment?.join(" ")],
])}${memoryBar(task)}
${grid(["descriptor", "type", "what"], files)}
${grid(["mapping", "may", "what", "saved"], maps)}</details>`;
};

export const htmlPage = (d: Details, path: string): string => {
  const c = d.container;
  const title = c?.name ?? path;
  const sockets = d.sockets.map(({ tasks, kind, state, local, peer, queued }) =>
    row(
      [tasks.join(", "), esc(kind), esc(state), esc(local), esc(peer), queued === 0 ? "" : size(queued)],
      new Set([5]),
      true,
    ),
  );
  const notes = Object.entries(d.annotations).map(([key, value]) => row([esc(key), esc(value)], new Set(), true));
  const mounts = d.mounts.map(({ destination, type, source }) =>
    row([esc(destination), esc(type), esc(source)], new Set(), true),
  );
  const images = d.images.map(({ name, size: bytes }) => row([esc(name), size(bytes)], new Set([1]), true));
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Checkpoint ${esc(title)}</title><style>${STYLE}</style></head><body>
<h1>Checkpoint ${esc(title)}</h1>
${list([
  ["image", c?.image],
  ["id", c?.id],
  ["pod", c?.pod && `${c.namespace ?? "?"}/${c.pod}`],
  ["runtime", [c?.runtime, c?.engine].filter(Boolean).join(", ") || undefined],
  ["address", c?.ip],
  ["created", c?.createdAt],
  ["checkpointed", c?.checkpointedAt],
  ["size", `${size(d.bytes.total)}, of it memory ${size(d.bytes.pages)}`],
  ["changed in its root", d.bytes.rootfsDiff === undefined ? undefined : size(d.bytes.rootfsDiff)],
  ["pages", d.pages && `${d.pages.scanned} scanned, ${d.pages.written} written, ${d.pages.inParent} in the parent`],
  ["restore", d.needsCryoshim ? "needs cryoshim" : "CRIU alone can, too"],
])}
${section("Time", timeline(d))}${section(
  `Tasks (${d.tasks.length})`,
  treeOf(d.tasks)
    .map(({ task, depth }) => taskPart(task, depth))
    .join("\n"),
)}
${section("Sockets", grid(["tasks", "kind", "state", "local", "peer", "queued"], sockets))}
${section("Mounts", grid(["mounted on", "type", "source"], mounts))}
${section("Annotations", grid(["name", "value"], notes))}
${section("Images", grid(["name", "size"], images))}</body></html>`;
};
