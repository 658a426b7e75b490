// SPDX-License-Identifier: Apache-2.0
// Logs and rules that are text, word by word: numbers, and words of the vocabulary, stay; all others are replaced.
import { isIP } from "node:net";
import { addressText, addressWords } from "../json/address.js";
import type { Alias } from "./alias.js";
import type { Work } from "./message.js";
import { SOURCES } from "./vocabulary.js";

const WORD = /[^\s"`()[\]{}<>,;=|!#&\\]+/g;
const PARTS = /^([-+*:']*)(.*?)([:.']*)$/s;
const NUMBER = /^(\d{1,20}(\.\d{1,9})?(ms|us|s|[kKMG](i?B)?|%)?|0x[0-9a-fA-F]{1,16})$/;
const NUMBERS = /^((\d{1,20}|0x[0-9a-f]{1,16})([-:/]|$))+$/i;
const MAC = /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i;
const SOURCE = /^((?:[\w-]+\/)+[\w-]+)\.c:\d{1,5}$/;

/** An address that is text, with what follows its slash (a prefix's length or a mask, which stay); undefined for no address. */
export const aliasAddress = (text: string, alias: Alias): string | undefined => {
  const [ip = "", behind] = text.split(/(?=\/)/);
  const words = isIP(ip) === 0 ? undefined : addressWords(ip);
  if (words === undefined || (behind !== undefined && !/^\/(\d{1,3}|255\.[\d.]{5,11})$/.test(behind))) return undefined;
  const bytes = Buffer.alloc(words.length * 4);
  for (const [i, word] of words.entries()) bytes.writeUInt32LE(word, i * 4);
  const out = Buffer.from(alias.ip(bytes));
  return `${addressText(words.map((_, i) => out.readUInt32LE(4 * i)))!}${behind ?? ""}`;
};

export const aliasMac = (text: string, alias: Alias): string | undefined =>
  MAC.test(text)
    ? [...alias.mac(Buffer.from(text.replaceAll(":", ""), "hex"))].map((b) => b.toString(16).padStart(2, "0")).join(":")
    : undefined;

/** What becomes of one word: the rule and the word. */
const replaced = (word: string, alias: Alias): ["ip" | "mac" | "path" | "device" | "name", string] => {
  const ip = aliasAddress(word, alias);
  if (ip !== undefined) return ["ip", ip];
  const [, host = "", port = ""] = /^([\d.]+)(:\d{1,5})$/.exec(word) ?? [];
  const withPort = host === "" ? undefined : aliasAddress(host, alias);
  if (withPort !== undefined) return ["ip", withPort + port];
  const mac = aliasMac(word, alias);
  if (mac !== undefined) return ["mac", mac];
  if (word.includes("/")) return ["path", alias.path(word)];
  const device = alias.device(word);
  return device === word ? ["device", word] : ["name", device];
};

const isSource = (word: string): boolean =>
  SOURCE.exec(word)?.[1]
    ?.split("/")
    .every((part) => SOURCES.has(part)) === true;

/** Rewrites text. `counts`: how many of each kind were replaced. */
export const anonymiseText = (text: Uint8Array, words: ReadonlySet<string>, { alias, keep, counts }: Work): Buffer => {
  const rewrite = (token: string): string => {
    const [, before = "", word = "", after = ""] = PARTS.exec(token) ?? [];
    if (word === "" || words.has(word.toLowerCase()) || isSource(word)) return token;
    const [rule, other] = replaced(word, alias);
    if (keep.has(rule) || (rule !== "ip" && rule !== "mac" && (NUMBER.test(word) || NUMBERS.test(word)))) return token;
    const known = counts.get(`text.${rule}`);
    if (known === undefined) counts.set(`text.${rule}`, { rule, count: 1 });
    else known.count++;
    return before + other + after;
  };
  // Each byte a character, as with names.
  const latin = Buffer.from(text.buffer, text.byteOffset, text.byteLength).toString("latin1");
  return Buffer.from(latin.replace(WORD, rewrite), "latin1");
};

/** A longer line is no line of CRIU's. */
const LONGEST = 64 << 10;

/** The same for text that comes in pieces: whole lines are rewritten, the last one at the end. */
export const textInPieces = (
  work: (line: Uint8Array) => Buffer,
  write: (bytes: Uint8Array) => void,
): { piece(bytes: Uint8Array): void; end(): void } => {
  let rest = Buffer.alloc(0);
  return {
    piece(bytes) {
      const all = Buffer.concat([rest, bytes]);
      const whole = all.lastIndexOf(0x0a) + 1;
      rest = Buffer.from(all.subarray(whole));
      if (whole > 0) write(work(all.subarray(0, whole)));
      if (rest.length > LONGEST) rest = Buffer.from("(a line too long)");
    },
    end() {
      if (rest.length > 0) write(work(rest));
    },
  };
};
