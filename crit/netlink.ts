// SPDX-License-Identifier: Apache-2.0
// What `ip addr save`, `ip route save` and `ip rule save` write: a magic, then netlink messages as the kernel gave them.
import { addressText } from "./json/address.js";

export type NetlinkEntry = Record<string, string | number>;

const MAGICS = [0x47361222, 0x45311224, 0x71706986];
const [NEW_ADDRESS, NEW_ROUTE, NEW_RULE] = [20, 24, 32];
const FAMILIES: Readonly<Record<number, string>> = { 2: "inet", 10: "inet6", 7: "bridge" };
const SCOPES: Readonly<Record<number, string>> = { 0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere" };

/** Attributes by number. A piece that does not fit ends them. */
const attributes = (bytes: Buffer): Map<number, Buffer> => {
  const found = new Map<number, Buffer>();
  for (let at = 0; at + 4 <= bytes.length; ) {
    const length = bytes.readUInt16LE(at);
    if (length < 4 || at + length > bytes.length) break;
    found.set(bytes.readUInt16LE(at + 2) & 0x3fff, bytes.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return found;
};

const address = (bytes: Buffer | undefined): string | undefined =>
  bytes && addressText(Array.from({ length: bytes.length >> 2 }, (_, i) => bytes.readUInt32LE(4 * i)));
const word = (bytes: Buffer | undefined): number | undefined =>
  bytes && bytes.length >= 4 ? bytes.readUInt32LE(0) : undefined;
const name = (bytes: Buffer | undefined): string | undefined => bytes?.toString("latin1").replace(/\0.*$/s, "");

const told = (fields: Record<string, string | number | undefined>): NetlinkEntry =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as NetlinkEntry;

const one = (type: number, body: Buffer): NetlinkEntry => {
  if (body.length < 8) return { type };
  const family = FAMILIES[body[0]!] ?? body[0]!;
  if (type === NEW_ADDRESS) {
    const of = attributes(body.subarray(8));
    const ip = address(of.get(2) ?? of.get(1));
    const scope = SCOPES[body[3]!] ?? body[3]!;
    return told({
      interface: body.readUInt32LE(4),
      family,
      address: ip && `${ip}/${body[1]!}`,
      scope,
      label: name(of.get(3)),
    });
  }
  if ((type !== NEW_ROUTE && type !== NEW_RULE) || body.length < 12) return { type };
  const of = attributes(body.subarray(12));
  const [to, from] = [address(of.get(1)), address(of.get(2))];
  const ends = {
    to: to && `${to}/${body[1]!}`,
    from: from && `${from}/${body[2]!}`,
    table: word(of.get(15)) ?? body[4]!,
  };
  if (type === NEW_RULE)
    return told({
      family,
      priority: word(of.get(6)),
      ...ends,
      mark: word(of.get(10)),
      in: name(of.get(3)),
      out: name(of.get(17)),
    });
  return told({
    family,
    ...ends,
    gateway: address(of.get(5)),
    interface: word(of.get(4)),
    source: address(of.get(7)),
    metric: word(of.get(6)),
    protocol: body[5]!,
    type: body[7]!,
  });
};

/** What a dump of ip's holds; undefined when it is none, or damaged. */
export const netlinkEntries = (bytes: Buffer): NetlinkEntry[] | undefined => {
  if (bytes.length < 4 || !MAGICS.includes(bytes.readUInt32LE(0))) return undefined;
  const entries: NetlinkEntry[] = [];
  for (let at = 4; at < bytes.length; ) {
    const length = bytes.length - at < 16 ? 0 : bytes.readUInt32LE(at);
    if (length < 16 || length > bytes.length - at) return undefined;
    entries.push(one(bytes.readUInt16LE(at + 4), bytes.subarray(at + 16, at + length)));
    at += (length + 3) & ~3;
  }
  return entries;
};
