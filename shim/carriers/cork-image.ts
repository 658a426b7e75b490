// SPDX-License-Identifier: Apache-2.0
// cryoshim-udp.img: corked sockets, and the datagrams that wait in them. What is read is checked: it may come from anywhere.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeImage, encodeImage } from "../../crit/image.js";
import type { Message } from "../../crit/message.js";
import { CryoshimError } from "../error.js";
import type { Cork, Pending } from "../xray/corks.js";

export const CORK_IMAGE = "cryoshim-udp.img";

/** A socket by one of its descriptors. */
export interface SavedCork extends Cork {
  /** See tasks.ts:taskName. */
  task: string;
  fd: number;
}

const words = (bytes: Buffer): number[] =>
  Array.from({ length: bytes.length >> 2 }, (_, i) => bytes.readUInt32LE(4 * i));

const messageOf = ({ task, fd, corked, pending }: SavedCork): Message => {
  const message: Message = { task, fd, corked };
  if (pending === undefined) return message;
  const { family, data, destination, source, port, oif, segment } = pending;
  const datagram: Message = {
    family,
    data: new Uint8Array(data),
    dst_addr: words(destination),
    src_addr: words(source),
    dst_port: port,
    ifindex: oif,
  };
  if (segment !== 0) datagram.segment = segment;
  if (pending.options !== undefined) datagram.options = new Uint8Array(pending.options);
  for (const [field, value] of [
    ["tos", pending.tos],
    ["ttl", pending.ttl],
    ["hop_limit", pending.hopLimit],
    ["tclass", pending.trafficClass],
    ["flow_label", pending.flowLabel],
  ] as const)
    if (value !== undefined) datagram[field] = value;
  message.datagram = datagram;
  return message;
};

export const writeCorks = (imagesDir: string, corks: readonly SavedCork[]): void => {
  const entries = corks.map((cork) => ({ message: messageOf(cork) }));
  writeFileSync(join(imagesDir, CORK_IMAGE), encodeImage({ kind: "CRYOSHIM_UDP", entries }), {
    mode: 0o600,
    flag: "wx",
  });
};

const wrong = (entry: number, why: string): CryoshimError =>
  new CryoshimError("ERR_IMAGE", {
    what: `cannot use entry ${entry} of image \`${CORK_IMAGE}\``,
    why,
    fix: "the file is damaged, or was made by something else; take the checkpoint again or copy it again",
  });

/** A message may be missing a field that is not required, and have any number in the others. */
const pendingOf = (datagram: Message, at: number): Pending => {
  const number = (field: string, max: number): number | undefined => {
    const value = datagram[field];
    if (value === undefined) return undefined;
    if (typeof value !== "number" || value < 0 || value > max) throw wrong(at, `its ${field} is ${String(value)}`);
    return value;
  };
  const { family, data, options } = datagram;
  if (family !== 2 && family !== 10) throw wrong(at, `its family is ${String(family)}`);
  const address = (field: string): Buffer => {
    const value = datagram[field];
    const count = family === 2 ? 1 : 4;
    if (!Array.isArray(value) || value.length !== count) throw wrong(at, `its ${field} is no address`);
    return Buffer.from(Uint32Array.from(value as number[]).buffer);
  };
  if (!(data instanceof Uint8Array) || data.length > 0xffff) throw wrong(at, "it is no datagram's data");
  if (options !== undefined && !(options instanceof Uint8Array && options.length <= 40))
    throw wrong(at, "its options are longer than 40 bytes");
  const pending: Pending = {
    family,
    data: Buffer.from(data),
    destination: address("dst_addr"),
    source: address("src_addr"),
    port: number("dst_port", 0xffff) ?? 0,
    oif: number("ifindex", 0x7fffffff) ?? 0,
    segment: number("segment", 0xffff) ?? 0,
  };
  const [tos, ttl, hopLimit] = [number("tos", 255), number("ttl", 255), number("hop_limit", 255)];
  const [trafficClass, flowLabel] = [number("tclass", 255), number("flow_label", 0xffffffff)];
  if (tos !== undefined) pending.tos = tos;
  if (ttl !== undefined && ttl > 0) pending.ttl = ttl;
  if (hopLimit !== undefined) pending.hopLimit = hopLimit;
  if (trafficClass !== undefined) pending.trafficClass = trafficClass;
  if (flowLabel !== undefined) pending.flowLabel = flowLabel;
  if (options !== undefined) pending.options = Buffer.from(options);
  return pending;
};

/** What the images say of corked sockets. Throws ERR_IMAGE. */
export const readCorks = (imagesDir: string): SavedCork[] => {
  const { kind, entries } = decodeImage(readFileSync(join(imagesDir, CORK_IMAGE)), CORK_IMAGE);
  if (kind !== "CRYOSHIM_UDP") throw wrong(0, `it is an image of kind ${kind}`);
  return entries.map(({ message: { task, fd, corked, datagram } }, at) => {
    if (typeof task !== "string" || !/^\d+(:\d+)*$/.test(task)) throw wrong(at, "its task is no process");
    if (typeof fd !== "number" || fd < 0 || fd > 0x7fffffff) throw wrong(at, `its descriptor is ${String(fd)}`);
    const cork: SavedCork = { task, fd, corked: corked === true };
    if (datagram !== undefined) cork.pending = pendingOf(datagram as Message, at);
    return cork;
  });
};
