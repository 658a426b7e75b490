// SPDX-License-Identifier: Apache-2.0
// Internet addresses, which CRIU keeps as the 32-bit words that lie in memory.
import { isIPv4, isIPv6 } from "node:net";

const bytesOf = (words: readonly number[]): number[] =>
  words.flatMap((word) => [word & 255, (word >>> 8) & 255, (word >>> 16) & 255, (word >>> 24) & 255]);

/** One word is IPv4, four are IPv6; anything else is no address. */
export const addressText = (words: readonly number[]): string | undefined => {
  const bytes = bytesOf(words);
  if (words.length === 1) return bytes.join(".");
  if (words.length !== 4) return undefined;
  if (bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255)
    return `::ffff:${bytes.slice(12).join(".")}`;
  const groups = Array.from({ length: 8 }, (_, i) => (bytes[2 * i]! << 8) | bytes[2 * i + 1]!);
  // The longest run of zeros becomes "::".
  let [best, length] = [-1, 1];
  for (let at = 0; at < 8; at++) {
    let end = at;
    while (end < 8 && groups[end] === 0) end++;
    if (end - at > length) [best, length] = [at, end - at];
  }
  const hex = (part: number[]): string => part.map((group) => group.toString(16)).join(":");
  if (best < 0) return hex(groups);
  return `${hex(groups.slice(0, best))}::${hex(groups.slice(best + length))}`;
};

/** The words of an address; undefined for text that is none. */
export const addressWords = (text: string): number[] | undefined => {
  const word = (bytes: readonly number[]): number =>
    (bytes[0]! | (bytes[1]! << 8) | (bytes[2]! << 16) | (bytes[3]! << 24)) >>> 0;
  if (isIPv4(text)) return [word(text.split(".").map(Number))];
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const tail = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  let plain = text;
  if (tail !== null) {
    const [a, b, c, d] = tail.slice(1).map(Number) as [number, number, number, number];
    plain = `${text.slice(0, tail.index)}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  }
  const [left = "", right] = plain.split("::") as [string, string | undefined];
  const groups = (part: string): number[] =>
    part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  const [before, after] = [groups(left), groups(right ?? "")];
  const all = [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
  return [0, 2, 4, 6].map((i) => word([all[i]! >> 8, all[i]! & 255, all[i + 1]! >> 8, all[i + 1]! & 255]));
};
