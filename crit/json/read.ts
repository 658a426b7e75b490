// SPDX-License-Identifier: Apache-2.0
// JSON with whole numbers of any size, which JSON.parse would round.
import { CryoshimError } from "../../shim/error.js";

export type Json = null | boolean | number | bigint | string | Json[] | { [key: string]: Json };
export type JsonObject = { [key: string]: Json };

const MAX_DEPTH = 200;
const NUMBER = /-?\d+(\.\d+)?([eE][-+]?\d+)?/y;
const BLANK = /[ \t\r\n]*/y;

class Parser {
  #at = 0;
  readonly #text: string;
  readonly #name: string;

  constructor(text: string, name: string) {
    this.#text = text;
    this.#name = name;
  }

  #broken(why: string): CryoshimError {
    return new CryoshimError("ERR_JSON", {
      what: `cannot read JSON of \`${this.#name}\` at character ${this.#at}`,
      why,
      fix: "give what `crit decode` has printed",
    });
  }

  #token(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  #peek(): string | undefined {
    this.#token(BLANK);
    return this.#text[this.#at];
  }

  #expect(character: string): void {
    if (this.#peek() !== character) throw this.#broken(`"${character}" is missing`);
    this.#at++;
  }

  #string(): string {
    // The pattern would need a stack frame per character for long ones (base64): look for the end first.
    if (this.#text[this.#at] !== '"') throw this.#broken("a string is missing");
    let end = this.#at + 1;
    for (;;) {
      end = this.#text.indexOf('"', end);
      if (end < 0) throw this.#broken("a string does not end");
      let slashes = 0;
      while (this.#text[end - 1 - slashes] === "\\") slashes++;
      if (slashes % 2 === 0) break;
      end++;
    }
    const raw = this.#text.slice(this.#at, end + 1);
    try {
      const value = JSON.parse(raw) as string;
      this.#at = end + 1;
      return value;
    } catch {
      throw this.#broken("that is no string");
    }
  }

  value(depth = 0): Json {
    if (depth > MAX_DEPTH) throw this.#broken("it is nested too deep");
    switch (this.#peek()) {
      case "{": {
        const object: JsonObject = Object.create(null) as JsonObject;
        this.#list("}", () => {
          this.#peek();
          const key = this.#string();
          this.#expect(":");
          object[key] = this.value(depth + 1);
        });
        return object;
      }
      case "[": {
        const list: Json[] = [];
        this.#list("]", () => list.push(this.value(depth + 1)));
        return list;
      }
      case '"':
        return this.#string();
    }
    const number = this.#token(NUMBER);
    if (number !== undefined) {
      const value = Number(number);
      return /^-?\d+$/.test(number) && !Number.isSafeInteger(value) ? BigInt(number) : value;
    }
    for (const [word, value] of [
      ["true", true],
      ["false", false],
      ["null", null],
    ] as const)
      if (this.#text.startsWith(word, this.#at)) {
        this.#at += word.length;
        return value;
      }
    throw this.#broken(this.#at >= this.#text.length ? "it ends too early" : "that is no value");
  }

  #list(close: string, one: () => void): void {
    this.#at++;
    if (this.#peek() === close) {
      this.#at++;
      return;
    }
    for (;;) {
      one();
      const next = this.#peek();
      if (next !== "," && next !== close) throw this.#broken(`"," or "${close}" is missing`);
      this.#at++;
      if (next === close) return;
    }
  }

  end(): void {
    if (this.#peek() !== undefined) throw this.#broken("something follows its end");
  }
}

/** Throws ERR_JSON naming the file and the character. */
export const parseJson = (text: string, name: string): Json => {
  const parser = new Parser(text, name);
  const value = parser.value();
  parser.end();
  return value;
};
