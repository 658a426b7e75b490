// SPDX-License-Identifier: Apache-2.0
// What is behind a descriptor or mapping: of each message of files.img, which may have a hundred thousand, what people ask.
import { addressText } from "./json/address.js";
import { quote, strayString } from "./json/escape.js";
import type { Message } from "./message.js";
import { skFamily, skProto, skState, skType } from "./schema/names.js";
import { child, num, str } from "./values.js";

export interface SocketFile {
  kind: string;
  state: string;
  local: string;
  peer: string;
  /** Sizes of its buffers. */
  buffers: { send: number; receive: number };
  /** By which its TCP stream is found. */
  stream?: number;
}
export interface OpenFile {
  /** As CRIU's crit tells it, where it tells more than the type and the number. */
  text?: { type: string; text: string };
  socket?: SocketFile;
}

const name = (show: typeof skState, value: number): string =>
  (typeof show === "object" && "names" in show && show.names[value]) || String(value);

const inetAddress = (words: readonly number[], port: number): string => {
  const text = addressText(words) ?? "?";
  return `${text.includes(":") ? `[${text}]` : text}:${port}`;
};

const buffers = (socket: Message): SocketFile["buffers"] => {
  const opts = child(socket, "opts");
  return { send: num(opts, "so_sndbuf"), receive: num(opts, "so_rcvbuf") };
};

const inet = (socket: Message): SocketFile => {
  const address = (end: "src" | "dst"): string =>
    inetAddress((socket[`${end}_addr`] ?? []) as number[], num(socket, `${end}_port`));
  return {
    kind: `${name(skProto, num(socket, "proto")).toLowerCase()}${name(skFamily, num(socket, "family")) === "INET6" ? "6" : ""}`,
    state: name(skState, num(socket, "state")),
    local: address("src"),
    peer: num(socket, "dst_port") === 0 ? "" : address("dst"),
    buffers: buffers(socket),
    stream: num(socket, "ino"),
  };
};

/** A path, or an abstract name, which people write with @ for its first zero. */
const socketName = (bytes: Uint8Array): string => {
  const name = strayString(bytes);
  return name.startsWith("\0") ? `@${name.slice(1)}` : name.replace(/\0+$/, "");
};

const unix = (socket: Message): OpenFile => {
  const bytes = (socket.name ?? new Uint8Array()) as Uint8Array;
  const [ino, peer] = [num(socket, "ino"), num(socket, "peer")];
  const shown = quote(bytes).replaceAll("=\n", "");
  return {
    text: { type: "UNIXSK", text: `unix[${ino} (${peer})${shown === "" ? "" : ` ${shown}`}]` },
    socket: {
      kind: `unix ${name(skType, num(socket, "type")).toLowerCase()}`,
      state: name(skState, num(socket, "state")),
      local: socketName(bytes) || `[${ino}]`,
      peer: peer === 0 ? "" : `[${peer}]`,
      buffers: buffers(socket),
    },
  };
};

/** What a message of files.img tells. */
export const openFileOf = (file: Message): OpenFile => {
  const of = (field: string): Message | undefined => child(file, field);
  const [reg, pipe, isk, usk, nlsk, psk] = [of("reg"), of("pipe"), of("isk"), of("usk"), of("nlsk"), of("psk")];
  if (reg !== undefined) return { text: { type: "REG", text: str(reg, "name") } };
  if (pipe !== undefined) return { text: { type: "PIPE", text: `pipe[${num(pipe, "pipe_id")}]` } };
  if (isk !== undefined) return { socket: inet(isk) };
  if (usk !== undefined) return unix(usk);
  if (nlsk !== undefined)
    return {
      socket: { kind: "netlink", state: "", local: String(num(nlsk, "portid")), peer: "", buffers: buffers(nlsk) },
    };
  if (psk !== undefined) return { socket: { kind: "packet", state: "", local: "", peer: "", buffers: buffers(psk) } };
  return {};
};

/** Of a file that the images do not have. */
const ABSENT: Readonly<Record<string, string>> = { REG: "unknown path", PIPE: "pipe[?]", UNIXSK: "unix[?]" };

/** What a descriptor or mapping is, in a few words, as CRIU's crit says it. */
export const fileText = (files: ReadonlyMap<number, OpenFile>, type: string, id: number): string => {
  const told = files.get(id)?.text;
  return told?.type === type ? told.text : (ABSENT[type] ?? `${type}.${id}`);
};
