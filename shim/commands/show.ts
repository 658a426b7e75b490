// SPDX-License-Identifier: Apache-2.0
import { openCheckpoint } from "../../crit/checkpoint.js";
import { type Overview, overview, type Task } from "../../crit/overview.js";

const size = (bytes: number): string => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let n = bytes;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return `${unit === 0 ? n : n.toFixed(1)} ${units[unit]}`;
};

/** Names come from elsewhere: no control character may reach the terminal. */
const plain = (text: string): string => text.replace(/[\p{Cc}\p{Cf}]/gu, "?");

const tree = (tasks: readonly Task[]): string[] => {
  const pids = new Set(tasks.map(({ pid }) => pid));
  const children = new Map<number, Task[]>();
  // A task that is its own parent, or whose parent is not here, is a root: no image can make this run in circles.
  for (const task of tasks) {
    const parent = pids.has(task.ppid) && task.ppid !== task.pid ? task.ppid : -1;
    children.set(parent, [...(children.get(parent) ?? []), task]);
  }
  const lines: string[] = [];
  const walk = (parent: number, depth: number): void => {
    for (const task of children.get(parent) ?? []) {
      const threads = task.threads > 1 ? `, ${task.threads} threads` : "";
      lines.push(`${"  ".repeat(depth + 1)}${task.pid} ${plain(task.comm)} (${size(task.memory)}${threads})`);
      if (lines.length <= tasks.length) walk(task.pid, depth + 1);
    }
  };
  walk(-1, 0);
  return lines;
};

const screen = (o: Overview): string => {
  const facts: [string, string][] = [];
  for (const [label, value] of [
    ["container", o.container?.name],
    ["id", o.container?.id],
    ["image", o.container?.image],
    ["runtime", o.container?.runtime],
    ["checkpointed", o.container?.checkpointedAt],
  ] as const)
    if (value !== undefined) facts.push([label, plain(value)]);
  facts.push(["size", `${size(o.bytes.total)}, of it memory ${size(o.bytes.pages)}`]);
  if (o.times !== undefined)
    facts.push(["frozen", `${o.times.frozen.toFixed(1)} ms, of it memory ${o.times.memoryDump.toFixed(1)} ms`]);
  if (o.networkLock !== undefined) {
    const { extent, dropped } = o.networkLock;
    const what = extent === "netns" ? "network namespace locked" : "sockets locked";
    facts.push([
      "network",
      `${what}, ${dropped.in} packets dropped in, ${dropped.out} out, ${dropped.forwarded} forwarded`,
    ]);
  }
  const files = Object.entries(o.files).sort(([, a], [, b]) => b - a);
  facts.push(["files", files.map(([type, n]) => `${n} ${type}${n === 1 ? "" : "s"}`).join(", ") || "none"]);
  facts.push(["restore", o.needsCryoshim ? "needs cryoshim" : "CRIU alone can, too"]);
  facts.push(["tasks", String(o.tasks.length)]);
  return [...facts.map(([label, value]) => `${label.padEnd(13)}${value}`), ...tree(o.tasks)].join("\n");
};

/** What is in the checkpoint at a path: one screen, or JSON. */
export const show = async (path: string, json: boolean): Promise<string> => {
  const o = overview(await openCheckpoint(path));
  return json ? JSON.stringify(o, null, 2) : screen(o);
};
