// SPDX-License-Identifier: Apache-2.0
import { lstatSync, readdirSync, readFileSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { pathToFileURL } from "node:url";
import { decodeAs, encodeEntries } from "../../crit/frame.js";
import { needsKind } from "../../crit/schema/cryoshim.js";
import type { Settings } from "../engine/launch-file.js";
import { CryoshimError, reason } from "../error.js";
import type { Log } from "../session/log.js";
import type { Carrier } from "./carrier.js";

/** Says that images need us, and what of us. The launcher looks for it (native/launcher/launcher.c, NEEDS_US). */
const NEEDS_US = "cryoshim.img";

/** A dump into a directory that has images already replaces them, as CRIU does with its own; a link there is not followed. */
export const removeImages = (imagesDir: string): void => {
  for (const name of readdirSync(imagesDir).filter((each) => /^cryoshim(-[a-z]+)?\.img$/.test(each)))
    unlinkSync(join(imagesDir, name));
};

/** Writes into the images which carriers their restore needs, if any. */
export const writeNeeds = (imagesDir: string, carriers: readonly Carrier[]): void => {
  const needed = carriers.filter((carrier) => carrier.needed?.()).map(({ name }) => name);
  if (needed.length === 0) return;
  const bytes = encodeEntries(needsKind, [{ message: { version: 1, carriers: needed } }]);
  writeFileSync(join(imagesDir, NEEDS_US), bytes, { mode: 0o600, flag: "wx" });
};

const unable = (imagesDir: string, what: string): CryoshimError =>
  new CryoshimError("ERR_CARRIER", {
    what: `cannot restore \`${imagesDir}\``,
    why: `its images need ${what}, which this cryoshim does not have`,
    fix: "restore with the version of cryoshim that made them, or a newer one",
  });

/** The carriers that cryoshim.img names. */
const listed = (path: string): string[] => {
  const [entry] = decodeAs(needsKind, readFileSync(path), NEEDS_US);
  const { version, carriers = [] } = (entry?.message ?? {}) as { version?: number; carriers?: string[] };
  if (version !== 1) throw unable(dirname(path), `version ${version}`);
  return carriers;
};

/** What CRIU alone may restore, and better with us: an image of the carrier's is there. */
const WELCOME: readonly [name: string, image: string][] = [["remote", "cryoshim-remote.img"]];

const isThere = (path: string): boolean => statSync(path, { throwIfNoEntry: false }) !== undefined;

/** The carriers that a restore asks for. Throws ERR_IMAGE, or ERR_CARRIER for one that this version does not know. */
const neededBy = async (imagesDir: string, settings: Settings): Promise<Carrier[]> => {
  const path = join(imagesDir, NEEDS_US);
  const welcome = WELCOME.filter(([, image]) => isThere(join(imagesDir, image))).map(([name]) => name);
  if (!isThere(path) && welcome.length === 0) return [];
  const names = new Set([...(isThere(path) ? listed(path) : []), ...welcome]);
  const { BUILT_IN } = await import("./built-in.js");
  const unknown = [...names].filter((name) => !Object.hasOwn(BUILT_IN, name));
  if (unknown.length === 0) return [...names].map((name) => BUILT_IN[name]!(settings));
  throw unable(imagesDir, unknown.join(", "));
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
    const { default: carrier } = (await (globalThis.importFile ?? ((url: string): Promise<unknown> => import(url)))(
      pathToFileURL(file).href,
    )) as { default?: Carrier };
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

/** What the engine is asked for. */
export type WorkKind = "dump" | "pre-dump" | "restore";

/** The carriers of one request, loaded when they are first asked for: in a dump while the engine starts. */
export type Carriers = () => Promise<readonly Carrier[]>;

/** Makes the carriers that a request may need: those of ours, then those that the configuration names. */
export type CarrierSource = (kind: WorkKind, imagesDir: string) => Carriers;

/** Throws ERR_CARRIER for a carrier of the configuration that cannot be loaded. */
export const carrierSource = async (settings: Settings): Promise<CarrierSource> => {
  const extra = await Promise.all(settings.carriers.extra.map(load));
  const ours = async (kind: WorkKind, imagesDir: string): Promise<Carrier[]> => {
    if (kind === "restore") return neededBy(imagesDir, settings);
    if (kind === "pre-dump") return [];
    const { BUILT_IN } = await import("./built-in.js");
    return Object.values(BUILT_IN).map((make) => make(settings));
  };
  return (kind, imagesDir) => {
    let loading: Promise<readonly Carrier[]> | undefined;
    return () => (loading ??= ours(kind, imagesDir).then((carriers) => [...carriers, ...extra]));
  };
};

/** Lets carriers make ready what takes long, before the freeze. One that cannot says so again when it is needed. */
export const prepareCarriers = async (carriers: Carriers, root: number, log: Log): Promise<void> => {
  // What keeps them from loading is told when the engine begins.
  for (const carrier of await carriers().catch(() => [])) {
    try {
      carrier.prepare?.(root);
    } catch (error) {
      log("Warn ", `${carrier.name}: ${reason(error)}`);
    }
  }
};
