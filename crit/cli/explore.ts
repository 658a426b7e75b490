// SPDX-License-Identifier: Apache-2.0
// crit x: what the images say of all tasks together, line by line as CRIU's crit prints it (ps, fds, mems, rss), and more
// (sk, tree).
import type { Checkpoint } from "../checkpoint.js";
import { isFile, mappingsOf, segmentNumbers } from "../mappings.js";
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

type Explorer = (checkpoint: Checkpoint) => string[];

const hex = (value: bigint | number, width = 0): string => value.toString(16).padStart(width, "0");
const right = (value: number, width: number): string => String(value).padStart(width);

const ps: Explorer = (checkpoint) => {
  const row = (pid: number | string, pgid: number | string, sid: number | string, comm: string): string =>
    `${String(pid).padStart(7)}${String(pgid).padStart(7)}${String(sid).padStart(7)}   ${comm}`;
  const rows = treeOf(tasksOf(checkpoint)).map(({ task, depth }) =>
    row(task.pid, task.pgid, task.sid, `${" ".repeat(4 * depth)}${plain(task.comm)}`),
  );
  return [row("PID", "PGID", "SID", "COMM"), ...rows];
};

const fds: Explorer = (checkpoint) => {
  const files = filesOf(checkpoint);
  return tasksOf(checkpoint).flatMap((task) => {
    const places = Object.entries(placesOf(checkpoint, task, files) ?? {});
    return [
      String(task.pid),
      ...descriptorsOf(checkpoint, task).map(
        ({ fd, type, id }) => `\t${right(fd, 7)}: ${plain(fileText(files, type, id))}`,
      ),
      ...places.map(([what, path]) => `\t${what.padStart(7)}: ${plain(path)}`),
    ];
  });
};

const mems: Explorer = (checkpoint) => {
  const files = filesOf(checkpoint);
  const segment = segmentNumbers();
  return tasksOf(checkpoint).flatMap(({ pid }) => {
    const mm = mmOf(checkpoint, pid);
    if (mm === undefined) return [String(pid)];
    const exe = fileText(files, "REG", num(mm, "exe_file_id"));
    return [
      String(pid),
      `\t${"exe".padEnd(36)}    ${plain(exe)}`,
      ...mappingsOf(mm, files, segment).map(({ start, end, prot, what, regular }) => {
        const range = `${hex(start, 8)}-${hex(end, 8)}`.padEnd(36);
        return `\t${range}${prot}${what === "" ? "" : ` ${plain(what)}`}${regular ? "" : " *"}`;
      }),
    ];
  });
};

const rss: Explorer = (checkpoint) => {
  const files = filesOf(checkpoint);
  return tasksOf(checkpoint).flatMap(({ pid }) => {
    const vmas = list(mmOf(checkpoint, pid), "vmas");
    const lines = [String(pid)];
    let at = 0;
    let shown = -1;
    for (const run of pagemapOf(checkpoint, pid)) {
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
      lines.push(`${`\t${hex(start)} / ${String(pagesOf(run)).padEnd(8)}`.padEnd(24)}${text}`);
    }
    return lines;
  });
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
    let pages = 0;
    for (const run of pagemapOf(checkpoint, task.pid)) pages += pagesOf(run);
    const threads = task.threads > 1 ? `, ${task.threads} threads` : "";
    return `${"  ".repeat(depth)}${task.pid} ${plain(task.comm)} (${size(pages * 4096)}${threads})`;
  });

export const EXPLORERS = { ps, fds, mems, rss, sk, tree } satisfies Record<string, Explorer>;
