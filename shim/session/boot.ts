// SPDX-License-Identifier: Apache-2.0
// What the launcher starts: runs the session (main.ts) from V8's code cache, where an earlier session has left one. Compiling it
// takes 10 to 20 ms of each start, and what is compiled when it is first called some of the freeze.
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { wrap } from "node:module";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { constants, Script } from "node:vm";
import { stateDir } from "./plugin-dir.js";

declare global {
  /** import() of a file that is no part of the session; not there where it has not been started by this file. */
  var importFile: ((url: string) => Promise<unknown>) | undefined;
}

/** The name of this build of the session (scripts/build.mjs): V8 itself compares no more than the source's length. */
declare const SESSION_BUILD: string;

const NAME = `${SESSION_BUILD}-${process.version}`;

const filename = join(__dirname, "session.cjs");
const source = wrap(readFileSync(filename, "utf8"));

/** Root's alone, for it is code that root will run. */
const codeDir = (): string => join(stateDir(), "code");

const cached = (): Buffer | undefined => {
  try {
    return readFileSync(join(codeDir(), NAME));
  } catch {
    return undefined;
  }
};

/** Compiles all there is, whether it has been called or not, and leaves it to the sessions that come. */
const leaveCache = (): void => {
  const dir = codeDir();
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const making = join(dir, `${NAME}.${process.pid}`);
  setFlagsFromString("--no-lazy");
  const script = new Script(source, { filename });
  // The cache counts for the flags that it is made under.
  setFlagsFromString("--lazy");
  try {
    writeFileSync(making, script.createCachedData(), { mode: 0o600, flag: "wx" });
    renameSync(making, join(dir, NAME));
  } catch (error) {
    rmSync(making, { force: true });
    throw error;
  }
  // Of other builds.
  for (const name of readdirSync(dir)) if (name !== NAME) rmSync(join(dir, name), { force: true });
};

const cachedData = cached();
const script = new Script(source, {
  filename,
  ...(cachedData && { cachedData }),
  importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
});
if (cachedData === undefined || script.cachedDataRejected === true)
  // When nobody waits for this process any more.
  process.once("exit", (code) => {
    try {
      if (code === 0) leaveCache();
    } catch {
      // Without it the next session starts as slowly as this one.
    }
  });
// What comes from the cache has no import() of its own (Node 20: "A dynamic import callback was not specified").
globalThis.importFile = (url) => import(url);
const run = script.runInThisContext() as (...parts: unknown[]) => void;
run(exports, require, module, filename, __dirname);
