// SPDX-License-Identifier: Apache-2.0
// A checkpoint without what was in it: the same structure, no contents and no names.
import { gzipSync } from "node:zlib";
import { CryoshimError } from "../../shim/error.js";
import { visitCheckpoint } from "../checkpoint.js";
import { packingOf } from "../members.js";
import { Alias } from "./alias.js";
import { anonymiseDump } from "./dumps.js";
import { type Fate, fateOf, nameable } from "./files.js";
import { anonymiseImage } from "./image.js";
import type { Counts } from "./message.js";
import { withOutput } from "./output.js";

export interface AnonymiseOptions {
  /** The same seed gives the same replacements. Without one nobody can tell them again. */
  seed?: string;
  /** What to keep though it could tell: kinds of names. */
  keep?: readonly string[];
}
export interface FileReport {
  /** None for a dropped file whose name could tell something. */
  name?: string;
  fate: Fate;
  size: number;
  /** By field: the rule and how many values. Fields that are kept or hold messages are not listed. */
  fields: Record<string, { rule: string; count: number }>;
}
export interface Report {
  version: 1;
  seeded: boolean;
  kept: string[];
  files: FileReport[];
}

/** Images are put together in memory. */
const MAX_IMAGE = 256 << 20;
/** Two blocks of zeros: what tar makes of nothing. */
const EMPTY_TAR = gzipSync(Buffer.alloc(1024));

const tooLarge = (name: string, size: number): CryoshimError =>
  new CryoshimError("ERR_CHECKPOINT", {
    what: `cannot anonymise \`${name}\``,
    why: `it has ${size} bytes, more than ${MAX_IMAGE >> 20} MiB`,
  });

/** Writes an anonymised copy of a checkpoint. Throws CryoshimError; then nothing is written. */
export const anonymise = async (from: string, to: string, options: AnonymiseOptions = {}): Promise<Report> => {
  const alias = new Alias(options.seed);
  const keep = new Set(options.keep ?? []);
  const files: FileReport[] = [];
  let packing: ReturnType<typeof packingOf>;
  try {
    packing = packingOf(from);
  } catch (cause) {
    throw new CryoshimError("ERR_CHECKPOINT", { what: `cannot read \`${from}\``, why: String(cause), cause });
  }
  await withOutput(to, packing, async (output) => {
    const seen = new Set<string>();
    await visitCheckpoint(from, (name, size) => {
      const fate = fateOf(name);
      const report: FileReport = { fate, size, fields: {}, ...(nameable(name) ? { name } : {}) };
      files.push(report);
      if (fate === "drop") return undefined;
      if (seen.has(name))
        throw new CryoshimError("ERR_CHECKPOINT", {
          what: `cannot anonymise \`${from}\``,
          why: `${name} is in it twice`,
        });
      seen.add(name);
      if (fate === "zeros" || fate === "empty") {
        output.file(name, (out) => (fate === "zeros" ? out.zeros(size) : out.write(EMPTY_TAR)));
        return undefined;
      }
      if (size > MAX_IMAGE) throw tooLarge(name, size);
      const pieces: Buffer[] = [];
      return {
        piece: (bytes) => pieces.push(Buffer.from(bytes)),
        end: () => {
          const bytes = Buffer.concat(pieces);
          const counts: Counts = new Map();
          output.file(name, (out) => {
            if (fate === "json") out.write(anonymiseDump(name, bytes, alias, keep));
            else anonymiseImage(bytes, name, out, { alias, keep, counts });
          });
          report.fields = Object.fromEntries(counts);
        },
      };
    });
    if (!seen.has("inventory.img"))
      throw new CryoshimError("ERR_CHECKPOINT", {
        what: `cannot anonymise \`${from}\``,
        why: "it has no inventory.img",
      });
  });
  return { version: 1, seeded: options.seed !== undefined, kept: [...keep], files };
};

const FATES: Record<Fate, string> = {
  rules: "rewritten",
  zeros: "zeros of the same length",
  empty: "an empty archive",
  json: "rewritten: what is known of it",
  drop: "dropped",
};

/** The report for people. */
export const reportText = ({ files, seeded, kept }: Report): string[] => [
  ...files.flatMap(({ name = "(a file of another name)", fate, fields }) => [
    `${name}: ${FATES[fate]}`,
    ...Object.entries(fields).map(([field, { rule, count }]) => `  ${field}: ${rule}, ${count}`),
  ]),
  ...(kept.length === 0 ? [] : [`kept as asked: ${kept.join(", ")}`]),
  seeded ? "replaced by the seed: who has it can try names" : "replaced by a key that is thrown away",
];
