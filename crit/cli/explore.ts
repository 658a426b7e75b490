// SPDX-License-Identifier: Apache-2.0
// crit x: what the images say of all tasks together, line by line as CRIU's crit prints it (ps, fds, mems, rss), and more
// (sk, tree).
import type { Checkpoint } from "../checkpoint.js";
import { isFile, mappingsOf, segmentNumbers } from "../mappings.js";
import { memoryIn } from "../overview.js";
import { socketsOf } from "../sockets.js";
import {
  descriptorsOf,
  filesOf,
  fileText,
  list,
  mmOf,
  num,
  pagemapOf,
  pagesOf,
  placesOf,
  tasksOf,
  treeOf,
} from "../tasks.js";
import { plain, size, table } from "../text.js";

/** Line by line, because a checkpoint may have millions. */
type Explorer = (checkpoint: Checkpoint) => Iterable<string>;

const hex = (value: bigint | number, width = 0): string => value.toString(16).padStart(width, "0");
const right = (value: number, width: number): string => String(value).padStart(width);

const ps: Explorer = function* (checkpoint) {
  const row = (pid: number | string, pgid: number | string, sid: number | string, comm: string): string =>
    `${String(pid).padStart(7)}${String(pgid).padStart(7)}${String(sid).padStart(7)}   ${comm}`;
  yield row("PID", "PGID", "SID", "COMM");
  for (const { task, depth } of treeOf(tasksOf(checkpoint)))
    yield row(task.pid, task.pgid, task.sid, `${" ".repeat(4 * depth)}${plain(task.comm)}`);
};

const fds: Explorer = function* (checkpoint) {
  const files = filesOf(checkpoint);
  for (const task of tasksOf(checkpoint)) {
    yield String(task.pid);
    for (const { fd, type, id } of descriptorsOf(checkpoint, task))
      yield `\t${right(fd, 7)}: ${plain(fileText(files, type, id))}`;
    for (const [what, path] of Object.entries(placesOf(checkpoint, task, files) ?? {}))
      yield `\t${what.padStart(7)}: ${plain(path)}`;
  }
};

const mems: Explorer = function* (checkpoint) {
  const files = filesOf(checkpoint);
  const segment = segmentNumbers();
  for (const { pid } of tasksOf(checkpoint)) {
    yield String(pid);
    const mm = mmOf(checkpoint, pid);
    if (mm === undefined) continue;
    yield `\t${"exe".padEnd(36)}    ${plain(fileText(files, "REG", num(mm, "exe_file_id")))}`;
    for (const { start, end, prot, what, regular } of mappingsOf(mm, files, segment)) {
      const range = `${hex(start, 8)}-${hex(end, 8)}`.padEnd(36);
      yield `\t${range}${prot}${what === "" ? "" : ` ${plain(what)}`}${regular ? "" : " *"}`;
    }
  }
};

const rss: Explorer = function* (checkpoint) {
  const files = filesOf(checkpoint);
  for (const { pid } of tasksOf(checkpoint)) {
    yield String(pid);
    const vmas = list(mmOf(checkpoint, pid), "vmas");
    let at = 0;
    let shown = -1;
    for (const { head, run } of pagemapOf(checkpoint, pid)) {
      if (head) continue;
      const start = run.vaddr as bigint;
      const end = start + (BigInt(pagesOf(run)) << 12n);
      while (at < vmas.length && (vmas[at]!.end as bigint) <= start) at++;
      let text = "";
      for (; at < vmas.length && (vmas[at]!.start as bigint) < end; at++) {
        const vma = vmas[at]!;
        if (at === shown) text += " ~";
        else {
          const from = vma.start as bigint;
          text += ` ${hex(from, 8)} / ${String(((vma.end as bigint) - from) >> 12n).padEnd(8)}`;
          if (isFile(vma)) text += ` ${plain(fileText(files, "REG", num(vma, "shmid")))}`;
          shown = at;
        }
        text += `\n\t${" ".repeat(23)}`;
      }
      at = Math.max(0, at - 1);
      yield `${`\t${hex(start)} / ${String(pagesOf(run)).padEnd(8)}`.padEnd(24)}${text}`;
    }
  }
};

const sk: Explorer = (checkpoint) =>
  table(
    ["TASKS", "KIND", "STATE", "LOCAL", "PEER", "QUEUED"],
    socketsOf(checkpoint).map(({ tasks, kind, state, local, peer, queued }) => [
      tasks.join(",") || "-",
      kind,
      state,
      plain(local),
      plain(peer),
      queued === 0 ? "" : size(queued),
    ]),
  );

const tree: Explorer = (checkpoint) =>
  treeOf(tasksOf(checkpoint)).map(({ task, depth }) => {
    const threads = task.threads > 1 ? `, ${task.threads} threads` : "";
    return `${"  ".repeat(depth)}${task.pid} ${plain(task.comm)} (${size(memoryIn(checkpoint, task.pid))}${threads})`;
  });

export const EXPLORERS = { ps, fds, mems, rss, sk, tree } satisfies Record<string, Explorer>;
