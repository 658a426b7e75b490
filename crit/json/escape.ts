// SPDX-License-Identifier: Apache-2.0
// Bytes as text, as CRIU's Python crit writes them: base64 in lines, quoted-printable socket names, strings of ASCII.

/** base64 in lines of 76, each ended. In pieces of a multiple of 57 bytes it is the same as in one. */
export const base64Lines = (bytes: Uint8Array): string => {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
  let lines = "";
  for (let at = 0; at < text.length; at += 76) lines += `${text.slice(at, at + 76)}\n`;
  return lines;
};

export const fromBase64 = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "base64"));

const hex2 = (byte: number): string => `=${byte.toString(16).toUpperCase().padStart(2, "0")}`;
const [TAB, LF, CR, SPACE, DOT, EQUALS] = [9, 10, 13, 32, 46, 61];

/** Quoted-printable, exactly as Python's quopri writes it, but for bytes that it would not read back. */
export const quote = (bytes: Uint8Array): string => {
  const nl = bytes.indexOf(LF) > 0 && bytes[bytes.indexOf(LF) - 1] === CR ? "\r\n" : "\n";
  let out = "";
  let line = 0;
  for (let at = 0; at < bytes.length; ) {
    const byte = bytes[at]!;
    const next = bytes[at + 1];
    const alone = byte === DOT && line === 0 && (next === undefined || next === LF || next === CR || next === 0);
    const blank = byte === TAB || byte === SPACE;
    const control = byte < 33 && byte !== CR && byte !== LF && !blank;
    if (byte > 126 || byte === EQUALS || alone || (blank && next === undefined) || control) {
      if (line + 3 >= 76) {
        out += `=${nl}`;
        line = 0;
      }
      out += hex2(byte);
      line += 3;
      at++;
    } else if (byte === LF || (byte === CR && next === LF)) {
      line = 0;
      const last = out.at(-1);
      if (last === " " || last === "\t") out = out.slice(0, -1) + hex2(last.charCodeAt(0));
      out += nl;
      at += byte === CR ? 2 : 1;
    } else {
      if (next !== undefined && next !== LF && line + 1 >= 76) {
        out += `=${nl}`;
        line = 0;
      }
      line++;
      out += String.fromCharCode(byte);
      at++;
    }
  }
  return Buffer.from(unquote(out)).equals(bytes) ? out : Array.from(bytes, hex2).join("");
};

export const unquote = (text: string): Uint8Array => {
  const out: number[] = [];
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at++) {
    if (bytes[at] !== EQUALS) {
      out.push(bytes[at]!);
      continue;
    }
    const pair = bytes.toString("latin1", at + 1, at + 3);
    if (/^[0-9a-fA-F]{2}$/.test(pair)) {
      out.push(Number.parseInt(pair, 16));
      at += 2;
    } else if (pair.startsWith("\n")) at += 1;
    else if (pair === "\r\n") at += 2;
    else if (pair.startsWith("=")) {
      out.push(EQUALS);
      at += 1;
    } else out.push(EQUALS);
  }
  return Uint8Array.from(out);
};

const PLAIN = /^[ !#-[\]-~]*$/;
const SHORT: Readonly<Record<string, string>> = {
  '"': '\\"',
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\f": "\\f",
  "\b": "\\b",
};

/** A JSON string of ASCII alone. */
export const jsonString = (text: string): string => {
  if (PLAIN.test(text)) return `"${text}"`;
  // By code units: a character beyond the first plane becomes its two surrogates.
  return `"${text.replace(/[^ !#-[\]-~]/g, (unit) => SHORT[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)}"`;
};

/** Bytes that are no UTF-8 as a string from which they come back: each stray byte is a lone surrogate, as in Python. */
export const strayString = (bytes: Uint8Array): string => {
  let out = "";
  for (let at = 0; at < bytes.length; ) {
    const lead = bytes[at]!;
    const length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    const piece = Buffer.from(bytes.subarray(at, at + length));
    const text = piece.toString();
    if (piece.length === length && !text.includes("\ufffd")) {
      out += text;
      at += length;
    } else {
      out += String.fromCharCode(0xdc00 + lead);
      at++;
    }
  }
  return out;
};

/** The string of a message for what strayString or any other string says. */
export const fromStrayString = (text: string): string | Uint8Array => {
  if (!/[\ud800-\udfff]/.test(text)) return text;
  const parts: Uint8Array[] = [];
  let stray = false;
  for (const character of text) {
    const code = character.codePointAt(0)!;
    if (code >= 0xdc80 && code <= 0xdcff) {
      stray = true;
      parts.push(Uint8Array.of(code - 0xdc00));
    } else parts.push(Buffer.from(character));
  }
  return stray ? new Uint8Array(Buffer.concat(parts)) : text;
};
