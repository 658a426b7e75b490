// SPDX-License-Identifier: Apache-2.0
// What is told apart about kinds of image: their magics, their messages, and what follows a message.
import type { Message, Schema } from "./message.js";

/** Before the magic of each image but the inventory, since version 1.1 of the images. */
export const COMMON_MAGIC = 0x54564319;
/** The same for what is no part of a checkpoint's state: statistics, caches. */
export const SERVICE_MAGIC = 0x55105940;

/** Messages that follow a message, each with bytes behind it (the messages of an IPC queue). */
export interface Nested {
  readonly schema: Schema;
  readonly count: (entry: Message) => number;
  /** The bytes behind a nested message. */
  readonly bytes: (nested: Message) => number;
}

export interface Kind {
  readonly magic: number;
  /** The magic before it: none in the inventory, whose layout is that of the first version. */
  readonly outer: number | undefined;
  readonly entry: Schema;
  /** The first entry, where it is of another type. */
  readonly head?: Schema;
  /** How many bytes follow an entry; Infinity is all of the rest, undefined is an entry without. */
  readonly extra?: (entry: Message, head: boolean) => number | undefined;
  readonly nested?: Nested;
}

export const common = (magic: number, entry: Schema): Kind => ({ magic, outer: COMMON_MAGIC, entry });
export const service = (magic: number, entry: Schema): Kind => ({ magic, outer: SERVICE_MAGIC, entry });

export const roundUp = (n: number, to: number): number => Math.ceil(n / to) * to;
