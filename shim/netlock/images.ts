// SPDX-License-Identifier: Apache-2.0
// The sockets that a restore will bring back, from its images: what must be locked where no lock of the dump holds.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { decodeAs, type Entry } from "../../crit/frame.js";
import { common } from "../../crit/kind.js";
import { message } from "../../crit/message.js";
import type { Flow } from "./netlock.js";

/** inet_sk_entry of sk-inet.proto, as far as it is needed here. */
interface InetSocket {
  family: number;
  proto: number;
  src_port: number;
  dst_port: number;
  src_addr: number[];
  dst_addr: number[];
}

// The few fields, and not crit's whole schema: this is part of what starts with every dump.
const socketEntry = message("inet_sk_entry", {
  family: [3, "uint32", "required"],
  proto: [5, "uint32", "required"],
  src_port: [7, "uint32", "required"],
  dst_port: [8, "uint32", "required"],
  src_addr: [11, "uint32", "repeated"],
  dst_addr: [12, "uint32", "repeated"],
});
const FILES = common(0x56303138, message("file_entry", { isk: [4, () => socketEntry] }));

const [AF_INET, AF_INET6] = [2, 10];

/** An address as a lock has it; CRIU keeps them as the words that lie in memory. */
export const flowAddress = (words: readonly number[], family: number): Buffer => {
  const bytes = Buffer.alloc(16);
  if (words.every((word) => word === 0)) return bytes;
  if (family === AF_INET) {
    bytes.writeUInt16BE(0xffff, 10);
    bytes.writeUInt32LE(words[0] ?? 0, 12);
  } else {
    for (const [i, word] of words.slice(0, 4).entries()) bytes.writeUInt32LE(word, i * 4);
  }
  return bytes;
};

/** The internet sockets in files.img; none where it cannot be read, which CRIU itself will say. */
export const flowsOf = (imagesDir: string): Flow[] => {
  let entries: Entry[];
  try {
    entries = decodeAs(FILES, readFileSync(join(imagesDir, "files.img")), "files.img");
  } catch {
    return [];
  }
  return entries.flatMap(({ message }) => {
    const socket = message.isk as unknown as InetSocket | undefined;
    if (socket === undefined || socket.src_port === 0 || ![AF_INET, AF_INET6].includes(socket.family)) return [];
    return {
      local: flowAddress(socket.src_addr, socket.family),
      remote: flowAddress(socket.dst_addr, socket.family),
      localPort: socket.src_port,
      remotePort: socket.dst_port,
      protocol: socket.proto,
    };
  });
};
