// SPDX-License-Identifier: Apache-2.0
// One image: its messages by the rules, zeros for what follows them.
import { frameMessage, magicsOf } from "../frame.js";
import type { Source } from "../io.js";
import { KINDS } from "../kinds.js";
import { streamImage } from "../stream.js";
import { anonymiseMessage, type Work } from "./message.js";

export interface Out {
  write(bytes: Uint8Array): void;
  /** So many zero bytes. */
  zeros(size: number): void;
}

/** Throws ERR_IMAGE naming file and offset. */
export const anonymiseImage = (source: Source, name: string, out: Out, work: Work): void => {
  const image = streamImage(source, name);
  const kind = KINDS[image.kind];
  out.write(magicsOf(kind));
  for (const { schema, message, payload } of image.entries) {
    for (const part of frameMessage(schema, anonymiseMessage(schema, message, work))) out.write(part);
    // An IPC queue's messages follow; every other kind has bytes or nothing.
    for (const nested of payload.nested()) {
      for (const part of frameMessage(nested.schema, anonymiseMessage(nested.schema, nested.message, work)))
        out.write(part);
      out.zeros(nested.bytes.length);
    }
    for (const piece of payload.pieces()) out.zeros(piece.length);
  }
};
