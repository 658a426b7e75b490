// SPDX-License-Identifier: Apache-2.0
// A checkpoint without what was in it: the same structure, no contents and no names.
import { writeSync } from "node:fs";
import { CryoshimError } from "../../shim/error.js";
import { visitCheckpoint } from "../checkpoint.js";
import { bytesSource, fdSource } from "../io.js";
import { packingOf } from "../members.js";
import { Alias } from "./alias.js";
import { anonymiseArchive } from "./archive.js";
import { anonymiseDump } from "./dumps.js";
import { type Fate, fateOf, nameable } from "./files.js";
import { anonymiseImage } from "./image.js";
import type { Counts, Work } from "./message.js";
import { anonymiseNetlink } from "./netlink.js";
import { withOutput } from "./output.js";
import { anonymiseText, textInPieces } from "./text.js";
import { IPTABLES, LOG, NFTABLES } from "./vocabulary.js";

export interface AnonymiseOptions {
  /** The same seed gives the same replacements. Without one nobody can tell them again. */
  seed?: string;
  /** What to keep though it could tell: kinds of names. */
  keep?: readonly string[];
  /** Replace the numbers of users and groups, too. */
  ids?: boolean;
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

/** Larger images are read entry by entry from a file. */
const IN_MEMORY = 4 << 20;
/** What is not an image, and is rewritten as a whole. */
const MAX_WHOLE = 16 << 20;

/** Files that are rewritten as a whole. */
const WHOLE: Record<"netlink" | "iptables" | "nftables" | "json", (bytes: Buffer, name: string, work: Work) => Buffer> =
  {
    netlink: anonymiseNetlink,
    // A comment of iptables-save tells its version and the time.
    iptables: (bytes, _, work) => anonymiseText(withoutComments(bytes), IPTABLES, work),
    nftables: (bytes, _, work) => anonymiseText(bytes, NFTABLES, work),
    json: (bytes, name, work) => anonymiseDump(name, bytes, work),
  };

const withoutComments = (bytes: Buffer): Buffer =>
  Buffer.from(bytes.toString("latin1").replace(/^#.*\n?/gm, ""), "latin1");

const writeAll = (fd: number, bytes: Uint8Array): void => {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
};

const tooLarge = (name: string, size: number): CryoshimError =>
  new CryoshimError("ERR_CHECKPOINT", {
    what: `cannot anonymise \`${name}\``,
    why: `it has ${size} bytes, more than ${MAX_WHOLE >> 20} MiB`,
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
    const archives: (() => Promise<void>)[] = [];
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
      const counts: Counts = new Map();
      const work = { alias, keep, counts, ids: options.ids === true };
      const told = (): void => {
        report.fields = Object.fromEntries(counts);
      };
      if (fate === "zeros") {
        const out = output.file(name);
        out.zeros(size);
        out.end();
        return undefined;
      }
      if (fate === "archive") {
        // Read at the end: an archive in an archive cannot be unpacked piece by piece where pieces are handed out.
        const secret = output.secret();
        archives.push(async () => {
          await anonymiseArchive(secret.fd, name, output.stream(name), work);
          secret.close();
          told();
        });
        return { piece: (bytes) => writeAll(secret.fd, bytes) };
      }
      if (fate === "log") {
        const out = output.file(name);
        const text = textInPieces((lines) => anonymiseText(lines, LOG, work), out.write);
        return {
          piece: text.piece,
          end: () => {
            text.end();
            out.end();
            told();
          },
        };
      }
      if (fate === "rules" && size > IN_MEMORY) {
        const secret = output.secret();
        return {
          piece: (bytes) => writeAll(secret.fd, bytes),
          end: () => {
            const out = output.file(name);
            anonymiseImage(fdSource(secret.fd, { from: 0, size }), name, out, work);
            out.end();
            secret.close();
            told();
          },
        };
      }
      if (size > MAX_WHOLE) throw tooLarge(name, size);
      const pieces: Buffer[] = [];
      return {
        piece: (bytes) => pieces.push(Buffer.from(bytes)),
        end: () => {
          const bytes = Buffer.concat(pieces);
          const out = output.file(name);
          if (fate === "rules") anonymiseImage(bytesSource(bytes), name, out, work);
          else out.write(WHOLE[fate](bytes, name, work));
          out.end();
          told();
        },
      };
    });
    for (const archive of archives) await archive();
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
  archive: "the same tree under other names, of zeros",
  netlink: "rewritten: what is known of it",
  log: "rewritten: numbers, and words that CRIU uses",
  iptables: "rewritten: numbers, and words that iptables uses",
  nftables: "rewritten: numbers, and words that nft uses",
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
