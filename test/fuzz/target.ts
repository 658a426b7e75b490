// SPDX-License-Identifier: Apache-2.0
// What the fuzzer calls: any bytes are an image that comes back from JSON as it was, or an error of ours.
import { decodeImage, encodeImage } from "../../crit/image.js";
import { bytesSource, type Sink } from "../../crit/io.js";
import { writeImage, writeJson } from "../../crit/json/image.js";
import { parseJson } from "../../crit/json/read.js";
import { streamImage } from "../../crit/stream.js";
import { CryoshimError } from "../../shim/error.js";

const collect = (work: (sink: Sink) => void): Buffer => {
  const parts: Buffer[] = [];
  work({ write: (data) => parts.push(Buffer.from(data as string)), flush: () => {} });
  return Buffer.concat(parts);
};

export const fuzz = (data: Buffer): void => {
  try {
    const image = decodeImage(data, "fuzzed");
    const json = collect((sink) =>
      writeJson(sink, streamImage(bytesSource(data), "fuzzed"), { pretty: true }),
    ).toString();
    const again = collect((sink) => writeImage(sink, parseJson(json, "json")));
    if (!again.equals(encodeImage(image))) throw new Error("JSON has lost something");
  } catch (error) {
    if (!(error instanceof CryoshimError)) throw error;
  }
};
