// SPDX-License-Identifier: Apache-2.0
// The sockets of a checkpoint: whose, between whom, in which state, and what waits in them.
import type { Checkpoint } from "./checkpoint.js";
import { addressText } from "./json/address.js";
import { quote } from "./json/escape.js";
import type { Message } from "./message.js";
import { skFamily, skProto, skState, skType } from "./schema/names.js";
import { child, descriptorsOf, filesOf, messagesOf, num, tasksOf } from "./tasks.js";

export interface Socket {
  /** The tasks that have a descriptor of it. */
  tasks: number[];
  kind: string;
  state: string;
  local: string;
  peer: string;
  /** Bytes that were sent and not read, as far as the images keep them. */
  queued: number;
}

const name = (show: typeof skState, value: number): string =>
  (typeof show === "object" && "names" in show && show.names[value]) || String(value);

const inetAddress = (words: readonly number[], port: number): string => {
  const text = addressText(words) ?? "?";
  return `${text.includes(":") ? `[${text}]` : text}:${port}`;
};

const inet = (socket: Message): Omit<Socket, "tasks" | "queued"> => {
  const proto = name(skProto, num(socket, "proto"));
  return {
    kind: `${proto.toLowerCase()}${name(skFamily, num(socket, "family")) === "INET6" ? "6" : ""}`,
    state: name(skState, num(socket, "state")),
    local: inetAddress((socket.src_addr ?? []) as number[], num(socket, "src_port")),
    peer:
      num(socket, "dst_port") === 0 ? "" : inetAddress((socket.dst_addr ?? []) as number[], num(socket, "dst_port")),
  };
};

const unix = (socket: Message): Omit<Socket, "tasks" | "queued"> => ({
  kind: `unix ${name(skType, num(socket, "type")).toLowerCase()}`,
  state: name(skState, num(socket, "state")),
  local: quote(socket.name as Uint8Array).replace(/^=00/, "@") || `[${num(socket, "ino")}]`,
  peer: num(socket, "peer") === 0 ? "" : `[${num(socket, "peer")}]`,
});

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
  for (const [id, file] of filesOf(checkpoint)) {
    const tasks = [...(owners.get(id) ?? [])];
    const [isk, usk] = [child(file, "isk"), child(file, "usk")];
    if (isk !== undefined) {
      const [stream] = messagesOf(checkpoint, `tcp-stream-${num(isk, "ino").toString(16)}.img`, "TCP_STREAM");
      sockets.push({ tasks, ...inet(isk), queued: num(stream, "inq_len") + num(stream, "outq_len") });
    } else if (usk !== undefined) sockets.push({ tasks, ...unix(usk), queued: queued.get(id) ?? 0 });
    else if (file.nlsk !== undefined)
      sockets.push({
        tasks,
        kind: "netlink",
        state: "",
        local: String(num(child(file, "nlsk"), "portid")),
        peer: "",
        queued: 0,
      });
    else if (file.psk !== undefined) sockets.push({ tasks, kind: "packet", state: "", local: "", peer: "", queued: 0 });
  }
  return sockets;
};
