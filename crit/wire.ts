// SPDX-License-Identifier: Apache-2.0
// Reading protobuf's wire format. A page map has millions of numbers: this is where decoding spends its time, so it has
// one cursor and makes no objects.

/**
 * How much memory decoding may take, in bytes, about: a message of two bytes costs a hundred, whoever sends forty millions of
 * them. It is enough for the mappings of a task with four times as many as kernels allow by default.
 */
export interface Budget {
  left: number;
}
export const newBudget = (bytes = 64 << 20): Budget => ({ left: bytes });

/** Longer than any name, and what no string of CRIU's can be. */
const MAX_TEXT = 1 << 20;

/** A place in bytes; `end` is where the innermost message ends. */
export class Cursor {
  readonly bytes: Uint8Array;
  at: number;
  end: number;
  /** The upper half of the varint last read. */
  high = 0;
  readonly #budget: Budget;

  constructor(bytes: Uint8Array, budget = newBudget()) {
    this.bytes = bytes;
    this.#budget = budget;
    this.at = 0;
    this.end = bytes.length;
  }

  /** Counts what decoding makes. */
  spend(bytes: number): void {
    this.#budget.left -= bytes;
    if (this.#budget.left < 0) throw new RangeError("what it holds would take too much memory");
  }

  /** Reads a varint: its lower 32 bits (unsigned); the upper ones are in `high`. */
  varint(): number {
    const { bytes } = this;
    // Most numbers are small.
    if (this.at < this.end && bytes[this.at]! < 0x80) {
      this.high = 0;
      return bytes[this.at++]!;
    }
    let low = 0;
    let high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.at >= this.end) throw new RangeError("it ends within a number");
      const byte = bytes[this.at++]!;
      const bits = byte & 0x7f;
      if (shift < 28) low |= bits << shift;
      else if (shift === 28) {
        low |= bits << 28;
        high = bits >> 4;
      } else if (shift < 63) high |= bits << (shift - 32);
      else high |= (bits & 1) << 31;
      if (byte < 0x80) {
        this.high = high >>> 0;
        return low >>> 0;
      }
    }
    throw new RangeError("a number has more than ten bytes");
  }

  uint64(): bigint {
    return big(this.varint(), this.high);
  }

  int64(): bigint {
    return BigInt.asIntN(64, this.uint64());
  }

  sint64(): bigint {
    const value = this.uint64();
    return (value >> 1n) ^ -(value & 1n);
  }

  fixed32(): number {
    const at = this.skip(4);
    const { bytes } = this;
    return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
  }

  fixed64(): bigint {
    const low = this.fixed32();
    return big(low, this.fixed32());
  }

  /** Reads a length and goes over as many bytes; returns where they start. */
  delimited(): number {
    const size = this.varint();
    if (this.high !== 0) throw new RangeError("a length of 4 GiB or more");
    return this.skip(size);
  }

  /** The same for a string. */
  text(): number {
    const from = this.delimited();
    if (this.at - from > MAX_TEXT) throw new RangeError(`a text of ${this.at - from} bytes`);
    return from;
  }

  /** Goes over bytes; returns where they start. */
  skip(size: number): number {
    const from = this.at;
    if (size > this.end - from) throw new RangeError(`${size} bytes are claimed, ${this.end - from} are left`);
    this.at = from + size;
    return from;
  }

  /** Goes over the value of a field that nobody knows. */
  skipField(wire: number, depth = 0): void {
    if (wire === 0) this.varint();
    else if (wire === 1) this.skip(8);
    else if (wire === 2) this.delimited();
    else if (wire === 5) this.skip(4);
    else if (wire === 3) {
      if (depth > 64) throw new RangeError("groups nested too deep");
      for (;;) {
        const inner = this.varint() & 7;
        if (inner === 4) return;
        this.skipField(inner, depth + 1);
      }
    } else throw new RangeError(`there is no wire type ${wire}`);
  }
}

const big = (low: number, high: number): bigint =>
  high < 0x200000 ? BigInt(high * 0x100000000 + low) : (BigInt(high) << 32n) | BigInt(low);
