// SPDX-License-Identifier: Apache-2.0
// Images of any kind, in memory.
import { broken, decodeEntries, type Entry, encodeEntries, type Frame, openFrame } from "./frame.js";
import { KINDS, type KindName, kindOfMagic } from "./kinds.js";

export type { Entry } from "./frame.js";
export { KINDS, type KindName } from "./kinds.js";

export interface Image {
  kind: KindName;
  entries: Entry[];
}

/** The kind that the first bytes tell; undefined for an image of a kind not known here. Throws ERR_IMAGE. */
export const kindOf = ({ magic, outer }: Frame, name: string): KindName | undefined => {
  const kind = kindOfMagic(magic);
  if (kind !== undefined && KINDS[kind].outer !== outer)
    throw broken(name, 0, `magic 0x${(outer ?? magic).toString(16)} does not belong before that of ${kind}`);
  if (outer === undefined && kind === undefined)
    throw broken(name, 0, `magic 0x${magic.toString(16)} is not that of an image`);
  return kind;
};

/** The kind of an image by its magics; undefined for one that is an image but of a kind not known here. */
export const identify = (bytes: Uint8Array, name = "image"): KindName | undefined =>
  kindOf(openFrame(bytes, name), name);

/** Decodes an image. `name` is for messages. Throws CryoshimError ERR_IMAGE naming file and offset. */
export const decodeImage = (bytes: Uint8Array, name = "image"): Image => {
  const frame = openFrame(bytes, name);
  const kind = kindOf(frame, name);
  if (kind === undefined) throw broken(name, 4, `images of magic 0x${frame.magic.toString(16)} are not supported`);
  return { kind, entries: decodeEntries(KINDS[kind], bytes, frame.start, name) };
};

/** Encodes an image; what decodeImage read of a file of CRIU's becomes the same bytes again. */
export const encodeImage = ({ kind, entries }: Image): Uint8Array => encodeEntries(KINDS[kind], entries);
