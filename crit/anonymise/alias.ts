// SPDX-License-Identifier: Apache-2.0
// Names and addresses replaced one to one: the same by the same, by a keyed hash. Without the key there is no way back.
import { createHash, createHmac, randomBytes } from "node:crypto";

/** Parts of paths that are on every Linux and say nothing. */
const COMMON = new Set("dev proc sys null zero full random urandom tty ptmx pts shm tmp usr lib lib64 bin".split(" "));
const LETTERS = "abcdefghijklmnopqrstuvwxyz234567";
/** 40 bits. Short, because names of sockets and tasks must be. */
const LENGTH = 8;

export class Alias {
  readonly #key: Buffer;
  readonly #names = new Map<string, string>();
  readonly #taken = new Set<string>();
  readonly #ids = new Map<number, number>();
  readonly #takenIds = new Set<number>();
  readonly #flips = new Map<string, number>();

  constructor(seed?: string) {
    this.#key = seed === undefined ? randomBytes(32) : createHash("sha256").update(`anonymise\0${seed}`).digest();
  }

  #hash(what: string, text: string): Buffer {
    return createHmac("sha256", this.#key).update(`${what}\0${text}`).digest();
  }

  /** A name. */
  name(text: string): string {
    if (text === "") return text;
    let alias = this.#names.get(text);
    for (let again = 0; alias === undefined; again++) {
      const hash = this.#hash("name", again === 0 ? text : `${again}\0${text}`);
      const one = Array.from(hash.subarray(0, LENGTH), (byte) => LETTERS[byte & 31]).join("");
      if (this.#taken.has(one)) continue;
      alias = one;
      this.#taken.add(one);
      this.#names.set(text, one);
    }
    return alias;
  }

  /** A path, part by part; zeros of socket names stay where they are. */
  path(text: string): string {
    return text.replace(/[^/\0]+/g, (part) =>
      part === "." || part === ".." || COMMON.has(part) ? part : this.name(part),
    );
  }

  device(text: string): string {
    return /^(lo|eth\d{1,3})$/.test(text) ? text : this.name(text);
  }

  /** An address as it is on the wire. Addresses that share their first n bits share n bits afterwards. */
  ip(bytes: Uint8Array): Uint8Array {
    const out = Uint8Array.from(bytes);
    // These bits tell loopback, link-local and multicast; they stay.
    const mapped = bytes.length === 16 && bytes.subarray(0, 10).every((b) => b === 0) && bytes[10] === 255;
    const first = bytes.length === 4 ? 8 : mapped ? 104 : 16;
    const low = bytes.length === 16 && bytes.subarray(0, 15).every((b) => b === 0);
    const last = bytes.length === 4 ? bytes : bytes.subarray(12);
    if (low || last.every((b) => b === 255) || bytes.every((b) => b === 0)) return out;
    if ((bytes.length === 4 || mapped) && last[0] === 127) return out;
    let prefix = `${bytes.length}`;
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const shift = 7 - (bit & 7);
      if (bit >= first) {
        let flip = this.#flips.get(prefix);
        if (flip === undefined) {
          flip = this.#hash("ip", prefix)[0]! & 1;
          this.#flips.set(prefix, flip);
        }
        out[bit >> 3]! ^= flip << shift;
      }
      prefix += (bytes[bit >> 3]! >> shift) & 1;
    }
    return out;
  }

  /** The number of a user or group. That of root, of nobody, and the one that means none, stay. */
  id(id: number): number {
    if (id === 0 || id === 65534 || id >>> 0 === 0xffffffff) return id;
    let alias = this.#ids.get(id);
    for (let again = 0; alias === undefined; again++) {
      // What fits the seven octal digits of tar.
      const one = 100_000 + (this.#hash("id", `${again} ${id}`).readUInt32LE(0) >>> 12);
      if (this.#takenIds.has(one)) continue;
      alias = one;
      this.#takenIds.add(one);
      this.#ids.set(id, one);
    }
    return alias;
  }

  /** A hardware address; whether it is of a group and whether it is local stays. */
  mac(bytes: Uint8Array): Uint8Array {
    if (bytes.every((b) => b === 0) || bytes.every((b) => b === 255)) return Uint8Array.from(bytes);
    const out = Uint8Array.from(bytes, () => 0);
    out.set(this.#hash("mac", Buffer.from(bytes).toString("hex")).subarray(0, bytes.length));
    out[0] = (out[0]! & ~3) | (bytes[0]! & 3);
    return out;
  }
}
