// SPDX-License-Identifier: Apache-2.0
// The sockets of a checkpoint: whose, between whom, in which state, and what waits in them.
import type { Checkpoint } from "./checkpoint.js";
import type { SocketFile } from "./open-file.js";
import { descriptorsOf, filesOf, messageOf, messagesOf, num, tasksOf } from "./tasks.js";

export interface Socket extends Omit<SocketFile, "stream"> {
  /** The tasks that have a descriptor of it. */
  tasks: number[];
  /** Bytes that were sent and not read, as far as the images keep them. */
  queued: number;
}

export const socketsOf = (checkpoint: Checkpoint): Socket[] => {
  const owners = new Map<number, Set<number>>();
  for (const task of tasksOf(checkpoint))
    for (const { id } of descriptorsOf(checkpoint, task)) {
      const known = owners.get(id);
      if (known === undefined) owners.set(id, new Set([task.pid]));
      else known.add(task.pid);
    }
  const queued = new Map<number, number>();
  for (const packet of messagesOf(checkpoint, "sk-queues.img", "SK_QUEUES"))
    queued.set(num(packet, "id_for"), (queued.get(num(packet, "id_for")) ?? 0) + num(packet, "length"));
  const sockets: Socket[] = [];
  for (const [id, { socket }] of filesOf(checkpoint)) {
    if (socket === undefined) continue;
    const { stream: ino, ...rest } = socket;
    const stream =
      ino === undefined ? undefined : messageOf(checkpoint, `tcp-stream-${ino.toString(16)}.img`, "TCP_STREAM");
    const waiting = num(stream, "inq_len") + num(stream, "outq_len") + (queued.get(id) ?? 0);
    sockets.push({ tasks: [...(owners.get(id) ?? [])], ...rest, queued: waiting });
  }
  return sockets;
};
