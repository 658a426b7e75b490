// SPDX-License-Identifier: Apache-2.0
import { lstatSync } from "node:fs";
import { dirname, isAbsolute } from "node:path";
import { pathToFileURL } from "node:url";
import { CryoshimError, reason } from "../error.js";
import type { Carrier } from "./carrier.js";

/** The carriers that cryoshim brings: none yet. */
const BUILT_IN: readonly Carrier[] = [];

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

/** The carriers of a session: ours, then those that the configuration names. */
export const carriersFor = async (settings: { carriers: { extra: readonly string[] } }): Promise<Carrier[]> => [
  ...BUILT_IN,
  ...(await Promise.all(settings.carriers.extra.map(load))),
];
