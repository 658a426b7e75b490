// SPDX-License-Identifier: Apache-2.0
import { lstatSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { pathToFileURL } from "node:url";
import { decodeImage, encodeImage } from "../../crit/image.js";
import { CryoshimError, reason } from "../error.js";
import type { Log } from "../session/log.js";
import type { Carrier } from "./carrier.js";
import { mqueueCarrier } from "./mqueue.js";

/** The carriers that cryoshim brings. */
const BUILT_IN: Record<string, () => Carrier> = { mqueue: mqueueCarrier };

/** Says that images need us, and what of us. The launcher looks for it (native/launcher/launcher.c, NEEDS_US). */
const NEEDS_US = "cryoshim.img";

/** Writes into the images which carriers their restore needs, if any. */
export const writeNeeds = (imagesDir: string, carriers: readonly Carrier[]): void => {
  const needed = carriers.filter((carrier) => carrier.needed?.()).map(({ name }) => name);
  if (needed.length === 0) return;
  const bytes = encodeImage({ kind: "CRYOSHIM", entries: [{ message: { version: 1, carriers: needed } }] });
  writeFileSync(join(imagesDir, NEEDS_US), bytes, { mode: 0o600, flag: "wx" });
};

/** The carriers that images need. Throws ERR_IMAGE, or ERR_CARRIER for one that this version does not know. */
const readNeeds = (imagesDir: string): string[] => {
  const path = join(imagesDir, NEEDS_US);
  if (statSync(path, { throwIfNoEntry: false }) === undefined) return [];
  const [entry] = decodeImage(readFileSync(path), NEEDS_US).entries;
  const { version, carriers = [] } = (entry?.message ?? {}) as { version?: number; carriers?: string[] };
  const unknown = carriers.filter((name) => !Object.hasOwn(BUILT_IN, name));
  if (version === 1 && unknown.length === 0) return carriers;
  throw new CryoshimError("ERR_CARRIER", {
    what: `cannot restore \`${imagesDir}\``,
    why: `its images need ${unknown.join(", ") || `version ${version}`}, which this cryoshim does not have`,
    fix: "restore with the version of cryoshim that made them, or a newer one",
  });
};

/** We run it as root: so root alone may be able to write it, or to replace it. */
const checkOwner = (file: string): void => {
  for (let path = file; ; path = dirname(path)) {
    const st = lstatSync(path);
    const sticky = st.isDirectory() && (st.mode & 0o1000) !== 0;
    if (st.isSymbolicLink()) throw new Error(`${path} is a symbolic link`);
    if (st.uid !== 0 || ((st.mode & 0o022) !== 0 && !sticky)) throw new Error(`others than root can write ${path}`);
    if (path === "/") return;
  }
};

const load = async (file: string): Promise<Carrier> => {
  try {
    if (!isAbsolute(file)) throw new Error("not an absolute path");
    checkOwner(file);
    const { default: carrier } = (await import(pathToFileURL(file).href)) as { default?: Carrier };
    if (typeof carrier?.name !== "string") throw new Error("its default export is no carrier");
    return carrier;
  } catch (error) {
    throw new CryoshimError("ERR_CARRIER", {
      what: `cannot load the carrier \`${file}\``,
      why: reason(error),
      fix: "correct [carriers] extra in the configuration",
      cause: error,
    });
  }
};

/** The carriers of a session: those of ours that it may need, then those that the configuration names. */
export const carriersFor = async (
  settings: { carriers: { extra: readonly string[] } },
  kind: "dump" | "restore" | "pre-dump",
  imagesDir: string,
): Promise<Carrier[]> => {
  const names = {
    dump: Object.keys(BUILT_IN),
    "pre-dump": [],
    restore: kind === "restore" ? readNeeds(imagesDir) : [],
  };
  const extra = await Promise.all(settings.carriers.extra.map(load));
  return [...names[kind].map((name) => BUILT_IN[name]!()), ...extra];
};

/** Lets carriers make ready what takes long, before the freeze. One that cannot says so again when it is needed. */
export const prepareCarriers = (carriers: readonly Carrier[], root: number, log: Log): void => {
  for (const carrier of carriers) {
    try {
      carrier.prepare?.(root);
    } catch (error) {
      log("Warn ", `${carrier.name}: ${reason(error)}`);
    }
  }
};
