// SPDX-License-Identifier: Apache-2.0
// Dumps of ip and of connection tracking, which are netlink messages: the attributes that are named here, no others.
import type { CryoshimError } from "../../shim/error.js";
import { broken as damaged } from "../frame.js";
import type { Work } from "./message.js";

type Attributes = { readonly [number: number]: Treatment };
type Treatment = "keep" | "ip" | "device" | "name" | "via" | "hops" | Attributes;

const keep = (...numbers: number[]): Attributes => Object.fromEntries(numbers.map((number) => [number, "keep"]));

/** IFA_* (linux/if_addr.h) */
const ADDRESS: Attributes = { ...keep(6, 8, 9, 11), 1: "ip", 2: "ip", 3: "device", 4: "ip", 5: "ip", 7: "ip" };
/** RTAX_* but the name of a congestion control, and RTA_* (linux/rtnetlink.h) */
const METRICS = keep(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17);
const ROUTE: Attributes = {
  ...keep(3, 4, 6, 11, 12, 15, 16, 20, 23, 25, 26, 27, 28, 29, 30),
  ...{ 1: "ip", 2: "ip", 5: "ip", 7: "ip", 8: METRICS, 9: "hops", 18: "via" },
};
/** FRA_* (linux/fib_rules.h) */
const RULE: Attributes = {
  ...keep(4, 6, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 22, 23, 24, 25),
  ...{ 1: "ip", 2: "ip", 3: "device", 17: "device" },
};
/** CTA_* and CTA_EXPECT_* (linux/netfilter/nfnetlink_conntrack.h) */
const PROTOCOL = keep(1, 2, 3, 4, 5, 6, 7, 8, 9);
const TUPLE: Attributes = { ...keep(3), 1: { 1: "ip", 2: "ip", 3: "ip", 4: "ip" }, 2: PROTOCOL };
const TCP = { 1: keep(1, 2, 3, 4, 5) };
const TRACKED: Attributes = {
  ...keep(3, 7, 8, 9, 10, 11, 12, 18, 21),
  ...{ 1: TUPLE, 2: TUPLE, 4: TCP, 5: { 1: "name" }, 14: TUPLE },
};
const EXPECTED: Attributes = { ...keep(3, 4, 5, 7, 8, 9), 1: TUPLE, 2: TUPLE, 6: "name", 11: "name" };

/** By the message's type: how long its fixed part is, and its attributes. */
const MESSAGES: Readonly<Record<number, readonly [fixed: number, attributes: Attributes]>> = {
  20: [8, ADDRESS],
  24: [12, ROUTE],
  32: [12, RULE],
  256: [4, TRACKED],
  512: [4, EXPECTED],
};
/** What ip puts before its messages (iproute2, ip/ip_common.h). */
const MAGICS = [0x47361222, 0x45311224, 0x71706986];
const NLA_TYPE = 0x3fff;

const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
const attribute = (type: number, value: Buffer): Buffer => {
  const head = Buffer.alloc(4);
  head.writeUInt16LE(4 + value.length, 0);
  head.writeUInt16LE(type, 2);
  return padded(Buffer.concat([head, value]));
};

class Rewriter {
  readonly #work: Work;
  readonly #broken: (why: string) => CryoshimError;

  constructor(work: Work, broken: (why: string) => CryoshimError) {
    this.#work = work;
    this.#broken = broken;
  }

  attributes(bytes: Buffer, known: Attributes): Buffer {
    const out: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const size = bytes.length - at < 4 ? 0 : bytes.readUInt16LE(at);
      if (size < 4 || size > bytes.length - at) throw this.#broken("an attribute is longer than its message");
      const type = bytes.readUInt16LE(at + 2);
      const how = known[type & NLA_TYPE];
      if (how === undefined) this.#count("drop");
      else out.push(attribute(type, this.#value(bytes.subarray(at + 4, at + size), how)));
      at += (size + 3) & ~3;
    }
    return Buffer.concat(out);
  }

  #value(value: Buffer, how: Treatment): Buffer {
    if (typeof how === "object") return this.attributes(value, how);
    if (how === "hops") return this.#hops(value);
    if (how === "via") return Buffer.concat([value.subarray(0, 2), this.#value(value.subarray(2), "ip")]);
    if (how === "keep" || this.#work.keep.has(how)) return Buffer.from(value);
    this.#count(how);
    const { alias } = this.#work;
    if (how === "ip") {
      if (value.length !== 4 && value.length !== 16) return Buffer.alloc(value.length);
      return Buffer.from(alias.ip(value));
    }
    const text = value.toString("latin1").replace(/\0.*$/s, "");
    return Buffer.from(`${how === "device" ? alias.device(text) : alias.name(text)}\0`, "latin1");
  }

  /** struct rtnexthop: a length, flags, hops and an interface, then attributes of a route. */
  #hops(value: Buffer): Buffer {
    const out: Buffer[] = [];
    for (let at = 0; at < value.length; ) {
      const size = value.length - at < 8 ? 0 : value.readUInt16LE(at);
      if (size < 8 || size > value.length - at) throw this.#broken("a next hop is longer than its route");
      const hop = Buffer.concat([
        value.subarray(at, at + 8),
        this.attributes(value.subarray(at + 8, at + size), ROUTE),
      ]);
      hop.writeUInt16LE(hop.length, 0);
      out.push(hop);
      at += (size + 3) & ~3;
    }
    return Buffer.concat(out);
  }

  #count(rule: string): void {
    const known = this.#work.counts.get(`netlink.${rule}`);
    if (known === undefined) this.#work.counts.set(`netlink.${rule}`, { rule, count: 1 });
    else known.count++;
  }
}

/** Throws ERR_IMAGE naming file and byte. */
export const anonymiseNetlink = (bytes: Buffer, name: string, work: Work): Buffer => {
  const magic = bytes.length >= 4 && MAGICS.includes(bytes.readUInt32LE(0)) ? 4 : 0;
  const out: Buffer[] = [bytes.subarray(0, magic)];
  for (let at = magic; at < bytes.length; ) {
    const start = at;
    const broken = (why: string): CryoshimError => damaged(name, start, why);
    const size = bytes.length - at < 16 ? 0 : bytes.readUInt32LE(at);
    if (size < 16 || size > bytes.length - at) throw broken("a netlink message is longer than what is left");
    at += (size + 3) & ~3;
    const [fixed, attributes] = MESSAGES[bytes.readUInt16LE(start + 4)] ?? [0, undefined];
    if (attributes === undefined) continue;
    if (size < 16 + fixed) throw broken("a netlink message is shorter than its type");
    const body = bytes.subarray(start + 16 + fixed, start + size);
    const message = Buffer.concat([
      bytes.subarray(start, start + 16 + fixed),
      new Rewriter(work, broken).attributes(body, attributes),
    ]);
    message.writeUInt32LE(message.length, 0);
    out.push(message);
  }
  return Buffer.concat(out);
};
