// SPDX-License-Identifier: Apache-2.0
// Files of a checkpoint without CRIU's framing, as JSON and back: their bytes, and where people can read them, what they say.
import type { Sink, Source } from "../io.js";
import { netlinkEntries } from "../netlink.js";
import { fromBase64, jsonString } from "./escape.js";
import { type DecodeOptions, humanSize, writeBytes } from "./image.js";
import { wrong } from "./message.js";
import type { JsonObject } from "./read.js";

export const RAW = "RAW";
/** Larger dumps of ip and iptables than that nobody reads. */
const READABLE = 1 << 20;
const PIECE = 57 * 4096;

function* piecesOf(source: Source): Generator<Uint8Array, void, void> {
  for (;;) {
    const piece = source.take(PIECE);
    if (piece.length === 0) return;
    yield piece;
  }
}

/** What people can read of it. */
const entriesOf = (contents: string, bytes: Buffer): unknown[] => {
  if (contents.includes("(iptables)") || contents.includes("(ip6tables)") || contents.includes("(nftables)"))
    return bytes
      .toString()
      .split("\n")
      .filter((line) => line !== "");
  return netlinkEntries(bytes) ?? [];
};

/** Writes a file as JSON; `members`: of an archive, what is in it. */
export const writeRaw = (
  sink: Sink,
  source: Source,
  contents: string,
  members: readonly { name: string; size: number }[] | undefined,
  { pretty = false, nopl = false }: DecodeOptions,
): void => {
  // What is read ahead to be understood, goes into the JSON all the same.
  const ahead =
    members === undefined && /\(.*(ip|tables)\)/.test(contents) ? Buffer.from(source.take(READABLE)) : undefined;
  const entries = members ?? (ahead === undefined || ahead.length === READABLE ? [] : entriesOf(contents, ahead));
  const [gap, inner] = pretty ? ["\n    ", "\n        "] : ["", ""];
  const space = pretty ? "" : " ";
  const list = entries.map((entry) => `${inner}${asciiJson(entry)}`).join(`,${space}`);
  sink.write(`{${gap}"magic": "${RAW}",${space}${gap}"contents": ${jsonString(contents)},${space}`);
  sink.write(`${gap}"entries": [${list}${entries.length === 0 ? "" : gap}],${space}${gap}`);
  if (nopl) {
    let size = ahead?.length ?? 0;
    for (const piece of piecesOf(source)) size += piece.length;
    sink.write(`"extra": "... <${humanSize(size)}>"`);
  } else
    writeBytes(
      sink,
      (function* () {
        if (ahead !== undefined) yield ahead;
        yield* piecesOf(source);
      })(),
    );
  sink.write(pretty ? "\n}" : "}");
  sink.flush();
};

const asciiJson = (value: unknown): string =>
  typeof value === "string"
    ? jsonString(value)
    : JSON.stringify(value).replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** The bytes again. Throws ERR_JSON. */
export const rawBytes = ({ extra }: JsonObject): Uint8Array => {
  if (typeof extra !== "string") throw wrong("extra", "base64 is wanted");
  if (extra.startsWith("... <")) throw wrong("extra", "it was decoded with --nopl, its data is not there");
  return fromBase64(extra);
};
